"""What a store gets when it comes by snapshot: all that somebody may still read, not only what is said about it."""

from __future__ import annotations

import shutil

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cluster.core.linkwire import FetchCheckpoint
from cluster.env import RealEnv
from relay.journal.api import Place
from relay.journal.portal import open_portal
from relay.limits import READ_BATCH, SNAPSHOT_DEADLINE_S
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.conftest import Anything, a_cell
from tests.cluster.journal.virtual import virtual_cell, virtually


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


@pytest.fixture
def make_env(portal):
    return lambda name: RealEnv(portal)


async def wiped_after_a_checkpoint(world, *, below: int):
    """A node lost its disk, and the cell has a checkpoint since, and blocks from `below` on. The node that leads, and
    the one that came back."""
    leader = await world.whole()
    victim = next(node for node in world.running.values() if node is not leader)
    old, journal = victim.journal.own.store, leader.journal
    for number in range(12):
        await journal.append([b"letter %d" % number + bytes(300_000)])
    await world.end(victim.name)
    shutil.rmtree(world.path(victim.name))
    index = journal.tip - 2
    for node in world.running.values():  # whoever leads then
        await world.until(lambda each=node.journal: each.tip >= index + 2)
        await node.journal.save_checkpoint(index, [b"row"])
        await node.journal.release(below or index)
        node.journal.raft.compacted(index)  # as after a restart: the core knows what follows the checkpoint
    world.start(victim.name)
    await world.until(lambda: old not in journal.raft.members.voter_ids and len(journal.raft.members.voters) == 3)
    back = world.running[victim.name]
    await world.until(lambda: back.journal is not None and back.journal.tip >= 15)
    return journal, back


async def same_blocks(one, other):
    upto = min(one.tip, other.tip)  # changes of the members may still come
    logs = [[await each.read(index) for index in range(each.first, upto + 1)] for each in (one, other)]
    return logs[0] == logs[1] and logs[0]


async def test_a_snapshot_brings_the_blocks_that_it_refers_to(tmp_path, make_env):
    """Mail that waits lies in blocks before the checkpoint. A store without them would keep nobody's mail, and a cell
    whose stores are replaced one by one would lose it."""
    async with a_cell(tmp_path, make_env) as world:
        journal, back = await wiped_after_a_checkpoint(world, below=5)
        assert (await load_checkpoint(back.journal))[0] > 10 > back.journal.first == 5
        assert await same_blocks(back.journal, journal)
        await world.end(back.name)
        world.start(back.name)  # and they are there after a start
        back = world.running[back.name]
        await world.until(lambda: back.journal is not None and back.journal.tip >= 15)
        assert await same_blocks(back.journal, journal)


async def test_a_snapshot_of_a_log_whose_mail_was_all_collected(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        journal, back = await wiped_after_a_checkpoint(world, below=0)
        assert await same_blocks(back.journal, journal)


@virtually
async def test_the_residency_check_knows_after_a_snapshot_what_it_knew_there_and_not_what_came_later(tmp_path):
    """Who has left since was there when the blocks in between were written: by what is known now they would be refused,
    and the node would end with each start."""
    guards = {}
    async with virtual_cell(tmp_path, residency=lambda name: guards.setdefault(name, Anything())) as world:
        fact = b"fact of a group".ljust(32, b".")
        leader = world.leader()
        victim = next(node for node in world.running.values() if node is not leader)
        await leader.journal.append([fact + b"somebody is here"])
        index = leader.journal.tip
        world.kill(victim.name)
        await trio.sleep(0.5)
        await leader.journal.append([fact + b"nobody is"])
        world.machines[victim.name].disk.wipe()
        for node in world.running.values():
            await world.until(lambda each=node.journal: each.tip > index)
            await node.journal.save_checkpoint(index, [b"row"])
            await node.journal.release(index)
            node.journal.raft.compacted(index)
        del guards[victim.name]
        world.start(victim.name)
        back = world.running[victim.name]
        await world.until(lambda: back.journal is not None and back.journal.tip > index and back.lives > 1)
        taught = [value for _, value in guards[victim.name].learned]
        assert taught == [fact + b"somebody is here", fact + b"nobody is"]


@virtually
async def test_a_checkpoint_that_somebody_fetches_stays_until_he_has_it_however_many_are_saved(tmp_path):
    """A large one takes longer than it takes the cell to save the next: who needs it would never get it whole."""
    async with virtual_cell(tmp_path) as world:
        leader = world.leader()
        victim = next(node for node in world.running.values() if node is not leader)
        for number in range(4):
            await leader.journal.append([b"letter %d" % number])
        world.kill(victim.name)
        await trio.sleep(0.5)
        world.machines[victim.name].disk.wipe()
        rows, index = [bytes([number]) * (READ_BATCH // 2) for number in range(6)], leader.journal.tip

        async def save(node):
            journal = node.journal
            await journal.save_checkpoint(journal.tip, rows)
            await journal.release(journal.tip)

        for node in world.running.values():
            await world.until(lambda each=node.journal: each.tip >= index)
            await save(node)
            node.journal.raft.compacted(node.journal.tip)
        asked, most = [], []

        def busy(node):
            give = node.cell._snapshots.give

            async def slowly(message):
                answer = await give(message)
                if isinstance(message, FetchCheckpoint):
                    asked.append(message.row)
                    await trio.sleep(0.1)
                    await node.journal.append([b"the cell goes on"])
                    await save(node)
                    kept = {key[1] for key in world.machines[node.name].disk.content.rows if key[0] == "row"}
                    most.append(len(kept))
                return answer

            node.cell._snapshots.give = slowly

        for node in world.running.values():
            busy(node)
        world.start(victim.name)
        back = world.running[victim.name]
        await world.until(lambda: back.journal is not None and back.journal.tip > index + len(asked) > index)
        assert len(asked) > 3 and max(most) == 2, "the newest, and the one that is lent"
        assert (await load_checkpoint(back.journal))[0] == index
        await trio.sleep(SNAPSHOT_DEADLINE_S)  # these links do not break: so long it is lent, and no longer
        for node in world.running.values():
            await node.journal.append([b"one more"])
            await save(node)
            await node.journal.append([b"and another"])
            await save(node)
            disk = world.machines[node.name].disk.content.rows
            newest = {key for key in disk if key[:2] == ("row", disk["head",].generation)}
            lie_there = {("row", *disk[key]) for key in newest if isinstance(disk[key], Place)}
            assert {key for key in disk if key[0] == "row"} == newest | lie_there
            assert node.journal.first == node.journal.tip


@virtually
async def test_who_needs_a_newer_checkpoint_than_the_one_that_is_lent_waits(tmp_path):
    """Of one only more rows are kept than of the newest: the first to come keeps them."""
    async with virtual_cell(tmp_path, nodes=("n1",)) as world:
        journal = world.leader().journal
        disk = journal.disk

        async def saved():
            await journal.append([b"a letter"])
            await journal.save_checkpoint(journal.tip, [b"row %d" % journal.tip])
            return journal.tip

        first = await saved()
        async with disk.lending() as (lent, _):
            async with disk.lending() as (same, _):  # the other of two that need it
                assert lent == same == first
            await saved()
            async with disk.lending() as refused:
                assert refused == (0, 0)
            await saved()
            assert (await disk.checkpoint_part(first, 0))[0][1:] == [b"row %d" % first]
        last = await saved()
        assert await disk.checkpoint_part(first, 0) == ([], 0)
        async with disk.lending() as (lent, _):
            assert lent == last


@virtually
async def test_a_release_under_way_stops_before_what_somebody_begins_to_fetch(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.simulation.store._RELEASE_STEP", 2)
    async with virtual_cell(tmp_path, nodes=("n1",)) as world:
        journal, lent, enough = world.leader().journal, [], trio.Event()
        for number in range(9):
            await journal.append([b"letter %d" % number])
        index, disk, first = journal.tip, journal.disk, journal.first
        await journal.save_checkpoint(index, [b"row"])

        async def lend():
            async with disk.lending() as loan:
                lent.append(loan)
                await enough.wait()

        async with trio.open_nursery() as nursery:
            async with disk.writing:  # they come one after the other
                nursery.start_soon(disk.release, index)
                await wait_all_tasks_blocked()
                nursery.start_soon(lend)
                await wait_all_tasks_blocked()
            await world.until(lambda: lent)
            await trio.sleep(1)
            assert lent == [(index, first + 2)] and journal.first == first + 2
            enough.set()
        await disk.release(index)
        assert journal.first == index
