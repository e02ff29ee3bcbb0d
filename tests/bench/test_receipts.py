"""The bench of receipts: what it sums up, and that it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.receipts import Half, measure, summary, told


def half(accepted: int, cpu: float, proven: int = 0) -> Half:
    return Half(accepted=accepted, answered=accepted, proven=proven, blocks=proven // 10, seconds=2.0, node_cpu_s=cpu)


def test_ratios_of_rounds_and_of_all() -> None:
    played = [(half(1_000, 0.1), half(950, 0.1, 950)), (half(2_000, 0.2), half(2_100, 0.21, 2_100))]
    found = summary(played)
    assert found["without_per_s"] == 750 and found["with_per_s"] == 762
    assert found["ratios"] == [0.95, 1.05] and found["ratio_median"] == 1.0 and found["ratio"] == 1.0167
    assert found["ratio_best"] == 1.05
    assert found["proven"] == 3_050 and found["unproven"] == 0
    assert found["node_cpu_us"] == [100.0, 101.6]
    assert found["ratio_mean"] == (0.9987, 0.05) and found["node_cpu_ratio_mean"] == (1.026, 0.0263)
    assert "ratio 0.950" in told(*played[0]) and "10 a block" in told(*played[0])


async def test_every_envelope_gets_its_receipt(tmp_path: Path) -> None:
    [(without, with_)] = await measure(tmp_path / "run", nodes=1, rounds=1, seconds=0.5, senders=2, window=64)
    assert without.accepted and not without.proven
    assert with_.accepted and with_.proven == with_.answered and not with_.unproven


@pytest.mark.parametrize("accepted", [0, 7])
def test_a_half_in_which_nothing_came_is_told_too(accepted: int) -> None:
    assert "proven 0" in told(half(7, 0.1), half(accepted, 0.1))
