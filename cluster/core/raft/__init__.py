"""Raft, pure: `Raft` is the machine, the rest is what it is fed and what it says. See machine.py for the shell's loop."""

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
