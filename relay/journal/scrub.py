"""The scrubber: reads everything that a node keeps, slowly, over and over, so that what rots is found while it can
still be mended (rule 6), and not on the day when it is needed."""

from __future__ import annotations

import structlog
import trio

from relay.core.block import Block
from relay.errors import StoreDamaged, StoreForeign
from relay.journal.disk import LogDisk
from relay.limits import SCRUB_BATCH, SCRUB_BLOCK, SCRUB_EVERY_S, SCRUB_FIRST_S, SCRUB_RATE, SCRUB_RECORD
from relay.observe.metrics import Metrics

_log = structlog.get_logger("relay.scrub")


class Scrubber:
    """One task runs `run`. What it finds is mended by the disk: from memory, or from the other nodes of the cell; a
    checkpoint is saved anew. What cannot be mended is told, and counted; the rest is served on."""

    def __init__(self, disk: LogDisk, metrics: Metrics) -> None:
        self._disk = disk
        self._metrics = metrics
        self._prev: bytes | None = None  # the hash of the block before, where it was read
        disk.on_repair = metrics.repaired.inc

    async def run(self) -> None:
        """Until cancelled. Raises DiskFailed, and StoreDamaged where the store must be given up."""
        await trio.sleep(SCRUB_FIRST_S)
        while True:
            begun = trio.current_time()
            damaged = await self.scrub()
            self._metrics.damaged.set(damaged)
            _log.info("scrubbed", seconds=round(trio.current_time() - begun), damaged=damaged)
            await trio.sleep_until(max(begun + SCRUB_EVERY_S, trio.current_time() + SCRUB_FIRST_S))

    async def scrub(self) -> int:
        """Read all blocks that are kept now, and the checkpoint. How many of them remain damaged."""
        tail, damaged = self._disk.tail, 0
        index, tip = tail.first, tail.tip
        self._prev = None
        while (index := max(index, tail.first)) <= tip:
            index, mended = await self._some_blocks(index, min(tip, index + SCRUB_BATCH - 1))
            damaged += not mended
        return damaged + (not await self._checkpoint())

    async def _some_blocks(self, first: int, last: int) -> tuple[int, bool]:
        """Blocks from `first` on, up to the first damaged one, which is mended: where to go on, and whether it was."""
        disk = self._disk
        async with disk.writing:
            pass  # whoever writes goes first
        good, error = await disk.look(first, last)
        if good and self._prev is not None and first > disk.tail.first and good[0].block.prev != self._prev:
            good, error = [], disk.unlinked(first)
        if good:
            self._prev = good[-1].block.hash
            await self._pace(sum(_weight(kept.block) for kept in good))
        index = first + len(good)
        if error is None or index < disk.tail.first:
            return index, True
        before, self._prev = self._prev, None
        try:
            if isinstance(error, StoreForeign):
                raise error
            self._prev = (await disk.mend_after(before, index, error)).hash
        except LookupError:
            pass  # released meanwhile
        except (StoreDamaged, StoreForeign) as still:
            disk.tail.check()
            _log.error("block_damaged", index=index, text=still.text, remedy=still.remedy)
            return index + 1, False
        return index + 1, True

    async def _checkpoint(self) -> bool:
        try:
            await self._disk.check_checkpoint(self._pace)
        except (StoreDamaged, StoreForeign) as error:
            _log.error("checkpoint_damaged", text=error.text, next="another is saved in its place")
            self._disk.distrust_checkpoint()
            return False
        return True

    async def _pace(self, size: int) -> None:
        """So many bytes were read, or what takes as long."""
        self._metrics.scrubbed.inc(size)
        await trio.sleep(size / SCRUB_RATE)


def _weight(block: Block) -> int:
    """What reading a block counts for, bytes: it is opened record by record."""
    return max(SCRUB_BLOCK, block.size + SCRUB_RECORD * len(block.records))
