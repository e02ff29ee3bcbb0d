"""Who is in a cell: voters and learners, majorities, and what one change is (Ongaro's dissertation, chapter 4)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Annotated, NamedTuple

from msgspec import Meta

from cluster.core.raft.refusals import ChangeRefused
from relay.core.codec import Struct
from relay.core.shapes import Name
from relay.limits import MAX_CELL

StoreId = Annotated[bytes, Meta(min_length=16, max_length=16)]


class Member(Struct):
    """A store and the node that it belongs to. The store is what votes and holds the log (rule 4)."""

    store: StoreId
    node: Name


class Kind(Enum):
    """What one change does. A replacement is three of them: ADD, PROMOTE, REMOVE."""

    ADD = "add a learner"
    PROMOTE = "promote a learner"
    REMOVE = "remove a member"


class Change(NamedTuple):
    """One change of the members and the store that it is about."""

    kind: Kind
    store: bytes


class Members(Struct):
    """The stores of a cell. Voters elect and count; learners only receive. No store is in it twice."""

    voters: Annotated[tuple[Member, ...], Meta(max_length=MAX_CELL)] = ()
    learners: Annotated[tuple[Member, ...], Meta(max_length=MAX_CELL)] = ()

    @property
    def voter_ids(self) -> tuple[bytes, ...]:
        return tuple(member.store for member in self.voters)

    @property
    def ids(self) -> tuple[bytes, ...]:
        """Voters, then learners."""
        return tuple(member.store for member in self.voters + self.learners)

    @property
    def majority(self) -> int:
        """How many voters decide."""
        return len(self.voters) // 2 + 1

    def votes(self, store: bytes) -> bool:
        return any(member.store == store for member in self.voters)

    def carried_by(self, stores: Collection[bytes]) -> bool:
        """Are a majority of the voters among `stores`?"""
        return sum(voter in stores for voter in self.voter_ids) >= self.majority

    def reached_by_majority(self, value: Callable[[bytes], int]) -> int:
        """The highest number that a majority of the voters have reached; 0 without voters."""
        values = sorted(map(value, self.voter_ids), reverse=True)
        return values[self.majority - 1] if values else 0

    def with_learner(self, member: Member) -> Members:
        return Members(self.voters, (*self.learners, member))

    def promoted(self, store: bytes) -> Members:
        """A learner becomes the last voter."""
        risen = tuple(member for member in self.learners if member.store == store)
        return Members(self.voters + risen, tuple(member for member in self.learners if member.store != store))

    def without(self, store: bytes) -> Members:
        return Members(
            tuple(member for member in self.voters if member.store != store),
            tuple(member for member in self.learners if member.store != store),
        )


def change_between(old: Members, new: Members) -> Change:
    """The one change that leads from `old` to `new`. Raises ChangeRefused where it is none, or more than one."""
    if len(new.ids) > MAX_CELL:
        raise ChangeRefused(f"a cell of {len(new.ids)} stores", f"At most {MAX_CELL} are allowed: remove one first")
    risen = [store for store in old.ids if old.votes(store) != new.votes(store)]
    changed = list({*old.ids} ^ {*new.ids}) or risen
    if len(changed) == 1:
        store = changed[0]
        if new == old.without(store):
            return Change(Kind.REMOVE, store)
        if new == old.promoted(store):
            return Change(Kind.PROMOTE, store)
        if new.learners and new == old.with_learner(new.learners[-1]):
            return Change(Kind.ADD, store)
    raise ChangeRefused("not one change", "Add a learner, promote a learner or remove a member: one at a time")
