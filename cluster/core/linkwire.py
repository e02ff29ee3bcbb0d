"""The protocol between nodes: messages, frames and the machine of one link. Pure: bytes in, events out.

    frame = length (4 bytes, big-endian) + msgpack [request id, message]

A link has a dialer, who asks, and a listener, who answers; each cell dials for its own requests. First both say
LinkHello (request id 0). Then the dialer sends requests under ids that it chooses, from 1 up, several in flight (at
most LINK_REQUESTS, of LINK_BYTES together); the listener answers each once, in any order, under the same id. Under id 0
the listener may say a last LinkFault.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Final, Union

from msgspec import Meta

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.records import HandedAnswer
from relay.core.shapes import CellName, Hash, Key, LogId, Name, UInt
from relay.core.trust import Root
from relay.errors import PeerError, ProtocolError
from relay.limits import (
    LINK_BYTES, LINK_REQUESTS, MAX_BATCH, MAX_CHAIN, MAX_EPHEMERAL, MAX_LINK_FRAME, MAX_LINK_HELLO, MIB,
)

VERSION: Final = 0
FAREWELL: Final = 0  # the id of what is no request: LinkHello, a last LinkFault


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as certificate, hello and root agree."""

    region: str
    cell: str
    node: str


# --- messages ------------------------------------------------------------------------------------
class LinkHello(Struct, tag=1):
    """First, both ways. `federation`: see `federation_id`."""

    version: UInt
    federation: Hash
    cell: CellName
    node: Name


class Ping(Struct, tag=2):
    """Are you there? Answered by Done, by the link itself."""


class HandItem(Struct):
    """One entry of an outbox: `what`, `item` and `part` as in records.HandIn."""

    what: Annotated[int, Meta(ge=0, le=2)]
    item: Annotated[bytes, Meta(max_length=MIB)]
    part: Annotated[bytes, Meta(max_length=MIB)]


class HandOver(Struct, tag=3):
    """Numbers `first`, `first` + 1, … of the outbox that the peer's cell keeps for ours (rule 16). `confirmed`: it has
    recorded our outcomes up to here. Answered by HandOverAnswer."""

    origin_log: LogId
    confirmed: UInt
    first: UInt
    items: Annotated[tuple[HandItem, ...], Meta(max_length=MAX_BATCH)]


class HandOverAnswer(Struct, tag=4):
    """`vector`: everything up to here is applied and durable; `outcomes` of the numbers that were asked about."""

    vector: UInt
    outcomes: tuple[HandedAnswer, ...]


class LookUp(Struct, tag=5):
    """Home records of `user`, at home with the peer, after version `after`. Answered by Records."""

    user: Hash
    after: UInt


class Records(Struct, tag=6):
    """Signed home records, oldest first. `code`: STORED (they lead to the newest; none when `after` is the newest) or
    UNKNOWN_USER (relay.core.wire.Code)."""

    code: UInt
    chain: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class EphemeralTo(Struct, tag=7):
    """An ephemeral payload for whoever of `user`'s devices is online. Answered by Done, delivered or not."""

    user: Hash
    from_user: Hash
    from_device: Key
    payload: Annotated[bytes, Meta(max_length=MAX_EPHEMERAL)]


class Done(Struct, tag=8):
    """Taken."""


class LinkFault(Struct, tag=9):
    """The request was not served; or, under id 0, the link ends. `code` is a relay.core.wire.Code."""

    code: UInt
    text: str
    retry_after_ms: UInt


Request = Union[Ping, HandOver, LookUp, EphemeralTo]
Answer = Union[HandOverAnswer, Records, Done, LinkFault]
LinkMessage = Union[LinkHello, Ping, HandOver, HandOverAnswer, LookUp, Records, EphemeralTo, Done, LinkFault]


class _Frame(Struct):
    id: UInt
    message: LinkMessage


_frame: Decoder[_Frame] = Decoder(_Frame, "link frame", MAX_LINK_FRAME)
_OVERHEAD: Final = 10  # bytes around a message at most: array of two, 64-bit id


def federation_id(root: Root) -> bytes:
    """What LinkHello calls the federation: the same for every version of its root. It tells mistakes apart; who may
    speak for whom is proved by certificates."""
    return digest(root.payload.federation.encode(), b"posthouse.fed")


def encode_message(message: LinkMessage) -> bytes:
    """A message, to be put into a frame. Raises ProtocolError where it is too large for one."""
    packed = encode(message)
    if len(packed) + _OVERHEAD > MAX_LINK_FRAME:
        raise ProtocolError(f"link message of {len(packed)} bytes", f"At most {MAX_LINK_FRAME - _OVERHEAD} are taken")
    return packed


def encode_frame(request: int, packed: bytes) -> bytes:
    """One frame: length, request id and an encoded message."""
    body = b"\x92" + pack(request) + packed
    return len(body).to_bytes(4, "big") + body


class FrameReader:
    """Cuts a stream into frame bodies, however it arrives. Never holds more than one frame and one feed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        self._buffer += data

    def take(self, cap: int) -> bytes | None:
        """The next body, or None until it is complete. Raises ProtocolError for a length above `cap`, at once."""
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:4], "big")
        if length > cap:
            raise ProtocolError(f"link frame of {length} bytes", f"At most {cap} are taken here")
        if len(self._buffer) < 4 + length:
            return None
        body = bytes(self._buffer[4 : 4 + length])
        del self._buffer[: 4 + length]
        return body


# --- the machine ---------------------------------------------------------------------------------
class Role(Enum):
    """Which end of the link this is."""

    DIALER = "dialer"
    LISTENER = "listener"


class State(Enum):
    """GREETING until the other's hello came, OPEN for requests, ENDED after a farewell or a mistake."""

    GREETING = "greeting"
    OPEN = "open"
    ENDED = "ended"


class Kind(Enum):
    """What a frame is to the machine."""

    HELLO = "hello"
    REQUEST = "request"
    ANSWER = "answer"
    FAREWELL = "farewell"


# Every transition there is; whatever is missing here is the peer's mistake and ends the link.
TRANSITIONS: Final[dict[tuple[Role, State, Kind], State]] = {
    (Role.DIALER, State.GREETING, Kind.HELLO): State.OPEN,
    (Role.DIALER, State.GREETING, Kind.FAREWELL): State.ENDED,
    (Role.DIALER, State.OPEN, Kind.ANSWER): State.OPEN,
    (Role.DIALER, State.OPEN, Kind.FAREWELL): State.ENDED,
    (Role.LISTENER, State.GREETING, Kind.HELLO): State.OPEN,
    (Role.LISTENER, State.OPEN, Kind.REQUEST): State.OPEN,
}


@dataclass(frozen=True, slots=True)
class Greeted:
    """The other side's hello; the shell checks it against certificate and root."""

    hello: LinkHello


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to answer."""

    id: int
    message: Request


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one of our requests."""

    id: int
    message: Answer


@dataclass(frozen=True, slots=True)
class Ended:
    """The listener's last word."""

    fault: LinkFault


LinkEvent = Union[Greeted, Asked, Answered, Ended]


def _kind(request: int, message: LinkMessage) -> Kind:
    if isinstance(message, LinkHello):
        fits, kind = request == FAREWELL, Kind.HELLO
    elif isinstance(message, (Ping, HandOver, LookUp, EphemeralTo)):
        fits, kind = request != FAREWELL, Kind.REQUEST
    elif isinstance(message, LinkFault) and request == FAREWELL:
        fits, kind = True, Kind.FAREWELL
    else:
        fits, kind = request != FAREWELL, Kind.ANSWER
    if not fits:
        raise ProtocolError(f"{type(message).__name__} under request id {request}")
    return kind


class LinkMachine:
    """One end of one link: who may say what, and which requests are open."""

    def __init__(self, role: Role) -> None:
        self.role = role
        self.state = State.GREETING
        self.open: dict[int, int] = {}  # asked and not yet answered, on either side: id and bytes
        self.open_bytes = 0
        self._last = 0
        self._reader = FrameReader()

    def room(self, size: int) -> bool:
        """Whether a request of `size` encoded bytes may be sent now. One more slot is kept for Ping."""
        used = self.open_bytes + size + _OVERHEAD + MAX_LINK_HELLO
        return len(self.open) + 1 < LINK_REQUESTS and used <= LINK_BYTES

    def request(self, packed: bytes) -> tuple[int, bytes]:
        """(id, frame) of a new request. Dialer only, when OPEN."""
        assert self.role is Role.DIALER and self.state is State.OPEN
        self._last += 1
        frame = encode_frame(self._last, packed)
        self._start(self._last, len(frame) - 4)
        return self._last, frame

    def answer(self, request: int, packed: bytes) -> bytes:
        """The frame of an answer, once a request. Listener only."""
        assert self.role is Role.LISTENER
        self._finish(request)
        return encode_frame(request, packed)

    def _start(self, request: int, size: int) -> None:
        self.open[request] = size
        self.open_bytes += size

    def _finish(self, request: int) -> None:
        self.open_bytes -= self.open.pop(request)

    def receive(self, data: bytes | bytearray) -> list[LinkEvent]:
        """Take what came from the stream. Raises PeerError, once, for the first thing that breaks the protocol."""
        if self.state is State.ENDED:
            return []
        self._reader.feed(data)
        events: list[LinkEvent] = []
        try:
            while (event := self._next()) is not None:
                events.append(event)
        except ProtocolError as error:
            self.state = State.ENDED
            raise PeerError(f"link broken by the peer: {error.text}", "Look at the log of the peer") from None
        return events

    def _next(self) -> LinkEvent | None:
        if self.state is State.ENDED:
            return None
        body = self._reader.take(MAX_LINK_FRAME if self.state is State.OPEN else MAX_LINK_HELLO)
        if body is None:
            return None
        frame = _frame(body)
        kind = _kind(frame.id, frame.message)
        state = TRANSITIONS.get((self.role, self.state, kind))
        if state is None:
            raise ProtocolError(f"{type(frame.message).__name__} sent to a {self.role.value} in {self.state.value}")
        event = self._event(frame, len(body))
        self.state = state
        return event

    def _event(self, frame: _Frame, size: int) -> LinkEvent:
        message = frame.message
        if isinstance(message, LinkHello):
            return Greeted(message)
        if isinstance(message, (Ping, HandOver, LookUp, EphemeralTo)):
            self._check_room(frame.id, size)
            self._start(frame.id, size)
            return Asked(frame.id, message)
        if isinstance(message, LinkFault) and frame.id == FAREWELL:
            return Ended(message)
        if frame.id not in self.open:
            raise ProtocolError(f"an answer to request {frame.id}, which is not open")
        self._finish(frame.id)
        return Answered(frame.id, message)

    def _check_room(self, request: int, size: int) -> None:
        if request in self.open:
            raise ProtocolError(f"request {request} was sent twice")
        if len(self.open) >= LINK_REQUESTS or self.open_bytes + size > LINK_BYTES:
            raise ProtocolError(f"{len(self.open) + 1} requests of {self.open_bytes + size} bytes at once")
