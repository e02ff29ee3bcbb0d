"""The port behind which stands what is measured: what a delivery is, and how a message is sent.

Posthouse is one implementation (bench.posthouse), its peers (bench.peers) are others. Schedule, sockets, counting and
clocks are the generator's own, and the same for all of them.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from bench.client import Client, Net
from bench.tape import Tape

Message = tuple[Hashable, bytes]  # the key that its answer will have, and the message
Known = tuple[int, int, int]  # position (0: the system has none), sequence, scheduled_ns


class Recipient(Protocol):
    """Who gets deliveries, and counts them."""

    @property
    def have(self) -> int:
        """How many of its stream came, without a gap, from the first."""

    def live(self) -> None:
        """Connected (again), and served."""

    def ready(self) -> None:
        """Whatever is sent from now on comes here."""

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Take them; returns how many were deliveries."""


class Cutting(Protocol):
    """What cuts a byte stream into messages (bench.tape.Taped)."""

    def follow(self, tape: Tape) -> None:
        """Along this tape."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completed."""


class Hearing(Protocol):
    """The receiving half, in one process."""

    @property
    def recipients(self) -> int:
        """How many there are here."""

    @property
    def alike(self) -> bool:
        """Do all recipients of a stream get the same bytes, which need no answer each?"""

    def stream(self, place: int) -> int:
        """Which stream the recipient at `place` among those here gets."""

    def client(self, net: Net, recipient: Recipient, place: int) -> Client[Any]:
        """The client of the recipient at `place` among those here; not connected yet."""

    def delivers(self, client: Client[Any], recipient: Recipient, message: bytes) -> bool:
        """Whether `message` is a delivery. What is none is heeded here."""

    def decode(self, message: bytes) -> Known:
        """Read a delivery. Raises ProtocolError where a byte is not what was sent."""

    def cutter(self) -> Cutting:
        """Cuts a byte stream into messages, as the line of a client that is served does."""

    def sample(self, sequence: int) -> bytes:
        """What brings message `sequence` (due at 0) to a recipient, on the wire."""


class Desk(Protocol):
    """The sender, as its outlet sees it."""

    def unanswered(self, stream: int | None = None) -> list[Message]:
        """All (of a stream) that has no answer, oldest first: for a connection that came about again."""

    def answered(self, key: Hashable, code: int, now_ns: int | None) -> None:
        """The final outcome of one message (relay.core.wire.Code), and when it came; None: the system gives no answers,
        and the message was handed over."""


class Outlet(Protocol):
    """The sending half."""

    @property
    def clients(self) -> Sequence[Client[Any]]:
        """Those that send."""

    @property
    def ready(self) -> bool:
        """Messages may be sent."""

    def make(self, sequence: int, due_ns: int, now_ms: int) -> Message:
        """Message `sequence`."""

    def submit(self, messages: list[Message]) -> None:
        """Send them. Without a connection they stay unanswered."""
