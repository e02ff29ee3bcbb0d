"""What the core refuses. (A full tail is relay.errors.Overloaded; a forked history is relay.errors.RolledBack.)"""

from __future__ import annotations

from relay.errors import OperatorError, PosthouseError


class NotLeader(PosthouseError):
    """Only the leader takes this. `leader` is the store to ask instead, where it is known."""

    def __init__(self, leader: bytes | None) -> None:
        where = f"store {leader.hex()} leads" if leader else "no leader is known yet"
        super().__init__(f"this store does not lead the cell: {where}", "Ask there, or again when a leader is elected")
        self.leader = leader


class ChangeRefused(OperatorError):
    """This change of the members is not safe, or (`passes`) only not now; the text says which."""

    def __init__(self, text: str, remedy: str, *, passes: bool = False) -> None:
        super().__init__(text, remedy)
        self.passes = passes
