"""The replicated journal: the Raft core, a store, the links inside a cell. `RaftJournal` is a relay.ports.Journal."""

from __future__ import annotations

from cluster.journal.ends import Rejoin, StoreSetAside
from cluster.journal.journal import RaftJournal
from cluster.journal.opening import open_raft

__all__ = ["RaftJournal", "Rejoin", "StoreSetAside", "open_raft"]
