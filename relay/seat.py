"""Seats: devices that are served on a line, and how far they have come; and the lanes that they listen at."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import trio

from relay.core.mailroom.people import Entry
from relay.gateway.api import Line
from relay.limits import FANOUT_PIECE, UNACKED_BYTES

Address = tuple[bool, bytes]  # (is it a roster, user id or group id)


class Seat:
    """A device that is served. `sent`: everything up to this position was sent on its line. `lanes`: where it listens
    (relay.fanout owns that)."""

    __slots__ = ("lanes", "line", "live", "nonce", "sent", "started", "unacked", "unacked_bytes", "wake")

    def __init__(self, line: Line, nonce: bytes, started: int, cursor: int) -> None:
        self.line = line
        self.nonce = nonce
        self.started = started
        self.sent = cursor
        self.live = False
        self.wake = trio.Event()
        self.unacked: list[tuple[int, int]] = []  # last position and bytes of what was sent at a time
        self.unacked_bytes = 0
        self.lanes: dict[Lane, None] = {}

    def count(self, sent: tuple[int, int]) -> None:
        """As in `unacked`."""
        self.sent = sent[0]
        self.unacked.append(sent)
        self.unacked_bytes += sent[1]

    def acked(self, pos: int) -> None:
        count = bisect_left(self.unacked, (pos + 1,))
        self.unacked_bytes -= sum(size for _, size in self.unacked[:count])
        del self.unacked[:count]
        if self.unacked_bytes <= UNACKED_BYTES:
            self.wake.set()

    def demote(self) -> None:
        self.live = False
        self.wake.set()


class Item(NamedTuple):
    """What was filed: an entry, or a notice for one `device` of the user."""

    position: int
    frame: bytes
    entry: Entry | None
    device: bytes = b""


class Piece(NamedTuple):
    """Frames of one lane, joined: how many, the position of the last, and how many bytes all are."""

    data: bytes
    frames: int
    sent: tuple[int, int]


class Lane:
    """An address, the seats that listen there, and what not all of them were given yet. `due`: it rests until then, s
    (relay.fanout owns that)."""

    __slots__ = (
        "_joined", "_pieces", "_positions", "_times", "address", "due", "expires", "items", "lowest", "seats", "size",
        "time",
    )  # fmt: skip

    def __init__(self, address: Address) -> None:
        self.address = address
        self.due = 0.0
        self.seats: dict[Seat, int] = {}  # what is sealed for this version or a later one is for the seat
        self.empty()

    def empty(self) -> None:
        """Everybody has been given everything."""
        self.items: list[Item] = []
        self._positions: list[int] = []
        self._times: list[int] = []
        self._pieces: dict[int, Piece] = {}  # by the number of the first item; no more bytes than FANOUT_PIECE + size
        self._joined = 0  # bytes of them
        self.lowest = self.expires = self.time = 0  # the lowest version, the first expiry, the oldest block: of all
        self.size = 0

    def add(self, item: Item, time: int) -> None:
        """`time`: of its block, Unix ms."""
        if not self.items:
            self.lowest, self.expires, self.time = 1 << 62, 1 << 62, time
        version, expires = (item.entry.version, item.entry.expires) if item.entry else (0, self.expires)
        self.lowest, self.expires = min(self.lowest, version), min(self.expires, expires)
        self.items.append(item)
        self._positions.append(item.position)
        self._times.append(time)
        self._forget_pieces()
        self.size += len(item.frame)

    def after(self, pos: int) -> list[Item]:
        """Items past a position."""
        return self.items[bisect_right(self._positions, pos) :]

    def piece(self, pos: int) -> Piece | None:
        """Items past a position, joined, up to FANOUT_PIECE; the same object for everybody who asks for the same."""
        first = bisect_right(self._positions, pos)
        if first == len(self.items):
            return None
        piece = self._pieces.get(first)
        if piece is None:
            end, size = first, 0
            while end < len(self.items) and (end == first or size + len(self.items[end].frame) <= FANOUT_PIECE):
                size += len(self.items[end].frame)
                end += 1
            if self._joined + size > FANOUT_PIECE + self.size:  # seats that each lack something else share little
                self._forget_pieces()
            data = b"".join(item.frame for item in self.items[first:end])
            self._pieces[first] = piece = Piece(data, end - first, (self._positions[end - 1], size))
            self._joined += size
        return piece

    def _forget_pieces(self) -> None:
        self._pieces.clear()
        self._joined = 0

    def forget(self, pos: int) -> None:
        """Everybody has been given everything up to `pos`."""
        first = bisect_right(self._positions, pos)
        items, times = self.items[first:], self._times[first:]
        self.empty()
        for item, time in zip(items, times, strict=True):
            self.add(item, time)
