"""A seat: a device that is served on a line, and how far it has come."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from relay.gateway.api import Line
from relay.limits import UNACKED_BYTES

if TYPE_CHECKING:
    from relay.fanout import Lane


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
        self.unacked: deque[tuple[int, int]] = deque()  # last position and bytes of what was sent at a time
        self.unacked_bytes = 0
        self.lanes: dict[Lane, None] = {}

    def count(self, pos: int, size: int) -> None:
        self.sent = pos
        self.unacked.append((pos, size))
        self.unacked_bytes += size

    def acked(self, pos: int) -> None:
        while self.unacked and self.unacked[0][0] <= pos:
            self.unacked_bytes -= self.unacked.popleft()[1]
        if self.unacked_bytes <= UNACKED_BYTES:
            self.wake.set()

    def demote(self) -> None:
        self.live = False
        self.wake.set()
