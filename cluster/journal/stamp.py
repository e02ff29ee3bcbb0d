"""The time of a replicated log (rule 14): at most the median of the voters' clocks, and never from a wild one."""

from __future__ import annotations

from collections.abc import Iterable

from relay.journal.stamp import Stamp
from relay.limits import MAX_CLOCK_APART
from relay.ports import Clock

_KNOWN = 64  # stores whose clocks are remembered


class CellClock:
    """What the clocks of the other stores say, and what the leader stamps by them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own = Stamp(clock)
        self._offsets: dict[bytes, int] = {}  # ms that a store's clock is ahead of ours, when it last spoke

    def heard(self, store: bytes, wall_ms: int) -> None:
        """A note of `store` says what its clock shows. (The way here makes it look late by that much.)"""
        if len(self._offsets) >= _KNOWN and store not in self._offsets:
            self._offsets.clear()  # who is still there speaks again soon
        self._offsets[store] = wall_ms - self._clock.wall_ms()

    def keep(self, stores: Iterable[bytes]) -> None:
        """Forget all other stores."""
        self._offsets = {store: self._offsets[store] for store in stores if store in self._offsets}

    def _median(self, others: Iterable[bytes]) -> int:
        """How far the (lower) median of all known clocks is ahead of ours."""
        offsets = sorted([0, *(self._offsets[store] for store in others if store in self._offsets)])
        return offsets[(len(offsets) - 1) // 2]

    def stamp(self, voters: Iterable[bytes]) -> int:
        """Unix time, ms, for a block."""
        return self._own.now() + min(0, self._median(voters))

    def apart(self, voters: Iterable[bytes]) -> int:
        """How far ahead (or, negative, behind) of ours the median is, where that is beyond tolerance; else 0."""
        median = self._median(voters)
        return median if abs(median) > MAX_CLOCK_APART else 0
