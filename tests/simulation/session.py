"""One connection of a simulated device: it speaks the client protocol over the simulated network, and holds the
relay to its promises at every frame (rule 18). Signatures are real."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import trio

from relay.core import wire
from relay.core.envelope import envelope_id
from relay.core.trust import read_home
from relay.core.wire import Code, Fault
from relay.errors import ProtocolError
from tests.simulation.frames import PING, Gone, Socket
from tests.simulation.keys import key
from tests.simulation.ledger import Letter
from tests.simulation.people import CLIENTS_PORT, Person
from tests.simulation.proofs import Asking
from tests.simulation.readers import Seat
from tests.simulation.world import Violation

if TYPE_CHECKING:
    from tests.simulation.devices import SimDevice

HANDSHAKE_S: Final = 15.0
PING_S: Final = 30.0  # seconds without a byte before a ping, and again before the connection is given up
RECEIPT_S: Final = 30.0  # seconds for a receipt before another connection is tried
STALES: Final = 2  # STALE answers in a row that end a connection
MOST: Final = 64  # envelopes in one batch


@dataclass(slots=True)
class Out:
    """Something that has no final outcome yet: an envelope of a letter, or a roster version."""

    letter: Letter | None
    data: bytes = b""
    roster: wire.Roster | None = None
    sent_on: int = 0  # the connection it went out on
    sealed_on: int = 0  # the connection by whose clock it was sealed
    sent_at: float = 0.0
    not_before: float = 0.0
    tries: int = 0


@dataclass(slots=True)
class Log:
    """What a device knows of one log."""

    at: dict[int, bytes] = field(default_factory=dict)  # position → envelope id
    where: dict[bytes, int] = field(default_factory=dict)  # envelope id → position
    top: int = 0  # the highest position that was received
    empty: int = 0  # everything up to here was received, said EMPTY
    acked: int = 0


class Connection:
    """One connection of a device, from dial to end."""

    def __init__(self, device: SimDevice, number: int) -> None:
        self.device, self.number, self.trace = device, number, device.ledger.trace
        self.scope = trio.CancelScope()
        self.id = device.id
        self.socket: Socket
        self.last = 0  # position of the last delivery on this connection
        self.ack_at = float("inf")
        self.unacked = 0
        self.heard = 0.0
        self.pinged = False
        self.stales = 0  # STALE answers in a row
        self.welcome: wire.Welcome
        self.log: Log
        self.began, self.began_ms = 0.0, 0
        self.requests = 0
        self.wanted: list[tuple[Person, int]] = []  # whom to look up, after which version
        self.proving = Asking(device.ledger.proofs)
        self.seat = Seat(device, number)
        self.asked: dict[int, tuple[Person, int]] = {}  # lookups under way: whom, after which version

    async def run(self) -> None:
        """Raises Gone, OSError."""
        device = self.device
        with self.scope:
            node = device.random.choice(device.nodes)
            with trio.move_on_after(HANDSHAKE_S) as handshake:
                stream = await device.net.dial(device.host, node, CLIENTS_PORT)
                try:
                    self.socket = Socket(stream)
                    await self._begin()
                except BaseException:
                    stream.close()
                    raise
            if handshake.cancelled_caught:
                raise Gone("the handshake took too long")
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._write, nursery.cancel_scope)
                    nursery.start_soon(self._guard, self._read, nursery.cancel_scope)
                    nursery.start_soon(self._guard, self._watch, nursery.cancel_scope)
            finally:
                stream.close()

    async def _guard(self, part, scope: trio.CancelScope) -> None:
        try:
            await part()
        except Gone as gone:
            self.trace("device left", self.device.name, str(gone)[:60])
            scope.cancel()

    async def _begin(self) -> None:
        device, person = self.device, self.device.person
        await self.socket.open()
        self.began = trio.current_time()
        await self._say(wire.Hello(0, device.log_id, device.cursor, True, "simulated"))
        challenge = await self._hear(wire.Challenge)
        proof = key(device.key).sign(wire.challenge_bytes(challenge, person.id, device.id)).signature
        known = device.confirmed and device.random.random() < 0.7 and person.known == person.version
        await self._say(wire.Auth(person.id, device.id, proof, () if known else tuple(person.chain)))
        self.seat.begin(challenge)
        welcome = self.welcome = await self._hear(wire.Welcome)
        if welcome.log_id != device.log_id:
            device.log_id, device.cursor = welcome.log_id, 0
        log = self.log = device.logs.setdefault(welcome.log_id, Log())
        if log.acked and welcome.cursor > log.top and len(person.homes) == 1:
            raise Violation(f"{device.name}: the cursor {welcome.cursor} lies past everything received ({log.top})")
        device.cursor = max(device.cursor, welcome.cursor)
        device.confirmed = True
        if welcome.home_version > person.known:
            person.known, person.known_at = welcome.home_version, trio.current_time()
        if 0 < device.revoked_in <= welcome.home_version:
            raise Violation(f"{device.name} is served, and version {device.revoked_in}, which its home has, revoked it")
        if challenge.cell == person.cell:
            person.listed = challenge.cell
        self.began_ms = device.clock.monotonic_ms()
        self.last = welcome.cursor
        self.heard = trio.current_time()
        self.trace("welcome", device.name, challenge.node, welcome.cursor)

    async def _say(self, message: wire.ClientMessage) -> None:
        await self.socket.send(wire.encode_message(message))

    async def _hear(self, kind):
        data = await self.socket.receive()
        message = wire.decode_server(data or b"")
        if isinstance(message, wire.Error):
            self._error(message)
        if isinstance(message, wire.Moved):
            self._moved(message)
        if not isinstance(message, kind):
            raise Violation(f"{self.device.name} was sent {type(message).__name__}, not {kind.__name__}")
        return message

    def _error(self, error: wire.Error) -> None:
        if error.code in (Fault.ROLLED_BACK, Fault.PROTOCOL):
            raise Violation(f"{self.device.name} was told {Fault(error.code).name}: {error.text}")
        if error.code == Fault.REVOKED and self.device.revoked_in:
            self.trace("told that it was revoked", self.device.name)
            self.device.leave()
        elif error.code == Fault.REVOKED and self.device.id == self.id and not self._colludes(self.device.person):
            raise Violation(f"{self.device.name} was told that it was revoked, and was not")
        raise Gone(f"{Fault(error.code).name}: {error.text}")

    def _moved(self, moved: wire.Moved) -> None:
        device = self.device
        if list(moved.records) != device.person.chain[: len(moved.records)] and not self._colludes(device.person):
            raise Violation(f"{device.name} was told to move by records that nobody signed")
        device.settle(read_home(moved.records[-1]).payload.region)
        raise Gone("moved")

    def _colludes(self, person: Person) -> bool:
        """With a region that lies: there may be another record than the one that is known here."""
        return self.device.ledger.exposed(person.name)

    # --- reading -----------------------------------------------------------------------------------
    async def _read(self) -> None:
        device = self.device
        while True:
            if device.slow_until > trio.current_time():
                await trio.sleep_until(device.slow_until)
            data = await self.socket.receive()
            self.heard, self.pinged = trio.current_time(), False
            if data is None:
                continue
            try:
                message = wire.decode_server(data)
            except ProtocolError as error:
                raise Violation(f"{device.name} was sent bytes that are no message: {error}") from None
            await self._take(message)

    async def _take(self, message: wire.ServerMessage) -> None:
        match message:
            case wire.Deliver(position, envelope):
                self._delivered(position, envelope)
            case wire.Receipt(items):
                for item in items:
                    if self.seat.answered(item):
                        continue
                    self.proving.outcome(item.id, item.code, item.cell, item.position)
                    self._answered(item.id, item.code, item.cell)
            case wire.Notice(position, id_, code, _, cell):
                self._place(position, b"%d notice" % position + id_)  # a group's cells have an outcome each
                self.proving.outcome(id_, code, cell, 0)
                self._answered(id_, code, cell)
            case wire.Channel() | wire.Page() | wire.Posted():
                self.seat.take(message)
            case wire.Proof():
                self.proving.answered(message)
            case wire.Empty(position):
                self.log.empty = max(self.log.empty, position)
                self._check_empty()
                self.device.ready = True
                self.trace("empty", self.device.name, position)
            case wire.Record():
                self._looked_up(message)
            case wire.Drain(spread_ms):
                self.trace("drain", self.device.name)
                await trio.sleep(self.device.random.uniform(0, spread_ms / 1000))
                raise Gone("drained")
            case wire.Error():
                self._error(message)
            case wire.Moved():
                self._moved(message)
            case wire.EphemeralFrom():
                self.trace("ephemeral", self.device.name)
            case _:
                raise Violation(f"{self.device.name} was sent {type(message).__name__} while it was served")

    def _check_empty(self) -> None:
        """What was stored before this session began has been received by now (rule 18)."""
        if len(self.device.person.homes) > 1:
            return  # it was stored in another home, and follows
        for letter in self.device.ledger.missing_at(self.device.name, self.began):
            raise Violation(f"{self.device.name} was told EMPTY, and has not got letter {letter.number}, stored before")

    def _place(self, position: int, what: bytes) -> bool:
        """Rule 18, for what is delivered at `position`. False where it was received before."""
        device, log = self.device, self.log
        if position <= self.last:
            raise Violation(f"{device.name}: position {position} after {self.last} on one connection")
        self.last = position
        device.cursor = max(device.cursor, position)
        self.unacked += 1
        wait = 0.0 if self.unacked >= self.welcome.ack_every else self.welcome.ack_ms / 1000
        if trio.current_time() + wait < self.ack_at:
            self.ack_at = trio.current_time() + wait
            device.wake.unpark_all()
        before = log.at.get(position)
        if before is not None:
            if before != what:
                raise Violation(f"{device.name}: position {position} was something else before")
            return False
        if position < log.top:
            raise Violation(f"{device.name}: position {position} is new, but {log.top} came earlier: it was skipped")
        if position <= log.empty:
            raise Violation(f"{device.name}: position {position} is new, but EMPTY was said up to {log.empty}")
        if what in log.where and device.ledger.has_moved(what, device.person.name):
            self.trace("came by two ways", device.name)
        elif what in log.where:
            raise Violation(f"{device.name}: one envelope at {log.where[what]} and at {position}: admitted twice")
        log.at[position], log.where[what] = what, position
        log.top = position
        return True

    def _delivered(self, position: int, envelope: bytes) -> None:
        device = self.device
        own = envelope_id(envelope)
        letter = device.ledger.of(own)
        if letter is None:
            raise Violation(f"{device.name} was delivered an envelope that nobody sealed")
        if self._place(position, own):
            device.ledger.delivered(device.name, letter)
        else:
            self.trace("delivered again", letter.number, device.name)

    def _answered(self, id_: bytes, code: int, cell: str) -> None:
        device = self.device
        out = device.out.get(id_)
        letter = device.ledger.of(id_)
        if out is None:
            if letter is not None and id_ == letter.envelopes[-1]:
                device.ledger.answered(device.name, letter, code, cell)
                if code == Code.STALE:  # another cell's clock is far behind: the plaintext is kept for this
                    device.out.setdefault(letter.canary, Out(letter, not_before=trio.current_time() + 5.0))
                    device.wake.unpark_all()
            return
        if letter is not None:
            device.ledger.answered(device.name, letter, code, cell)
        else:
            self.trace("roster " + Code(code).name.lower(), device.name, cell)
        if code == Code.STALE and out.letter is not None:
            del device.out[id_]
            wait = 0.1 * 2 ** min(out.tries, 6) if out.tries else 0.0
            fresh = Out(out.letter, not_before=trio.current_time() + wait, tries=out.tries + 1)
            device.out[out.letter.canary] = fresh  # sealed anew when it goes out
            self.stales += out.sealed_on == self.number  # what an older one sealed only waited too long
            if self.stales == STALES:
                raise Gone("a clock was set: WELCOME says the difference anew")
        elif Code(code).final:
            self.stales = 0
            del device.out[id_]
        else:
            out.tries += 1
            out.sent_on = 0
            out.not_before = trio.current_time() + min(10.0, 0.5 * 2**out.tries) * device.random.uniform(0.5, 1.0)
        device.wake.unpark_all()

    def _looked_up(self, record: wire.Record) -> None:
        person, after = self.asked.pop(record.request)
        self.trace("looked up", self.device.name, person.name, Code(record.code).name.lower())
        true = list(record.records) == person.chain[after : after + len(record.records)]
        if record.code == Code.STORED and not true and not self._colludes(person):
            raise Violation(f"{self.device.name}: a lookup of {person.name} was answered with other records")

    # --- writing -----------------------------------------------------------------------------------
    async def _write(self) -> None:
        device = self.device
        while True:
            now = trio.current_time()
            if self.ack_at <= now:
                self.ack_at, self.unacked = float("inf"), 0
                self.log.acked = max(self.log.acked, self.last)
                await self._say(wire.Ack(self.last))
                continue
            if self.wanted:
                await self._look_up(*self.wanted.pop())
                continue
            if await self._submit(now):
                continue
            if (question := self.proving.next()) is not None:
                await self._say(question)
                continue
            if (about_channels := self.seat.next(now)) is not None:
                await self._say(about_channels)
                continue
            if now - self.heard >= PING_S and not self.pinged:
                self.pinged = True
                await self.socket.send(b"", PING)
                continue
            with trio.CancelScope(deadline=self._next(now)):
                await device.wake.park()

    async def _watch(self) -> None:
        """Also while the writer waits for a node that does not read."""
        while trio.current_time() < self.heard + 2 * PING_S:  # noqa: ASYNC110 - it is the time that is waited for
            await trio.sleep_until(self.heard + 2 * PING_S)
        raise Gone("not a byte")

    def _next(self, now: float) -> float:
        """When there is something to do, if nobody wakes us."""
        due = min(self.ack_at, float("inf") if self.pinged else self.heard + PING_S, self.seat.due())
        for out in self.device.out.values():
            due = min(due, out.sent_at + RECEIPT_S if out.sent_on == self.number else out.not_before)
        return max(due, now + 0.001)

    async def _submit(self, now: float) -> bool:
        device = self.device
        items: list[wire.SubmitItem] = []
        for own, out in list(device.out.items()):
            if out.sent_on == self.number:
                if now - out.sent_at > RECEIPT_S:
                    raise Gone("no receipt")
                continue
            if out.not_before > now:
                continue
            if out.sent_at:
                self.trace("submitted again", device.name, out.letter.number if out.letter else 0)
            out.sent_on, out.sent_at = self.number, now
            if out.roster is not None:
                await self._say(out.roster)
                return True
            assert out.letter is not None
            if not out.data:
                out.data, out.sealed_on = device.seal(out.letter, self._server_ms()), self.number
                device.out[out.letter.envelopes[-1]] = device.out.pop(own)
            items.append(wire.SubmitItem(out.letter.hint, out.data))
            if len(items) == MOST:
                break
        if items:
            await self._say(wire.Submit(tuple(items)))
        return bool(items)

    def _server_ms(self) -> int:
        return self.welcome.time + self.device.clock.monotonic_ms() - self.began_ms

    async def _look_up(self, person: Person, after: int) -> None:
        """Ask for somebody's home records; the answer is checked when it comes."""
        self.requests += 1
        request = self.requests
        self.asked[request] = (person, after)
        await self._say(wire.Lookup(request, person.id, person.homes[0], after))
