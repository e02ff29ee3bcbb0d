"""An honest office in memory, and what else the gateway's tests share."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
from nacl.signing import SigningKey
from prometheus_client import CollectorRegistry, Counter, Gauge

from relay import ws
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.frames import server_frame
from relay.core.proven import Missing, all_told
from relay.core.trust import Root, RootRegion
from relay.core.wire import Code, Fault
from relay.errors import AuthError, Refused
from relay.gateway.api import Identity, Line, Started
from relay.gateway.connection import Bounds, Connection, Surroundings
from relay.gateway.outbox import Queued
from relay.gateway.server import Entrance, Gateway
from tests.roots import verified_root

LOG_ID = b"L" * 16
ROOT = verified_root([RootRegion("norden", b"", bytes(32), ())], 10**13)


class FakeClock:
    def wall_ms(self) -> int:
        return 1_700_000_000_000

    def monotonic_ms(self) -> int:
        return 0


class FakeEnv:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self._random = random.Random(1)

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)


class FakeMetrics:
    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.connections = Gauge("connections", "-", registry=registry)
        self.sessions = Gauge("sessions", "-", registry=registry)
        self.outbox_bytes = Gauge("outbox_bytes", "-", registry=registry)
        self.refused = Counter("refused", "-", ["reason"], registry=registry)


@dataclass
class HonestOffice:
    """Everybody's envelopes go to everybody who is online; what they missed waits for them."""

    identity: Identity = field(default_factory=lambda: Identity("norden", "norden/1", "n1", LOG_ID))
    strangers: set[bytes] = field(default_factory=set)
    elsewhere: set[bytes] = field(default_factory=set)
    backlog: list[bytes] = field(default_factory=list)
    lines: dict[bytes, Line] = field(default_factory=dict)
    acked: list[int] = field(default_factory=list)
    told: list[wire.Ephemeral] = field(default_factory=list)
    detached: list[Line] = field(default_factory=list)
    demoted: set[bytes] = field(default_factory=set)
    on_start: Callable[[], Awaitable[None]] | None = None
    on_submit: Callable[[], Awaitable[None]] | None = None
    on_lookup: Callable[[wire.Lookup], Awaitable[None]] | None = None
    on_serve: Callable[[Line], Awaitable[None]] | None = None
    looking: int = 0
    root: Root = ROOT

    async def admit(self, user: bytes, device: bytes, records: Sequence[bytes]) -> None:
        await trio.lowlevel.checkpoint()
        if device in self.strangers:
            raise AuthError("The device is not enrolled", "Enrol it")
        if device in self.elsewhere:
            raise Refused(Code.UNKNOWN_USER, "The user is at home elsewhere", "Ask the directory")

    async def start(self, line: Line, hello: wire.Hello, nonce: bytes) -> Started:
        if self.on_start is not None:
            await self.on_start()
        await trio.lowlevel.checkpoint()
        if hello.receive:
            if older := self.lines.get(line.device):
                older.end(Fault.FENCED, "The device started a newer session")
            self.lines[line.device] = line
        return Started(LOG_ID, hello.cursor, len(self.backlog), 1, 1_700_000_000_000)

    async def serve(self, line: Line) -> None:
        if self.on_serve is not None:
            await self.on_serve(line)
        for position, envelope in enumerate(self.backlog, 1):
            await line.send(server_frame(wire.encode_deliver(position, envelope)))
        await line.send(server_frame(wire.encode_message(wire.Empty(len(self.backlog)))))
        await trio.sleep_forever()

    async def submit(self, line: Line, items: Sequence[wire.SubmitItem]) -> None:
        if self.on_submit is not None:
            await self.on_submit()
        await trio.lowlevel.checkpoint()
        outcomes = tuple(wire.ReceiptItem(envelope_id(i.envelope), Code.STORED, 1, 1, "norden/1") for i in items)
        line.push([server_frame(wire.encode_message(wire.Receipt(outcomes)))])
        line.flush()
        for item in items:
            self.backlog.append(item.envelope)
            self.spread([server_frame(wire.encode_deliver(len(self.backlog), item.envelope))])

    def spread(self, frames: Sequence[bytes]) -> None:
        for device, line in self.lines.items():
            if device not in self.demoted and not line.push(frames):
                self.demoted.add(device)
            line.flush()

    def ack(self, line: Line, position: int) -> None:
        self.acked.append(position)

    async def prove(self, line: Line, request: wire.Prove) -> wire.Proof:
        await trio.lowlevel.checkpoint()
        missing = tuple(Missing(one[:32], Code.UNPROVEN) for one in all_told(request.items))
        return wire.Proof(request.request, (), missing)

    async def lookup(self, line: Line, request: wire.Lookup) -> wire.Record:
        self.looking += 1
        try:
            if self.on_lookup is not None:
                await self.on_lookup(request)
            await trio.lowlevel.checkpoint()
            return wire.Record(request.request, Code.STORED, (b"record",))
        finally:
            self.looking -= 1

    async def roster(self, line: Line, roster: wire.Roster) -> None:
        await trio.lowlevel.checkpoint()
        item = wire.ReceiptItem(digest(roster.head), Code.STORED, 1, 1, "norden/1")
        line.push([server_frame(wire.encode_message(wire.Receipt((item,))))])
        line.flush()

    async def ephemeral(self, line: Line, message: wire.Ephemeral) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append(message)

    def detach(self, line: Line) -> None:
        self.detached.append(line)
        if self.lines.get(line.device) is line:
            del self.lines[line.device]


class Caller:
    """A client that follows the protocol, over a relay.ws client socket."""

    def __init__(self, socket: ws.ClientSocket, key: SigningKey | None = None) -> None:
        self.socket = socket
        self.key = key or SigningKey.generate()
        self.device = bytes(self.key.verify_key)
        self.user = digest(self.device)

    async def say(self, message: wire.ClientMessage) -> None:
        await self.socket.send(wire.encode_message(message))

    async def hear(self) -> Any:
        return wire.decode_server(await self.socket.receive())

    async def challenge(self, receive: bool = True) -> wire.Challenge:
        await self.say(wire.Hello(wire.VERSION, b"", 0, receive, "test"))
        challenge = await self.hear()
        assert isinstance(challenge, wire.Challenge)
        return challenge

    def auth(self, challenge: wire.Challenge) -> wire.Auth:
        signature = self.key.sign(wire.challenge_bytes(challenge, self.user, self.device)).signature
        return wire.Auth(self.user, self.device, signature, ())

    async def enter(self, receive: bool = True) -> wire.Welcome:
        await self.say(self.auth(await self.challenge(receive)))
        welcome = await self.hear()
        assert isinstance(welcome, wire.Welcome), welcome
        return welcome

    async def farewell(self) -> tuple[wire.Error, int]:
        """(ERROR, close code), passing over everything before."""
        while not isinstance(message := await self.hear(), wire.Error):
            pass
        try:
            await self.hear()
        except ws.Closed as closed:
            return message, closed.code
        raise AssertionError("the connection goes on after ERROR")


@dataclass
class House:
    """A gateway that runs, and what it runs on."""

    gateway: Gateway
    office: HonestOffice
    metrics: FakeMetrics
    url: str
    stopped: trio.Event


@asynccontextmanager
async def open_house(
    *, office: HonestOffice | None = None, entrances: Sequence[Entrance] = (), url: str = "", **options: Any
) -> AsyncIterator[House]:
    """A gateway on a loopback port (or the given entrances)."""
    office, metrics = office or HonestOffice(), FakeMetrics()
    options = {"bounds": Bounds(linger_s=0.1)} | options
    gateway = Gateway(office, FakeEnv(), metrics, **options)
    if not entrances:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        entrances = [Entrance(listener)]
        url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
    house = House(gateway, office, metrics, url, trio.Event())

    async def run(task_status: Any) -> None:
        await gateway.run(entrances, task_status=task_status)
        house.stopped.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        yield house
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def memory_call(office: HonestOffice, metrics: FakeMetrics | None = None, **bounds: Any) -> AsyncIterator[Any]:
    """(ws client socket, Connection) over streams in memory, so that a mock clock can jump."""
    ours, theirs = trio.testing.memory_stream_pair()
    metrics = metrics or FakeMetrics()
    around = Surroundings(office, FakeEnv(), metrics, Queued(metrics.outbox_bytes), Bounds(**bounds))

    async def dial(_host: str, _port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        return theirs

    async with trio.open_nursery() as nursery:
        connection = Connection(ours, around, nursery)
        nursery.start_soon(connection.run)
        async with ws.connect("ws://memory:1", dial=dial) as socket:
            yield socket, connection
        nursery.cancel_scope.cancel()


def deliver(position: int, size: int = 100) -> bytes:
    return server_frame(wire.encode_deliver(position, bytes(size)))
