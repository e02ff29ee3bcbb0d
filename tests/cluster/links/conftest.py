"""Federations of nodes that are only links: over loopback or over a network in memory that can be cut, with real TLS or
with identities that are only told."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from nacl.signing import SigningKey

from cluster.core.linkwire import Answer, CellNote, Done, LookUp, Peer, Records, Request
from cluster.env import RealEnv
from cluster.links import Links, Security
from cluster.pki import NodeCredentials, issue_node, make_authority
from relay.core.trust import Root, RootCell, RootNode, RootRegion
from relay.core.wire import Code
from relay.observe.metrics import Metrics
from tests.cluster.links.plain import PlainSecurity
from tests.roots import verified_root

REGIONS = ("norden", "sueden", "westen")
ABROAD = {region: (region, "n1") for region in REGIONS}  # a name for the tests → region, node; its cell is <region>/1
IN_A_CELL = {node: ("norden", node) for node in ("n1", "n2", "n3")} | {"sueden": ("sueden", "n1")}
AUTHORITIES = {region: make_authority(region) for region in REGIONS}
ROOT_KEY = SigningKey(bytes(32))
FAR = 4_000_000_000_000  # Unix ms


class Wire(trio.abc.Stream):
    """One end of a connection in memory. Once swallowed, it takes everything and says nothing: half-open."""

    def __init__(self, inner: trio.abc.Stream, net: MemoryNet) -> None:
        self._inner, self._net = inner, net
        self._swallowed = trio.Event()
        self.sends = 0

    def swallow(self) -> None:
        self._swallowed.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.sends += 1
        if self._swallowed.is_set():
            await trio.lowlevel.checkpoint()
        else:
            await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._inner.receive_some(max_bytes)
        if self._swallowed.is_set():
            await trio.sleep_forever()
        return data

    async def aclose(self) -> None:
        if not self._swallowed.is_set():
            await self._inner.aclose()
        else:
            await trio.lowlevel.checkpoint()


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    def __init__(self) -> None:
        self.send, self._receive = trio.open_memory_channel[trio.abc.Stream](64)

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        await self._receive.aclose()


class MemoryNet(RealEnv):
    """Env with a network in memory: trio's mock clock never jumps over bytes that are on their way."""

    def __init__(self) -> None:
        super().__init__()
        self.listeners: dict[int, MemoryListener] = {}
        self.wires: list[Wire] = []
        self.dials: list[float] = []
        self.dialled: list[int] = []  # the ports of those

    async def dial(self, host: str, port: int) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        self.dials.append(trio.current_time())
        self.dialled.append(port)
        listener = self.listeners.get(port)
        if listener is None:
            raise ConnectionRefusedError
        near, far = trio.testing.memory_stream_pair()
        ours, theirs = Wire(near, self), Wire(far, self)
        self.wires += [ours, theirs]
        try:
            await listener.send.send(theirs)
        except trio.BrokenResourceError:
            raise ConnectionRefusedError from None
        return ours

    async def listen(self, host: str, port: int) -> Sequence[trio.abc.Listener[trio.abc.Stream]]:
        await trio.lowlevel.checkpoint()
        listener = self.listeners[port] = MemoryListener()
        return [listener]

    def swallow(self) -> None:
        """From now on every open connection is half-open."""
        for wire in self.wires:
            wire.swallow()


@dataclass
class Node:
    """One node: its links, what they were asked, and how they answer."""

    peer: Peer
    links: Links
    metrics: Metrics
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]]
    credentials: Security
    asked: list[tuple[Peer, Request]] = field(default_factory=list)
    notes: list[tuple[Peer, CellNote]] = field(default_factory=list)
    note_error: Exception | None = None
    gate: trio.Event | None = None
    error: Exception | None = None
    running: int = 0
    most: int = 0

    def note(self, peer: Peer, note: CellNote) -> None:
        if self.note_error is not None:
            raise self.note_error
        self.notes.append((peer, note))

    async def answer(self, peer: Peer, message: Request) -> Answer:
        self.asked.append((peer, message))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        if isinstance(message, LookUp):
            return Records(Code.STORED, (message.user,))
        return Done()


class Federation:
    """Nodes at their places, one cell a region, and everything to make another that lies."""

    def __init__(
        self, env: RealEnv, folder: Path, places: dict[str, tuple[str, str]] = ABROAD, plain: bool = False
    ) -> None:
        self.env, self.folder, self.places = env, folder, places
        self.plain = plain or isinstance(env, MemoryNet)  # TLS is spoken on sockets
        self.listeners: dict[str, Sequence[trio.abc.Listener[trio.abc.Stream]]] = {}
        self.ports: dict[str, int] = {}
        self.root: Root
        self.nodes: dict[str, Node] = {}

    async def prepare(self) -> None:
        for number, name in enumerate(self.places, 1):
            in_memory = isinstance(self.env, MemoryNet)
            self.listeners[name] = await self.env.listen("127.0.0.1", number if in_memory else 0)
            listener = self.listeners[name][0]
            self.ports[name] = listener.socket.getsockname()[1] if isinstance(listener, trio.SocketListener) else number
        self.root = self.make_root()
        for name in self.places:
            self.nodes[name] = self.node(name)

    def make_root(self, name: str = "test") -> Root:
        public = bytes(ROOT_KEY.verify_key)
        regions = tuple(
            RootRegion(region, AUTHORITIES[region][0], public, (RootCell(f"{region}/1", self._root_nodes(region)),))
            for region in dict.fromkeys(region for region, _ in self.places.values())
        )
        return verified_root(regions, FAR, name=name)

    def _root_nodes(self, region: str) -> tuple[RootNode, ...]:
        return tuple(
            RootNode(node, f"127.0.0.1:{self.ports[name]}", ())
            for name, (where, node) in self.places.items()
            if where == region
        )

    def files(
        self, authority: str | tuple[bytes, bytes], claims: str, node: str = "n1", now_ms: int | None = None
    ) -> tuple[Path, Path]:
        """Certificate and key that say `claims`, signed by the authority of a region, or by the given one."""
        pair = AUTHORITIES[authority] if isinstance(authority, str) else authority
        made = issue_node(*pair, claims, f"{claims}/1", node, ["127.0.0.1"], now_ms=now_ms)
        paths = self.folder / f"{claims}-{node}.crt", self.folder / f"{claims}-{node}.key"
        for path, data in zip(paths, made, strict=True):
            path.write_bytes(data)
            path.chmod(0o600)
        return paths

    def node(self, name: str) -> Node:
        region, node = self.places[name]
        credentials: Security
        if self.plain:
            credentials = PlainSecurity(Peer(region, f"{region}/1", node))
        else:
            credentials = NodeCredentials.load(*self.files(region, region, node), self.root)
        metrics = Metrics()
        links = Links(self.env, self.root, credentials.peer, credentials, metrics)
        return Node(credentials.peer, links, metrics, self.listeners[name], credentials)

    @contextlib.asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for name in names:
                node = self.nodes[name]
                await nursery.start(node.links.run, node.listeners, node)
            yield
            nursery.cancel_scope.cancel()

    async def listen_again(self, name: str) -> None:
        """A new process on the old port."""
        self.listeners[name] = await self.env.listen("127.0.0.1", self.ports[name])
        self.nodes[name] = replace(self.node(name), listeners=self.listeners[name])

    async def met(self, *names: str) -> None:
        """Until each of these nodes of a cell has its link to each other one."""
        nodes = [self.nodes[name] for name in names]
        for _ in range(10_000):
            if all(one.links.reaches(other.peer.node) for one in nodes for other in nodes if one is not other):
                return
            await trio.sleep(0.001)
        raise AssertionError("they do not meet")

    def lying_client(self, *files: Path) -> ssl.SSLContext:
        """A TLS client with any certificate or none, that believes everything."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if files:
            context.load_cert_chain(*files)
        return context


async def prepared(env: RealEnv, folder: Path, *more: Any) -> Federation:
    federation = Federation(env, folder, *more)
    await federation.prepare()
    return federation


@pytest.fixture
async def fed(tmp_path: Path) -> Federation:
    """On loopback."""
    return await prepared(RealEnv(), tmp_path)


@pytest.fixture
async def net(tmp_path: Path) -> Federation:
    """In memory."""
    return await prepared(MemoryNet(), tmp_path)


@pytest.fixture
async def cell(tmp_path: Path) -> Federation:
    """A cell of three, and another region; on loopback."""
    return await prepared(RealEnv(), tmp_path, IN_A_CELL)


@pytest.fixture
async def cellnet(tmp_path: Path) -> Federation:
    """The same in memory, without TLS."""
    return await prepared(MemoryNet(), tmp_path, IN_A_CELL, True)
