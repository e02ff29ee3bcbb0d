"""A toy store: what one disk holds, and what a transaction does to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from cluster.core.raft import ORIGIN, Entry, Figure, HardState, Members, Point, Stored, Stub, Write


@dataclass
class Disk:
    """`applied`: the checkpoint's index. `heard`: what the judge says that this disk must remember of others."""

    start_members: Members
    hard: HardState = field(default_factory=HardState)
    start: Point = ORIGIN
    entries: list[Entry] = field(default_factory=list)
    known: tuple[Figure, ...] = ()
    applied: int = 0
    heard: dict[bytes, Point] = field(default_factory=dict)

    def copy(self) -> Disk:
        return replace(self, entries=list(self.entries), heard=dict(self.heard))

    @property
    def last(self) -> int:
        return self.start.index + len(self.entries)

    @property
    def standing(self) -> Point:
        return Point(self.hard.term, self.last)

    def entry(self, index: int) -> Entry | None:
        return self.entries[index - self.start.index - 1] if self.start.index < index <= self.last else None

    def holds(self, index: int, term: int) -> bool:
        """On this disk, as an entry or within the checkpoint (which holds nothing but what was committed)."""
        entry = self.entry(index)
        return entry.term == term if entry else index <= self.start.index

    def members(self, upto: int | None = None) -> Members:
        changes = [e.members for e in self.entries if e.members and (upto is None or e.index <= upto)]
        return changes[-1] if changes else self.start_members

    def point(self, index: int) -> Point:
        entry = self.entry(index)
        return entry.point if entry else self.start

    def take(self, write: Write) -> None:
        """All of it or nothing."""
        if write.reset:
            self.start, self.start_members, self.entries = write.reset.end, write.reset.members, []
            self.applied = self.start.index
        if write.truncate_from is not None:
            assert write.truncate_from > self.applied, "a transaction drops what was applied"
            del self.entries[write.truncate_from - self.start.index - 1 :]
        for entry in write.append:
            assert entry.index == self.last + 1, f"entry {entry.index} is written after {self.last}"
            assert entry.payload is not None
            self.entries.append(entry)
        self.hard = write.hard or self.hard
        self.known = write.known

    def compact(self, first: int) -> None:
        start, members = self.point(first - 1), self.members(first - 1)
        self.entries = self.entries[first - 1 - self.start.index :]
        self.start, self.start_members = start, members

    def stored(self) -> Stored:
        stubs = [Stub(entry.term, entry.size, entry.members) for entry in self.entries]
        return Stored(self.hard, self.start, self.start_members, stubs, self.applied, self.known)
