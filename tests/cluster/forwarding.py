"""A cell of norden with a forwarder, and a destination that answers as it likes."""

from __future__ import annotations

import trio

from cluster.core import linkwire
from cluster.forwarder import Forwarders
from relay.core import records, wire
from relay.core.trust import read_home
from relay.core.wire import Code
from relay.errors import Refused
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, make_root
from tests.relay.core.mailroom.conftest import User
from tests.relay.test_office import seal


class Destination:
    """Takes hand-overs as a cell does, and can be told to misbehave."""

    def __init__(self) -> None:
        self.log = b"1" * 16
        self.vector = 0
        self.taken: list[bytes] = []
        self.requests: list[tuple[int, int]] = []
        self.code = int(Code.STORED)
        self.says: int | None = None
        self.at_most = 1_000
        self.lose = 0
        self.carries = 1 << 30  # bytes that get through the line before the link gives up
        self.before = None

    async def request(self, cell, message, deadline_s):
        await trio.lowlevel.checkpoint()
        self.requests.append((message.first, len(message.items)))
        if self.before is not None:
            await self.before()
        if sum(len(item.item) for item in message.items) > self.carries:
            raise Refused(Code.UNREACHABLE, "not a byte for 12 s")
        outcomes = []
        for number, item in enumerate(message.items[: self.at_most], message.first):
            if number == self.vector + 1:
                self.vector = number
                self.taken.append(item.item)
            if number <= self.vector:
                outcomes.append(records.HandedAnswer(number, self.code, 1))
        if self.lose:
            self.lose -= 1
            raise Refused(Code.UNREACHABLE, "the answer was lost")
        return linkwire.HandOverAnswer(self.log, self.vector if self.says is None else self.says, tuple(outcomes))


class World:
    def __init__(self, there=None):
        self.there = there or Destination()

    async def __aenter__(self):
        self._manager = trio.open_nursery()
        self.nursery = await self._manager.__aenter__()
        env = FakeEnv()
        self.cell = Cell(env)
        for task in (self.cell.delivery.run, self.cell.intake.run):
            self.nursery.start_soon(task)
        forwarders = Forwarders(
            make_root(), self.cell.journal, self.cell.delivery, self.cell.intake, self.there, self.cell.metrics, env
        )
        self.forwarders = forwarders
        self.nursery.start_soon(forwarders.run)
        self.alice, carol = User("alice", CELL), User("carol", ABROAD)
        self.alice.record("a1")
        carol.record("c1")
        self.cell.directory.known[carol.id] = read_home(carol.chain[0])
        self.carol = carol.id
        self.line = await self.cell.join(self.nursery, self.alice, "a1")
        return self

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(*error)

    async def send(self, *numbers, size=1):
        sealed = [seal(self.cell, self.carol, body=bytes([n]) * size) for n in numbers]
        await self.cell.office.submit(self.line, [wire.SubmitItem("sauda", one) for one in sealed])
        return sealed

    def notices(self):
        return [notice.code for notice in self.line.of(wire.Notice)]


class Slow(Destination):
    """A long line: what arrives does so in its order, and its answer is back half a second later."""

    under_way = most = most_bytes = sent = 0
    fail: tuple[int, ...] = ()

    def __init__(self):
        super().__init__()
        self.took = trio.Event()

    async def request(self, cell, message, deadline_s):
        size = sum(len(item.item) for item in message.items)
        self.under_way, self.sent = self.under_way + 1, self.sent + size
        self.most, self.most_bytes = max(self.most, self.under_way), max(self.most_bytes, self.sent)
        try:
            if message.first in self.fail:
                self.fail = tuple(one for one in self.fail if one != message.first)
                raise Refused(Code.OVERLOADED, "not now")
            with trio.move_on_after(15):  # as a cell does, which may have what is before it under way
                while message.first > self.vector + 1:
                    await self.took.wait()
            answer = await super().request(cell, message, deadline_s)
            self.took.set()
            self.took = trio.Event()
            await trio.sleep(0.5)
            return answer
        finally:
            self.under_way, self.sent = self.under_way - 1, self.sent - size
