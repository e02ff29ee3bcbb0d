"""Nodes whose disks are simulated and whose time is trio's: a replicated cell without a thread, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relay.journal.api import LogStore, Meta
from relay.ports import Residency
from tests.cluster.journal.conftest import NODES, Anything, Node, a_cell
from tests.relay.journal.conftest import FakeClock, FakeEnv
from tests.simulation.store import SimDisk


class FlowingClock(FakeClock):
    """Goes on with trio's time, and does what tests do with it beside that."""

    def _passed_ms(self) -> int:
        return int(trio.current_time() * 1000)

    def wall_ms(self) -> int:
        return self.wall + self._passed_ms()

    def monotonic_ms(self) -> int:
        return self.steady + self._passed_ms()


class VirtualEnv(FakeEnv):
    """The machine of one node; it outlives its processes. Several may have the same `clock`."""

    def __init__(self, name: str, clock: FakeClock, salt: str = "") -> None:
        super().__init__(int.from_bytes((name + salt).encode()))
        self.clock = clock
        self.disk = SimDisk(Random(name + salt))
        self.process = SimpleNamespace(dead=False)

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        return await self.disk.open(self.process, directory, fresh)

    def store_exists(self, directory: Path) -> bool:
        return self.disk.store_exists()

    def set_aside(self, directory: Path, store: bytes) -> None:
        self.disk.set_aside()


def run_virtually(function: Callable[..., Any], *, clock: Any, instruments: Any) -> Any:
    """A runner for pytest.mark.trio: time passes only when everybody waits."""
    assert clock is None
    return trio.run(function, clock=MockClock(autojump_threshold=0), instruments=instruments)


virtually = pytest.mark.trio(run=run_virtually)  # of each test: a module's mark comes after pytest-trio's own


def anything(name: str) -> Residency:
    return Anything()


@asynccontextmanager
async def virtual_cell(
    path: Path, nodes: tuple[str, ...] = NODES, clock: FakeClock | None = None,
    residency: Callable[[str], Residency] = anything, salt: str = "",
) -> AsyncIterator[Any]:  # fmt: skip
    """A whole cell: all of `nodes` vote, and have the same blocks. `world.machines`: their environments; what is random
    there is the same each time, but for another `salt`."""
    clock, machines = clock or FlowingClock(), dict[str, VirtualEnv]()

    def machine(name: str) -> VirtualEnv:
        return machines.setdefault(name, VirtualEnv(name, clock, salt))

    async with a_cell(path, machine, nodes, residency, patience_s=30.0) as world:
        world.machines = machines
        await world.whole()
        running: list[Node] = list(world.running.values())
        await world.until(lambda: len({node.journal.tip for node in running}) == 1)
        yield world
