"""What every journal on a disk does with its store: blocks read and verified, the prefix let go, checkpoints. How a
block gets in is the journal's own business."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from relay.core.block import Block
from relay.errors import DiskFailed
from relay.journal.api import CheckpointHead, LogStore
from relay.journal.database import found_in
from relay.journal.rows import Sealer, check_link, check_rows, checkpoint_checksum, verify_checkpoint
from relay.journal.tail import Tail, check_checkpoint, check_release
from relay.limits import READ_BATCH
from relay.ports import Residency


class LogDisk:
    """Owns an open store. `writing`: one transaction at a time, `checkpointing`: one checkpoint. `head`: of the current
    checkpoint."""

    def __init__(self, store: LogStore, sealer: Sealer, residency: Residency, tail: Tail) -> None:
        self.store = store
        self.sealer = sealer
        self.residency = residency
        self.tail = tail
        self.head: CheckpointHead | None = None
        self.writing = trio.Lock()
        self.checkpointing = trio.Lock()
        store.on_failure = self._failed

    def _failed(self, error: DiskFailed) -> None:
        self.tail.end(error)

    async def load(self, index: int, last: int | None = None) -> list[Block]:
        """Blocks from `index` on, each verified, all in one chain. Raises LookupError, StoreDamaged."""
        rows = await self.store.blocks(index, self.tail.tip if last is None else last)
        if not rows or rows[0].index != index:
            async with self.writing:  # a release that is under way tells the tail when it is done
                if index < self.tail.first:
                    self.tail.check_kept(index)
        blocks: list[Block] = []
        with found_in(self.store.file):
            check_rows(rows, index)
            for row in rows:
                block = self.sealer.block(row)
                if blocks:
                    check_link(block, blocks[-1])
                blocks.append(block)
                await trio.lowlevel.checkpoint()
        return blocks

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
        while self.tail.first < below:
            async with self.writing:
                if self.tail.first < below:
                    self.tail.released(await self.store.release(self.tail.first, below, members))
                await self.store.fold_wal()

    async def save_checkpoint(self, index: int, rows: Sequence[bytes]) -> None:
        """See relay.ports.Journal."""
        async with self.checkpointing:
            self.store.check()
            check_checkpoint(index, rows, self.head.index if self.head else 0, self.tail.tip)
            generation = self.head.generation if self.head else 0
            async with self.writing:
                await self.store.clear_unfinished(generation)  # a crash may have left some
            await self.stage_rows(generation + 1, index, 0, rows)
            checksum = checkpoint_checksum(self.tail.log_id, index, rows)
            head = CheckpointHead(generation + 1, index, len(rows), checksum)
            async with self.writing:
                await self.store.finish_checkpoint(head)
                self.head = head
                await self.store.fold_wal()

    async def stage_rows(self, generation: int, index: int, start: int, rows: Sequence[bytes]) -> None:
        """Write rows of a checkpoint, from ordinal `start` on: some a transaction, so that appends get in between."""
        done = 0
        while done < len(rows):
            batch: list[bytes] = []
            size = 0
            while done + len(batch) < len(rows) and (not batch or size < READ_BATCH):
                row = rows[done + len(batch)]
                batch.append(self.sealer.checkpoint_row(index, start + done + len(batch), row))
                size += len(row)
            async with self.writing:
                await self.store.add_checkpoint_rows(generation, start + done, batch)
                await self.store.fold_wal()
            done += len(batch)

    async def load_checkpoint(self) -> tuple[int, list[bytes]] | None:
        """See relay.ports.Journal."""
        async with self.checkpointing:
            self.store.check()
            head = self.head
            if head is None:
                return None
            rows: list[bytes] = []
            with found_in(self.store.file):
                while batch := await self.store.checkpoint_rows(head.generation, len(rows)):
                    start = len(rows)
                    rows += [self.sealer.open_checkpoint_row(head.index, start + n, row) for n, row in enumerate(batch)]
                verify_checkpoint(head, self.tail.log_id, rows)
            return head.index, rows

    async def learn_facts(self) -> None:
        """Give the residency check everything that the store keeps for it."""
        key = b""
        while facts := await self.store.facts(key, self.tail.tip):
            self.residency.learn([(key, self.sealer.open_fact(key, sealed)) for key, _, sealed in facts])
            key = facts[-1][0]
            await trio.lowlevel.checkpoint()
