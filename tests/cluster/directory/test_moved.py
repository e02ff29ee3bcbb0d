"""Who has just come, and who has moved on: nobody is denied by a node that does not know better."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.core.linkwire import LookUp, Records
from relay.core.wire import Code
from relay.errors import Overloaded, Refused, TrustError
from relay.limits import MAX_CHAIN


async def test_a_node_that_is_behind_denies_nobody(world: Any) -> None:
    """alice and bob have come to another node of the cell: neither a sender nor another cell is told otherwise."""
    alice, bob, carol = (world.user(number, "norden/1") for number in (1, 2, 3))
    async with world.open() as directory:
        world.own.coming = [alice]
        assert (await directory.lookup(alice.id, "norden")).user == alice.id
        world.own.coming = [bob]
        assert await directory.answer(world.peer, LookUp(bob.id, 0)) == Records(Code.STORED, tuple(bob.chain))
        world.own.coming = [carol]
        assert await directory.chain(carol.id, "norden", 0) == carol.chain


async def test_a_node_without_a_majority_denies_nobody(world: Any) -> None:
    world.own.alone = True
    async with world.open() as directory:
        for ask in (directory.lookup(bytes(32), "norden"), directory.chain(bytes(32), "norden", 0)):
            with pytest.raises(Refused) as caught:
                await ask
            assert caught.value.code == Code.UNREACHABLE
        with pytest.raises(Overloaded):
            await directory.answer(world.peer, LookUp(bytes(32), 0))


async def test_who_has_moved_on_is_asked_for_where_the_old_home_says(world: Any) -> None:
    """bob's card names the first of three homes; his newest keys are known in the last one only."""
    bob = world.user(2)
    homes = ["sueden/1", "norden/2", "sueden/2"]
    for cell in homes[1:]:
        bob.grow(cell)
    left = len(bob.chain)
    bob.grow()
    for number, cell in enumerate(homes):
        known = bob.chain[: number + 2] if cell != homes[-1] else bob.chain
        world.cells.answers[cell] = lambda ask, known=known: Records(Code.STORED, tuple(known[ask.after :]))
    async with world.open() as directory:
        assert (await directory.lookup(bob.id, "sueden")).version == left + 1
    del world.cells.answers["sueden/2"]  # what a node that forgot what it knew hears while that home is cut off
    async with world.open() as directory:
        with pytest.raises(Refused) as caught:
            await directory.lookup(bob.id, "sueden")
        assert caught.value.code == Code.UNREACHABLE


async def test_cells_that_send_one_in_circles_are_left_at_some_time(world: Any) -> None:
    bob = world.user(2)
    for _ in range(2 * MAX_CHAIN):
        bob.grow("sueden/2" if bob.cell == "sueden/1" else "sueden/1")
    for cell in ("sueden/1", "sueden/2"):
        world.cells.answers[cell] = lambda ask: Records(Code.STORED, (bob.chain[ask.after + (ask.after == 0)],))
    async with world.open() as directory:
        with pytest.raises(TrustError):
            await directory.lookup(bob.id, "sueden")
    assert len(world.cells.asked) <= MAX_CHAIN
