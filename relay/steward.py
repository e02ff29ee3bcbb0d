"""The steward: checkpoints, carries and releases, and makes a block when something is due in an idle log."""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import structlog
import trio

from relay.core import records
from relay.core.mailroom import reading
from relay.core.mailroom.state import Source, split_key
from relay.core.packing import Memory, Shelf
from relay.delivery import Delivery
from relay.errors import Overloaded, ResidencyError, StoreDamaged
from relay.intake import Intake
from relay.limits import CARRY_BATCH, CARRY_LIVE_SHARE, CARRY_STRETCH, CHECKPOINT_AHEAD, ERASE_S
from relay.observe.metrics import Metrics
from relay.ports import Journal

_log = structlog.get_logger("relay.steward")
_LOOK_S = 1.0  # seconds between two looks: how late an expiry may be in an idle log
_APPLY_S = 5.0  # seconds for a carry to be applied; checkpoints and ticks wait as long
_ERASE_AGAIN_S = 5.0  # seconds before another attempt: a peer that is away may still need the prefix
_PUT_OFF_S = 30.0  # seconds before a carry that did not work is tried again


class Steward:
    """One task runs `run`; `save` is called once more after everything else has stopped."""

    def __init__(self, journal: Journal, delivery: Delivery, intake: Intake, metrics: Metrics) -> None:
        self._journal = journal
        self._delivery = delivery
        self._intake = intake
        self._metrics = metrics
        self.shelf: Shelf = Memory()  # for rows of a checkpoint that are made and not written yet
        self._saved = delivery.room.state.index
        self._saving = trio.Lock()
        self._ahead = 0  # bytes of rows on the shelf
        self._laid = trio.Event()  # one of them was written
        delivery.checkpoint_due = self.save
        self._carry_at = 0.0  # not before this time, s of trio's clock
        self._renew = False  # the checkpoint on the disk is no good
        self._erase_at = math.inf  # when what users left behind goes, s of trio's clock
        self.cleaned: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint  # the prefix is gone: clean up behind it
        self.erased = 0  # below this index nothing of the log is left here, not in the write-ahead log either

    async def run(self) -> None:
        """Until cancelled. Raises DiskFailed."""
        while True:
            await trio.sleep(_LOOK_S)
            try:
                if self._journal.leads:
                    self._tick_if_due()
                    await self._carry_if_worth_it()
                await self._erase_when_due()
            except (Overloaded, StoreDamaged) as error:
                _log.warning("carry_put_off", text=error.text)
                self._carry_at = trio.current_time() + _PUT_OFF_S
            if self._renew and self._delivery.room.state.index == self._saved:
                self._tick()  # a checkpoint is of a block that is kept, and later than the one before
            elif self._renew:
                await self.save()

    def erase(self) -> None:
        """Have what users left behind go now, not in a while."""
        self._erase_at = trio.current_time()

    async def _erase_when_due(self) -> None:
        """What users who moved away have left in the log goes: what others still wait for there is carried out of its
        way, and the prefix is let go, here and by every other node of the cell, within a bounded time."""
        state, now = self._delivery.room.state, trio.current_time()
        below = reading.left_below(state)
        if below <= self._journal.first:
            self._erase_at = math.inf
            if below > self.erased:  # it went for another reason, or in an earlier life
                await self._clean_up()
            return
        self._erase_at = min(self._erase_at, now + ERASE_S)
        if now < self._erase_at:
            return
        self._erase_at = now + _ERASE_AGAIN_S
        if self._journal.leads and state.floor() < below:
            for batch in _batches(reading.to_carry(state, below)):
                await self._carry(batch, below)
        if self._journal.leads and state.index == self._saved:
            self._tick()  # a checkpoint is of a later block than the one before
            with trio.move_on_after(_APPLY_S):
                await self._delivery.wait_for(lambda: state.index > self._saved)
        if state.floor() >= below and state.index > self._saved:
            await self.save()
            await self._clean_up()

    async def _clean_up(self) -> None:
        first = self._journal.first
        await self.cleaned()
        self.erased = first
        _log.info("left_behind_erased", first=first)

    def renew(self) -> None:
        """Have a new checkpoint saved soon: the one on the disk is damaged, the state in memory is not."""
        self._renew = True

    async def save(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Save a checkpoint of the state as it is, then let go of the prefix that it covers and nobody needs (rule 12).
        Started when all rows are made: the fold goes on while they are written. Raises DiskFailed."""
        asked = trio.current_time()
        async with self._saving:
            state = self._delivery.room.state
            index, floor = state.index, state.floor()
            if index == self._saved:
                task_status.started()
                return
            self._renew = False  # what is found damaged from here on may be of this one, too
            ahead, behind = trio.open_memory_channel[int](math.inf)
            rows, writes, size, began = self._laid_ahead(behind), False, 0, trio.current_time()
            self._ahead = 0
            async with trio.open_nursery() as nursery:
                with self._delivery.still(), ahead:
                    for row in self._delivery.room.checkpoint():
                        if self._ahead > CHECKPOINT_AHEAD and not writes:  # before, it would only lengthen the pause
                            writes = True
                            nursery.start_soon(self._journal.save_checkpoint, index, rows)
                        while self._ahead > CHECKPOINT_AHEAD:
                            await self._laid.wait()
                        await ahead.send(self.shelf.add(row))
                        self._ahead, size = self._ahead + len(row), size + len(row)
                since = began if task_status is trio.TASK_STATUS_IGNORED else asked  # else the fold waits with us
                self._metrics.checkpoint_still_seconds.observe(trio.current_time() - since)
                task_status.started()
                if not writes:
                    nursery.start_soon(self._journal.save_checkpoint, index, rows)
            self._saved = index
            await self._journal.release(min(floor, index + 1))
            self._metrics.checkpoint_seconds.observe(trio.current_time() - began)
            self._metrics.checkpoint_bytes.set(size)
            _log.debug("checkpoint", index=index, floor=floor)

    async def _laid_ahead(self, numbers: AsyncIterable[int]) -> AsyncIterator[bytes]:
        """Rows that wait on the shelf to be written."""
        async for number in numbers:
            row = self.shelf.get(number)
            self.shelf.drop(number)
            yield row
            self._ahead -= len(row)
            self._laid.set()
            self._laid = trio.Event()

    def _tick_if_due(self) -> None:
        """Rule 14: a due expiry makes a block even when nobody writes."""
        expiries = self._delivery.room.state.expiries
        if expiries and expiries[0][0] <= self._journal.time_ms():
            self._tick()

    def _tick(self) -> None:
        with suppress(Overloaded):  # then the log is not idle
            self._intake.offer([records.encode_record(records.Tick())])

    async def _carry_if_worth_it(self) -> None:
        """Append again what still waits in the oldest stretch of the log, when most of the stretch is settled, or most
        of the whole log: it follows what waits, not what has passed."""
        below = self._settled_stretch() if trio.current_time() >= self._carry_at else 0
        if not below:
            return
        for batch in _batches(reading.to_carry(self._delivery.room.state, below)):
            await self._carry(batch, below)

    def _settled_stretch(self) -> int:
        """The index up to which the oldest CARRY_STRETCH of the log reaches, if little of it is live; else 0."""
        blocks = self._delivery.room.state.blocks
        little = blocks.live_bytes < blocks.bytes * CARRY_LIVE_SHARE
        size = live = 0
        for index, use in blocks:
            if index > self._saved:
                break  # only what a checkpoint covers can go
            size, live = size + use.size, live + use.live_bytes
            if size >= CARRY_STRETCH:
                return index + 1 if live and (little or live < size * CARRY_LIVE_SHARE) else 0
        return 0

    async def _carry(self, batch: list[Source], below: int) -> None:
        """Raises Overloaded where it is not taken, StoreDamaged where a record cannot be read."""
        items, sources = [], self._delivery.room.state.sources
        for key in (source.key for source in batch):
            source = sources.find(key)
            if source is None:
                continue  # settled meanwhile
            block = await self._journal.read(source.index)
            record = records.encode_record(reading.record_of(block, source))
            items.append(records.Carried(*split_key(key), record))
        if not items:
            return

        def lies_there(one: Source) -> bool:
            now = sources.find(one.key)
            return now is not None and now.index < below

        refused: list[ResidencyError] = []
        self._intake.offer([records.encode_record(records.Carry(tuple(items)))], refused.append)
        with trio.move_on_after(_APPLY_S) as scope:
            await self._delivery.wait_for(lambda: bool(refused) or not any(map(lies_there, batch)))
        if refused or scope.cancelled_caught:
            raise Overloaded(refused[0].text if refused else "the journal did not take a carry in time")
        self._metrics.carried.inc(len(items))


def _batches(sources: list[Source]) -> Iterator[list[Source]]:
    batch: list[Source] = []
    size = 0
    for source in sources:
        batch.append(source)
        size += source.size
        if size >= CARRY_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
