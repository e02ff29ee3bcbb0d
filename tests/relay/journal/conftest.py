"""A fake Env with a clock that tests set, and both journals behind one fixture."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from relay.journal import files
from relay.journal.api import LogStore, Meta
from relay.journal.memory import MemoryJournal
from relay.journal.portal import Portal, open_portal
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from relay.journal.store import open_store
from relay.ports import Journal, Residency
from tests.relay.journal.rigs import RealRig, Rig, SimRig
from tests.residency import AnythingGoes

START = 1_800_000_000_000
CELL = "norden/1"
FEDERATION = bytes(range(32))


class FakeClock:
    """Moves only when a test says so."""

    def __init__(self) -> None:
        self.wall, self.steady = START, 5_000

    def wall_ms(self) -> int:
        return self.wall

    def monotonic_ms(self) -> int:
        return self.steady

    def pass_ms(self, ms: int) -> None:
        self.wall += ms
        self.steady += ms


class FakeEnv:
    """Clock, randomness and disk; no network."""

    portal: Portal  # set by whoever opens stores

    def __init__(self, seed: int = 1) -> None:
        self.clock = FakeClock()
        self._random = random.Random(seed)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def random_float(self) -> float:
        return self._random.random()

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        raise OSError("no network here")

    async def listen(self, host: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        raise OSError("no network here")

    async def listen_unix(self, path: Path) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        raise OSError("no network here")

    def data_dir(self, path: Path) -> Path:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        return await open_store(self.portal, self.data_dir(directory) / files.STORE_FILE, fresh)

    def store_exists(self, directory: Path) -> bool:
        return files.store_exists(directory)

    def set_aside(self, directory: Path, store: bytes) -> None:
        files.set_aside(directory, store, self.clock.wall_ms())

    def bootstrap(self, directory: Path) -> bool:
        return files.bootstrap(directory)

    def was_removed(self, directory: Path) -> bool:
        return files.was_removed(directory)

    def keep_out(self, directory: Path) -> None:
        files.keep_out(directory)

    def bootstrapped(self, directory: Path) -> None:
        files.bootstrapped(directory)


RING = StorageRing([b"k" * 32])


@asynccontextmanager
async def solo(
    path: Path,
    *,
    env: FakeEnv | None = None,
    ring: StorageRing = RING,
    residency: Residency | None = None,
    cell: str = CELL,
    federation: bytes = FEDERATION,
    portal: Portal | None = None,
) -> AsyncIterator[Journal]:
    """open_solo with defaults, in a portal of its own."""
    env = env or FakeEnv()
    async with open_portal() as own:
        env.portal = portal or own
        async with open_solo(
            path, env=env, ring=ring, residency=residency or AnythingGoes(), cell=cell, federation=federation
        ) as journal:
            yield journal


Opener = Callable[..., AbstractAsyncContextManager[Journal]]


@pytest.fixture(params=["real", "simulated"])
async def rig(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any) -> AsyncIterator[Rig]:
    """Where a store is opened: on a real disk, and on a simulated one."""
    if request.param == "simulated":
        yield SimRig()
        return
    async with open_portal() as portal:
        yield RealRig(tmp_path, portal, monkeypatch)


@pytest.fixture
def env(request: pytest.FixtureRequest) -> FakeEnv:
    """What the journal of a test runs in; a replicated one needs a clock that goes on."""
    made = FakeEnv()
    if "open_journal" in request.fixturenames and request.getfixturevalue("kind").startswith("raft"):
        made.clock = virtual().FlowingClock()
    return made


@pytest.fixture(name="solo")
def _solo() -> Opener:
    return solo


def virtual() -> Any:
    """The replicated journal's tests, which build on this file."""
    from tests.cluster.journal import virtual

    return virtual


def _virtually(*arguments: Any, **named: Any) -> Any:
    return virtual().run_virtually(*arguments, **named)


_VIRTUAL = pytest.mark.trio(run=_virtually)
_REPLICATED = [pytest.param(f"raft of {count}", marks=_VIRTUAL) for count in ("one", "three")]


@pytest.fixture(params=["memory", "solo", *_REPLICATED])
def kind(request: pytest.FixtureRequest) -> str:
    """Of journal."""
    found: str = request.param
    return found


@pytest.fixture
def open_journal(kind: str, tmp_path: Path, env: FakeEnv) -> Opener:
    """An opener of a new journal, for each implementation. A replicated one begins with blocks of its own; what is
    opened of a cell of three is one that follows."""

    @asynccontextmanager
    async def memory(residency: Residency | None = None) -> AsyncIterator[Journal]:
        yield MemoryJournal(env, CELL, residency)

    @asynccontextmanager
    async def on_disk(residency: Residency | None = None) -> AsyncIterator[Journal]:
        async with solo(tmp_path, env=env, residency=residency) as journal:
            yield journal

    @asynccontextmanager
    async def replicated(residency: Residency | None = None) -> AsyncIterator[Journal]:
        nodes = ("n1",) if kind == "raft of one" else ("n1", "n2", "n3")

        def guard(name: str) -> Residency:
            if residency is None:
                return AnythingGoes()
            return residency if name == nodes[-1] else type(residency)()

        async with virtual().virtual_cell(tmp_path, nodes, env.clock, guard) as world:
            yield world.running[nodes[-1]].journal

    return {"memory": memory, "solo": on_disk}.get(kind, replicated)
