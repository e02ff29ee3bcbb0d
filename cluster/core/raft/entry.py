"""What the log is made of: points and entries."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

from msgspec import Meta

from cluster.core.raft.members import Members
from relay.core.codec import Struct
from relay.core.shapes import UInt


_Natural = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class Point(NamedTuple):
    """A place in a log: the term of an entry and its index. Points sort like "more up to date" (Raft 3.6.1)."""

    term: UInt
    index: UInt  # type: ignore[assignment]  # a point has an index; nobody looks for one in it as in a tuple


ORIGIN = Point(0, 0)  # the place before the first entry of a log


class Entry(Struct):
    """One entry. `index` counts from 1, densely. `members`: the cell from this entry on, where it changes it.

    `payload` is the shell's (a block); the core never looks at it. In an entry that is to be sent it is None where the
    core no longer holds it: the shell reads it from its store and checks that the stored term is this one."""

    index: _Natural
    term: _Natural
    size: UInt  # bytes of the payload, for the bounds
    members: Members | None
    payload: Any

    @property
    def point(self) -> Point:
        return Point(self.term, self.index)


class Stub(NamedTuple):
    """What the core keeps of an entry whose payload lies on the disk."""

    term: int
    size: int
    members: Members | None = None
