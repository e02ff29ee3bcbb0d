"""A disk that misbehaves, and the LogStore on it: in memory, on virtual time, everything random drawn from one Random.

A crash may come before, in the midst of, or after a write, which is then absent or there, never half; its mark may be
one step behind. Accesses fail (EIO, ENOSPC), hang, or wait; bits of rows flip; the end of the write-ahead log gets
lost; an old copy comes back; all of it goes.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import trio

from cluster.directory.seen import Sighting
from relay.errors import DiskFailed, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.api import BlockRow, CheckpointHead, CheckpointRow, FactRow, Hard, Meta, Place, Write
from relay.journal.database import DAMAGED
from relay.journal.files import STORE_FILE
from relay.journal.mark import Marked
from relay.journal.mark import behind as lost_since
from relay.journal.queries import State
from relay.journal.rows import within
from relay.limits import DISK_DEADLINE_S
from tests.simulation.image import Changes, File, Image, Process, Step, check_alive
from tests.simulation.seen import SeenImage, SimSeen

# Smaller than on a real disk, so that what takes several steps there does here, too.
_READ_BATCH = 16 * 1024  # bytes
_RELEASE_STEP, _FACTS, _TERMS, _FOLD = 100, 16, 100, 64  # blocks, facts, blocks, transactions
_CLEAR_STEP = 4  # rows


class SimDisk:
    """The disk of one machine; it outlives its processes. `delay` gives the seconds that one access takes;
    `tell` is told what is worth counting.

    What changes it behind the back of a process (`flip` excepted) is for a time when none has it open."""

    def __init__(
        self, random: Random, delay: Callable[[], float] = lambda: 0.0, tell: Callable[[str], None] = lambda what: None
    ) -> None:
        self.random, self.delay, self.tell = random, delay, tell
        self.content: Image | None = None  # the store
        self.aside: list[Image] = []  # the quarantine
        self.lossy = False  # something that it had confirmed was ever lost or changed
        self.flipped: set[Any] = set()  # keys of rows in which a bit flipped, mended or not
        self.rolled_back: set[bytes] = set()  # stores that have forgotten what they had acknowledged
        self.flag = False  # the bootstrap file
        self._seen = SeenImage()
        self._fault: int | None = None  # an errno
        self._fault_in = 0  # accesses until it shows
        self._stalled_until = 0.0

    # --- what goes wrong ---------------------------------------------------------------------------
    def fail(self, number: int, after: int = 0) -> None:
        """After so many more accesses every one fails: errno.EIO, or errno.ENOSPC where it writes. Until `mend`."""
        self._fault, self._fault_in = number, after

    def mend(self) -> None:
        self._fault, self._stalled_until = None, 0.0

    def stall(self, seconds: float) -> None:
        """Nothing ends before that time has passed."""
        self._stalled_until = trio.current_time() + seconds

    def flip(self) -> Any:
        """Flip a bit of a block, fact or checkpoint row; which. None where there is none."""
        flipped = self.content.flip(self.random) if self.content else None
        if flipped:
            self.lossy = True
            self.flipped.add(flipped[:2])
        return flipped

    def lose_tail(self, most: int | None = None) -> int:
        """Lose 1 to `most` transactions from the end of the write-ahead log, but none that was folded. How many."""
        image = self._shut()
        image.settle(self.random)
        most = len(image.wal) if most is None else min(most, len(image.wal))
        count = self.random.randint(1, most) if most else 0
        image.lose(count)
        self.lossy = True
        if lost_since(image.mark, image.has()):
            self.rolled_back.add(image.meta.store)
        return count

    def copy(self) -> Image:
        """A backup of the store and its mark."""
        image = self._shut()
        image.settle(self.random)
        return image.copy()

    def restore(self, backup: Image, *, mark: bool) -> None:
        """Bring a backup back, with its own mark or beside the one that is there."""
        there = self.content.mark if self.content else None
        self.content, self.lossy = backup.copy(), True
        if not mark:
            self.content.mark = there

    def wipe(self) -> None:
        """An empty disk."""
        self.content, self.flag, self._seen, self.lossy = None, False, SeenImage(), True
        self.aside.clear()

    def _shut(self) -> Image:
        assert self.content is not None and not _in_use(self.content), "stop the node first"
        return self.content

    # --- what rests on it --------------------------------------------------------------------------
    @property
    def seen(self) -> dict[bytes, Sighting]:
        return self._seen.versions

    def rows(self) -> Iterator[BlockRow]:
        """All blocks of the store."""
        if self.content is not None:
            yield from (self.content.rows[key] for key in self.content.keys("block"))

    def at_rest(self) -> Iterator[bytes]:
        """All bytes that may hold an envelope, in the quarantine too."""
        for image in filter(None, [self.content, *self.aside]):
            yield from (image.rows[key].sealed for key in image.keys("block"))
            yield from (image.rows[key] for key in image.keys("row"))

    # --- for an environment ------------------------------------------------------------------------
    async def open(self, process: Process, directory: Path, fresh: Meta) -> SimStore:
        """See relay.journal.api.StoreEnv.open_store."""
        file = directory / STORE_FILE
        image = self.content
        if image is not None and _in_use(image):
            raise StoreLocked(f"{file}: another process holds this store", "Stop it first")
        if image is None:
            image = self.content = Image(rows={("meta",): fresh, ("state",): State(0, Hard(), 0, {})})
        image.settle(self.random)
        image.owner = process
        if (image.meta.federation, image.meta.cell) != (fresh.federation, fresh.cell):
            image.owner = None
            raise StoreForeign(f"{file}: the store of another federation or cell", "Check the config")
        lost, has = image.behind(), image.has()
        steps: list[Step] = [] if lost or image.mark == has else [lambda: image.set_mark(has)]
        await self.access(process, file, image, steps)
        return SimStore(self, process, file, image, lost)

    def store_exists(self) -> bool:
        return self.content is not None and self.content.mark is not None

    def set_aside(self) -> None:
        image = self._shut()
        image.settle(self.random)
        self.aside.append(image)
        self.content = None
        self.tell("store set aside")

    @asynccontextmanager
    async def open_seen(self, process: Process) -> AsyncIterator[SimSeen]:
        """See cluster.env.NodeEnv."""
        self._seen.settle(self.random)
        seen = SimSeen(self, process, self._seen)
        await seen.read()
        yield seen

    async def access(self, process: Process, name: Path, file: File, steps: Sequence[Step]) -> None:
        """Read, or write in steps. Once started it completes, or fails. Raises DiskFailed: some steps may be done, or
        be done until the file is opened the next time."""
        await trio.lowlevel.checkpoint_if_cancelled()
        check_alive(process, name)
        if steps:
            assert not file.pending, "two writers at once"
            file.pending = deque(steps)
        with trio.CancelScope(shield=True):
            for _ in steps or [None]:
                late = max(self._stalled_until - trio.current_time(), 0.0) + self.delay()
                await trio.sleep(min(late, DISK_DEADLINE_S))
                check_alive(process, name)
                if wrong := self._wrong(late, writes=bool(steps)):
                    self.tell("disk error")
                    if steps and self._fault == errno.ENOSPC:
                        file.pending.clear()  # SQLite rolls it back
                    if steps:
                        file.settle(self.random)
                    raise DiskFailed(f"{name}: {wrong}", "It is simulated")
                if steps:
                    file.pending.popleft()()

    def _wrong(self, late: float, *, writes: bool) -> str:
        """What is wrong with an access that took so long; empty where nothing is."""
        if late > DISK_DEADLINE_S:
            return f"a call did not end within {DISK_DEADLINE_S} s"
        if self._fault is None or (self._fault == errno.ENOSPC and not writes):
            return ""
        self._fault_in -= 1
        return "" if self._fault_in >= 0 else os.strerror(self._fault)


def _in_use(file: File) -> bool:
    return file.owner is not None and not file.owner.dead


class SimStore:
    """relay.journal.api.LogStore. Made by SimDisk.open."""

    def __init__(self, disk: SimDisk, process: Process, file: Path, image: Image, lost: str | None) -> None:
        self.file, self.behind = file, lost
        self.meta = image.meta
        self.hard, self.commit, self.known = image.state.hard, image.state.commit, dict(image.state.known)
        self.on_failure: Callable[[DiskFailed], None] = lambda error: None
        self._disk, self._process, self._image = disk, process, image
        self._last = image.last()
        self._ended: Exception | None = None

    def check(self) -> None:
        if self._ended is not None:
            raise self._ended.with_traceback(None)
        check_alive(self._process, self.file)

    async def _access(self, *steps: Step) -> None:
        self.check()
        try:
            await self._disk.access(self._process, self.file, self._image, steps)
        except DiskFailed as error:
            self._fail(error)
            raise

    def _fail(self, error: DiskFailed) -> None:
        if self._ended is None:
            self._ended = error
            if not self._process.dead:  # the dead hear nothing
                self.on_failure(error)

    async def _put(self, changes: Changes) -> None:
        await self._access(lambda: self._image.put(changes))

    # --- the log -----------------------------------------------------------------------------------
    async def write(self, write: Write) -> None:
        image, changes = self._image, Changes()
        cut = write.truncate_from
        last = self._last
        if cut is not None:
            changes |= {("block", index): None for index in range(cut, last[0] + 1)}
            changes |= {key: None for key in image.keys("fact") if key[2] >= cut}
            if cut <= last[0]:
                before = image.rows.get(("block", cut - 1))
                last = (before.index, before.hash) if before else (self.meta.first - 1, self.meta.prev)
        new: Changes = {("block", row.index): row for row in write.rows}
        new |= {("fact", key, index): sealed for key, index, sealed in write.facts}
        for key in new:
            if changes.get(key, image.rows.get(key)) is not None:
                error = StoreDamaged(f"{self.file}: {key[0]} {key[-1]} is there already", DAMAGED)
                self._fail(DiskFailed(error.text, error.remedy))
                raise error
        if write.rows:
            last = write.rows[-1].index, write.rows[-1].hash
        hard = self.hard if write.hard is None else write.hard
        commit = self.commit if write.commit is None else write.commit
        known = self.known if write.known is None else dict(write.known)
        await self._change({**changes, **new}, State(image.state.seq + 1, hard, commit, known), self.meta, last)

    async def _change(self, changes: Changes, state: State, meta: Meta, last: tuple[int, bytes]) -> None:
        if self.behind is not None:
            raise StoreDamaged(f"{self.file}: {self.behind}", DAMAGED)
        image, mark = self._image, Marked(state.seq, meta.store, state.hard.term, state.hard.vote, *last)
        changes = {**changes, ("state",): state, ("meta",): meta}
        await self._access(lambda: image.put(changes), lambda: image.set_mark(mark))
        self.meta, self._last = meta, last
        self.hard, self.commit, self.known = state.hard, state.commit, dict(state.known)

    async def ends(self) -> tuple[int, int] | None:
        await self._access()
        indexes = [key[1] for key in self._image.keys("block")]
        return (min(indexes), max(indexes)) if indexes else None

    def _kept(self, first: int, last: int) -> Iterator[BlockRow]:
        rows = (self._image.rows.get(("block", index)) for index in range(first, min(last, self._last[0]) + 1))
        return (row for row in rows if row is not None)

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        await self._access()
        sizes = [(row.index, len(row.sealed)) for row in self._kept(first, min(last, first + 255))]
        return list(self._kept(first, within(sizes, first, _READ_BATCH)))

    async def terms(self, first: int, last: int) -> list[tuple[int, int, bytes]]:
        await self._access()
        return [(row.index, row.term, row.hash) for row in self._kept(first, min(last, first + _TERMS - 1))]

    async def repair(self, row: BlockRow) -> None:
        await self._put({("block", row.index): row})

    async def release(self, first: int, below: int, members: bytes | None = None) -> int:
        image = self._image
        sizes = [(row.index, len(row.sealed)) for row in self._kept(first, min(below, first + _RELEASE_STEP) - 1)]
        upto = within(sizes, first, _READ_BATCH) + 1
        end = image.rows["block", upto - 1]
        meta = replace(self.meta, first=upto, prev=end.hash, prev_term=end.term, time=end.time)
        meta = meta if members is None else replace(meta, members=members)
        old = sorted((key for key in image.keys("fact") if key[2] < upto), key=lambda key: key[2])
        newest = {fact: index for _, fact, index in old}
        gone: Changes = {("block", index): None for index in range(first, upto)}
        gone |= {key: None for key in old if key[2] < newest[key[1]]}
        await self._put({**gone, ("meta",): meta})
        self.meta = meta
        return upto

    # --- checkpoint --------------------------------------------------------------------------------
    async def checkpoint(self) -> CheckpointHead | None:
        await self._access()
        return self._image.rows.get(("head",))

    async def checkpoint_rows(self, generation: int, first: int) -> list[CheckpointRow]:
        await self._access()
        rows, found, size = self._image.rows, list[CheckpointRow](), 0
        while (row := rows.get(("row", generation, first + len(found)))) is not None:
            place = row if isinstance(row, Place) else Place(generation, first + len(found))
            sealed = rows.get(("row", *place), b"")
            size += len(sealed)
            if found and size > _READ_BATCH:
                break
            found.append(CheckpointRow(place, sealed))
        return found

    async def clear_unfinished(self, generation: int, lent: int | None = None) -> bool:
        gone = self._others(generation, lent) or self._unstaged()
        await self._put(dict(list(gone.items())[-_CLEAR_STEP:]))  # from the end, as relay.journal.store
        return bool(gone)

    def _unstaged(self) -> Changes:
        return dict.fromkeys(self._image.keys("staged"))

    def _others(self, generation: int, lent: int | None = None) -> Changes:
        rows, keep = self._image.rows, (generation, lent)
        kept = {("row", *rows[key]) for key in self._image.keys("row") if key[1] in keep and type(rows[key]) is Place}
        return {key: None for key in self._image.keys("row") if key[1] not in keep and key not in kept}

    async def add_checkpoint_rows(self, generation: int, ordinal: int, rows: Sequence[bytes | Place]) -> None:
        await self._put({("row", generation, number): row for number, row in enumerate(rows, ordinal)})

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        await self._put({("head",): head})
        self._disk.tell("checkpoint")

    # --- the rest ----------------------------------------------------------------------------------
    async def facts(self, after: bytes, upto: int | None = None) -> list[FactRow]:
        await self._access()
        newest: dict[bytes, int] = {}
        for _, key, index in self._image.keys("fact"):
            if key > after and (upto is None or index <= upto):
                newest[key] = max(index, newest.get(key, 0))
        found = sorted(newest.items())[:_FACTS]
        return [(key, index, self._image.rows["fact", key, index]) for key, index in found]

    async def stage_blocks(self, rows: Sequence[BlockRow]) -> None:
        await self._put({("staged", row.index): row for row in rows})

    async def install(
        self, meta: Meta, head: CheckpointHead, facts: Sequence[FactRow], known: Mapping[bytes, int], commit: int
    ) -> None:
        image = self._image
        changes: Changes = {key: None for key in image.rows if key[0] in ("block", "fact")}
        staged = [image.rows[key] for key in sorted(image.keys("staged"))]
        changes |= self._others(head.generation) | self._unstaged()
        changes |= {("block", row.index): row for row in staged}
        changes |= {("fact", key, index): sealed for key, index, sealed in facts}
        changes["head",] = head
        state = State(image.state.seq + 1, self.hard, commit, dict(known))
        last = (staged[-1].index, staged[-1].hash) if staged else (meta.first - 1, meta.prev)
        await self._change(changes, state, meta, last)
        self._disk.tell("snapshot installed")

    async def fold_wal(self) -> None:
        if len(self._image.wal) >= _FOLD:
            await self._access()
            self._image.wal.clear()

    async def clear_wal(self) -> None:
        await self._access()
        self._image.cut_wal()

    async def close(self) -> None:
        if self._ended is None:
            self._ended = trio.ClosedResourceError(f"{self.file} is closed")
        if self._image.owner is self._process:
            if not self._process.dead and not isinstance(self._ended, DiskFailed):
                self._image.cut_wal()  # SQLite folds it, and removes it
            self._image.owner = None
