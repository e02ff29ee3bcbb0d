"""What a node says of its cell, and the orders that it takes."""

from __future__ import annotations

from typing import Final, Protocol

from msgspec import Struct

from relay.errors import PosthouseError


KEEPS_UP: Final = 64  # blocks that a member may be behind in passing, at a thousand a second and a heartbeat's delay
SILENT: Final = 3_000  # ms without an answer to heartbeats, of which there are several a second: it is not there


class StoreView(Struct, frozen=True, kw_only=True):
    """A member. `behind`: blocks of the committed log that it is not known to have; None where nothing is known.
    `silent`: ms since it last answered the leader; None where that is not known (only the leader knows it)."""

    node: str
    store: str
    behind: int | None = None
    silent: int | None = None

    @property
    def current(self) -> bool:
        """It is there, and has about all that is committed."""
        return self.behind is not None and self.behind <= KEEPS_UP and (self.silent or 0) < SILENT


class CellView(Struct, frozen=True, kw_only=True):
    """A cell as one of its nodes sees it. `store` and `log` are ids in hex, `leader` is a node's name or empty, `tip`
    is the index of the newest block that is committed and on this disk, `commit` that of the newest one known to be
    committed, `behind` the difference. `nodes` are those of the root document that this node runs with."""

    cell: str
    node: str
    store: str
    log: str
    leader: str
    term: int
    tip: int
    commit: int
    behind: int
    voters: tuple[StoreView, ...]
    learners: tuple[StoreView, ...]
    nodes: tuple[str, ...]

    def voter(self, node: str) -> StoreView | None:
        """The voting store of a node; the newest, where two of them are voters for a moment."""
        return next((store for store in reversed(self.voters) if store.node == node), None)

    def learner(self, node: str) -> StoreView | None:
        """The store of a node that does not vote yet."""
        return next((store for store in reversed(self.learners) if store.node == node), None)

    def whole(self) -> bool:
        """One store of every node votes, nobody else does, and each has about all that is committed."""
        voting = sorted(store.node for store in self.voters)
        return bool(self.leader) and voting == sorted(self.nodes) and all(store.current for store in self.voters)


class NotLeading(PosthouseError):
    """Only the leader takes this order. `leader` is the node that leads, or empty."""

    def __init__(self, leader: str) -> None:
        what = f"node {leader} leads the cell, not this one" if leader else "the cell has no leader now"
        super().__init__(what, "Give the order there" if leader else "Try again when one is elected")
        self.leader = leader


class CellControl(Protocol):
    """What a journal offers to whoever looks after its cell."""

    def view(self) -> CellView:
        """The cell, as it is known here."""

    def transfer(self, node: str) -> None:
        """Have `node` take over the leadership; this begins it. Raises NotLeading, OperatorError (no voter of that
        name, or it does not keep up)."""

    def remove(self, node: str) -> None:
        """Take every store of `node` out of the cell, one change at a time; this begins the next one. Nothing is done
        where none is in it. Raises NotLeading, Overloaded, OperatorError (not safe; a ChangeRefused
        says whether that passes)."""
