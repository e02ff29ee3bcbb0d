"""Who has just come, and who has moved on: nobody is denied by a node that does not know better."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cluster.core.linkwire import LookUp, Records
from relay.core.wire import Code
from relay.errors import BrokenChain, Overloaded, Refused
from relay.limits import DIRECTORY_RETRY, LOOKUP_S, MAX_CHAIN, MAX_HOPS


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
        with pytest.raises(BrokenChain):
            await directory.lookup(bob.id, "sueden")
    assert len(world.cells.asked) <= 1 + MAX_HOPS


def _told(chain: list[bytes], ask: LookUp) -> tuple[bytes, ...]:
    """By a home that knows the next one, and not what came after."""
    return tuple(chain[ask.after : ask.after + 1] if ask.after else chain[:2])


async def test_who_has_moved_very_often_is_followed_in_stages(world: Any) -> None:
    """Each home knows the next one only. What was followed is kept, and the next lookup goes on from there."""
    bob = world.user(2)
    for number in range(2 * MAX_HOPS + 3):
        bob.grow("sueden/1" if number % 2 else "sueden/2")
    for cell in ("sueden/1", "sueden/2"):
        world.cells.answers[cell] = lambda ask: Records(Code.STORED, _told(bob.chain, ask))
    async with world.open() as directory:
        versions = []
        for _ in range(3):
            before = len(world.cells.asked)
            versions.append((await directory.lookup(bob.id, "sueden")).version)
            assert len(world.cells.asked) - before <= 1 + MAX_HOPS
            world.env.settable.now += DIRECTORY_RETRY
    assert versions[0] == 2 + MAX_HOPS and versions[2] == len(bob.chain)


async def test_all_cells_of_a_lookup_have_one_deadline(world: Any, autojump_clock: Any) -> None:
    """Two that do not answer, and then a chain of homes each of which takes its time: what one says goes no further."""
    bob = world.user(2)
    for number in range(8):
        bob.grow("sueden/1" if number % 2 else "sueden/2")

    async def slow(cell: str, message: LookUp, deadline_s: float) -> Records:
        with trio.move_on_after(deadline_s):
            await trio.sleep(4 if message.after else 0)
            return Records(Code.STORED, _told(bob.chain, message))
        raise Refused(Code.UNREACHABLE, f"{cell} gave no answer")

    async def silent(cell: str, message: LookUp, deadline_s: float) -> Records:
        await trio.sleep(deadline_s)
        raise Refused(Code.UNREACHABLE, f"{cell} gave no answer")

    async with world.open() as directory:
        for request, expected in ((silent, None), (slow, 4)):
            world.cells.request = request
            began = trio.current_time()
            try:
                found = (await directory.lookup(bob.id, "sueden")).version
            except Refused as error:
                found = None if error.code == Code.UNREACHABLE else 0
            assert (found, trio.current_time() - began <= LOOKUP_S) == (expected, True)
            world.env.settable.now += DIRECTORY_RETRY


async def test_a_cell_that_does_not_answer_leaves_the_others_their_share(world: Any, autojump_clock: Any) -> None:
    bob = world.user(2)

    async def request(cell: str, message: LookUp, deadline_s: float) -> Records:
        if cell == "sueden/1":
            await trio.sleep(deadline_s)
            raise Refused(Code.UNREACHABLE, f"{cell} gave no answer")
        with trio.fail_after(deadline_s):
            await trio.sleep(1)
        return Records(Code.STORED, _told(bob.chain, message))

    bob.grow("sueden/2")
    world.cells.request = request
    async with world.open() as directory:
        assert (await directory.lookup(bob.id, "sueden")).cell == "sueden/2"


async def test_an_answer_that_denies_asks_the_log_for_the_cell_that_wanted_it(world: Any) -> None:
    async with world.open() as directory:
        await directory.answer(world.peer, LookUp(bytes(32), 0))
        with pytest.raises(Refused):
            await directory.lookup(bytes(32), "norden")
    assert world.own.asked_for == ["sueden/1", ""]


async def test_nothing_is_kept_of_an_answer_beyond_what_was_verified(world: Any) -> None:
    """The last home adds to the longest chain that there can be."""
    bob = world.user(2)
    while len(bob.chain) < MAX_CHAIN - 2:
        bob.grow()
    bob.grow("sueden/2")
    bob.grow()
    world.cells.answers["sueden/1"] = lambda ask: Records(Code.STORED, tuple(bob.chain[: MAX_CHAIN - 1]))
    world.cells.answers["sueden/2"] = lambda ask: Records(Code.STORED, (bob.chain[-1], bob.chain[0], bob.chain[0]))
    async with world.open() as directory:
        assert await directory.chain(bob.id, "sueden", 0) == bob.chain
