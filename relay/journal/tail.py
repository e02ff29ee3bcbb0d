"""The moving end of a log, the same for every journal of one process: it makes the next block, keeps the newest ones in
memory, and wakes who follows."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence

import structlog
import trio

from relay.core.block import GENESIS, Block, make_block
from relay.errors import StoreDamaged
from relay.journal.stamp import Stamp
from relay.limits import MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_CHECKPOINT_ROW, MINUTE
from relay.ports import Clock, Rows

_log = structlog.get_logger("relay.journal")


def _memory(block: Block) -> int:
    """About the bytes that a block takes in memory: its records and the objects around them."""
    return block.size + 64 * len(block.records) + 512


class Tail:
    """`first` and `tip` are the oldest and newest index that are kept. `keep`: bytes of the newest blocks to hold in
    memory; None holds all of them."""

    def __init__(self, log_id: bytes, clock: Clock, keep: int | None) -> None:
        self.log_id = log_id
        self.first = 1
        self.tip = 0
        self._prev = GENESIS
        self._time = 0
        self._stamp = Stamp(clock)
        self._keep = keep
        self._recent: dict[int, Block] = {}  # in the order of their indexes, without gaps, up to the tip
        self._bytes = 0
        self._waiting: dict[int, trio.Event] = {}  # by the index that is waited for
        self._ended: Exception | None = None

    def start_at(self, first: int, prev: bytes, time: int) -> None:
        """Take up a log whose blocks below `first` were released; the kept ones are then taken in by `commit`."""
        self.first, self.tip, self._prev, self._time = first, first - 1, prev, time

    def skip_to(self, block: Block) -> None:
        """`block` was verified before: the ones up to it are kept, and need not be taken in."""
        self.tip, self._prev, self._time = block.index, block.hash, block.time

    @property
    def ended(self) -> bool:
        """Does the journal serve no longer?"""
        return self._ended is not None

    @property
    def newest(self) -> tuple[int, bytes, int]:
        """Index, hash and time of the newest committed block."""
        return self.tip, self._prev, self._time

    def next_block(self, records: Sequence[bytes]) -> Block:
        """The block that a commit would add now. Raises ValueError beyond the bounds of a block."""
        check_batch(records)
        return make_block(self.log_id, self.tip + 1, self._prev, self.time_ms(), records)

    def time_ms(self) -> int:
        """The log's time: what the next block is stamped with if it is made now (rule 14)."""
        return max(self._time, self._stamp.now())

    def commit(self, block: Block) -> None:
        """`block` is durable: it becomes the tip, and followers get it."""
        self.tip, self._prev, self._time = block.index, block.hash, block.time
        self._recent[block.index] = block
        self._bytes += _memory(block)
        while self._keep is not None and self._bytes > self._keep:
            self._drop(next(iter(self._recent)))
        self._wake(block.index)

    def _wake(self, upto: float) -> None:
        for index in [index for index in self._waiting if index <= upto]:
            self._waiting.pop(index).set()

    def warn_if_ahead(self) -> None:
        """Say so where the log's time lies ahead of the clock: expiry stands still until the clock is there too."""
        ahead = self._time - self._stamp.now()
        if ahead > MINUTE:
            _log.error("log_ahead_of_clock", ahead_ms=ahead, remedy="check the clock")

    def released(self, first: int) -> None:
        """The blocks below `first` are gone."""
        for index in range(self.first, first):
            if index in self._recent:
                self._drop(index)
        self.first = first

    def _drop(self, index: int) -> None:
        self._bytes -= _memory(self._recent.pop(index))

    def check_kept(self, index: int) -> None:
        """Raises LookupError unless block `index` is kept."""
        if not self.first <= index <= self.tip:
            raise LookupError(f"block {index} is not kept: the log has {self.first} to {self.tip}")

    def recent(self, index: int) -> Block | None:
        """Block `index`, if memory holds it."""
        return self._recent.get(index)

    def check(self) -> None:
        """Raises what the journal ended with, if it has."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    async def reached(self, index: int) -> None:
        """Wait until block `index` is committed. Raises what the journal ended with."""
        while True:
            self.check()
            if self.tip >= index:
                return
            if index not in self._waiting:
                self._waiting[index] = trio.Event()
            await self._waiting[index].wait()

    def end(self, error: Exception) -> None:
        """The journal serves no longer: followers get `error`."""
        if self._ended is None:
            self._ended = error
        self._wake(math.inf)


Load = Callable[[int, bytes | None], Awaitable[Sequence[Block]]]


class Follower:
    """Committed blocks after index `after`, in order, then each new one as it commits; an async iterator that holds
    nothing to be closed. `load` brings blocks from an index on that memory no longer holds, at least one; it gets the
    hash of the block before, if that is known.

    Raises LookupError where `after` lies beyond the tip, or the next block was released."""

    def __init__(self, tail: Tail, load: Load, after: int) -> None:
        if not tail.first - 1 <= after <= tail.tip:
            raise LookupError(f"nothing follows block {after} here: the log has {tail.first} to {tail.tip}")
        self._tail = tail
        self._load = load
        self._next = after + 1
        self._loaded: deque[Block] = deque()
        self._last: bytes | None = None  # the hash of the block before

    def __aiter__(self) -> Follower:
        return self

    async def __anext__(self) -> Block:
        await trio.lowlevel.checkpoint()
        await self._tail.reached(self._next)
        self._tail.check_kept(self._next)
        block = self._tail.recent(self._next)
        if block is not None:
            self._loaded.clear()
        else:
            if not self._loaded:
                self._loaded.extend(await self._load(self._next, self._last))
            block = self._loaded.popleft()
        if self._last is not None and block.prev != self._last:
            raise StoreDamaged(f"block {block.index} does not follow block {block.index - 1}")
        self._next, self._last = block.index + 1, block.hash
        return block


def check_batch(records: Sequence[bytes]) -> None:
    """Raises ValueError beyond the bounds of a block."""
    if not 0 < len(records) <= MAX_BLOCK_RECORDS or sum(map(len, records)) > MAX_BLOCK:
        raise ValueError(f"a block has 1 to {MAX_BLOCK_RECORDS} records and at most {MAX_BLOCK} bytes of them")


def check_checkpoint(index: int, before: int, tip: int) -> None:
    """Raises ValueError for a checkpoint that goes back, or lies beyond the tip."""
    if not before <= index <= tip:
        raise ValueError(f"a checkpoint after block {index}; the last was after {before}, the tip is {tip}")


async def each_row(rows: Rows) -> AsyncIterator[bytes]:
    """The rows of a checkpoint, however they come. Raises ValueError for one above its bound."""
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield _fitting(row)
    else:
        for row in rows:
            yield _fitting(row)


def _fitting(row: bytes) -> bytes:
    if len(row) > MAX_CHECKPOINT_ROW:
        raise ValueError(f"a checkpoint row has at most {MAX_CHECKPOINT_ROW} bytes")
    return row


def check_release(below: int, checkpoint: int) -> None:
    """Raises ValueError where blocks above the checkpoint would go (rule 12)."""
    if below > checkpoint + 1:
        raise ValueError(f"release below {below}, but the checkpoint is after block {checkpoint}")
