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
        self._offsets: dict[bytes, int] = {}  # ms from our monotonic clock to a store's wall clock, when it last spoke

    def heard(self, store: bytes, wall_ms: int) -> None:
        """A note of `store` says what its clock shows. (The way here makes it look late by that much.)"""
        if len(self._offsets) >= _KNOWN and store not in self._offsets:
            self._offsets.clear()  # who is still there speaks again soon
        self._offsets[store] = wall_ms - self._clock.monotonic_ms()

    def keep(self, stores: Iterable[bytes]) -> None:
        """Forget all other stores."""
        self._offsets = {store: self._offsets[store] for store in stores if store in self._offsets}

    def _median(self, own: int, others: Iterable[bytes]) -> int:
        """The (lower) median of all known clocks, ours showing `own`. It follows no jump of ours."""
        steady = self._clock.monotonic_ms()
        shown = sorted([own, *(steady + self._offsets[store] for store in others if store in self._offsets)])
        return shown[(len(shown) - 1) // 2]

    def stamp(self, voters: Iterable[bytes]) -> int:
        """Unix time, ms, for a block."""
        own = self._own.now()
        return min(own, self._median(own, voters))

    def apart(self, voters: Iterable[bytes]) -> int:
        """How far ahead (or, negative, behind) of ours the median is, where that is beyond tolerance; else 0."""
        wall = self._clock.wall_ms()
        ahead = self._median(wall, voters) - wall
        return ahead if abs(ahead) > MAX_CLOCK_APART else 0
