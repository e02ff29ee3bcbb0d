"""What a follower does with an Append (Raft 3.5, 3.6)."""

from __future__ import annotations

from typing import NamedTuple

from cluster.core.raft.entry import Point
from cluster.core.raft.log import Log
from cluster.core.raft.messages import Append
from relay.errors import PeerError, RolledBack


class Taken(NamedTuple):
    """The log is the leader's up to index `match`. `truncate_from`: what stood there before was dropped. `changed`:
    other members may be in force now."""

    match: int
    truncate_from: int | None
    changed: bool


def accept(log: Log, commit: int, append: Append) -> Taken | Point:
    """Take the entries into `log`; or say where the logs may meet, when they do not at `append.prev`.

    Raises RolledBack where a committed entry would have to change, PeerError where the entries are not dense."""
    prev, entries = append.prev, append.entries
    if any(entry.index != prev.index + place for place, entry in enumerate(entries, 1)):
        raise PeerError(f"an append after entry {prev.index} with gaps", "Both ends must run the same version")
    for point in (prev, *(entry.point for entry in entries)):
        if point.index > commit:
            break
        if log.term(point.index) not in (None, point.term):
            raise RolledBack(
                f"entry {point.index} is committed here, and the leader has another",
                "An old copy of some store votes in this cell: stop it, then repair",
            )
    if prev.index > commit and not log.has(prev):
        return log.meeting(prev)
    match = max(prev.index + len(entries), commit)
    fresh = [entry for entry in entries if entry.index > commit]
    while fresh and log.has(fresh[0].point):
        del fresh[0]
    truncate_from = None
    before = log.members_at
    if fresh and fresh[0].index <= log.last:
        truncate_from = fresh[0].index
        log.truncate(truncate_from)
    for entry in fresh:
        log.append(entry)
    return Taken(match, truncate_from, log.members_at != before)
