"""Intake: owns the batches that go to the journal. Natural group commit: what arrives while the journal has no place
for another batch goes into the next one, without a timer. A replicated journal has one as soon as its leader's disk is
free: a block is on its way to the others while the next one is made (ADR 28). While the node is busy that would only
make more blocks of the same: then the next batch waits until the one before is committed, and a while from when that
was made (ADR 39)."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from relay.errors import Overloaded, ResidencyError
from relay.limits import (
    INTAKE_AHEAD,
    INTAKE_AHEAD_BUSY,
    MAX_BLOCK,
    MAX_BLOCK_RECORDS,
    MAX_INTAKE,
    OFFER_BYTES,
)
from relay.observe.metrics import Metrics
from relay.observe.pulse import Pulse
from relay.ports import Journal

_log = structlog.get_logger("relay.intake")
LAZY_S = 0.2  # seconds that acks wait for company: a commit of their own would cost as much as one with mail
LAZY_BUSY_S = 1.0  # while the node is busy: where its mail is elsewhere every fifth block was of such
OnRefused = Callable[[ResidencyError], None]


@dataclass(frozen=True, slots=True)
class _Offer:
    records: tuple[bytes, ...]
    size: int
    refused: OnRefused | None
    written: Callable[[], None] | None


class Intake:
    """`offer` from anywhere in the node; one task runs `run`."""

    def __init__(
        self, journal: Journal, metrics: Metrics, pulse: Pulse | None = None, max_bytes: int = MAX_INTAKE
    ) -> None:
        self._journal = journal
        self._metrics = metrics
        self._pulse = pulse or Pulse()
        self._max_bytes = max_bytes
        self._queue: deque[_Offer] = deque()
        self._bytes = 0  # queued, or under way, with OFFER_BYTES each
        self._records = 0  # queued
        self._under_way = 0  # batches
        self._ended = trio.Event()  # set, and renewed, with each of them
        self._arrived = trio.Event()  # there is something to write
        self._urgent = trio.Event()  # and somebody waits for it
        self.on_refused: Callable[[], None] = lambda: None
        metrics.queue_depth.set_function(lambda: self._records)

    def offer(
        self, records: Sequence[bytes], refused: OnRefused | None = None, *,
        written: Callable[[], None] | None = None, lazily: bool = False,
    ) -> None:
        """Queue records for the journal: they stay together, in order. `refused` is called if the disk writer refuses
        them, `written` when they are committed here. `lazily`: nobody waits for them, so that they ride with the next
        block, or make one after LAZY_S (LAZY_BUSY_S).

        Raises Overloaded, and nothing is taken, when the queue is full; ValueError beyond the bounds of a block."""
        size = sum(map(len, records))
        if not 0 < len(records) <= MAX_BLOCK_RECORDS or size > MAX_BLOCK:
            raise ValueError(f"{len(records)} records of {size} bytes do not fit into one block")
        if self._bytes + size + OFFER_BYTES > self._max_bytes:
            raise Overloaded("the node has more to write than its disk takes")
        self._queue.append(_Offer(tuple(records), size, refused, written))
        self._bytes += size + OFFER_BYTES
        self._records += len(records)
        self._arrived.set()
        if not lazily:
            self._urgent.set()

    def hurry(self) -> None:
        """Somebody waits now for what was offered lazily."""
        if self._queue:
            self._urgent.set()

    async def run(self) -> None:
        """Write until cancelled. Raises DiskFailed, in a group, after which nothing was or will be acknowledged
        (rule 7)."""
        last = -math.inf
        async with trio.open_nursery() as nursery:
            while True:
                await self._arrived.wait()
                with trio.move_on_after(LAZY_BUSY_S if self._pulse.busy else LAZY_S):
                    await self._urgent.wait()
                if self._pulse.busy:
                    await trio.sleep_until(last + self._pulse.every_s)
                while self._under_way >= (INTAKE_AHEAD_BUSY if self._pulse.busy else INTAKE_AHEAD):
                    await self._ended.wait()
                placed, last = trio.Event(), trio.current_time()
                self._under_way += 1
                nursery.start_soon(self._write, self._take(), placed.set)
                await placed.wait()

    async def _write(self, batch: list[_Offer], placed: Callable[[], None]) -> None:
        """Have the journal commit a batch. `placed` is called when the next one may follow."""
        try:
            await self._append(batch, placed)
        except ResidencyError:
            for offer in batch:
                await self._append_alone(offer)
        placed()
        self._bytes -= sum(offer.size + OFFER_BYTES for offer in batch)
        self._under_way -= 1
        self._ended.set()
        self._ended = trio.Event()

    def _take(self) -> list[_Offer]:
        batch: list[_Offer] = []
        size = count = 0
        while self._queue:
            offer = self._queue[0]
            if batch and (size + offer.size > MAX_BLOCK or count + len(offer.records) > MAX_BLOCK_RECORDS):
                break
            batch.append(self._queue.popleft())
            size += offer.size
            count += len(offer.records)
        self._records -= count
        if not self._queue:  # what comes from here on waits for the next block
            self._arrived, self._urgent = trio.Event(), trio.Event()
        return batch

    async def _append(self, batch: list[_Offer], placed: Callable[[], None] = lambda: None) -> None:
        records = [record for offer in batch for record in offer.records]
        began = trio.current_time()
        await self._journal.append(records, placed)
        took = trio.current_time() - began
        self._metrics.commit_seconds.observe(took)
        self._pulse.committed(took)
        self._metrics.journal_bytes.inc(sum(offer.size for offer in batch))
        for offer in batch:
            if offer.written is not None:
                offer.written()

    async def _append_alone(self, offer: _Offer) -> None:
        """One of the batch must not rest here: write the others, and tell who offered it."""
        try:
            await self._append([offer])
        except ResidencyError as error:
            _log.error("residency_refused", text=error.text, records=len(offer.records))
            if offer.refused is not None:
                offer.refused(error)
                self.on_refused()
