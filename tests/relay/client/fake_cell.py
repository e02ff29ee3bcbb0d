"""An honest federation in memory: two cells that speak the real wire bytes, and can be told to misbehave on the way.

It keeps envelopes by address in one log a cell, delivers what lies past a device's cursor, answers repeats with the
first outcome, forwards across the border in order, and gives receipts and notices. `Faults` says what goes wrong.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio
from nacl.signing import SigningKey, VerifyKey

from relay.client.connection import Seams
from relay.client.identity import Registrar
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import Header, To, envelope_id, read_header
from relay.core.rootparts import part_of
from relay.core.trust import (
    HomeRecord, Root, RootCell, RootNode, RootRegion, endorse_request, read_home, verify_home, verify_part,
    verify_roster, verify_root,
)  # fmt: skip
from relay.core.wire import Code, Fault
from relay.limits import MAX_LIFETIME
from relay.ws import NotConnected
from tests.relay.client.fake_socket import Entry, Session, Socket
from tests.roots import signed_root

NOW = 1_800_000_000_000  # Unix ms when a test begins
REGIONS = ("norden", "sueden")


@dataclass
class Faults:
    """What goes wrong on the way; counters are used up."""

    refuse: dict[bytes, int] = field(default_factory=dict)  # address → code of every answer
    stale: int = 0  # so many submits are answered STALE
    overloaded: int = 0
    longest: int = MAX_LIFETIME  # ms that a cell takes; `says`: what WELCOME has
    says: int = MAX_LIFETIME
    cut: bool = False  # the border is closed
    newest: int = 0  # receipts claim this version at least
    drop_after_submit: int = 0  # so many SUBMITs are taken, and the connection dies before the answer
    mute: int = 0  # so many SUBMITs are lost, and the connection lives on
    swallow_submit: int = 0  # so many SUBMITs are lost with the connection
    roots: Callable[[wire.AskRoot, Root], Sequence[wire.ServerMessage | bytes]] = lambda ask, root: [part_of(root, ask)]
    deliver: Callable[[list[bytes]], list[bytes]] = lambda frames: frames  # what becomes of a batch of DELIVER frames


def registrar(key: SigningKey) -> Registrar:
    """One who signs whatever it is asked for."""
    return lambda request, before: endorse_request(request, key)


class Cell:
    """One cell of one node."""

    def __init__(self, fed: Federation, name: str) -> None:
        self.fed, self.name = fed, name
        self.region = name.partition("/")[0]
        self.log_id = bytes([len(name)]) * 15 + name[:1].encode()
        self.log: list[Entry] = []
        self.outcomes: dict[bytes, wire.ReceiptItem] = {}
        self.homes: dict[bytes, list[HomeRecord]] = {}
        self.rosters: dict[bytes, dict[int, frozenset[bytes]]] = {}  # group → version → our members
        self.heads: dict[bytes, list[str]] = {}
        self.waiting: list[tuple[bytes, bytes | None]] = []
        self.cursors: dict[bytes, int] = {}
        self.renamed: dict[bytes, bytes] = {}  # ids of devices that were rotated → what they are now
        self.sessions: dict[bytes, Session] = {}
        self.attached: list[Session] = []
        self.submitted: list[bytes] = []
        self.faults = Faults()
        self.down = False
        self.lookups = 0

    # --- connections -------------------------------------------------------------------------
    async def serve(self, socket: Socket) -> None:
        try:
            await self._serve(socket)
        except (trio.EndOfChannel, trio.ClosedResourceError, trio.BrokenResourceError):
            pass
        finally:
            self.attached = [s for s in self.attached if s.socket is not socket]
            self.sessions = {d: s for d, s in self.sessions.items() if s.socket is not socket}
            socket.kill()

    async def _serve(self, socket: Socket) -> None:
        hello = wire.decode_client(await socket.server_in.receive())
        assert isinstance(hello, wire.Hello)
        challenge = wire.Challenge(b"n" * 32, self.region, self.name, "n1", self.log_id, self.fed.now)
        socket.say(challenge)
        auth = wire.decode_client(await socket.server_in.receive())
        assert isinstance(auth, wire.Auth)
        VerifyKey(auth.device).verify(wire.challenge_bytes(challenge, auth.user, auth.device), auth.signature)
        for signed in auth.records:
            self.learn(signed)
        if auth.device not in {d.id for d in self.newest(auth.user).devices}:
            known = self.newest(auth.user).stem(auth.device) is not None
            socket.say(wire.Error(Fault.REVOKED if known else Fault.AUTH, "not enrolled", 0))
            return
        cursor = self.cursors.get(auth.device, 0)
        if hello.log_id == self.log_id:
            if hello.cursor > len(self.log):
                socket.say(wire.Error(Fault.ROLLED_BACK, "cursor beyond the tip", 0))
                return
            cursor = max(cursor, hello.cursor)
        session = Session(socket, auth.user, auth.device, hello.receive, cursor)
        self.attached.append(session)
        version = self.newest(auth.user).version
        socket.say(wire.Welcome(self.log_id, cursor, self.fed.now, version, 4, 50, 131072, 16, self.faults.says))
        if hello.receive:
            old = self.sessions.get(auth.device)
            if old is not None:
                old.socket.say(wire.Error(Fault.FENCED, "a newer session", 0))
            self.sessions[auth.device] = session
            tip = len(self.log)
            self.pump()
            socket.say(wire.Empty(tip))
        while True:
            self.handle(session, wire.decode_client(await socket.server_in.receive()))

    def handle(self, session: Session, message: wire.ClientMessage) -> None:
        if isinstance(message, wire.Submit) and self.faults.mute:
            self.faults.mute -= 1
        elif isinstance(message, wire.Submit):
            if self.faults.swallow_submit:
                self.faults.swallow_submit -= 1
                session.socket.kill()
                return
            items = tuple(self.submit(session, item) for item in message.items)
            if self.faults.drop_after_submit:
                self.faults.drop_after_submit -= 1
                session.socket.kill()
            session.socket.say(wire.Receipt(items))
            self.fed.forward()
            self.pump()
        elif isinstance(message, wire.Ack):
            assert message.position <= session.sent, "acked more than was sent"
            self.cursors[session.device] = max(self.cursors.get(session.device, 0), message.position)
        elif isinstance(message, wire.Lookup):
            self.lookups += 1
            session.socket.say(self.fed.look_up(message, self))
        elif isinstance(message, wire.AskRoot):
            for answer in self.faults.roots(message, self.fed.root):
                session.socket.say(answer)
        elif isinstance(message, wire.Roster):
            session.socket.say(wire.Receipt((self.publish(session, message),)))
            self.pump()

    def pump(self) -> None:
        """Deliver what lies past each session's place."""
        for session in list(self.sessions.values()):
            start, session.sent = session.sent, len(self.log)
            frames = [
                wire.encode_message(entry.message) for entry in self.log[start:] if session.device in entry.devices
            ]  # fmt: skip
            for frame in self.faults.deliver(frames):
                session.socket.say(frame)

    def append(self, devices: frozenset[bytes], make: Callable[[int], wire.Deliver | wire.Notice]) -> int:
        self.log.append(Entry(devices, make(len(self.log) + 1)))
        return len(self.log)

    # --- records -------------------------------------------------------------------------------
    def newest(self, user: bytes) -> HomeRecord:
        return self.homes[user][-1]

    def learn(self, signed: bytes) -> None:
        chain = self.homes.setdefault(read_home(signed).user, [])
        if read_home(signed).version == len(chain) + 1:
            before = chain[-1] if chain else None
            record = verify_home(signed, self.fed.root, before)
            chain.append(record)
            for device in before.devices if before else ():
                now = next((one.id for one in record.devices if one.stem == device.stem), None)
                if now != device.id:
                    self.gone(device.id, now)

    def gone(self, device: bytes, now: bytes | None) -> None:
        """A device was revoked, or has new keys and goes on as `now`."""
        for session in self.attached:
            if session.device == device:
                session.socket.say(wire.Error(Fault.REVOKED, "revoked", 0))
        self.attached = [session for session in self.attached if session.device != device]
        self.sessions.pop(device, None)
        if now is not None:
            self.cursors[now], self.renamed[device] = self.cursors.pop(device, 0), now
            self.log = [
                replace(entry, devices=entry.devices - {device} | {now}) if device in entry.devices else entry
                for entry in self.log
            ]

    # --- envelopes -------------------------------------------------------------------------------
    def submit(self, session: Session, item: wire.SubmitItem) -> wire.ReceiptItem:
        found, header = envelope_id(item.envelope), read_header(item.envelope)
        self.submitted.append(item.envelope)
        if found in self.outcomes:
            return self.outcomes[found]

        def answer(code: int, newest: int = 0) -> wire.ReceiptItem:
            return wire.ReceiptItem(found, code, len(self.log), max(newest, self.faults.newest), self.name)

        if header.to in self.faults.refuse:
            return answer(self.faults.refuse[header.to])
        if self.faults.stale or not -600_000 <= header.created - self.fed.now <= 60_000:
            self.faults.stale = max(0, self.faults.stale - 1)
            return answer(Code.STALE)
        if header.expires - header.created > self.faults.longest:
            return wire.ReceiptItem(found, Code.LIFETIME, 0, self.faults.longest, self.name)
        if self.faults.overloaded:
            self.faults.overloaded -= 1
            return answer(Code.OVERLOADED)
        if header.kind == To.ROSTER:
            others = [cell for cell in self.heads.get(header.to, []) if cell != self.name]
            code = Code.ACCEPTED if others else Code.STORED
            self.outcomes[found] = answer(code, max(self.rosters.get(header.to, {0: None})))
            self.take_roster(header, item.envelope)
            for cell in others:
                self.fed.outbox.append((self, self.fed.cells[cell], item.envelope, session.device))
            return self.outcomes[found]
        home = self.fed.home_of(header.to)
        if home is None:
            return answer(Code.UNKNOWN_USER)
        if home is self:
            self.outcomes[found] = answer(Code.STORED, self.newest(header.to).version)
            self.take_mailbox(header, item.envelope)
        else:
            self.outcomes[found] = answer(Code.ACCEPTED)
            self.fed.outbox.append((self, home, item.envelope, session.device))
        return self.outcomes[found]

    def take_mailbox(self, header: Header, envelope: bytes) -> None:
        chain = self.homes[header.to]
        named = {device.stem for device in chain[header.to_version - 1].devices}
        devices = frozenset(device.id for device in chain[-1].devices if device.stem in named)
        self.append(devices, lambda position: wire.Deliver(position, envelope))

    def take_roster(self, header: Header, envelope: bytes) -> None:
        members = self.rosters.get(header.to, {}).get(header.to_version)
        if members is None:
            self.waiting.append((envelope, None))
            return
        devices = frozenset(d.id for user in members for d in self.newest(user).devices)
        self.append(devices, lambda position: wire.Deliver(position, envelope))

    def publish(self, session: Session, message: wire.Roster) -> wire.ReceiptItem:
        found = digest(message.head)
        head = verify_roster(message.head)
        code = self.faults.refuse.get(head.group, self.faults.refuse.get(b"roster"))
        if code:
            return wire.ReceiptItem(found, code, 0, 0, self.name)
        for cell, part in message.parts:
            members = frozenset(m.user for m in verify_part(part, head, cell).members)
            self.fed.cells[cell].adopt(head.group, head.head.version, members, [c for c, _ in message.parts])
        return wire.ReceiptItem(found, Code.ACCEPTED, len(self.log), head.head.version, self.name)

    def adopt(self, group: bytes, version: int, members: frozenset[bytes], cells: list[str]) -> None:
        self.rosters.setdefault(group, {})[version] = members
        self.heads[group] = cells
        waiting, self.waiting = self.waiting, []
        for envelope, _ in waiting:
            self.take_roster(read_header(envelope), envelope)
        self.pump()

    def outcome(self, device: bytes, item: wire.ReceiptItem) -> None:
        """An outcome from another cell: on the live connections, and as a record."""
        self.outcomes[item.id] = item
        while device in self.renamed:
            device = self.renamed[device]
        for session in self.attached:
            if session.device == device:
                session.socket.say(wire.Receipt((item,)))
        self.append(frozenset([device]), lambda at: wire.Notice(at, item.id, item.code, item.newest, item.cell))
        self.pump()

    def drop_connections(self) -> None:
        for session in list(self.attached):
            session.socket.kill()


class Federation:
    """Both cells, the border between them, and the seams for a client."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.keys = {region: SigningKey(bytes([i + 1]) * 32) for i, region in enumerate(REGIONS)}
        self.registrars = {region: registrar(key) for region, key in self.keys.items()}
        self.root = verify_root(self.signed_root(), NOW)
        self.cells = {f"{region}/1": Cell(self, f"{region}/1") for region in REGIONS}
        self.outbox: deque[tuple[Cell, Cell, bytes, bytes]] = deque()
        self.dials = 0
        self.skew = 0  # ms that the servers' clock is ahead of the clients'

    def signed_root(self, prev: Root | None = None, keepers: str = "root", news_ms: int | None = None) -> bytes:
        """A root document, or the one after `prev`; `news_ms`: until when it is news."""
        regions = tuple(
            RootRegion(
                region, b"", bytes(key.verify_key),
                (RootCell(f"{region}/1", (RootNode("n1", "127.0.0.1:1", (f"ws://{region}",)),)),),
            )
            for region, key in self.keys.items()
        )  # fmt: skip
        before = prev.signed if prev else None
        return signed_root(regions, NOW + 10**12, before=before, keepers=keepers, news_ms=news_ms)

    @property
    def now(self) -> int:
        return self.client_now() + self.skew

    @staticmethod
    def client_now() -> int:
        return NOW + int(trio.current_time() * 1000) % 10**9  # a mock clock's; the store must then work inline

    def seams(self) -> Seams:
        return Seams(dial=self.dial, wall_ms=self.client_now, random_float=lambda: 0.5, inline=True)

    @asynccontextmanager
    async def dial(self, url: str, context: ssl.SSLContext | None, deadline_s: float) -> AsyncIterator[Socket]:
        await trio.sleep(0.001)
        self.dials += 1
        cell = self.cells[url.removeprefix("ws://") + "/1"]
        if cell.down:
            raise NotConnected(f"{url} could not be reached")
        socket = Socket()
        self.nursery.start_soon(cell.serve, socket)
        try:
            yield socket
        finally:
            socket.kill()
            socket.to_server.close()

    def home_of(self, user: bytes) -> Cell | None:
        return next((cell for cell in self.cells.values() if user in cell.homes), None)

    def look_up(self, request: wire.Lookup, asked: Cell) -> wire.Record:
        if request.hint not in self.registrars:
            return wire.Record(request.request, Code.UNKNOWN_REGION, ())
        home = self.cells[request.hint + "/1"]
        if home is not asked and (asked.faults.cut or home.faults.cut):
            return wire.Record(request.request, Code.UNREACHABLE, ())
        if request.user not in home.homes:
            return wire.Record(request.request, Code.UNKNOWN_USER, ())
        chain = tuple(record.signed for record in home.homes[request.user][request.after :])
        return wire.Record(request.request, Code.STORED, chain)

    def forward(self) -> None:
        """Hand over what waits at the border, in order."""
        while self.outbox:
            origin, home, envelope, device = self.outbox[0]
            if origin.faults.cut or home.faults.cut:
                break
            self.outbox.popleft()
            header = read_header(envelope)
            code, newest = Code.STORED, 0
            if header.to in home.faults.refuse:
                code = Code(home.faults.refuse[header.to])
            elif header.kind == To.MAILBOX:
                newest = home.newest(header.to).version
                home.take_mailbox(header, envelope)
            else:
                newest = max(home.rosters.get(header.to, {0: None}))
                home.take_roster(header, envelope)
            origin.outcome(device, wire.ReceiptItem(envelope_id(envelope), code, 1, newest, home.name))
        for cell in self.cells.values():
            cell.pump()

    def heal(self) -> None:
        for cell in self.cells.values():
            cell.faults.cut = False
        self.forward()


@asynccontextmanager
async def federation() -> AsyncIterator[Federation]:
    async with trio.open_nursery() as nursery:
        fed = Federation(nursery)
        yield fed
        nursery.cancel_scope.cancel()
