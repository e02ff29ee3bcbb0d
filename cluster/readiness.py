"""Is a node ready for clients, and if not, why? What /readyz says, and what a node waits for that is to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog
import trio

from relay.limits import RAFT_ELECTION, SECOND

_log = structlog.get_logger("cluster.node")
MAJORITY: Final = "waiting for a majority of the cell"
_LOOK_S: Final = 0.5  # seconds between two looks whether the cell has a leader
_PATIENCE_S: Final = 2.0 * RAFT_ELECTION / SECOND  # seconds that an election takes, and a second one after a draw


class Led(Protocol):
    """What a replicated journal knows of who leads. One that leads alone gives it up after an election timeout."""

    @property
    def leads(self) -> bool: ...
    @property
    def leader_node(self) -> str: ...


class Readiness:
    """Of one life of a node, from "starting" on. `served` is called when clients are served for the first time."""

    def __init__(self, served: Callable[[], None]) -> None:
        self._served = served
        self._phase = "starting"  # empty: clients are served
        self._stuck = ""  # why nothing can be committed, although clients are served
        self._idle = trio.Event()
        self._idle.set()

    @property
    def reason(self) -> str | None:
        """Why clients had better go elsewhere, in a few words; None where they are welcome."""
        return self._phase or self._stuck or None

    def say(self, phase: str) -> None:
        """Nobody is served: not yet, or no more, since this life of the node failed."""
        self._phase = phase
        self._idle.set()

    def open(self) -> None:
        """Clients are served."""
        self._phase, self._idle = "", trio.Event()
        self._served()

    def close(self) -> None:
        """They are sent away, and what is left to do ends by itself."""
        self._phase = "stopping"

    async def give_up(self, asked: trio.Event, life: trio.CancelScope) -> None:
        """Asked to stop while nobody is served, nor sent away: there is nothing to drain, and nothing to wait for."""
        await asked.wait()
        await self._idle.wait()
        life.cancel()

    async def watch(self, cell: Led, reaches: Callable[[str], bool]) -> None:
        """Until cancelled: look whether this node could have anything committed. `reaches`: is there a link to it?"""
        since = trio.current_time()
        while True:
            stuck, now = _stuck(cell, reaches), trio.current_time()
            since = since if stuck else now
            self._note(stuck if now - since >= _PATIENCE_S else "")
            await trio.sleep(_LOOK_S)

    def _note(self, stuck: str) -> None:
        if stuck and not self._stuck:
            _log.warning("cannot_commit", text=stuck)
        elif self._stuck and not stuck:
            _log.info("commits_again")
        self._stuck = stuck


def _stuck(cell: Led, reaches: Callable[[str], bool]) -> str:
    if cell.leads:
        return ""
    leader = cell.leader_node
    if not leader:
        return f"{MAJORITY}: nobody leads it"
    return "" if reaches(leader) else f"no link to {leader}, which leads the cell"
