"""The log as the core sees it: terms, sizes and membership of every entry, payloads of the newest only.

Terms are kept as runs and sizes as running sums, so a million entries take eight megabytes; payloads are kept until
they are on disk, and then as long as `recent` bytes allow, for the peers that are nearly up to date.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

from cluster.core.raft.entry import ORIGIN, Entry, Point, Stub
from cluster.core.raft.members import Members


class _Run(NamedTuple):
    """Entries from `first` on have `term`."""

    first: int
    term: int


class _Change(NamedTuple):
    at: Point
    members: Members


class Log:
    """`start` is the place just before the oldest entry that is kept; `members` are in force there."""

    def __init__(self, start: Point, members: Members, stubs: Iterable[Stub], recent: int) -> None:
        self._recent = recent
        self.reset(start, members)
        for stub in stubs:
            self._extend(stub.term, stub.size, stub.members)

    def reset(self, start: Point, members: Members) -> None:
        """Forget everything: the log begins after `start`, where a snapshot ends."""
        self.start = start
        self._runs: list[_Run] = []
        self._ends = array("Q", [0])  # _ends[i]: bytes of the first i entries after the start
        self._changes = [_Change(start, members)]
        self._payloads: deque[Any] = deque()  # of the newest entries
        self._payload_bytes = 0

    # --- what it says ----------------------------------------------------------------------------
    @property
    def last(self) -> int:
        """Index of the newest entry; that of the start when there is none."""
        return self.start.index + len(self._ends) - 1

    @property
    def tip(self) -> Point:
        """The newest entry's place: what voters compare."""
        return Point(self._runs[-1].term, self.last) if self._runs else self.start

    def term(self, index: int) -> int | None:
        """The term of the entry at `index`; None where that is not known: below the start or beyond the end."""
        if index == self.start.index:
            return self.start.term
        if not self.start.index < index <= self.last:
            return None
        if index >= self._runs[-1].first:
            return self._runs[-1].term
        return self._runs[bisect_right(self._runs, index, key=lambda run: run.first) - 1].term

    def has(self, point: Point) -> bool:
        return self.term(point.index) == point.term

    @property
    def members(self) -> Members:
        """The newest members in the log, committed or not: a change counts when it is appended (dissertation 4.1)."""
        return self._changes[-1].members

    @property
    def members_at(self) -> Point:
        """Where `members` were appended; the start when that was before it."""
        return self._changes[-1].at

    @property
    def members_before(self) -> Members | None:
        """What `members` replaced, as far back as the log knows."""
        return self._changes[-2].members if len(self._changes) > 1 else None

    def members_upto(self, index: int) -> Members:
        """The members in force at an entry that is kept, or at the start."""
        place = bisect_right(self._changes, index, key=lambda change: change.at.index) - 1
        return self._changes[max(place, 0)].members

    def had(self, store: bytes, upto: int) -> bool:
        """Was `store` ever a member, up to the entry at `upto` and as far back as the log knows?"""
        return any(store in change.members.ids for change in self._changes if change.at.index <= upto)

    def bytes_between(self, after: int, upto: int) -> int:
        """Bytes of the entries after index `after` up to `upto`; those below the start count nothing."""
        base = self.start.index
        return int(self._ends[max(upto - base, 0)] - self._ends[max(after - base, 0)])

    def meeting(self, limit: Point) -> Point:
        """The newest place, not after `limit.index`, whose term is at most `limit.term`: where a peer whose log
        disagrees at `limit` may agree. The start when none is (it is committed: everybody agrees there)."""
        index = min(limit.index, self.last)
        while index > self.start.index:
            place = bisect_right(self._runs, index, key=lambda run: run.first) - 1
            if self._runs[place].term <= limit.term:
                return Point(self._runs[place].term, index)
            index = self._runs[place].first - 1
        return self.start if limit.index >= self.start.index else ORIGIN

    def entries(self, first: int, max_bytes: int, max_entries: int) -> tuple[Entry, ...]:
        """Entries from index `first` on, as many as fit into `max_bytes`, but one at least where there is one."""
        base = self.start.index
        upto = bisect_right(self._ends, self._ends[first - 1 - base] + max_bytes) - 1 + base
        upto = min(max(upto, first), self.last, first + max_entries - 1)
        held = self.last - len(self._payloads)
        changes = {change.at.index: change.members for change in self._changes[1:]} if len(self._changes) > 1 else {}
        made = []
        for index in range(first, upto + 1):
            size = int(self._ends[index - base] - self._ends[index - 1 - base])
            payload = self._payloads[index - held - 1] if index > held else None
            made.append(Entry(index, self.term(index) or 0, size, changes.get(index), payload))
        return tuple(made)

    # --- what changes it -------------------------------------------------------------------------
    def append(self, entry: Entry) -> None:
        """`entry.index` is the next one."""
        self._extend(entry.term, entry.size, entry.members)
        self._payloads.append(entry.payload)
        self._payload_bytes += entry.size

    def _extend(self, term: int, size: int, members: Members | None) -> None:
        self._ends.append(self._ends[-1] + size)
        if not self._runs or self._runs[-1].term != term:
            self._runs.append(_Run(self.last, term))
        if members is not None:
            self._changes.append(_Change(Point(term, self.last), members))

    def truncate(self, first: int) -> None:
        """Drop the entries from index `first` on; a change of members among them is undone."""
        held = self.last - len(self._payloads)
        for index in range(self.last, max(first, held + 1) - 1, -1):
            self._payloads.pop()
            self._payload_bytes -= self.bytes_between(index - 1, index)
        del self._ends[first - self.start.index :]
        while self._runs and self._runs[-1].first >= first:
            self._runs.pop()
        while len(self._changes) > 1 and self._changes[-1].at.index >= first:
            self._changes.pop()

    def compact(self, first: int) -> None:
        """The entries below index `first` are gone from the disk; `first` is at most one beyond the newest."""
        if first <= self.start.index + 1:
            return
        start, last = Point(self.term(first - 1) or 0, first - 1), self.last
        while len(self._payloads) > last - start.index:
            self._drop_oldest_payload()
        gone = start.index - self.start.index
        self._ends = array("Q", (end - self._ends[gone] for end in self._ends[gone:]))
        keep = bisect_right(self._runs, first, key=lambda run: run.first) - 1
        kept = self._runs[max(keep, 0) :] if start.index < last else ()
        self._runs = [_Run(max(run.first, first), run.term) for run in kept]
        place = bisect_left(self._changes, first, key=lambda change: change.at.index) - 1
        self._changes = self._changes[max(place, 0) :]
        self.start = start

    def forget_payloads(self, stored: int) -> None:
        """Entries up to index `stored` are on disk: keep no more than the recent bytes of payloads."""
        while self._payload_bytes > self._recent and self.last - len(self._payloads) < stored:
            self._drop_oldest_payload()

    def _drop_oldest_payload(self) -> None:
        index = self.last - len(self._payloads) + 1
        self._payload_bytes -= self.bytes_between(index - 1, index)
        self._payloads.popleft()
