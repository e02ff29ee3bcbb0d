"""A journal in memory: the meaning of the port without a disk. For tests; nothing survives the process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import trio

from relay.core.block import Block
from relay.journal.tail import Follower, Tail, check_checkpoint, check_release, each_row
from relay.ports import Env, Residency, Rows


class MemoryJournal:
    """relay.ports.Journal for one process. `residency` is asked as a disk writer would ask it."""

    def __init__(self, env: Env, cell: str, residency: Residency | None = None) -> None:
        self.cell = cell
        self._residency = residency
        self._tail = Tail(env.random_bytes(16), env.clock, keep=None)
        self._checkpoint: tuple[int, list[bytes]] | None = None

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
        await trio.lowlevel.checkpoint()
        facts = self._residency.check(records) if self._residency else ()
        self._tail.commit(self._tail.next_block(records))
        if self._residency:
            self._residency.learn(facts)

    def follow(self, after: int) -> AsyncIterator[Block]:
        return Follower(self._tail, self._load, after)

    async def _load(self, index: int, prev: bytes | None) -> Sequence[Block]:
        return [await self.read(index)]

    async def read(self, index: int) -> Block:
        await trio.lowlevel.checkpoint()
        self._tail.check_kept(index)
        block = self._tail.recent(index)
        assert block is not None  # memory keeps all of them
        return block

    async def release(self, below: int) -> None:
        await trio.lowlevel.checkpoint()
        check_release(below, self._checkpoint[0] if self._checkpoint else 0)
        if below > self._tail.first:
            self._tail.released(below)

    async def save_checkpoint(self, index: int, rows: Rows) -> None:
        await trio.lowlevel.checkpoint()
        check_checkpoint(index, self._checkpoint[0] if self._checkpoint else 0, self._tail.tip)
        self._checkpoint = (index, [row async for row in each_row(rows)])

    async def load_checkpoint(self, take: Callable[[bytes], None]) -> int | None:
        await trio.lowlevel.checkpoint()
        if self._checkpoint is None:
            return None
        for row in self._checkpoint[1]:
            take(row)
        return self._checkpoint[0]
