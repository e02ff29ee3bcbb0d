"""One cell over a journal in memory: office, intake, delivery, steward as a node wires them, and lines to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from nacl.signing import SigningKey

from relay.barrier import Barrier
from relay.core import wire
from relay.core.codec import digest
from relay.core.mailroom import Mailroom
from relay.core.proven import Missing
from relay.core.trust import Root, RootCell, RootRegion
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import Refused
from relay.gateway.api import Identity
from relay.intake import Intake
from relay.journal.memory import MemoryJournal
from relay.observe.metrics import Metrics
from relay.office import Office
from relay.steward import Steward
from tests.frames import payload, split
from tests.relay.core.mailroom.conftest import FAR, START, User, device_id
from tests.roots import verified_root

CELL, ABROAD = "norden/1", "sauda/1"


def make_root() -> Root:
    registrar = bytes(SigningKey(digest(b"registrar")).verify_key)
    regions = tuple(RootRegion(name.split("/")[0], b"", registrar, (RootCell(name, ()),)) for name in (CELL, ABROAD))
    return verified_root(regions, FAR)


class FakeEnv:
    """Time by trio's clock (so that a mock clock moves it), randomness by counting."""

    def __init__(self) -> None:
        self.clock = self
        self._count = 0

    def wall_ms(self) -> int:
        return START + int(trio.current_time() * 1000)

    def monotonic_ms(self) -> int:
        return int(trio.current_time() * 1000)

    def random_bytes(self, count: int) -> bytes:
        self._count += 1
        return digest(str(self._count).encode())[:count]

    def random_float(self) -> float:
        return 0.5


class FakeDirectory:
    """Foreign users by a dict."""

    def __init__(self) -> None:
        self.known = {}

    async def lookup(self, user, hint):
        if user not in self.known:
            raise Refused(Code.UNKNOWN_USER, "nobody")
        return self.known[user]

    async def chain(self, user, hint, after):
        return [(await self.lookup(user, hint)).signed]


class FakeAbroad:
    def __init__(self) -> None:
        self.sent = []

    async def ephemeral(self, *what):
        self.sent.append(what)


class FakeNotary:
    """Proves nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked = []

    async def prove(self, cell, wanted):
        self.asked.append((cell, wanted))
        return [], [Missing(one.id, Code.UNPROVEN) for one in wanted]


class FakeLine:
    """A line that keeps what it is sent, decoded. `room`: frames it takes before push says no."""

    def __init__(self, user: User, name: str, room: int = 1_000_000) -> None:
        self.user, self.device = user.id, device_id(name)
        self.left = room
        self.messages = []
        self.ended = None
        self.live = True
        self.flushed = 0
        self.came = trio.Event()

    def _take(self, frame: bytes) -> None:
        self.messages.append(wire.decode_server(payload(frame)))
        self.came.set()
        self.came = trio.Event()

    def push(self, frames) -> bool:
        whole = [one for frame in frames for one in split(frame)]
        if len(whole) > self.left:
            return False
        self.left -= len(whole)
        for frame in whole:
            self._take(frame)
        return True

    def flush(self) -> None:
        self.flushed += 1

    def give(self, data: bytes) -> bool:
        pushed = self.push((data,))
        self.flush()
        return pushed

    async def send(self, frame: bytes) -> None:
        while not self.left:
            await self.came.wait()
        await trio.lowlevel.checkpoint()
        self.left -= 1
        self._take(frame)

    async def room(self) -> None:
        while not self.left:
            await self.came.wait()
        await trio.lowlevel.checkpoint()

    def make_room(self, room: int) -> None:
        self.left = room
        self.came.set()
        self.came = trio.Event()

    def end(self, fault, text, retry_after_ms=0, records=()) -> None:
        self.ended = self.ended or fault

    def of(self, kind):
        return [message for message in self.messages if isinstance(message, kind)]

    def codes(self):
        return [item.code for receipt in self.of(wire.Receipt) for item in receipt.items]


class Cell:
    """The wired parts. `residency`: the disk writer's check, none by default. `root`: one without logs by default."""

    def __init__(self, env: FakeEnv, name: str = CELL, residency=None, root: Root | None = None) -> None:
        self.env = env
        self.journal = MemoryJournal(env, name, residency)
        self.metrics = Metrics()
        self.delivery = Delivery(self.journal, Mailroom(name, self.journal.log_id), self.metrics, env.clock)
        self.intake = Intake(self.journal, self.metrics)
        self.barrier = Barrier(self.journal, self.intake, self.delivery)
        self.steward = Steward(self.journal, self.delivery, self.intake, self.metrics)
        self.directory, self.abroad, self.notary = FakeDirectory(), FakeAbroad(), FakeNotary()
        identity = Identity(name.split("/")[0], name, "n1", self.journal.log_id)
        self.office = Office(
            identity, root or make_root(), self.delivery, self.intake, self.directory, self.abroad, self.metrics,
            self.notary,
        )

    @property
    def state(self):
        return self.delivery.room.state

    async def join(self, nursery, user: User, name: str, *, receive=True, cursor=0, log_id=b"", room=1_000_000):
        """Connect a device and serve it."""
        line = FakeLine(user, name, room)
        await self.office.admit(user.id, line.device, user.chain)
        hello = wire.Hello(0, log_id, cursor, receive, "test")
        self.started = await self.office.start(line, hello, self.env.random_bytes(16))
        if receive:
            nursery.start_soon(self.office.serve, line)
        return line


@pytest.fixture
def open_cell():
    @asynccontextmanager
    async def opened() -> AsyncIterator[tuple[Cell, trio.Nursery]]:
        cell = Cell(FakeEnv())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cell.delivery.run)
            nursery.start_soon(cell.intake.run)
            nursery.start_soon(cell.steward.run)
            yield cell, nursery
            nursery.cancel_scope.cancel()

    return opened


@pytest.fixture
def open_hall(open_cell):
    from tests.relay.hall import Hall

    @asynccontextmanager
    async def opened(**terms):
        async with open_cell() as (cell, nursery):
            hall = Hall(cell, nursery)
            await hall.open(**terms)
            yield hall

    return opened
