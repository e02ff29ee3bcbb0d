"""The load: devices that speak the protocol by hand, in a process of their own. `python -m tests.crash.load ORDERS`

Orders come on stdin, a line each: `send` and `pause` (new envelopes), `home` (all devices connect) and `away 1 2 3`
(those stay disconnected until the next `home`); its end is the end. What has no final answer is sent again, with the
same bytes and in order, on every connection.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path
from random import Random

import msgspec


from bench.pipes import Endpoint
from bench.session import Enrolled, Session
from bench.sockets import READ, Connection, Hub, make_hub
from relay.core import wire
from relay.core.codec import digest, encode, pack
from relay.core.envelope import Header, To, join
from relay.limits import DAY
from tests.crash.history import GROUP, Answered, Connected, Delivered, Dropped, Submitted, Writer
from tests.crash.people import Orders

_NS, _MS = 1_000_000_000, 1_000_000
_TICK_NS = 20 * _MS
_BATCH = 8  # envelopes in one SUBMIT
_OPEN = 256  # unanswered envelopes of one device; past it the device waits
_TO_GROUP = 0.02  # of all envelopes
_BODY = (40, 400)  # bytes
_HANDSHAKE_NS = 4 * _NS
_SILENCE_NS = 4 * _NS  # without a byte, or without an answer: try another node
_BACKOFF_NS = (50 * _MS, 300 * _MS)
_RETRY_NS = 200 * _MS  # after an answer that says to try again


class UnixConnection(Connection[Session]):
    """A session over a Unix socket: it crosses network namespaces."""

    __slots__ = ("heard_ns",)

    def __init__(self, hub: Hub, path: Path, session: Session, owner: Device) -> None:
        super().__init__(hub, Endpoint(str(path), 0), None, session, owner)
        self.heard_ns = time.monotonic_ns()

    def _socket(self, endpoint: Endpoint) -> tuple[socket.socket, str]:
        return socket.socket(socket.AF_UNIX), endpoint.host

    def _take(self, data: bytes, now: int) -> None:
        self.heard_ns = now
        super()._take(data, now)


class Load:
    """All devices, and the clock that makes them send."""

    def __init__(self, orders: Orders) -> None:
        self.orders, self.people = orders, orders.people
        self.random = Random(orders.seed)
        self.hub = make_hub(1 << 10)
        self.history = Writer(orders.history)
        self.devices = [Device(self, number, one) for number, one in enumerate(self.people.devices)]
        self.sending = self.is_published = False
        self._due = 0.0
        self._ticked_ns = time.monotonic_ns()
        self._turn = 0
        self._line = b""

    def run(self) -> None:
        self.hub.selector.register(0, READ, self._order)
        self._tick()
        self.hub.run()
        self.history.flush()

    def _order(self, _mask: int) -> None:
        data = os.read(0, 4096)
        if not data:
            self.hub.stop()
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            word, *numbers = line.decode().split()
            if word in ("send", "pause"):
                self.sending, self._due = word == "send", 0.0
                self.devices[0].publish()
            for device in self.devices if word == "home" else []:
                device.come_home()
            for number in map(int, numbers):
                self.devices[number].go_away()

    def _tick(self) -> None:
        now = time.monotonic_ns()
        rate = self.orders.rate
        self._due = min(rate / 2, self._due + rate * (now - self._ticked_ns) / _NS)
        self._ticked_ns = now
        for _ in self.devices:
            if not self.sending or self._due < _BATCH:
                break
            self._turn = (self._turn + 1) % len(self.devices)
            self._due -= self.devices[self._turn].write(_BATCH)
        for device in self.devices:
            device.look(now)
        self.history.flush()
        self.hub.at(now + _TICK_NS, self._tick)


class Device:
    """One device, whatever connection it has."""

    def __init__(self, load: Load, number: int, enrolled: Enrolled) -> None:
        self._load, self._number, self._enrolled = load, number, enrolled
        self._connection: UnixConnection | None = None
        self._node = 0
        self._live = self._away = self._opening = False
        self._opened_ns = self._pinged_ns = 0
        self._unanswered: dict[bytes, tuple[wire.SubmitItem, int]] = {}  # id → what was sent, and when first or again
        self._again_ns = 0  # something is to be tried again then
        self._counters: dict[int, int] = {}
        self._unacked = self._ack_ns = 0
        self._log_id, self._cursor = b"", 0
        self.come_home()

    # --- connecting ------------------------------------------------------------------------------
    def come_home(self) -> None:
        self._away = False
        if self._connection is None and not self._opening:
            self._open_later()

    def go_away(self) -> None:
        self._away = True
        if self._connection is not None:
            self._drop("away")

    def _open_later(self) -> None:
        self._opening = True
        wait = self._load.random.randint(*_BACKOFF_NS)
        self._load.hub.at(time.monotonic_ns() + wait, self._open)

    def _open(self) -> None:
        self._opening = False
        if self._away:
            return
        load = self._load
        self._node = load.random.randrange(len(load.orders.sockets))
        session = Session(self._enrolled, "cell", load.random.randbytes(16), self._log_id, self._cursor)
        self._opened_ns = time.monotonic_ns()
        self._connection = UnixConnection(load.hub, load.orders.sockets[self._node], session, self)

    def _drop(self, why: str) -> None:
        assert self._connection is not None
        self._connection.close()
        self.lost(why)

    def lost(self, why: str) -> None:
        assert self._connection is not None
        error = self._connection.line.error
        self._connection, self._live = None, False
        fault, why = (error.code, error.text) if error else (0, why)
        self._load.history.add(Dropped(_now_ms(), self._number, fault, why))
        if not self._away:
            self._open_later()

    def live(self) -> None:
        assert self._connection is not None
        welcome = self._connection.line.welcome
        assert welcome is not None
        if welcome.log_id != self._log_id:
            self._log_id, self._cursor = welcome.log_id, welcome.cursor
        self._live = True
        self._unacked = self._ack_ns = 0
        self._load.history.add(Connected(_now_ms(), self._number, self._node, self._cursor))
        self.publish()
        self._submit_again()

    def look(self, now: int) -> None:
        """Does the connection still do anything? Is an ack due, or another try?"""
        connection = self._connection
        if connection is None:
            return
        if not self._live:
            if now - self._opened_ns > _HANDSHAKE_NS:
                self._drop("no WELCOME in time")
            return
        oldest = next(iter(self._unanswered.values()), (None, now))[1]
        if now - connection.heard_ns > _SILENCE_NS or now - oldest > _SILENCE_NS:
            self._drop("silent")
            return
        if now - self._pinged_ns > _NS:
            self._pinged_ns = now
            connection.line.ping()
            connection.flush()
        if self._ack_ns and now > self._ack_ns:
            self._ack()
        if self._again_ns and now > self._again_ns:
            self._submit_again()

    def _send(self, message: wire.ClientMessage) -> None:
        if self._connection is not None and self._live:
            self._connection.line.send(message)
            self._connection.flush()

    # --- sending ---------------------------------------------------------------------------------
    def publish(self) -> None:
        """The group's roster comes from its owner, once everybody is known: nobody is asked to send before."""
        if self._number == 0 and self._load.sending and not self._load.is_published:
            self._send(wire.Roster(self._load.people.head, self._load.people.parts))

    def write(self, count: int) -> int:
        """Send new envelopes, if this device may now; how many."""
        if not self._live or not self._load.is_published or len(self._unanswered) >= _OPEN:
            return 0
        items = [self._envelope() for _ in range(count)]
        self._send(wire.Submit(tuple(items)))
        return count

    def _envelope(self) -> wire.SubmitItem:
        load, now_ms = self._load, time.time_ns() // _MS
        people, rng = load.people, load.random
        to = GROUP if rng.random() < _TO_GROUP else rng.randrange(len(people.users))
        counter = self._counters[to] = self._counters.get(to, 0) + 1
        kind, address = (To.ROSTER, people.group) if to == GROUP else (To.MAILBOX, people.users[to])
        header = encode(Header(1, kind, address, 1, now_ms, now_ms + DAY, 0))
        envelope = join(header, pack([self._number, to, counter, rng.randbytes(rng.randint(*_BODY))]))
        item = wire.SubmitItem("" if to == GROUP else people.region, envelope)
        key = digest(envelope)
        self._unanswered[key] = item, time.monotonic_ns()
        load.history.add(Submitted(_now_ms(), self._number, key, to, counter))
        return item

    def _submit_again(self) -> None:
        now = time.monotonic_ns()
        self._again_ns = 0
        self._unanswered = {key: (item, now) for key, (item, _) in self._unanswered.items()}
        items = [item for item, _ in self._unanswered.values()]
        for first in range(0, len(items), 64):
            self._send(wire.Submit(tuple(items[first : first + 64])))

    # --- what comes ------------------------------------------------------------------------------
    def messages(self, messages: list[bytes], now_ns: int) -> None:
        now_ms = now_ns // _MS
        for data in messages:
            message = wire.decode_server(data)
            match message:
                case wire.Deliver():
                    self._taken(now_ms, message.position, digest(message.envelope))
                case wire.Receipt():
                    for item in message.items:
                        self._answered(now_ms, item.id, item.code)
                case wire.Notice():
                    self._taken(now_ms, message.position, b"")
                    self._answered(now_ms, message.id, message.code)
                case wire.Error():
                    assert self._connection is not None
                    self._connection.line.end(message)
                case _:
                    pass
        if self._unacked >= 64:
            self._ack()

    def _taken(self, now_ms: int, position: int, key: bytes) -> None:
        self._load.history.add(Delivered(now_ms, self._number, position, key))
        self._cursor = max(self._cursor, position)
        self._unacked += 1
        self._ack_ns = self._ack_ns or time.monotonic_ns() + 500 * _MS

    def _ack(self) -> None:
        self._unacked = self._ack_ns = 0
        self._send(wire.Ack(self._cursor))

    def _answered(self, now_ms: int, key: bytes, code: int) -> None:
        if key == digest(self._load.people.head):
            self._load.is_published = True
            return
        self._load.history.add(Answered(now_ms, self._number, key, code))
        if code < wire.Code.UNREACHABLE:
            self._unanswered.pop(key, None)
        elif key in self._unanswered:
            self._again_ns = time.monotonic_ns() + _RETRY_NS


def _now_ms() -> int:
    return time.monotonic_ns() // _MS


def _path(kind: type, value: str) -> Path:
    assert kind is Path
    return Path(value)


if __name__ == "__main__":
    Load(msgspec.msgpack.decode(Path(sys.argv[1]).read_bytes(), type=Orders, dec_hook=_path)).run()
