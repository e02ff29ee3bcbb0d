"""A real and a simulated disk behind one face, for the contract of LogStore."""

from __future__ import annotations

import errno
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from relay.core.codec import digest
from relay.journal import files
from relay.journal.api import BlockRow, LogStore, Meta
from relay.journal.mark import Mark
from relay.journal.portal import Portal
from relay.journal.store import open_store
from tests.simulation.store import SimDisk

FRESH = Meta(bytes(32), "norden/1", b"L" * 16, b"S" * 16, b"check", 1, bytes(32), 0, 0, b"")


def row(index: int, term: int = 0, size: int = 100, fork: str = "") -> BlockRow:
    """A block of a log; of another one where `fork` says so."""
    before = digest(b"%d %s" % (index - 1, fork.encode())) if index > 1 else bytes(32)
    own = digest(b"%d %s" % (index, fork.encode()))
    return BlockRow(index, term, before, 1_000 + index, own, bytes([index % 256]) * size)


def rows(first: int, last: int, term: int = 0, **more: Any) -> list[BlockRow]:
    return [row(index, term, **more) for index in range(first, last + 1)]


class RealRig:
    """A directory. What happens to it happens when no store is open, but `killed` and `failing_mark`."""

    def __init__(self, path: Path, portal: Portal, patch: pytest.MonkeyPatch) -> None:
        self._path, self._portal, self._patch = path, portal, patch
        self._count = 0
        self.directory = path / "0"
        self.directory.mkdir()

    async def open(self, fresh: Meta = FRESH) -> LogStore:
        return await open_store(self._portal, self.directory / files.STORE_FILE, fresh)

    def _next(self) -> Path:
        self._count += 1
        return self._path / str(self._count)

    async def killed(self, store: LogStore) -> None:
        """The process dies while it does nothing: what lies there then."""
        shutil.copytree(self.directory, there := self._next())
        await store.close()
        self.directory = there

    def copy(self) -> Path:
        """A backup."""
        shutil.copytree(self.directory, there := self._next())
        return there

    def restore(self, backup: Path, *, mark: bool) -> None:
        """Bring it back, with its mark or beside the newer one."""
        file = self.directory / files.STORE_FILE
        files.wal_file(file).unlink(missing_ok=True)
        shutil.copy(backup / files.STORE_FILE, file)
        if mark:
            shutil.copy(files.mark_file(backup / files.STORE_FILE), files.mark_file(file))

    def lose_tail(self) -> None:
        """Half of the write-ahead log, after `killed`."""
        wal = files.wal_file(self.directory / files.STORE_FILE)
        with wal.open("r+b") as file:
            file.truncate(wal.stat().st_size // 2)

    def lose_mark(self) -> None:
        files.mark_file(self.directory / files.STORE_FILE).unlink()

    def failing_mark(self) -> None:
        """From now on the mark cannot be written, the database can."""

        def write(mark: Mark, marked: object) -> None:
            raise OSError(errno.EIO, "Input/output error", str(mark._path))

        self._patch.setattr(Mark, "write", write)

    def mend(self) -> None:
        self._patch.undo()


class SimRig:
    """The same over a SimDisk."""

    def __init__(self) -> None:
        self.disk = SimDisk(Random(1))
        self._process = SimpleNamespace(dead=False)

    async def open(self, fresh: Meta = FRESH) -> LogStore:
        return await self.disk.open(self._process, Path("/simulated"), fresh)

    async def killed(self, store: LogStore) -> None:
        self._process.dead = True
        self._process = SimpleNamespace(dead=False)

    def copy(self) -> Any:
        return self.disk.copy()

    def restore(self, backup: Any, *, mark: bool) -> None:
        self.disk.restore(backup, mark=mark)

    def lose_tail(self) -> None:
        assert self.disk.lose_tail() > 0

    def lose_mark(self) -> None:
        assert self.disk.content is not None
        self.disk.content.mark = None

    def failing_mark(self) -> None:
        self.disk.fail(errno.EIO, after=1)

    def mend(self) -> None:
        self.disk.mend()


Rig = RealRig | SimRig


@asynccontextmanager
async def opened(rig: Rig, fresh: Meta = FRESH) -> AsyncIterator[LogStore]:
    """An open store for the time of the block."""
    store = await rig.open(fresh)
    try:
        yield store
    finally:
        await store.close()


def another(**changes: Any) -> Meta:
    """FRESH, but for these."""
    return replace(FRESH, **changes)


async def cleared(store: LogStore, generation: int, lent: int | None = None) -> int:
    """How many calls it took."""
    calls = 1
    while await store.clear_unfinished(generation, lent):
        calls += 1
    return calls
