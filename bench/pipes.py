"""What the bench and its worker processes say to each other: msgpack structs with a length, over stdin and stdout.

    bench  ─▶ worker   Receive | Send | Subscribe | Publish (what to do), Go (when to start), Stop (hand in the result)
    worker ─▶ bench    Ready, Progress (four times a second), Received | Sent (the result), Failed (why not)
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from bench.session import Enrolled

T = TypeVar("T")
_LENGTH = 4  # bytes, big-endian
_MAX = 1 << 30  # bytes; per-recipient results of the longest run fit


class Endpoint(msgspec.Struct, frozen=True):
    """Where the node takes clients. `authority`: PEM of the certificate that signs its own; empty for plain ws."""

    host: str
    port: int
    authority: str = ""


class Plan(msgspec.Struct, frozen=True):
    """What all workers know of the run: where the nodes of the cell are, how long, from which message on it is timed,
    and where messages go. Each address is a **stream**: they get messages in turn, so that message `sequence` is number
    `sequence // len(addresses)` of the stream `sequence % len(addresses)`."""

    endpoints: tuple[Endpoint, ...]
    addresses: tuple[bytes, ...]
    mailboxes: bool  # the addresses are users, not groups
    rate: float
    warm_up: float
    seconds: float
    size: int
    seed: int
    away_ns: tuple[int, int] | None = None  # after the start all recipients leave, and how long they stay away
    stall_ns: tuple[int, int] | None = None  # the same for when they read nothing
    trickle: bool = False  # recipients ack a byte a minute, and so nothing
    hint: str = ""  # the region where users live, for their senders
    channel: bool = False  # the one address is a broadcast channel


class Message(msgspec.Struct, frozen=True, tag=True):
    """What travels through a pipe, named by its class."""


class Receive(Message, frozen=True):
    """Connect these devices and count what comes."""

    plan: Plan
    devices: tuple[Enrolled, ...]
    streams: tuple[int, ...]  # which one each device gets
    idle: tuple[Enrolled, ...] = ()  # connect these, too; nothing comes for them


class Author(msgspec.Struct, frozen=True):
    """Who sends a stream; the roster to publish first, where it goes to a group."""

    device: Enrolled
    head: bytes = b""
    parts: tuple[tuple[str, bytes], ...] = ()


class Send(Message, frozen=True):
    """Publish the rosters, then send on schedule; an author for each stream."""

    plan: Plan
    authors: tuple[Author, ...]


class Subscribe(Message, frozen=True):
    """Connect to the peer of this name as these subscribers, and count what comes."""

    plan: Plan
    peer: str
    subscribers: tuple[int, ...]


class Publish(Message, frozen=True):
    """Publish to the peer of this name on schedule."""

    plan: Plan
    peer: str


class Go(Message, frozen=True):
    """Message 0 is due at `start_ns` of the monotonic clock, which all processes of a machine share."""

    start_ns: int


class Stop(Message, frozen=True):
    """Hand in the result and exit."""


class Ready(Message, frozen=True):
    """All devices are live (and the roster is published)."""


class Progress(Message, frozen=True):
    """So far: `count` deliveries or receipts, devices that are live now; of a sender also how many were `accepted`, and
    whether it is `finished`: everything was sent and has its final receipt."""

    count: int
    live: int
    finished: bool = False
    accepted: int = 0


class Cost(msgspec.Struct, frozen=True):
    """CPU of a worker in the measured part, s, and the deliveries or messages that it handled for it."""

    user_s: float
    system_s: float
    count: int


class Received(Message, frozen=True):
    """A receiver's result. `reads`: how many brought deliveries. `latencies`: a histogram for each interval of the
    schedule. `absent`: how many of its recipients miss each sequence. `last_ns`: little-endian int64, for each message
    the time at which the last of its recipients had it (0: none). `parse_us`: what the generator's own work on a
    delivery costs, without system calls. `back_ns`: of recipients that were away, when they began to come back, when
    the last of them was served, and when the last had everything (0: never)."""

    deliveries: int
    reads: int
    latencies: tuple[bytes, ...]
    last_ns: bytes
    absent: dict[int, int]
    duplicated: int
    reordered: int
    wire_duplicates: int
    damaged: int
    connects: int
    faults: dict[str, int]
    cost: Cost
    parse_us: float
    back_ns: tuple[int, int, int] = (0, 0, 0)


class Sent(Message, frozen=True):
    """The sender's result. `codes`: the final outcome of each message (0: none). `acked_ns`: little-endian int64, for
    each message the time of its final receipt (0: none)."""

    codes: bytes
    acked_ns: bytes
    latencies: bytes
    resubmitted: int
    late_us_max: int
    connects: int
    faults: dict[str, int]
    cost: Cost


class Failed(Message, frozen=True):
    """The worker gave up; the run is void."""

    text: str
    remedy: str = ""


ToWorker = Receive | Send | Subscribe | Publish | Go | Stop
FromWorker = Ready | Progress | Received | Sent | Failed


def frame(message: ToWorker | FromWorker) -> bytes:
    """One message with its length in front."""
    body = msgspec.msgpack.encode(message)
    return len(body).to_bytes(_LENGTH, "big") + body


class Reader(Generic[T]):
    """Bytes of a pipe in, messages out."""

    def __init__(self, shape: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(shape)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[T]:
        """The messages that `data` completed."""
        self._buffer += data
        messages: list[T] = []
        while len(self._buffer) >= _LENGTH:
            size = int.from_bytes(self._buffer[:_LENGTH], "big")
            assert size <= _MAX, "the pipe is out of step"
            if len(self._buffer) < _LENGTH + size:
                break
            messages.append(self._decoder.decode(self._buffer[_LENGTH : _LENGTH + size]))
            del self._buffer[: _LENGTH + size]
        return messages


def to_worker() -> Reader[ToWorker]:
    return Reader(ToWorker)


def from_worker() -> Reader[FromWorker]:
    return Reader(FromWorker)

