"""How far one peer's log is known to follow the leader's, and what may be sent to it next (in the manner of etcd's).

    PROBE      where the logs meet is not known: one append, then wait for an answer to it or to a sign of life: whoever
               does not answer is sent no entries again
    REPLICATE  it is known: appends leave ahead of their answers, bounded in bytes and number
    SNAPSHOT   what it needs is no longer in the log: only signs of life, until it has a snapshot
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import NamedTuple


class Stage(Enum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class _Sent(NamedTuple):
    last: int
    size: int


class Progress:
    """One peer. `match`: on its disk and equal to the leader's up to here. `next`: the first index not yet sent."""

    def __init__(self, following: int, now: int) -> None:
        self.stage = Stage.PROBE
        self.match = 0
        self.next = following
        self.heard = now  # ms; when it last answered in this term
        self.beat = True  # a sign of life is due
        self.told_commit = 0  # the commit index in the last append sent
        self.waiting = False  # PROBE: for an answer
        self._flight: deque[_Sent] = deque()
        self._flight_bytes = 0

    def may_send(self, max_bytes: int, max_appends: int) -> bool:
        """May entries leave now? A window that is not full takes one more append, whatever its size."""
        if self.stage is Stage.REPLICATE:
            return self._flight_bytes < max_bytes and len(self._flight) < max_appends
        return self.stage is Stage.PROBE and not self.waiting

    def sent(self, last: int, size: int) -> None:
        """Entries up to index `last`, of `size` bytes together, were put into an append."""
        if self.stage is Stage.REPLICATE:
            self.next = last + 1
            self._flight.append(_Sent(last, size))
            self._flight_bytes += size
        else:
            self.waiting = True

    def heartbeat(self) -> None:
        """A sign of life is due; it builds on the same entry as a probe that was lost."""
        self.beat = True

    def accepted(self, match: int, floor: int) -> None:
        """It has everything up to index `match`; the log still has what comes after `floor`."""
        self.match = max(self.match, match)
        if self.stage is Stage.SNAPSHOT and self.match < floor:
            return
        if self.stage is not Stage.REPLICATE:
            self._begin(Stage.REPLICATE, self.match + 1)
        self.next = max(self.next, self.match + 1)
        while self._flight and self._flight[0].last <= self.match:
            self._flight_bytes -= self._flight.popleft().size

    def rejected(self, prev: int, meeting: int) -> None:
        """It has not what the append after index `prev` built on; the logs may meet at index `meeting`."""
        if self.stage is Stage.REPLICATE and prev > self.match:
            self._begin(Stage.PROBE, self.match + 1)
        elif self.stage is Stage.PROBE and prev == self.next - 1:  # else it answers an older probe
            self._begin(Stage.PROBE, max(min(prev, meeting + 1), self.match + 1))

    def needs_snapshot(self) -> None:
        self._begin(Stage.SNAPSHOT, self.match + 1)

    def snapshot_sent(self, index: int) -> None:
        """It was given one that ends at `index` (0: that failed). Probed again at the next heartbeat."""
        if self.stage is Stage.SNAPSHOT:
            self._begin(Stage.PROBE, max(self.match, index) + 1)
            self.waiting = True

    def _begin(self, stage: Stage, following: int) -> None:
        self.stage = stage
        self.next = following
        self.told_commit = min(self.told_commit, following - 1)
        self.waiting = False
        self._flight.clear()
        self._flight_bytes = 0
