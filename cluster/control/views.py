"""CellControl over the journals: the replicated one, and that of a cell of one."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.control.api import CellView, NotLeading, StoreView
from cluster.core.raft import Member, NotLeader
from cluster.journal import RaftJournal
from relay.errors import OperatorError
from relay.ports import Journal


class RaftControl:
    """A replicated cell, by one of its nodes."""

    def __init__(self, journal: RaftJournal, cell: str) -> None:
        self._journal = journal
        self._cell = cell

    def view(self) -> CellView:
        journal, raft = self._journal, self._journal.raft
        return CellView(
            cell=self._cell,
            node=journal.own.node,
            store=journal.own.store.hex(),
            log=journal.log_id.hex(),
            leader=journal.leader_node,
            term=raft.term,
            tip=journal.tip,
            commit=raft.commit,
            behind=max(0, raft.commit - journal.tip),
            voters=self._stores(raft.members.voters),
            learners=self._stores(raft.members.learners),
            nodes=journal.nodes,
        )

    def _stores(self, members: Sequence[Member]) -> tuple[StoreView, ...]:
        return tuple(
            StoreView(
                node=one.node, store=one.store.hex(), behind=self._behind(one.store), silent=self._silent(one.store)
            )
            for one in members
        )  # fmt: skip

    def _behind(self, store: bytes) -> int | None:
        """By what the store was last known to have on its disk; every node hears that of all voters (rule 5)."""
        raft = self._journal.raft
        known = self._journal.tip if store == self._journal.own.store else raft.figures.of(store).index
        return max(0, raft.commit - known) if known else None

    def _silent(self, store: bytes) -> int | None:
        """Since the last heartbeat, about."""
        raft = self._journal.raft
        if raft.leading is None:
            return None
        peer = raft.leading.peer(store)
        return max(0, raft.leading.next_ms - raft.settings.heartbeat_ms - peer.heard) if peer else 0

    def transfer(self, node: str) -> None:
        journal = self._journal
        self._must_lead()
        stores = [one.store for one in journal.raft.members.voters if one.node == node]
        if not stores:
            raise OperatorError(f"{self._cell} has no voter {node!r}", f"Its voters: {self._voters()}")
        if stores[-1] == journal.own.store:
            return
        try:
            journal.raft.transfer(stores[-1])
        except NotLeader:
            raise NotLeading(journal.leader_node) from None
        journal.wake()

    def remove(self, node: str) -> None:
        journal = self._journal
        self._must_lead()
        now = journal.raft.members
        stores = [one.store for one in (*now.learners, *now.voters) if one.node == node]
        if not stores:
            return
        left = now.without(stores[0])
        needed = len(journal.nodes) // 2 + 1
        if now.votes(stores[0]) and len(left.voters) < needed:
            what = f"{len(left.voters)} of the {len(journal.nodes)} nodes that the root lists would vote"
            raise OperatorError(what, f"A cell serves while {needed} of them do: add a node first (replace-node)")
        try:
            journal.change(left)
        except NotLeader:
            raise NotLeading(journal.leader_node) from None

    def _must_lead(self) -> None:
        if not self._journal.leads:
            leader = self._journal.leader_node
            raise NotLeading("" if leader == self._journal.own.node else leader)

    def _voters(self) -> str:
        return ", ".join(one.node for one in self._journal.raft.members.voters)


class SoloControl:
    """A cell of one node: there is something to see, and nothing to order."""

    def __init__(self, journal: Journal, cell: str, node: str) -> None:
        self._journal = journal
        self._cell = cell
        self._node = node

    def view(self) -> CellView:
        tip = self._journal.tip
        return CellView(
            cell=self._cell, node=self._node, store="", log=self._journal.log_id.hex(), leader=self._node, term=0,
            tip=tip, commit=tip, behind=0, nodes=(self._node,), learners=(),
            voters=(StoreView(node=self._node, store="", behind=0, silent=0),),
        )  # fmt: skip

    def transfer(self, node: str) -> None:
        raise self._alone()

    def remove(self, node: str) -> None:
        raise self._alone()

    def _alone(self) -> OperatorError:
        remedy = "A cell of three has members to speak of: see docs/OPERATIONS.md"
        return OperatorError(f"{self._cell} has one node, by the root document that it runs with", remedy)


def control_of(journal: Journal, cell: str, node: str) -> RaftControl | SoloControl:
    """What may be seen of a cell, and ordered, by this journal."""
    return RaftControl(journal, cell) if isinstance(journal, RaftJournal) else SoloControl(journal, cell, node)
