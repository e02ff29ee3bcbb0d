"""One end of a link between nodes, as a machine. Pure: bytes in, events out. The messages are linkwire's."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Union, get_args

from cluster.core.framereader import FrameReader
from cluster.core.linkwire import (
    NO_REQUEST, OVERHEAD, Answer, CellAnswer, CellNote, CellRequest, Frame, LinkFault, LinkHello,
    LinkMessage, Request, decode_frame, encode_frame,
)
from relay.errors import PeerError, ProtocolError
from relay.limits import LINK_BYTES, LINK_REQUESTS, MAX_LINK_FRAME, MAX_LINK_HELLO


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
    NOTE = "note"
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
    (Role.LISTENER, State.OPEN, Kind.NOTE): State.OPEN,
}
_KINDS: Final[dict[type[LinkMessage], Kind]] = {
    LinkHello: Kind.HELLO,
    CellNote: Kind.NOTE,
    **dict.fromkeys(get_args(Request), Kind.REQUEST),
    **dict.fromkeys(get_args(Answer), Kind.ANSWER),  # LinkFault, too: under NO_REQUEST it is a FAREWELL
}
_INSIDE: Final = frozenset({CellNote, *get_args(CellRequest), *get_args(CellAnswer)})


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
class Noted:
    """A note, which nobody answers."""

    message: CellNote


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to one of our requests."""

    id: int
    message: Answer


@dataclass(frozen=True, slots=True)
class Ended:
    """The listener's last word."""

    fault: LinkFault


LinkEvent = Union[Greeted, Asked, Noted, Answered, Ended]


def _kind(frame: Frame) -> Kind:
    """Raises ProtocolError where the message does not go under its id."""
    kind, apart = _KINDS[type(frame.message)], frame.id == NO_REQUEST
    if kind is Kind.ANSWER and apart and isinstance(frame.message, LinkFault):
        return Kind.FAREWELL
    if apart != (kind in (Kind.HELLO, Kind.NOTE)):
        raise ProtocolError(f"{type(frame.message).__name__} under request id {frame.id}")
    return kind


class LinkMachine:
    """One end of one link: who may say what, and which requests are open. `inside`: both ends are of one cell; what
    only such nodes say to each other is a mistake elsewhere."""

    def __init__(self, role: Role, *, inside: bool = False) -> None:
        self.role = role
        self.inside = inside
        self.state = State.GREETING
        self.open: dict[int, int] = {}  # asked and not yet answered, on either side: id and bytes
        self.open_bytes = 0
        self._last = 0
        self._reader = FrameReader()

    def room(self, size: int) -> bool:
        """Whether a request of `size` encoded bytes may be sent now. One more slot is kept for Ping."""
        used = self.open_bytes + size + OVERHEAD + MAX_LINK_HELLO
        return len(self.open) + 1 < LINK_REQUESTS and used <= LINK_BYTES

    def request(self, packed: bytes) -> tuple[int, bytes]:
        """(id, frame) of a new request. Dialer only, when OPEN."""
        assert self.role is Role.DIALER and self.state is State.OPEN
        self._last += 1
        frame = encode_frame(self._last, packed)
        self._start(self._last, len(frame) - 4)
        return self._last, frame

    def note(self, packed: bytes) -> bytes:
        """The frame of a note. Dialer only, inside a cell, when OPEN."""
        assert self.role is Role.DIALER and self.state is State.OPEN and self.inside
        return encode_frame(NO_REQUEST, packed)

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
        frame = decode_frame(body)
        name, kind = type(frame.message).__name__, _kind(frame)
        state = TRANSITIONS.get((self.role, self.state, kind))
        if state is None:
            raise ProtocolError(f"{name} sent to a {self.role.value} in {self.state.value}")
        if not self.inside and type(frame.message) in _INSIDE:
            raise ProtocolError(f"{name} from a node of another cell")
        event = self._event(frame, kind, len(body))
        self.state = state
        return event

    def _event(self, frame: Frame, kind: Kind, size: int) -> LinkEvent:
        message: Any = frame.message  # of what type, its kind says
        match kind:
            case Kind.HELLO:
                return Greeted(message)
            case Kind.NOTE:
                return Noted(message)
            case Kind.REQUEST:
                self._check_room(frame.id, size)
                self._start(frame.id, size)
                return Asked(frame.id, message)
            case Kind.ANSWER:
                if frame.id not in self.open:
                    raise ProtocolError(f"an answer to request {frame.id}, which is not open")
                self._finish(frame.id)
                return Answered(frame.id, message)
            case Kind.FAREWELL:
                return Ended(message)

    def _check_room(self, request: int, size: int) -> None:
        if request in self.open:
            raise ProtocolError(f"request {request} was sent twice")
        if len(self.open) >= LINK_REQUESTS or self.open_bytes + size > LINK_BYTES:
            raise ProtocolError(f"{len(self.open) + 1} requests of {self.open_bytes + size} bytes at once")
