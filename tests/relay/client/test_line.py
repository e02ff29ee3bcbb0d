"""When a live connection is given up: its clock is wrong, or nobody answers what was submitted."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import collect, enrol, opened, texts


@pytest.mark.parametrize("count", [1, 50])
async def test_a_clock_that_is_set_meanwhile_does_not_matter(
    clock: MockClock, fed: Federation, tmp_path: Path, count: int
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"before", wait="stored")
        for skew in (7_200_000, 0):
            before = alice.stats.reconnects
            fed.skew = skew
            with trio.fail_after(5):
                for i in range(count):
                    await alice.send(bob.card, str(i).encode(), wait="queued")
                await alice.drained()
            assert alice.stats.reconnects == before + 1
        assert texts(await collect(bob, 2 * count + 1)) == ["before", *(2 * [str(i) for i in range(count)])]
        assert not alice.failures


async def test_a_node_that_pongs_and_does_not_answer_is_left(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.look_up(bob.card)
        fed.cells["norden/1"].faults.mute = 1
        with trio.fail_after(40):
            await alice.send(bob.card, b"x", wait="stored")
        assert texts(await collect(bob, 1)) == ["x"] and alice.stats.reconnects == 1
        await trio.sleep(300)
        assert alice.stats.reconnects == 1  # nothing waits for an answer: silence is no fault
