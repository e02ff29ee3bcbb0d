"""What every journal on a disk does with its store: blocks read and verified, the prefix let go, checkpoints. How a
block gets in is the journal's own business."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import NamedTuple

import structlog
import trio

from relay.core.block import Block
from relay.core.codec import digest
from relay.errors import DiskFailed, StoreDamaged, StoreForeign
from relay.journal.api import CheckpointHead, LogStore, Place
from relay.journal.database import DAMAGED, found_in
from relay.journal.rows import Sealer, check_link, check_rows, checkpoint_checksum, verify_digests
from relay.journal.tail import Tail, check_checkpoint, check_release, each_row
from relay.limits import READ_BATCH
from relay.ports import Residency, Rows

_log = structlog.get_logger("relay.journal")


class Kept(NamedTuple):
    """A block and the term of its row."""

    block: Block
    term: int


@asynccontextmanager
async def held(lock: trio.Lock) -> AsyncIterator[None]:
    """Hold a lock, at once where it is free. (`async with lock` lets everybody else have a turn first: on a busy node
    that takes longer than a write.)"""
    try:
        lock.acquire_nowait()
    except trio.WouldBlock:
        await lock.acquire()
    try:
        yield
    finally:
        lock.release()


class LogDisk:
    """Owns an open store. `writing`: one transaction at a time, `checkpointing`: one checkpoint. `head`: of the current
    checkpoint, `lent`: of one that stays readable although another takes its place. Told are `on_repair`, when a block
    was put back, and `renew_checkpoint`, when a new one is due."""

    def __init__(self, store: LogStore, sealer: Sealer, residency: Residency, tail: Tail) -> None:
        self.store = store
        self.sealer = sealer
        self.residency = residency
        self.tail = tail
        self.head: CheckpointHead | None = None
        self.lent: CheckpointHead | None = None
        self._lying: dict[bytes, Place] = {}  # rows of the current checkpoint, by digest, once it was saved or loaded
        self.digests: dict[CheckpointHead, list[bytes]] = {}  # of all its rows, then; and of those of the lent one
        self.writing = trio.Lock()
        self.checkpointing = trio.Lock()
        self.on_repair: Callable[[], None] = lambda: None
        self.renew_checkpoint: Callable[[], None] = lambda: None
        store.on_failure = self._failed

    def _failed(self, error: DiskFailed) -> None:
        self.tail.end(error)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[None]:
        """To change what the log's own writes do not. Raises what the journal ended with: what is there since may be of
        a snapshot, in which indexes and generations stand for other things."""
        async with self.writing:
            self.tail.check()
            yield

    # --- blocks ----------------------------------------------------------------------------------
    async def look(self, first: int, last: int) -> tuple[list[Kept], StoreDamaged | StoreForeign | None]:
        """Blocks as they lie on the disk, with their terms, from `first` to `last` or as many as one read brings; up to
        the first that does not verify, and what is wrong with that one."""
        good: list[Kept] = []
        rows = await self.store.blocks(first, last)
        try:
            with found_in(self.store.file):
                check_rows(rows[:1], first)
                for row in rows:
                    check_rows([row], first + len(good))
                    block = self.sealer.block(row)
                    if good:
                        check_link(block, good[-1].block)
                    good.append(Kept(block, row.term))
                    await trio.lowlevel.checkpoint()
        except (StoreDamaged, StoreForeign) as error:
            return good, error
        return good, None

    async def load(self, index: int, last: int | None = None, prev: bytes | None = None) -> list[Block]:
        """Blocks from `index` on, each verified, all in one chain; `prev`, where given, is the hash of the one before.
        What is damaged is mended first.

        Raises LookupError, StoreForeign; StoreDamaged where it cannot be mended."""
        last = self.tail.tip if last is None else last
        tried = set[int]()
        while True:
            good, error = await self.look(index, last)
            before = good[-1].block.hash if good else None
            if good and prev is not None and good[0].block.prev != prev:
                good, before, error = [], None, self.unlinked(index)
            if error is None:
                return [kept.block for kept in good]
            bad = index + len(good)
            async with self.writing:  # a release that is under way tells the tail when it is done
                if bad < self.tail.first:
                    self.tail.check_kept(index)
            if isinstance(error, StoreForeign) or bad > self.tail.tip or bad in tried:
                raise error
            tried.add(bad)
            await self.mend_after(before, bad, error)

    def unlinked(self, index: int) -> StoreDamaged:
        """What to say of a block that is good by itself, and does not follow the one before."""
        return StoreDamaged(f"{self.store.file}: block {index} does not follow the one before", DAMAGED)

    async def mend_after(self, before: bytes | None, index: int, error: StoreDamaged) -> Block:
        """`mend`; and the block before, whose hash is `before`, if it is that one that does not fit."""
        block = await self.mend(index, error)
        if before is not None and block.prev != before and index > self.tail.first:
            await self.mend(index - 1, error)
        return block

    async def follow(self, index: int, prev: bytes | None) -> list[Block]:
        """`load` for a Follower."""
        return await self.load(index, prev=prev)

    async def mend(self, index: int, error: StoreDamaged) -> Block:
        """The committed block `index`, of which the disk has not what was written: there again (rule 6). Raises
        `error` where it cannot be had, LookupError where it was released meanwhile."""
        block = self.tail.recent(index)
        if block is None:
            raise error
        await self.put_back(Kept(block, 0))
        return block

    async def put_back(self, kept: Kept) -> None:
        """Write a block that is proved to be the one, over what lies there. Raises LookupError, DiskFailed."""
        async with self.changing():
            self.tail.check_kept(kept.block.index)
            await self.store.repair(self.sealer.block_row(*kept))
        _log.warning("block_repaired", index=kept.block.index)
        self.on_repair()

    async def read(self, index: int) -> Block:
        """See relay.ports.Journal."""
        await trio.lowlevel.checkpoint()
        self.store.check()
        self.tail.check_kept(index)
        recent = self.tail.recent(index)
        return recent or (await self.load(index, index))[0]

    async def release(self, below: int, members: bytes | None = None) -> None:
        """See relay.ports.Journal. `members`: those in force at block below - 1, encoded."""
        await trio.lowlevel.checkpoint()
        self.store.check()
        check_release(below, self.head.index if self.head else 0)
        while self.tail.first < self.may_release(below):
            async with self.changing():
                upto = self.may_release(below)  # again: somebody may read by now what would go
                if self.tail.first < upto:
                    with trio.CancelScope(shield=True):
                        self.tail.released(await self.store.release(self.tail.first, upto, members))
                await self.store.fold_wal()

    async def clean(self) -> None:
        """What was let go leaves the write-ahead log, too; and what a crash left of older checkpoints, the store."""
        async with self.checkpointing:
            await self.clear(self.head.generation if self.head else 0)
        async with self.changing():
            await self.store.clear_wal()

    def may_release(self, below: int) -> int:
        """`below`, or less where somebody reads older blocks; looked at before each step of a release."""
        return below

    async def save_checkpoint(self, index: int, rows: Rows) -> list[bytes]:
        """See relay.ports.Journal. The digests of the rows."""
        async with self.checkpointing:
            self.tail.check()
            self.store.check()
            check_checkpoint(index, self.head.index if self.head else 0, self.tail.tip)
            generation = self.head.generation if self.head else 0
            await self.clear(generation)  # a crash may have left some
            lying = self._lying
            staged = await self.stage_rows(generation + 1, 0, rows, lying)
            digests = [one for one, _ in staged]
            checksum = checkpoint_checksum(self.tail.log_id, index, digests)
            head = CheckpointHead(generation + 1, index, len(digests), checksum)
            async with self.changing():
                with trio.CancelScope(shield=True):  # one call; nobody must go on by a head that the store has not
                    await self.store.finish_checkpoint(head)
                    self._know(head, digests)
                    self._lying = dict(staged) if self._lying is lying else {}  # or: distrusted meanwhile
            await self.clear(head.generation)
            return digests

    def _know(self, head: CheckpointHead, digests: list[bytes]) -> None:
        """`head` is the current one, and verified."""
        self.digests = {one: known for one, known in self.digests.items() if one == self.lent} | {head: digests}
        self.head = head

    async def clear(self, generation: int) -> None:
        """Let go of staged blocks and of checkpoint rows of other generations, but for one that is lent. Under
        `checkpointing`: nobody stages anything."""
        more = True
        while more:
            async with self.changing():
                more = await self.store.clear_unfinished(generation, self._lent)
                await self.store.fold_wal()

    @property
    def _lent(self) -> int | None:
        return self.lent.generation if self.lent else None

    async def stage_rows(
        self, generation: int, start: int, rows: Rows, lying: Mapping[bytes, Place] = MappingProxyType({})
    ) -> list[tuple[bytes, Place]]:
        """Write rows of a checkpoint, from ordinal `start` on, but for what is `lying` there already: some a
        transaction, so that appends get in between. Their digests, and where each lies. Raises ValueError for a row
        above its bound."""
        staged: list[tuple[bytes, Place]] = []
        batch: list[bytes | Place] = []
        size = 0
        async for row in each_row(rows):
            own, place = digest(row), Place(generation, start + len(staged))
            there = lying.get(own, place)
            staged.append((own, there))
            if there is place:
                batch.append(self.sealer.checkpoint_row(place, row))
                size += len(row)
            else:
                batch.append(there)
            if size >= READ_BATCH:
                await self._stage(generation, start + len(staged) - len(batch), batch)
                batch, size = [], 0
        if batch:
            await self._stage(generation, start + len(staged) - len(batch), batch)
        return staged

    async def _stage(self, generation: int, start: int, batch: Sequence[bytes | Place]) -> None:
        async with self.changing():
            await self.store.add_checkpoint_rows(generation, start, batch)
            await self.store.fold_wal()

    async def load_checkpoint(self, take: Callable[[bytes], None]) -> int | None:
        """See relay.ports.Journal."""
        async with self.checkpointing:
            self.store.check()
            head = self.head
            if head is None:
                return None
            lying: list[tuple[bytes, Place]] = []
            with found_in(self.store.file):
                while batch := await self.store.checkpoint_rows(head.generation, len(lying)):
                    for sealed in batch:
                        if lying:
                            await trio.lowlevel.checkpoint()
                        row = self.sealer.open_checkpoint_row(sealed)
                        lying.append((digest(row), sealed.place))
                        take(row)
                digests = [one for one, _ in lying]
                verify_digests(head, self.tail.log_id, digests)
            self._know(head, digests)
            self._lying = dict(lying)
            return head.index

    async def check_checkpoint(self, pace: Callable[[int], Awaitable[None]]) -> None:
        """Read the checkpoint as `load_checkpoint` does, and keep nothing; `pace` is awaited after each read, told its
        bytes. It ends early when another takes its place. Raises StoreDamaged, StoreForeign."""
        head, digests = self.head, list[bytes]()
        if head is None:
            return
        with found_in(self.store.file):
            while batch := await self.store.checkpoint_rows(head.generation, len(digests)):
                if self.head is not head:
                    return
                for row in batch:
                    digests.append(digest(self.sealer.open_checkpoint_row(row)))
                await pace(sum(len(row.sealed) for row in batch))
            if self.head is head:
                verify_digests(head, self.tail.log_id, digests)

    def distrust_checkpoint(self) -> None:
        """The current one is damaged: a new one is due, of which nothing lies there yet."""
        self._lying = {}
        self.renew_checkpoint()

    async def learn_facts(self) -> None:
        """Give the residency check everything that the store keeps for it."""
        key = b""
        while facts := await self.store.facts(key, self.tail.tip):
            self.residency.learn([(key, self.sealer.open_fact(key, sealed)) for key, _, sealed in facts])
            key = facts[-1][0]
            await trio.lowlevel.checkpoint()
