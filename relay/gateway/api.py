"""The seam between gateway and office: the gateway implements Line, the office (relay/office.py) Office."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from relay.core import wire
from relay.core.trust import Root
from relay.limits import ACK_MS, MAX_LIFETIME


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this node is: what CHALLENGE says, and the device signs."""

    region: str
    cell: str
    node: str
    log_id: bytes


@dataclass(frozen=True, slots=True)
class Started:
    """A device is served: what WELCOME says. `position` is where the session started, `time_ms` Unix time, ms,
    `max_lifetime` ms, `ack_ms` the pace of its acks, ms."""

    log_id: bytes
    cursor: int
    position: int
    home_version: int
    time_ms: int
    max_lifetime: int = MAX_LIFETIME
    ack_ms: int = ACK_MS


class Line(Protocol):
    """One authenticated connection, as the office sees it."""

    @property
    def device(self) -> bytes:
        """The device's signing key."""

    @property
    def user(self) -> bytes:
        """The user id."""

    @property
    def live(self) -> bool:
        """WELCOME is queued: pushing is possible."""

    def push(self, frames: Sequence[bytes]) -> bool:
        """Queue encoded WebSocket frames (`relay.core.frames.server_frame`), shared between lines. False, and nothing
        queued, when OUTBOX_BYTES would be passed, before WELCOME, and when the connection is ending."""

    def flush(self) -> None:
        """Write what is queued now. Never blocks: what does not fit is left to a writer task."""

    def give(self, data: bytes) -> bool:
        """`push` of frames that are joined, and `flush`: quicker than these where nothing is queued."""

    async def send(self, frame: bytes) -> None:
        """Queue one frame and write it, waiting for room. Once the connection is ending this only waits to be
        cancelled, which happens at once."""

    async def room(self) -> None:
        """Write, and wait until something that is queued has left (at once where nothing is). Once the connection is
        ending this waits to be cancelled, which happens at once."""

    def end(
        self, fault: wire.Fault, text: str, retry_after_ms: int = 0, records: tuple[bytes, ...] = ()
    ) -> None:
        """MOVED, if there are home `records` to say, ERROR, then close. Never blocks; the first call counts."""


class ChannelOffice(Protocol):
    """What the office does for broadcast channels. Methods raise PosthouseError only where the connection is to end."""

    def crosses(self, message: wire.ChannelMessage) -> bool:
        """Is another cell asked for this? That may take FAR_ASK_S twice: for a turn, and for the answer."""

    async def subscribe(self, line: Line, request: wire.Subscribe | wire.SubscribeFar, nonce: bytes) -> None:
        """Judge a ticket by the channel's terms; `nonce` is that of the connection's CHALLENGE. Answers on the line."""

    def unsubscribe(self, line: Line, channel: bytes) -> None:
        """The line wants no more of the channel."""

    async def read(self, line: Line, request: wire.Read) -> None:
        """Send the next posts past the reader's place, waiting for room."""

    async def publish(self, line: Line, terms: bytes) -> None:
        """Publish terms. The receipt comes by `line.push`."""

    async def post(self, line: Line, posts: Sequence[bytes]) -> None:
        """Hand posts to the intake. Receipts come by `line.push`."""


class Office(Protocol):
    """The relay behind the gateway: sessions, submits, deliveries. Every method may raise PosthouseError."""

    @property
    def identity(self) -> Identity: ...

    @property
    def channels(self) -> ChannelOffice: ...

    @property
    def root(self) -> Root:
        """The root document that the node goes by now."""

    async def admit(self, user: bytes, device: bytes, records: Sequence[bytes]) -> None:
        """The device proved its key. Verifies `records`, appends newer home records and waits until they are applied.
        Raises AuthError (Fault.AUTH) when the device is not enrolled, DeviceRevoked (Fault.REVOKED) when it is not any
        more, Refused (Fault.NOT_HOME) when its user is at home elsewhere: MovedAway where it was at home here, with the
        records."""

    async def start(self, line: Line, hello: wire.Hello, nonce: bytes) -> Started:
        """Begin. `hello.receive`: appends SESSION(nonce), waits until it is applied, fences the older session.
        Otherwise the line is attached for receipts only. Raises RolledBack."""

    async def serve(self, line: Line) -> None:
        """Catch-up and live delivery for the line, until cancelled. Only when `hello.receive`."""

    async def submit(self, line: Line, items: Sequence[wire.SubmitItem]) -> None:
        """Route the envelopes and hand them to the intake. Receipts come by `line.push`."""

    def ack(self, line: Line, position: int) -> None:
        """Everything up to `position` is safe with the device."""

    async def lookup(self, line: Line, request: wire.Lookup) -> wire.Record:
        """The answer to LOOKUP."""

    async def prove(self, line: Line, request: wire.Prove) -> wire.Proof:
        """The answer to PROVE: within PROVE_S, with what there is by then."""

    async def roster(self, line: Line, roster: wire.Roster) -> None:
        """Publish a roster version. The receipt comes by `line.push`."""

    async def ephemeral(self, line: Line, message: wire.Ephemeral) -> None:
        """Pass an ephemeral payload on to who is online."""

    def detach(self, line: Line) -> None:
        """The connection has ended. Called exactly once for every line that `start` was called with."""
