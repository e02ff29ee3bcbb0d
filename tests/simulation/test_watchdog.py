"""A world that hangs comes to an end, as a violation."""

from __future__ import annotations

import pytest
import trio

from tests.simulation import watchdog
from tests.simulation.swarm import reason
from tests.simulation.watchdog import standing_still
from tests.simulation.world import Violation, World, simulate


async def going_round(world: World) -> None:
    while True:
        await trio.lowlevel.checkpoint()


async def never_at_a_checkpoint(world: World) -> None:
    await trio.sleep(1.0)
    while True:
        pass


async def going_on_for_ever(world: World) -> None:
    while True:  # noqa: ASYNC110
        await trio.sleep(1.0)


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (going_round, "stands still at 0.0"),
        (never_at_a_checkpoint, "stands still at 1.0"),
        (going_on_for_ever, "the world came to"),
    ],
)
def test_a_world_that_hangs_is_a_violation(monkeypatch: pytest.MonkeyPatch, main, words: str) -> None:
    monkeypatch.setattr(watchdog, "LOOK_S", 0.02)
    monkeypatch.setattr(watchdog, "STILL_S", 0.3)
    worlds: list[World] = []

    async def run(world: World) -> None:
        worlds.append(world)
        await main(world)

    with pytest.raises((BaseExceptionGroup, Violation, trio.TrioInternalError)) as caught, standing_still(worlds, 0.6):
        simulate(1, run)
    assert words in reason(caught.value)
