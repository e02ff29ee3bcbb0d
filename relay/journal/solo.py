"""The solo journal: a cell of one node, its log in one store. There are no terms here: all are 0.

An append is one row and one commit; who follows gets the block from memory at once. Start-up verifies every block after
the checkpoint (the replay needs them anyway); older ones are verified when they are read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from relay.core.block import GENESIS, Block
from relay.errors import StoreDamaged
from relay.journal.api import CheckpointHead, LogStore, Meta, StoreEnv, Write
from relay.journal.database import found_in
from relay.journal.rows import Sealer, check_link, check_rows, checkpoint_checksum, verify_checkpoint
from relay.journal.seal import StorageRing
from relay.journal.tail import Follower, Tail, check_checkpoint, check_release
from relay.limits import READ_BATCH, RECENT_BLOCKS
from relay.ports import Residency

_log = structlog.get_logger("relay.journal")
_BEHIND = (
    "Look at the disk, and restore nothing old: an older copy lies here, or the disk lost what it had confirmed. Put"
    " the newest log and its mark back; if they are lost for good, move the whole directory away to start an empty one"
)


class SoloJournal:
    """relay.ports.Journal over one store. Made by `open_solo`."""

    def __init__(self, store: LogStore, sealer: Sealer, residency: Residency, tail: Tail) -> None:
        self._store = store
        self._sealer = sealer
        self._residency = residency
        self._tail = tail
        self._head: CheckpointHead | None = None
        self._writing = trio.Lock()  # one transaction at a time; the store has one connection
        self._checkpointing = trio.Lock()
        store.on_failure = tail.end

    @property
    def log_id(self) -> bytes:
        return self._tail.log_id

    @property
    def first(self) -> int:
        return self._tail.first

    @property
    def tip(self) -> int:
        return self._tail.tip

    @property
    def leads(self) -> bool:
        return True

    def time_ms(self) -> int:
        return self._tail.time_ms()

    async def append(self, records: Sequence[bytes]) -> None:
        async with self._writing:
            self._store.check()
            block = self._tail.next_block(records)
            facts = self._residency.check(records)
            sealed = [(key, block.index, self._sealer.fact(key, value)) for key, value in facts]
            await self._store.write(Write([self._sealer.block_row(block, 0)], facts=sealed))
            self._residency.learn(facts)
            self._tail.commit(block)
            await self._store.fold_wal()

    def follow(self, after: int) -> AsyncIterator[Block]:
        self._store.check()
        return Follower(self._tail, self._load, after)

    async def _load(self, index: int, last: int | None = None) -> list[Block]:
        """Blocks from `index` on, each verified, all in one chain."""
        rows = await self._store.blocks(index, self._tail.tip if last is None else last)
        if not rows or rows[0].index != index:
            async with self._writing:  # a release that is under way tells the tail when it is done
                if index < self._tail.first:
                    self._tail.check_kept(index)
        blocks: list[Block] = []
        with found_in(self._store.file):
            check_rows(rows, index)
            for row in rows:
                block = self._sealer.block(row)
                if blocks:
                    check_link(block, blocks[-1])
                blocks.append(block)
                await trio.lowlevel.checkpoint()
        return blocks

    async def read(self, index: int) -> Block:
        await trio.lowlevel.checkpoint()
        self._store.check()
        self._tail.check_kept(index)
        recent = self._tail.recent(index)
        return recent or (await self._load(index, index))[0]

    async def release(self, below: int) -> None:
        await trio.lowlevel.checkpoint()
        self._store.check()
        check_release(below, self._head.index if self._head else 0)
        while self._tail.first < below:
            async with self._writing:
                if self._tail.first < below:
                    self._tail.released(await self._store.release(self._tail.first, below))
                await self._store.fold_wal()

    async def save_checkpoint(self, index: int, rows: Sequence[bytes]) -> None:
        async with self._checkpointing:
            self._store.check()
            check_checkpoint(index, rows, self._head.index if self._head else 0, self._tail.tip)
            generation = self._head.generation if self._head else 0
            async with self._writing:
                await self._store.clear_unfinished(generation)  # a crash may have left some
            await self._write_rows(generation + 1, index, rows)
            checksum = checkpoint_checksum(self._tail.log_id, index, rows)
            head = CheckpointHead(generation + 1, index, len(rows), checksum)
            async with self._writing:
                await self._store.finish_checkpoint(head)
                self._head = head
                await self._store.fold_wal()

    async def _write_rows(self, generation: int, index: int, rows: Sequence[bytes]) -> None:
        """Some rows a transaction, so that appends get in between."""
        start = 0
        while start < len(rows):
            batch: list[bytes] = []
            size = 0
            while start + len(batch) < len(rows) and (not batch or size < READ_BATCH):
                row = rows[start + len(batch)]
                batch.append(self._sealer.checkpoint_row(index, start + len(batch), row))
                size += len(row)
            async with self._writing:
                await self._store.add_checkpoint_rows(generation, start, batch)
                await self._store.fold_wal()
            start += len(batch)

    async def load_checkpoint(self) -> tuple[int, list[bytes]] | None:
        async with self._checkpointing:
            self._store.check()
            head = self._head
            if head is None:
                return None
            rows: list[bytes] = []
            with found_in(self._store.file):
                while batch := await self._store.checkpoint_rows(head.generation, len(rows)):
                    at = len(rows)
                    rows += [self._sealer.open_checkpoint_row(head.index, at + n, row) for n, row in enumerate(batch)]
                verify_checkpoint(head, self._tail.log_id, rows)
            return head.index, rows

    # --- opening ---------------------------------------------------------------------------------
    async def _take_up(self) -> None:
        """Find both ends of the log, verify what follows the checkpoint, and give the residency check its facts."""
        if self._store.behind is not None:
            raise StoreDamaged(self._store.behind, _BEHIND)
        meta = self._store.meta
        self._head = await self._store.checkpoint()
        ends = await self._store.ends()
        tip = ends[1] if ends else meta.first - 1
        if ends and ends[0] != meta.first:
            raise StoreDamaged(f"block {meta.first} is missing: the oldest one kept is {ends[0]}")
        checkpoint = self._head.index if self._head else meta.first - 1
        if not meta.first - 1 <= checkpoint <= tip:
            raise StoreDamaged(f"the checkpoint is after block {checkpoint}, but the log has {meta.first} to {tip}")
        await self._verify(meta, max(meta.first, checkpoint), tip)
        key = b""
        while facts := await self._store.facts(key):
            self._residency.learn([(key, self._sealer.open_fact(key, sealed)) for key, _, sealed in facts])
            key = facts[-1][0]
            await trio.lowlevel.checkpoint()
        self._tail.warn_if_ahead()

    async def _verify(self, meta: Meta, start: int, tip: int) -> None:
        """Take in the blocks `start` (the one at the checkpoint, if it is kept) to `tip`."""
        self._tail.start_at(meta.first, meta.prev, meta.time)
        last: Block | None = None
        while (index := last.index + 1 if last else start) <= tip:
            for block in await self._load(index, tip):
                if last is not None:
                    check_link(block, last)
                elif block.index == meta.first and (block.prev != meta.prev or block.time < meta.time):
                    raise StoreDamaged(f"block {block.index} does not follow the released ones")
                self._tail.commit(block)
                last = block


@asynccontextmanager
async def open_solo(
    path: Path, *, env: StoreEnv, ring: StorageRing, residency: Residency, cell: str, federation: bytes
) -> AsyncIterator[SoloJournal]:
    """The journal of a cell of one, in the directory `path` (made if missing); a new log where there is none.

    Raises StoreLocked, StoreForeign, StoreDamaged, DiskFailed; OperatorError for a directory that cannot be used."""
    log_id, own = env.random_bytes(16), env.random_bytes(16)
    check = Sealer(ring, log_id, env.random_bytes).key_check()
    store = await env.open_store(path, Meta(federation, cell, log_id, own, check, 1, GENESIS, 0, 0, b""))
    try:
        sealer = Sealer(ring, store.meta.log_id, env.random_bytes)
        sealer.check_key(store.meta.key_check, store.file)
        tail = Tail(store.meta.log_id, env.clock, keep=RECENT_BLOCKS)
        journal = SoloJournal(store, sealer, residency, tail)
        with found_in(store.file):
            await journal._take_up()
        _log.info("store_opened", first=journal.first, tip=journal.tip)
        try:
            yield journal
        finally:
            tail.end(trio.ClosedResourceError("the journal is closed"))
    finally:
        await store.close()
