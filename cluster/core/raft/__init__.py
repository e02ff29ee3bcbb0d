"""Raft, pure. `Raft` is the machine; the rest is what it is fed and what it says.

The shell's loop, after every call that may have changed something:

    while output := raft.take():
        apply the entries up to output.commit, look at output.events
        send output.send_now
        if output.write: make it durable, then raft.persisted(output.write.seq), then send output.send_after
        else: send output.send_after

The write may be under way in another task while further events go in and Outputs come out; those then have no write and
nothing to send after one. `Raft.tick` is due at `Raft.next_ms`, which any call may change.

A message leaves with the payloads that are None read from the store (entry.py); whoever reads checks that the term
stored is the entry's, and drops the message otherwise. Nothing is lost by losing messages.
"""

from __future__ import annotations

from cluster.core.raft.entry import ORIGIN, Entry, Point, Stub
from cluster.core.raft.machine import Raft
from cluster.core.raft.members import Member, Members, StoreId
from cluster.core.raft.messages import (
    Accepted, Append, Figure, Message, Recall, Recollection, Rejected, TimeoutNow, VoteReply, VoteRequest,
)
from cluster.core.raft.outputs import (
    Amnesia, BecameLeader, Event, Freed, HardState, LeaderIs, LostLeadership, NeedSnapshot, Output, Role, Settings,
    Snapshot, Stored, StoreRemoved, Write,
)
from cluster.core.raft.refusals import ChangeRefused, NotLeader

__all__ = [
    "Raft", "Settings", "Stored", "HardState", "Stub",
    "Member", "Members", "StoreId", "Entry", "Point", "ORIGIN",
    "Output", "Write", "Snapshot", "Role",
    "Event", "Freed", "Amnesia", "BecameLeader", "LostLeadership", "LeaderIs", "NeedSnapshot", "StoreRemoved",
    "Message", "VoteRequest", "VoteReply", "Append", "Accepted", "Rejected", "TimeoutNow", "Recall", "Recollection",
    "Figure",
    "NotLeader", "ChangeRefused",
]  # fmt: skip
