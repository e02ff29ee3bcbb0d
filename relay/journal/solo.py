"""The solo journal: a cell of one node, its log in one store. There are no terms here: all are 0.

An append is one row and one commit; who follows gets the block from memory at once. Start-up verifies every block after
the checkpoint (the replay needs them anyway); older ones are verified when they are read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from relay.core.block import GENESIS, Block
from relay.errors import StoreDamaged, StoreForeign
from relay.journal.api import Meta, StoreEnv, Write
from relay.journal.database import found_in
from relay.journal.disk import LogDisk, held
from relay.journal.rows import Sealer, check_link
from relay.journal.seal import StorageRing
from relay.journal.tail import Follower, Tail
from relay.limits import RECENT_BLOCKS
from relay.ports import Residency, Rows

_log = structlog.get_logger("relay.journal")
_BEHIND = (
    "Look at the disk, and restore nothing old: an older copy lies here, or the disk lost what it had confirmed. Put"
    " the newest log and its mark back; if they are lost for good, move the whole directory away to start an empty one"
)


class SoloJournal:
    """relay.ports.Journal over one store. Made by `open_solo`."""

    def __init__(self, disk: LogDisk) -> None:
        self._disk = disk
        self._tail = disk.tail

    @property
    def disk(self) -> LogDisk:
        """For the scrubber."""
        return self._disk

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

    async def leadership(self, leads: bool) -> None:
        if not leads:
            await trio.sleep_forever()

    def time_ms(self) -> int:
        return self._tail.time_ms()

    async def append(self, records: Sequence[bytes], placed: Callable[[], None] = lambda: None) -> None:
        disk = self._disk
        async with held(disk.writing):
            disk.store.check()
            self._tail.check()  # it has ended with something else than the store
            block = self._tail.next_block(records)
            facts = disk.residency.check(records)
            sealed = [(key, block.index, disk.sealer.fact(key, value)) for key, value in facts]
            await disk.store.write(Write([disk.sealer.block_row(block, 0)], facts=sealed))
            disk.residency.learn(facts)
            self._tail.commit(block)
            await disk.store.fold_wal()

    def follow(self, after: int) -> AsyncIterator[Block]:
        self._disk.store.check()
        return Follower(self._tail, self._disk.follow, after)

    async def read(self, index: int) -> Block:
        return await self._disk.read(index)

    async def release(self, below: int) -> None:
        await self._disk.release(below)

    async def save_checkpoint(self, index: int, rows: Rows) -> None:
        await self._disk.save_checkpoint(index, rows)

    async def load_checkpoint(self, take: Callable[[bytes], None]) -> int | None:
        return await self._disk.load_checkpoint(take)

    # --- opening ---------------------------------------------------------------------------------
    async def _take_up(self) -> None:
        """Find both ends of the log, verify what follows the checkpoint, and give the residency check its facts."""
        disk, store, meta = self._disk, self._disk.store, self._disk.store.meta
        if store.behind is not None:
            raise StoreDamaged(store.behind, _BEHIND)
        if store.hard.term:
            raise StoreForeign(
                "the store of a cell of several nodes, and the root lists one for this cell",
                "List them all again: alone it may lack what the others have",
            )
        disk.head = await store.checkpoint()
        ends = await store.ends()
        tip = ends[1] if ends else meta.first - 1
        if ends and ends[0] != meta.first:
            raise StoreDamaged(f"block {meta.first} is missing: the oldest one kept is {ends[0]}")
        checkpoint = disk.head.index if disk.head else meta.first - 1
        if not meta.first - 1 <= checkpoint <= tip:
            raise StoreDamaged(f"the checkpoint is after block {checkpoint}, but the log has {meta.first} to {tip}")
        await self._verify(meta, max(meta.first, checkpoint), tip)
        await disk.learn_facts()
        self._tail.warn_if_ahead()

    async def _verify(self, meta: Meta, start: int, tip: int) -> None:
        """Take in the blocks `start` (the one at the checkpoint, if it is kept) to `tip`."""
        self._tail.start_at(meta.first, meta.prev, meta.time)
        last: Block | None = None
        while (index := last.index + 1 if last else start) <= tip:
            for block in await self._disk.load(index, tip):
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
        journal = SoloJournal(LogDisk(store, sealer, residency, tail))
        with found_in(store.file):
            await journal._take_up()
        _log.info("store_opened", first=journal.first, tip=journal.tip)
        try:
            yield journal
        finally:
            tail.end(trio.ClosedResourceError("the journal is closed"))
    finally:
        await store.close()
