"""Devices that stay connected: they reconnect with what they have, and ack at the pace that the node asks for."""

from __future__ import annotations

import selectors
import time
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Protocol

from bench.pipes import Endpoint
from bench.scenario import NS
from bench.session import Enrolled, Session
from bench.sockets import Connection, Hub, client_context
from relay.core import wire
from relay.errors import PeerError

_MS = 1_000_000
_HANDSHAKING = 64  # connections of one worker that are on the way at a time, so that none waits for its deadline
_HANDSHAKE_NS = 15 * NS  # from connect to WELCOME
_BACKOFF_NS = (100 * _MS, 400 * _MS)  # first and longest wait before another try; a random half of it is taken off
_PING_NS = 30 * NS  # between pings, so that no device that has nothing to ack meets the node's idle deadline
_FATAL = {wire.Fault.PROTOCOL, wire.Fault.AUTH, wire.Fault.NOT_HOME, wire.Fault.REVOKED, wire.Fault.ROLLED_BACK}


class Net:
    """What the devices of one worker share: the loop, where to connect, and what went wrong."""

    def __init__(self, hub: Hub, endpoints: Sequence[Endpoint], seed: int) -> None:
        self.hub, self.endpoints = hub, tuple(endpoints)
        self.context = client_context(self.endpoints[0].authority)
        self.random = Random(seed)
        self.faults: Counter[str] = Counter()
        self.live = 0
        self.connects = 0
        self._handshaking = 0
        self._waiting: deque[Device] = deque()
        self._devices: list[Device] = []

    def add(self, device: Device) -> None:
        """Connect a new device, and keep it from falling idle."""
        if not self._devices:
            self.hub.at(time.monotonic_ns() + _PING_NS, self._pings)
        self._devices.append(device)
        self.admit(device)

    def _pings(self) -> None:
        for device in self._devices:
            device.ping()
        self.hub.at(time.monotonic_ns() + _PING_NS, self._pings)

    def admit(self, device: Device) -> None:
        """Connect `device` as soon as fewer than the limit are on the way."""
        self._waiting.append(device)
        self._next()

    def settled(self) -> None:
        """A connection is live, or came to nothing."""
        self._handshaking -= 1
        self._next()

    def _next(self) -> None:
        while self._waiting and self._handshaking < _HANDSHAKING:
            self._handshaking += 1
            self._waiting.popleft().open()


class Reader(Protocol):
    """What a device's messages are for."""

    def live(self) -> None:
        """Connected (again), and served."""

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Take them; returns how many were deliveries, after setting the device's cursor to the last one's position."""


class Device:
    """One enrolled device: `log_id` and `cursor` are what it has, across connections. It begins with the node at
    `place`, and goes on to the next one whenever its connection ends."""

    __slots__ = (
        "_ack_due_ns", "_backoff_ns", "_connection", "_enrolled", "_is_live", "_net", "_opened_ns", "_place",
        "_reader", "_unacked", "cursor", "log_id",
    )  # fmt: skip

    def __init__(self, net: Net, enrolled: Enrolled, reader: Reader, place: int = 0) -> None:
        self._net, self._enrolled, self._reader = net, enrolled, reader
        self._place = place
        self._connection: Connection | None = None
        self._is_live = False
        self._opened_ns = 0
        self._backoff_ns = _BACKOFF_NS[0]
        self._unacked = 0
        self._ack_due_ns = 0
        self.log_id = b""
        self.cursor = 0

    def open(self) -> None:
        """Connect now. `Net.admit` calls it in turn."""
        net = self._net
        self._opened_ns = opened_ns = time.monotonic_ns()
        endpoint = net.endpoints[self._place % len(net.endpoints)]
        host = f"{endpoint.host}:{endpoint.port}"
        session = Session(self._enrolled, host, net.random.randbytes(16), self.log_id, self.cursor)
        self._connection = Connection(net.hub, endpoint, net.context, session, self)
        net.hub.at(opened_ns + _HANDSHAKE_NS, lambda: self._overdue(opened_ns))

    def _overdue(self, opened_ns: int) -> None:
        if self._opened_ns == opened_ns and not self._is_live and self._connection is not None:
            self._connection.close()
            self.lost("no WELCOME in time")

    @property
    def welcome(self) -> wire.Welcome | None:
        """What the node said when it welcomed this connection; None while there is none."""
        return self._connection.session.welcome if self._connection is not None else None

    def send(self, message: wire.ClientMessage) -> bool:
        """Send on the live connection; False where there is none."""
        if self._connection is None or not self._is_live:
            return False
        self._connection.session.send(message)
        self._connection.flush()
        return True

    def ping(self) -> None:
        """Show that the device is there."""
        if self._connection is not None and self._is_live:
            self._connection.session.ping()
            self._connection.flush()

    def _ack(self) -> None:
        """Everything up to the cursor is safe here."""
        self._unacked = self._ack_due_ns = 0
        self.send(wire.Ack(self.cursor))

    def _ack_if_due(self, due_ns: int) -> None:
        if self._ack_due_ns == due_ns:
            self._ack()

    def live(self) -> None:
        welcome = self.welcome
        assert welcome is not None
        if welcome.log_id != self.log_id:
            self.log_id, self.cursor = welcome.log_id, welcome.cursor
        self._is_live, self._ack_due_ns = True, 0
        self._unacked = self._net.random.randrange(max(1, welcome.ack_every))  # a phase of its own, for the same reason
        self._backoff_ns = _BACKOFF_NS[0]
        self._net.live += 1
        self._net.connects += 1
        self._net.settled()
        self._reader.live()

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        count = self._reader.read(messages, now_ns)
        if not count:
            return
        assert self._connection is not None
        welcome = self._connection.session.welcome
        assert welcome is not None
        if not self._ack_due_ns:
            # A group's recipients are all served at once; were they to ack at once as well, the node would stall.
            self._ack_due_ns = due_ns = now_ns + int(welcome.ack_ms * _MS * (0.5 + self._net.random.random() / 2))
            self._net.hub.at(due_ns, lambda: self._ack_if_due(due_ns))
        self._unacked += count
        if self._unacked >= welcome.ack_every:
            self._ack()

    def other(self, message: bytes) -> wire.ServerMessage:
        """Decode what is no delivery, and heed an ERROR. Raises PeerError for one that trying again does not mend."""
        decoded = wire.decode_server(message)
        if isinstance(decoded, wire.Error) and self._connection is not None:
            self._connection.session.end(decoded)
        return decoded

    def lost(self, why: str) -> None:
        error = self._connection.session.error if self._connection is not None else None
        if error is not None and error.code in _FATAL:
            raise PeerError(f"the node turned a device away: {wire.Fault(error.code).name}, {error.text}")
        self._net.faults[f"node said: {error.text}" if error is not None else why] += 1
        if self._is_live:
            self._net.live -= 1
        else:
            self._net.settled()
        self._connection, self._is_live, self._unacked, self._ack_due_ns = None, False, 0, 0
        self._place += 1
        wait_ns = max(self._backoff_ns, (error.retry_after_ms if error is not None else 0) * _MS)
        wait_ns -= int(self._net.random.random() * wait_ns / 2)
        self._backoff_ns = min(self._backoff_ns * 2, _BACKOFF_NS[1])
        self._net.hub.at(time.monotonic_ns() + wait_ns, lambda: self._net.admit(self))


def make_hub(sockets: int) -> Hub:
    """A loop for about so many sockets (see bench.sockets)."""
    return Hub(selectors.SelectSelector() if sockets < 16 else selectors.DefaultSelector())

