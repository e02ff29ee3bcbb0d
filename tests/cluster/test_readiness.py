"""When a node says that it is ready, when it takes that back, and what a stop waits for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import structlog.testing
import trio

from cluster.readiness import Readiness


@dataclass
class Cell:
    """Who leads, as one node knows it, and whom it reaches."""

    leads: bool = False
    leader_node: str = "n2"
    reached: set[str] = field(default_factory=lambda: {"n2", "n3"})

    def reaches(self, node: str) -> bool:
        return node in self.reached


async def reasons(cell: Cell, readiness: Readiness, *changes: tuple[float, str, object]) -> list[str | None]:
    """What is said a moment after so many seconds, each time before the change comes."""
    said = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(readiness.watch, cell, cell.reaches)
        for seconds, key, value in changes:
            await trio.sleep(seconds)
            said.append(readiness.reason)
            setattr(cell, key, value)
        nursery.cancel_scope.cancel()
    return said


async def test_without_a_leader_it_is_not_ready_until_one_leads_again(autojump_clock: Any) -> None:
    served: list[bool] = []
    readiness, cell = Readiness(lambda: served.append(True)), Cell()
    assert readiness.reason == "starting" and not served
    readiness.open()
    with structlog.testing.capture_logs() as logs:
        said = await reasons(
            cell, readiness, (60, "leader_node", ""), (1.4, "leader_node", "n3"), (60, "leader_node", ""),
            (3.1, "leader_node", ""), (3600, "leader_node", "n2"), (0.6, "leads", True), (9, "leader_node", "n1"),
        )  # fmt: skip
    lost = "waiting for a majority of the cell: nobody leads it"
    assert said == [None, None, None, lost, lost, None, None]
    told = [(entry["event"], entry["log_level"]) for entry in logs]
    assert told == [("cannot_commit", "warning"), ("commits_again", "info")] and logs[0]["text"] == lost
    assert served == [True], "it never ceased to serve"


async def test_a_leader_that_cannot_be_reached_takes_nothing(autojump_clock: Any) -> None:
    readiness, cell = Readiness(lambda: None), Cell()
    readiness.open()
    said = await reasons(
        cell, readiness, (9, "reached", {"n3"}), (1.4, "reached", {"n2"}), (9, "reached", set()),
        (3.1, "leads", True), (0.6, "leads", True),
    )  # fmt: skip
    assert said == [None, None, None, "no link to n2, which leads the cell", None]


async def test_a_stop_waits_for_those_who_are_served(autojump_clock: Any) -> None:
    readiness = Readiness(lambda: None)
    assert await gives_up(readiness)
    readiness.say("applying the log")
    assert await gives_up(readiness)
    readiness.open()
    assert not await gives_up(readiness)
    readiness.close()
    assert readiness.reason == "stopping"
    assert not await gives_up(readiness), "a checkpoint is being saved, the leadership handed over"
    readiness.say("joining the cell")
    assert await gives_up(readiness), "that failed"


async def gives_up(readiness: Readiness) -> bool:
    asked, life = trio.Event(), trio.CancelScope()
    asked.set()
    with trio.move_on_after(60), life:
        await readiness.give_up(asked, life)
    return life.cancel_called
