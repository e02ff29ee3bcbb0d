"""A store that its cell has removed never comes back (rule 4), whatever it was told of it, whenever its node dies."""

from __future__ import annotations

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.core.raft import Append
from cluster.journal.notes import unpack_note
from tests.cluster.journal.conftest import CELL, NODES
from tests.cluster.journal.virtual import virtual_cell, virtually

FOUR = (*NODES, "n4")  # of three nobody goes: two bear no loss


async def a_removal(world):
    """A follower, and the index of the block that removes it; that block is not committed as far as it knows."""
    leader = world.leader()
    gone = next(node for node in world.running.values() if node is not leader)
    await world.until(lambda: leader.journal.raft.log.members_at.index <= leader.journal.tip)
    at, take_in = leader.journal.raft.log.last + 1, gone.journal.on_note

    def deaf(peer, note):
        message = unpack_note(note.payload, note.log_id)
        if not isinstance(message, Append) or message.commit < at:
            take_in(peer, note)

    gone.journal.on_note = deaf
    assert leader.journal.change(leader.journal.raft.members.without(gone.journal.own.store)) == at
    await world.until(lambda: leader.journal.tip >= at and gone.journal.raft.log.last >= at)
    await trio.sleep(0.5)  # until it is on its disk, too
    assert gone.ended is None and gone.journal.own.store not in gone.journal.raft.members.ids
    return leader, gone, at


@virtually
async def test_a_store_that_died_before_it_knew_of_its_removal_does_not_ask_to_be_let_in_again(tmp_path):
    async with virtual_cell(tmp_path, nodes=FOUR) as world:
        leader, gone, _ = await a_removal(world)
        store = gone.journal.own.store
        world.kill(gone.name)
        await trio.sleep(0.5)
        world.start(gone.name)
        await trio.sleep(10)
        assert world.running[gone.name].journal.own.store == store
        assert store not in leader.journal.raft.members.ids


@virtually
async def test_a_store_that_died_when_it_had_heard_of_its_removal_remembers_it(tmp_path):
    """Between the block's commit and the flag file."""
    async with virtual_cell(tmp_path, nodes=FOUR) as world:
        _, gone, at = await a_removal(world)
        world.path(gone.name).mkdir(exist_ok=True)
        world.kill(gone.name)
        await trio.sleep(0.5)
        state = world.machines[gone.name].disk.content.rows
        state["state",] = type(state["state",])(**{
            name: getattr(state["state",], name) for name in state["state",].__slots__
        } | {"commit": at})  # fmt: skip
        world.start(gone.name)
        back = world.running[gone.name]
        back.may_end = True
        await world.until(lambda: back.ended is not None)
        assert "was removed" in back.ended.text
        assert (world.path(gone.name) / "removed").exists()


@virtually
async def test_a_request_of_a_store_that_was_removed_is_not_granted(tmp_path):
    """Its node may have fallen so far behind that it does not know that it was ever let in."""
    async with virtual_cell(tmp_path, nodes=FOUR) as world:
        leader, gone, _ = await a_removal(world)
        world.kill(gone.name)
        store, peer = next(
            one.store for one in leader.journal.raft.log.members_before.voters if one.node == gone.name
        ), Peer("norden", CELL, gone.name)  # fmt: skip
        for _ in range(10):
            await leader.cell.answer(peer, linkwire.Join(store))
            await trio.sleep(0.5)
        assert store not in leader.journal.raft.members.ids
        await leader.cell.answer(peer, linkwire.Join(b"n" * 16))
        await world.until(lambda: b"n" * 16 in leader.journal.raft.members.ids)


@virtually
async def test_a_request_is_dropped_where_its_store_came_and_went_since(tmp_path):
    """A follower that lagged gets both changes at once, and leads before the request has run out."""
    async with virtual_cell(tmp_path, nodes=FOUR) as world:
        leader, gone, _ = await a_removal(world)
        store = gone.journal.own.store
        world.kill(gone.name)
        leader.cell._joining[gone.name] = (store, trio.current_time())
        await trio.sleep(5)
        assert store not in leader.journal.raft.members.ids


@virtually
async def test_a_store_that_nobody_frees_from_its_doubt_says_so_once_a_minute(tmp_path):
    async with virtual_cell(tmp_path) as world:
        world.kill(*NODES)
        await trio.sleep(0.5)
        world.start("n2")
        with structlog.testing.capture_logs() as logs:
            told = lambda: [one for one in logs if one["event"] == "in_doubt"]  # noqa: E731
            await trio.sleep(25)
            assert not told()
            await trio.sleep(10)
            (said,) = told()
            assert "does not list it" in said["text"] and "posthouse journal repair" in said["remedy"]
            await trio.sleep(120)
            assert len(told()) == 3
            world.start("n1", "n3")
            await world.whole()
            await trio.sleep(120)
            assert len(told()) == 3
