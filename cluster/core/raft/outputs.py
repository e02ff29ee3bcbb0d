"""What goes into the machine at its start, and what comes out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Union

from cluster.core.raft.entry import ORIGIN, Entry, Point, Stub
from cluster.core.raft.members import Members
from cluster.core.raft.messages import Figure, Message
from relay.limits import (
    RAFT_APPEND, RAFT_APPEND_ENTRIES, RAFT_ELECTION, RAFT_HEARTBEAT, RAFT_INFLIGHT, RAFT_INFLIGHT_APPENDS, RAFT_TAIL,
    RECENT_BLOCKS,
)


_NOBODY = Members()


@dataclass(frozen=True, slots=True)
class Settings:
    """Times in ms, bounds in bytes; see relay.limits. The same on every store of a cell, about."""

    heartbeat_ms: int = RAFT_HEARTBEAT
    election_ms: int = RAFT_ELECTION
    append_bytes: int = RAFT_APPEND
    append_entries: int = RAFT_APPEND_ENTRIES
    inflight_bytes: int = RAFT_INFLIGHT
    inflight_appends: int = RAFT_INFLIGHT_APPENDS
    tail_bytes: int = RAFT_TAIL
    recent_bytes: int = RECENT_BLOCKS


@dataclass(frozen=True, slots=True)
class HardState:
    """What a store must never forget: the newest term it knows of and whom it voted for in it."""

    term: int = 0
    vote: bytes | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the disk holds at a start. `start` is the place before the oldest entry kept, `members` those in force
    there (in a new cell: the founders; in a new store that is to join one: none). `entries`: all after it, in order.
    `committed`: known to be, at least (the checkpoint's index). `known`: as last written."""

    hard: HardState = HardState()
    start: Point = ORIGIN
    members: Members = _NOBODY
    entries: Iterable[Stub] = ()
    committed: int = 0
    known: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The place where a snapshot ends, and the members in force there."""

    end: Point
    members: Members


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction, to be made durable as a whole, in this order. `reset`: drop all entries, the log begins after
    the staged snapshot, which takes effect now. `truncate_from`: drop the entries from this index on. `append`: add
    these. `hard`, `known`: replace what is stored. Then call `Raft.persisted(seq)`."""

    seq: int
    reset: Snapshot | None
    truncate_from: int | None
    append: tuple[Entry, ...]
    hard: HardState | None
    known: tuple[Figure, ...]


# --- events --------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Freed:
    """Nobody remembers more of this store than it does: it takes part from now on."""


@dataclass(frozen=True, slots=True)
class Amnesia:
    """Somebody remembers that this store acknowledged `known`, and its disk stands at `standing`. It stays silent: the
    shell gives the node an empty store with a new id (rule 4)."""

    known: Point
    standing: Point


@dataclass(frozen=True, slots=True)
class BecameLeader:
    """The shell proposes a block at once, an empty one if need be: nothing older commits before it (rule 3)."""

    term: int


@dataclass(frozen=True, slots=True)
class LostLeadership:
    """What was proposed and is not committed may still be, or not."""

    term: int


@dataclass(frozen=True, slots=True)
class LeaderIs:
    """Who leads, as far as this store knows; None: nobody it knows of."""

    store: bytes | None


@dataclass(frozen=True, slots=True)
class NeedSnapshot:
    """`to` needs what the log no longer holds: send it a snapshot, then call `Raft.snapshot_sent`."""

    to: bytes


@dataclass(frozen=True, slots=True)
class StoreRemoved:
    """Committed members are without this store: it may be closed for good."""


Event = Union[Freed, Amnesia, BecameLeader, LostLeadership, LeaderIs, NeedSnapshot, StoreRemoved]


@dataclass(frozen=True, slots=True)
class Output:
    """`send_now` may leave at once, `send_after` when `write` is on disk (at once when there is none). `commit`:
    entries up to this index are committed and on this disk, to be applied; it never falls. Any message may get lost.
    """

    commit: int
    send_now: tuple[Message, ...] = ()
    write: Write | None = None
    send_after: tuple[Message, ...] = ()
    events: tuple[Event, ...] = field(default=())


class Role(Enum):
    """What a store is at this moment."""

    DOUBTFUL = "doubtful"
    FOLLOWER = "follower"
    ASKING = "asking"  # PreVote
    CANDIDATE = "candidate"
    LEADER = "leader"
    SILENT = "silent"  # after amnesia: it only answers Recall
    STOPPED = "stopped"  # says nothing
