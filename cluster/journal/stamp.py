"""The time of a replicated log (rule 14): at most the median of the voters' clocks, and never from a wild one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from relay.journal.stamp import Stamp
from relay.limits import MAX_CLOCK_APART
from relay.ports import Clock

_KNOWN = 64  # stores whose clocks are remembered


class CellClock:
    """What the clocks of the other stores say, and what the leader stamps by them."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._own = Stamp(clock)
        self._offsets: dict[bytes, int] = {}  # ms from our monotonic clock to a store's time, when it last spoke

    def now(self) -> int:
        """Unix time, ms, as this store believes it, and tells the others: a jump of the wall clock is not followed."""
        return self._own.now()

    def heard(self, store: bytes, unix_ms: int) -> None:
        """A note of `store` says what time it believes it is. (The way here makes it look late by that much.)"""
        if len(self._offsets) >= _KNOWN and store not in self._offsets:
            self._offsets.clear()  # who is still there speaks again soon
        self._offsets[store] = unix_ms - self._clock.monotonic_ms()

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
        own = self._own.now()
        ahead = self._median(own, voters) - own
        return ahead if abs(ahead) > MAX_CLOCK_APART else 0

    def mend(self, voters: Sequence[bytes]) -> None:
        """Follow the wall clock again after a jump where most of the cell, without us, shows the same: so a clock that
        was wrong when the node started and was set right does not stay wrong until a restart. (Not without a jump: of
        clocks that all go wrong in small steps each would be followed.)"""
        wall, steady = self._clock.wall_ms(), self._clock.monotonic_ms()
        shown = [steady + self._offsets[store] for store in voters if store in self._offsets]
        agreeing = sum(abs(other - wall) <= MAX_CLOCK_APART for other in shown)
        if self._own.jumped and 2 * agreeing > len(voters) + 1:
            self._own.follow()
