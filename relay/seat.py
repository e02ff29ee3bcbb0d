"""A seat: a device that is served on a line, and how far it has come."""

from __future__ import annotations

from collections import deque

import trio

from relay.gateway.api import Line
from relay.limits import UNACKED_BYTES

Address = tuple[bool, bytes]  # (is it a roster, user id or group id)


class Seat:
    """A device that is served. `sent`: everything up to this position was sent on its line."""

    def __init__(self, line: Line, nonce: bytes, started: int, cursor: int) -> None:
        self.line = line
        self.nonce = nonce
        self.started = started
        self.sent = cursor
        self.live = False
        self.wake = trio.Event()
        self.unacked: deque[tuple[int, int]] = deque()
        self.unacked_bytes = 0
        self.addresses: list[Address] = []

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
