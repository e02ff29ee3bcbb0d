"""The steward: checkpoints, carries and releases, and makes a block when something is due in an idle log."""

from __future__ import annotations

from collections.abc import Iterator

import structlog
import trio

from relay.core import records
from relay.core.mailroom import reading
from relay.core.mailroom.state import Source
from relay.delivery import Delivery
from relay.errors import Overloaded, ResidencyError, StoreDamaged
from relay.intake import Intake
from relay.limits import CARRY_BATCH, CARRY_LIVE_SHARE, CARRY_STRETCH, CHECKPOINT_BYTES
from relay.observe.metrics import Metrics
from relay.ports import Journal

_log = structlog.get_logger("relay.steward")
_LOOK_S = 1.0  # seconds between two looks: how late an expiry may be in an idle log
_APPLY_S = 5.0  # seconds for a carry to be applied; checkpoints and ticks wait as long
_PUT_OFF_S = 30.0  # seconds before a carry that did not work is tried again


class Steward:
    """One task runs `run`; `save` is called once more after everything else has stopped."""

    def __init__(self, journal: Journal, delivery: Delivery, intake: Intake, metrics: Metrics) -> None:
        self._journal = journal
        self._delivery = delivery
        self._intake = intake
        self._metrics = metrics
        self._saved = delivery.room.state.index
        self._saved_bytes = delivery.applied_bytes  # of the log, when the last checkpoint was taken
        self._size = 0  # bytes of the last checkpoint
        self._carry_at = 0.0  # not before this time, s of trio's clock

    async def run(self) -> None:
        """Until cancelled. Raises DiskFailed."""
        while True:
            await trio.sleep(_LOOK_S)
            try:
                if self._journal.leads:
                    self._tick_if_due()
                    await self._carry_if_worth_it()
            except (Overloaded, StoreDamaged) as error:
                _log.warning("carry_put_off", text=error.text)
                self._carry_at = trio.current_time() + _PUT_OFF_S
            # A checkpoint costs what it is large: not more often than the log grows by as much.
            if self._delivery.applied_bytes - self._saved_bytes >= max(CHECKPOINT_BYTES, self._size):
                await self.save()

    async def save(self) -> None:
        """Save a checkpoint, then let go of the prefix that it covers and nobody needs (rule 12)."""
        state = self._delivery.room.state
        if state.index == self._saved:
            return
        index, rows, floor = state.index, self._delivery.room.checkpoint(), state.floor()
        self._saved_bytes, self._size = self._delivery.applied_bytes, sum(map(len, rows))
        await self._journal.save_checkpoint(index, rows)
        self._saved = index
        await self._journal.release(min(floor, index + 1))
        _log.debug("checkpoint", index=index, floor=floor, rows=len(rows))

    def _tick_if_due(self) -> None:
        """Rule 14: a due expiry makes a block even when nobody writes."""
        expiries = self._delivery.room.state.expiries
        if expiries and expiries[0][0] <= self._journal.time_ms():
            try:
                self._intake.offer([records.encode_record(records.Tick())])
            except Overloaded:
                return  # then the log is not idle

    async def _carry_if_worth_it(self) -> None:
        """Append again what still waits in the oldest stretch of the log, when most of the stretch is settled."""
        below = self._settled_stretch() if trio.current_time() >= self._carry_at else 0
        if not below:
            return
        for batch in _batches(reading.to_carry(self._delivery.room.state, below)):
            await self._carry(batch, below)

    def _settled_stretch(self) -> int:
        """The index up to which the oldest CARRY_STRETCH of the log reaches, if little of it is live; else 0."""
        state = self._delivery.room.state
        size = live = 0
        for index, use in state.blocks.items():
            if index > self._saved:
                break  # only what a checkpoint covers can go
            size, live = size + use.size, live + use.live_bytes
            if size >= CARRY_STRETCH:
                return index + 1 if 0 < live < size * CARRY_LIVE_SHARE else 0
        return 0

    async def _carry(self, batch: list[Source], below: int) -> None:
        """Raises Overloaded where it is not taken, StoreDamaged where a record cannot be read."""
        items = []
        for source in batch:
            if source.refs == 0:
                continue  # settled meanwhile
            block = await self._journal.read(source.index)
            record = records.encode_record(reading.record_of(block, source))
            key_index, key_ordinal = reading.split_key(source.key)
            items.append(records.Carried(key_index, key_ordinal, record))
        if not items:
            return
        refused: list[ResidencyError] = []
        self._intake.offer([records.encode_record(records.Carry(tuple(items)))], refused.append)
        with trio.move_on_after(_APPLY_S) as scope:
            await self._delivery.wait_for(
                lambda: bool(refused) or all(source.index >= below or source.refs == 0 for source in batch)
            )
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
