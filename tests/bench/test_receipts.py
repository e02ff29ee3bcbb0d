"""The bench of receipts: what it sums up, and that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.receipts import Half, measure, orders, summary, told
from relay.errors import PeerError


def half(accepted: int, cpu: float, proven: int = 0) -> Half:
    return Half(accepted, proven, proven // 10, seconds=2.0, node_cpu_s=cpu, load_cpu_s=cpu / 4)


def test_ratios_of_rounds_and_of_all() -> None:
    played = [(half(1_000, 0.1), half(950, 0.1, 950)), (half(2_000, 0.2), half(2_100, 0.21, 2_100))]
    found = summary(played)
    assert found["without"] == {"per_s": 750, "node_cpu_us": 100.0, "load_cpu_us": 25.0}
    assert found["with"] == {"per_s": 762, "node_cpu_us": 101.6, "load_cpu_us": 25.4}
    assert found["ratio"] == 1.016 and found["node_cpu_ratio"] == 1.016
    assert found["ratio_mean"] == (0.9987, 0.05) and found["node_cpu_ratio_mean"] == (1.026, 0.0263)
    assert summary([*played, (half(7, 0.1), half(0, 0.1))])["empty"] == 1 and found["empty"] == 0
    assert found["proven"] == 3_050 and found["rounds"] == [[500, 475], [1_000, 1_050]]
    assert "ratio 0.950" in told(*played[0]) and "10 a block" in told(*played[0])


def test_either_half_comes_first_as_often() -> None:
    assert sorted(orders(10)) == [(False, True)] * 5 + [(True, False)] * 5


async def test_every_envelope_of_a_half_gets_its_receipt(tmp_path: Path) -> None:
    [(without, with_)] = await measure(tmp_path / "run", nodes=1, rounds=1, seconds=0.5, senders=2, window=64)
    assert without.accepted and not without.proven
    assert with_.accepted and with_.proven


@pytest.mark.parametrize("accepted", [0, 7])
def test_a_half_in_which_nothing_came_is_told_but_not_summed_up(accepted: int) -> None:
    pair = half(7, 0.1), half(accepted, 0.1)
    assert "proven 0" in told(*pair)
    if not accepted:
        with pytest.raises(PeerError, match="no round passed"):
            summary([pair])
