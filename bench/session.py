"""One device's connection to a node, sans I/O: bytes in, messages and bytes out.

    UPGRADE ─▶ CHALLENGE ─▶ WELCOME ─▶ LIVE          (ENDED from anywhere)
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct
from nacl.signing import SigningKey

from bench.frames import PING, FrameReader, client_frame, read_upgrade, upgrade_request
from bench.tape import Tape
from relay.core import wire
from relay.errors import ProtocolError

SOFTWARE = "posthouse-bench"


class Enrolled(Struct, frozen=True, array_like=True):
    """A user with one device: what AUTH needs. `seed` is the device's Ed25519 seed, `record` its signed home record."""

    user: bytes
    seed: bytes
    record: bytes

    @property
    def key(self) -> SigningKey:
        return SigningKey(self.seed)


class State(Enum):
    """Where a connection stands: what it waits for next."""

    UPGRADE = "upgrade"
    CHALLENGE = "challenge"
    WELCOME = "welcome"
    LIVE = "live"
    ENDED = "ended"


class Session:
    """Says HELLO and AUTH by itself; once LIVE, `feed` returns whole messages for the owner to read.

    `output` is what is to be written; the owner appends frames through `send`. `error` is the node's ERROR, if any."""

    __slots__ = (
        "_cursor", "_device", "_log_id", "_nonce", "_reader", "_rest", "challenge", "error", "live", "output",
        "receive", "state", "welcome",
    )  # fmt: skip

    def __init__(self, device: Enrolled, host: str, nonce: bytes, log_id: bytes = b"", cursor: int = 0) -> None:
        """`host` is name:port; `nonce` 16 bytes for the upgrade; log id and cursor are what the device has."""
        self._device = device
        self._nonce = nonce
        self._log_id, self._cursor = log_id, cursor
        self._reader = FrameReader()
        self._rest = b""
        self.output = bytearray(upgrade_request(host, nonce))
        self.state = State.UPGRADE
        self.live = False
        self.receive = True  # whether mail is wanted
        self.challenge = b""  # the node's nonce
        self.welcome: wire.Welcome | None = None
        self.error: wire.Error | None = None

    @property
    def ended(self) -> bool:
        return self.state is State.ENDED

    def send(self, message: wire.ClientMessage) -> None:
        """Queue one message."""
        self.output += client_frame(wire.encode_message(message))

    def feed(self, data: bytes) -> list[bytes]:
        """Messages that came after WELCOME, undecoded. Raises ProtocolError where the node breaks the protocol."""
        if self.state is State.UPGRADE:
            data = self._upgrade(data)
        messages = self._reader.feed(data)
        if self._reader.pongs:
            self.output += b"".join(self._reader.pongs)
            self._reader.pongs.clear()
        while messages and self.welcome is None:
            self._greet(wire.decode_server(messages.pop(0)))
        if self._reader.closed:
            self.state = State.ENDED
        return messages

    def follow(self, tape: Tape) -> None:
        """See bench.tape.Taped."""
        self._reader.follow(tape)

    def ping(self) -> None:
        """Queue a ping."""
        self.output += client_frame(b"", PING)

    def end(self, error: wire.Error) -> None:
        """The node said ERROR."""
        self.error, self.state = error, State.ENDED

    def _upgrade(self, data: bytes) -> bytes:
        self._rest += data
        taken = read_upgrade(self._rest, self._nonce)
        if not taken:
            return b""
        left, self._rest = self._rest[taken:], b""
        self.send(wire.Hello(wire.VERSION, self._log_id, self._cursor, self.receive, SOFTWARE))
        self.state = State.CHALLENGE
        return left

    def _greet(self, message: wire.ServerMessage) -> None:
        if isinstance(message, wire.Error):
            self.end(message)
        elif isinstance(message, wire.Challenge) and self.state is State.CHALLENGE:
            key, self.challenge = self._device.key, message.nonce
            device = bytes(key.verify_key)
            signed = key.sign(wire.challenge_bytes(message, self._device.user, device))
            self.send(wire.Auth(self._device.user, device, bytes(signed.signature), (self._device.record,)))
            self.state = State.WELCOME
        elif isinstance(message, wire.Welcome) and self.state is State.WELCOME:
            self.welcome, self.state, self.live = message, State.LIVE, True
        elif self.state is not State.ENDED:
            raise ProtocolError(f"the node said {type(message).__name__} while {self.state.value} was due")
