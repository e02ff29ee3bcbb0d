"""Batches of an outbox that are under way to another cell, in the order of their numbers (ADR 37). Pure.

What is in the fold is the truth; this is only a guess at it, and is thrown away whenever something went wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from dataclasses import dataclass, field

from cluster.core.linkwire import HandItem, HandOverAnswer
from relay.errors import PosthouseError
from relay.limits import HANDOVERS_AHEAD, MAX_BATCH


@dataclass(slots=True)
class Flight:
    """One batch: the numbers from `first` on. `done` and `log`: what the fold said when it left. `withheld`: numbers
    that went out void. `came`: the answer, or why there is none."""

    first: int
    items: tuple[HandItem, ...]
    done: int
    log: bytes
    withheld: Set[int]
    came: HandOverAnswer | PosthouseError | None = None
    size: int = field(init=False)  # bytes

    def __post_init__(self) -> None:
        self.size = sum(len(item.item) + len(item.part) for item in self.items)

    @property
    def last(self) -> int:
        return self.first + len(self.items) - 1


class Flights:
    """At most HANDOVERS_AHEAD without an answer; with those that are not recorded yet, of so many bytes together as the
    line is known to carry (or one that is larger), and of so many numbers as HANDOVERS_AHEAD full ones have."""

    def __init__(self, last: int) -> None:
        self.last = last  # the newest number that has left, or was done before
        self.record_waits = False  # for company: the one that is under way
        self._flying = deque[Flight]()
        self._bytes = 0

    def room(self, window: int) -> int:
        """Bytes that may leave now; 0: none. What has come to an end takes bytes and numbers until `settled`."""
        if not self._goes_well or self._aloft >= HANDOVERS_AHEAD or self._numbers >= HANDOVERS_AHEAD * MAX_BATCH:
            return 0
        return max(window - self._bytes, 0)

    def may_wait(self, window: int) -> bool:
        """May the record of what has come to an end wait for company? More comes soon then, and nothing lacks room."""
        return self._goes_well and self._aloft > 0 and 2 * self._bytes < window and self._numbers < MAX_BATCH

    @property
    def _aloft(self) -> int:
        return sum(flight.came is None for flight in self._flying)

    @property
    def _goes_well(self) -> bool:
        return not any(isinstance(flight.came, PosthouseError) for flight in self._flying)

    @property
    def _numbers(self) -> int:
        return self.last + 1 - self._flying[0].first if self._flying else 0

    def leave(self, flight: Flight) -> None:
        """A batch goes out, right behind the one before."""
        self.last = flight.last
        self._flying.append(flight)
        self._bytes += flight.size

    def landed(self) -> list[Flight]:
        """Those that have come to an end, and all before them: as many as one record may tell of, at least one if
        there is any; what failed stands last."""
        found, numbers = list[Flight](), 0
        for flight in self._flying:
            numbers += len(flight.items)
            if flight.came is None or (found and numbers > MAX_BATCH):
                break
            found.append(flight)
            if isinstance(flight.came, PosthouseError):
                break
        return found

    def settled(self, count: int) -> None:
        """The first `count` are recorded."""
        for _ in range(count):
            self._bytes -= self._flying.popleft().size
