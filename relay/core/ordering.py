"""Order restored and duplicates removed, per stream: one sender device's messages of one conversation (rule 19).

A message is held back for its predecessor until `due` says that it waited long enough; then the gap is marked, and what
comes late after a marked gap is given flagged. Pure: `now` is an argument, and a stream is its own checkpoint.

    seen  = every counter below `next` that is not in `missing`, and every counter that is held
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_HELD = 4_096  # messages held back in one stream; past it the gap is marked at once
MAX_HELD_BYTES = 64 * 1024 * 1024  # bytes held back in one stream: what one mailbox may hold
MAX_MISSING = 1_024  # ranges of missing counters kept; the oldest is given up first (what comes for it is dropped)


@dataclass(frozen=True, slots=True)
class Given(Generic[T]):
    """A message for the app: `gap` counters are missing just before it; `late`: it comes after its gap was marked."""

    counter: int
    item: T
    gap: int = 0
    late: bool = False


@dataclass(slots=True)
class Held(Generic[T]):
    """A message that waits for its predecessor since `since` (ms)."""

    since: int
    size: int
    item: T


@dataclass(slots=True)
class Stream(Generic[T]):
    """One stream. `next` is the counter expected next, 0 in a stream that starts with whatever comes first."""

    next: int = 0
    given: bool = False  # something was given to the app: the start is settled
    missing: list[tuple[int, int]] = field(default_factory=list)  # (first, last), ascending, all below `next`
    held: dict[int, Held[T]] = field(default_factory=dict)  # counter → message, all above `next`
    held_bytes: int = 0

    def begin(self, first: int) -> list[Given[T]]:
        """The sender says that `first` (≥ 1) is the first counter meant for this device. Holds only before anything was
        given, and only downwards."""
        if first < 1 or self.given or (self.next and first >= self.next):
            return []
        self.next = first
        self.missing = [(1, first - 1)] if first > 1 else []
        return self._run()

    def offer(self, counter: int, item: T, now: int, size: int = 0) -> list[Given[T]] | None:
        """A message came at `now` (ms). What may be given now, in order; None: it is a duplicate."""
        if not self.next:
            self.begin(counter)
        if counter < self.next:
            if not self._fill(counter):
                return None
            self.given = True
            return [Given(counter, item, late=True)]
        if counter in self.held:
            return None
        self.hold(counter, Held(now, size, item))
        given = self._run()
        while len(self.held) > MAX_HELD or (self.held and self.held_bytes > MAX_HELD_BYTES):
            given += self._skip()
        return given

    def hold(self, counter: int, held: Held[T]) -> None:
        """Put a message back that was held when the stream was kept."""
        self.held[counter] = held
        self.held_bytes += held.size

    def due(self, now: int, hold_ms: int) -> list[Given[T]]:
        """What may be given at `now` because it, or one behind it, waited for `hold_ms`; marks the gaps."""
        given: list[Given[T]] = []
        while any(held.since + hold_ms <= now for held in self.held.values()):
            given += self._skip()
        return given

    def rearm(self, now: int) -> None:
        """The wait counts from `now`: the connection was away, and the predecessor may be on its way."""
        for held in self.held.values():
            held.since = now

    def _run(self) -> list[Given[T]]:
        given = []
        while (held := self.held.pop(self.next, None)) is not None:
            given.append(Given(self.next, held.item))
            self.held_bytes -= held.size
            self.next += 1
        self.given = self.given or bool(given)
        return given

    def _skip(self) -> list[Given[T]]:
        """Mark the gap before the lowest held message and go on from there."""
        lowest = min(self.held)
        gap = lowest - self.next
        if gap:
            self.missing.append((self.next, lowest - 1))
            del self.missing[:-MAX_MISSING]
        self.next = lowest
        first, *rest = self._run()
        return [Given(first.counter, first.item, gap), *rest]

    def _fill(self, counter: int) -> bool:
        """Take `counter` out of the missing ones; False if it is not one."""
        for i, (first, last) in enumerate(self.missing):
            if first <= counter <= last:
                parts = [(first, counter - 1), (counter + 1, last)]
                self.missing[i : i + 1] = [part for part in parts if part[0] <= part[1]]
                return True
        return False


def pack_missing(missing: Iterable[tuple[int, int]]) -> bytes:
    """The missing ranges as bytes: 16 a range, big-endian."""
    return b"".join(first.to_bytes(8, "big") + last.to_bytes(8, "big") for first, last in missing)


def unpack_missing(packed: bytes) -> list[tuple[int, int]]:
    """The inverse of `pack_missing`."""
    halves = [int.from_bytes(packed[i : i + 8], "big") for i in range(0, len(packed), 8)]
    return list(zip(halves[::2], halves[1::2], strict=True))
