"""Devices of Posthouse: they come back with what they have, and ack at the pace that the node asks for."""

from __future__ import annotations

import time
from typing import Final, Protocol

from bench.client import MS, Client, Net
from bench.frames import client_frame
from bench.pipes import Endpoint
from bench.session import Enrolled, Session
from relay.core import wire
from relay.errors import PeerError

_TRICKLE_NS: Final = 60_000 * MS  # between two bytes of an ack that trickles
_FATAL = {wire.Fault.PROTOCOL, wire.Fault.AUTH, wire.Fault.NOT_HOME, wire.Fault.REVOKED, wire.Fault.ROLLED_BACK}


class Reader(Protocol):
    """What a device's messages are for."""

    def live(self) -> None:
        """Connected (again), and served."""

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Take them; returns how many were deliveries, after setting the device's cursor to the last one's position."""


class Device(Client[Session]):
    """One enrolled device: `log_id` and `cursor` are what it has, across connections."""

    __slots__ = ("_ack_due_ns", "_enrolled", "_reader", "_trickled", "_trickles", "_unacked", "log_id")

    def __init__(self, net: Net, enrolled: Enrolled, reader: Reader, place: int = 0, trickles: bool = False) -> None:
        """`trickles`: it acks a byte a minute."""
        super().__init__(net, place)
        self._enrolled, self._reader, self._trickles = enrolled, reader, trickles
        self._trickled: Session | None = None
        self._unacked = 0
        self._ack_due_ns = 0
        self.log_id = b""

    def dial(self, endpoint: Endpoint) -> Session:
        host = f"{endpoint.host}:{endpoint.port}"
        return Session(self._enrolled, host, self._net.random.randbytes(16), self.log_id, self.cursor)

    @property
    def welcome(self) -> wire.Welcome | None:
        """What the node said when it welcomed this connection; None while there is none."""
        return self._connection.line.welcome if self._connection is not None else None

    def send(self, message: wire.ClientMessage) -> bool:
        """Send on the live connection; False where there is none."""
        if (line := self.line) is None:
            return False
        line.send(message)
        self.flush()
        return True

    def _ack(self) -> None:
        """Everything up to the cursor is safe here."""
        self._unacked = self._ack_due_ns = 0
        if not self._trickles:
            self.send(wire.Ack(self.cursor))
        elif self.line is not self._trickled:
            self._trickled = self.line
            self._trickle()

    def _ack_if_due(self, due_ns: int) -> None:
        if self._ack_due_ns == due_ns:
            self._ack()

    def live(self) -> None:
        welcome = self.welcome
        assert welcome is not None
        if welcome.log_id != self.log_id:
            self.log_id, self.cursor = welcome.log_id, welcome.cursor
        self._ack_due_ns = 0
        self._unacked = self._net.random.randrange(max(1, welcome.ack_every))  # a phase of its own, for the same reason
        super().live()
        if self.tape is not None and self.line is not None:
            self.line.follow(self.tape)
        self._reader.live()

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        count = self._reader.read(messages, now_ns)
        if not count:
            return
        assert self._connection is not None
        welcome = self._connection.line.welcome
        assert welcome is not None
        if not self._ack_due_ns:
            # A group's recipients are all served at once; were they to ack at once as well, the node would stall.
            self._ack_due_ns = due_ns = now_ns + int(welcome.ack_ms * MS * (0.5 + self._net.random.random() / 2))
            self._net.hub.at(due_ns, lambda: self._ack_if_due(due_ns))
        self._unacked += count
        if self._unacked >= welcome.ack_every:
            self._ack()

    def ping(self) -> None:
        if not self._trickles:  # it would stand in the middle of the ack
            super().ping()

    def _trickle(self, frame: bytes = b"") -> None:
        """One byte more of an ack that begins whenever there is something to ack, and takes minutes."""
        frame = frame or client_frame(wire.encode_message(wire.Ack(self.cursor)))
        if (line := self.line) is not None and line is self._trickled:
            line.output += frame[:1]
            self.flush()
            self._net.hub.at(time.monotonic_ns() + _TRICKLE_NS, lambda: self._trickle(frame[1:]))

    def other(self, message: bytes) -> wire.ServerMessage:
        """Decode what is no delivery, and heed a DRAIN or an ERROR. Raises PeerError for one that trying again does not
        mend."""
        decoded = wire.decode_server(message)
        if isinstance(decoded, wire.Drain) and (line := self.line) is not None:
            wait_ns = int(self._net.random.random() * decoded.spread_ms * MS)
            self._net.hub.at(time.monotonic_ns() + wait_ns, lambda: self._leave(line))
        if isinstance(decoded, wire.Error) and self._connection is not None:
            self._connection.line.end(decoded)
        return decoded

    def _leave(self, line: Session) -> None:
        """The node of that connection goes away."""
        if self.line is line:
            self.move_on()

    def lost(self, why: str, retry_after_ns: int = 0) -> None:
        error = self._connection.line.error if self._connection is not None else None
        if error is not None and error.code in _FATAL:
            raise PeerError(f"the node turned a device away: {wire.Fault(error.code).name}, {error.text}")
        self._unacked = self._ack_due_ns = 0
        if error is not None:
            why, retry_after_ns = f"node said: {error.text}", error.retry_after_ms * MS
        super().lost(why, retry_after_ns)
