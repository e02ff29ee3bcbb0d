"""A group's owner who moved, and publishes from a cell that never knew the version before."""

from __future__ import annotations

import pytest

from relay.core.envelope import envelope_id
from relay.core.wire import Code
from tests.relay.core.mailroom.conftest import Group
from tests.relay.core.mailroom.test_moving import A, B, C, World, enrolled


@pytest.mark.parametrize("again", [True, False])
def test_the_cells_of_the_version_before_learn_of_the_next_where_it_is_brought_along(again: bool) -> None:
    """The SDK brings it. Without, the old home takes mail of who is out of the group, and sends it on to the owner."""
    world = World()
    alice, bob, carol = enrolled(world, "alice", A), enrolled(world, "bob", A), enrolled(world, "carol", C)
    group = Group("a1")
    first = group.publish({A: sorted([alice.id, bob.id]), C: [carol.id]})
    world.logs[A].apply(first)
    world.settle()
    world.move(alice, B, tell=A)
    world.settle()
    there = world.logs[B]
    second = group.publish({B: [alice.id], C: [carol.id]})
    records = [first, second] if again else [second]
    assert there.answers(*records) == [Code.ACCEPTED] * len(records)
    world.settle()
    assert world.state(C).rosters[group.id].version == world.state(B).rosters[group.id].version == 2
    assert world.state(A).rosters[group.id].version == (2 if again else 1)
    old = world.logs[A].seal(group.id, roster=True)
    answer = world.logs[A].answers(world.logs[A].submit("b1", old))
    world.settle()
    assert answer == [Code.NOT_MEMBER if again else Code.ACCEPTED]
    told = {one[0] for one in world.logs[A].ids("b1")}
    assert (Code.NOT_MEMBER in told) is not again and not world.logs[C].ids("c1")
    assert (envelope_id(old) in there.ids("a1")) is not again, "sent on by the old home, by the version that it knows"
    assert not any(world.state(cell).pending for cell in world.logs)
