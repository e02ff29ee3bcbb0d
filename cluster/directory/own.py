"""The users of the own cell, for the directory: what the mailroom says."""

from __future__ import annotations

from dataclasses import dataclass

from relay.barrier import Barrier
from relay.core.trust import HomeRecord
from relay.delivery import Delivery


@dataclass(frozen=True)
class FoldedUsers:
    """cluster.directory.federation.OwnUsers."""

    delivery: Delivery
    barrier: Barrier

    def home(self, user: bytes) -> HomeRecord | None:
        """The newest record of a user at home here."""
        known = self.delivery.room.state.users.peek(user)
        return known.record if known else None

    def chain(self, user: bytes, after: int) -> list[bytes]:
        """Signed records after version `after`, oldest first."""
        known = self.delivery.room.state.users.peek(user)
        return known.chain[after:] if known else []

    def moved(self, user: bytes) -> tuple[list[bytes], bool]:
        """The records of a user who has left, and whether the new home has confirmed them."""
        moved = self.delivery.room.state.moved.get(user)
        return (moved.chain, moved.confirmed) if moved else ([], False)

    async def settled(self, asker: str = "") -> None:
        """Wait until nothing is missing here that the cell had committed. Raises Overloaded."""
        await self.barrier.reach(asker)
