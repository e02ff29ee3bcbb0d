"""Blocks that rot while a node runs (rule 6): fetched from the others, proved by the chain, put back; and what happens
when nobody has them."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import pytest
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.env import RealEnv
from cluster.journal import cell as cell_module
from cluster.journal import opening, repairs
from relay.core.block import make_block
from relay.errors import PeerError, StoreDamaged
from relay.journal.portal import open_portal
from relay.journal.scrub import Scrubber
from relay.observe.metrics import Metrics
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.conftest import CELL, a_cell

COUNT = 12  # records that are written first


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(opening, "_LEFT_S", 0.1)
    monkeypatch.setattr(opening, "_ASK_S", 0.3)
    monkeypatch.setattr(repairs, "_ASK_S", 0.3)
    monkeypatch.setattr(repairs, "_AGAIN_S", 0.1)
    monkeypatch.setattr(cell_module, "_LOOK_S", 0.05)
    monkeypatch.setattr(cell_module, "_JOIN_S", 0.1)


@pytest.fixture
async def world(tmp_path, portal):
    async with a_cell(tmp_path, lambda name: RealEnv(portal)) as world:
        leader = await world.whole()
        for number in range(COUNT):
            await leader.journal.append([b"record %d" % number, b"and more"])
        await world.until(lambda: len({node.journal.tip for node in world.running.values()}) == 1)
        for node in world.running.values():
            node.journal._tail._recent.clear()  # everything is read from the disk
        yield world


def victim_of(world):
    leader = world.leader()
    return next(node for node in world.running.values() if node is not leader)


async def change(node, statement, *values):
    """Behind the back of the running store, through its own connection."""

    def execute(connection):
        assert connection.execute(statement, values).rowcount == 1

    await node.journal._disk.store._db.run(execute)


async def follow(journal, after=0):
    follower = journal.follow(after)
    return [await anext(follower) for _ in range(journal.tip - after)]


DAMAGE = {
    "sealed": "UPDATE block SET sealed = zeroblob(100) WHERE idx = ?",
    "hash": "UPDATE block SET hash = zeroblob(32) WHERE idx = ?",
    "prev": "UPDATE block SET prev = zeroblob(32) WHERE idx = ?",
    "time": "UPDATE block SET time = time + 1 WHERE idx = ?",
    "term": "UPDATE block SET term = term + 1 WHERE idx = ?",
    "kind": "UPDATE block SET term = 'x' WHERE idx = ?",
    "gone": "DELETE FROM block WHERE idx = ?",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
async def test_a_block_is_fetched_from_another_node_and_put_back(world, statement):
    node = victim_of(world)
    good = await follow(world.leader().journal)
    rows = [await node.journal._disk.store.blocks(index, index) for index in range(1, len(good) + 1)]
    for index in (5, len(good)):  # the newest one, too: its hash is in memory
        await change(node, statement, index)
    assert await follow(node.journal) == good
    assert node.lives == 1
    again = [await node.journal._disk.store.blocks(index, index) for index in range(1, len(good) + 1)]
    assert [replace(row, sealed=b"") for (row,) in again] == [replace(row, sealed=b"") for (row,) in rows]
    world.wires.part(node.name, *(name for name in world.nodes if name != node.name))
    assert await node.journal.read(5) == good[4]  # nobody has to be asked any more


async def test_several_in_a_row_are_proved_from_the_newest_down(world):
    node = victim_of(world)
    good = await follow(world.leader().journal)
    for index in range(3, len(good) + 1):
        await change(node, DAMAGE["sealed"], index)
    assert await node.journal.read(3) == good[2]
    assert await follow(node.journal) == good


async def test_the_leader_mends_its_own(world):
    node = world.leader()
    good = await follow(node.journal)
    await change(node, DAMAGE["sealed"], 4)
    assert await follow(node.journal) == good


async def test_a_reader_waits_while_nobody_can_be_asked_and_appends_go_on(world):
    node = victim_of(world)
    others = [name for name in world.nodes if name != node.name]
    good = await follow(node.journal)
    await change(node, DAMAGE["sealed"], 4)
    world.wires.part(node.name, *others)
    read = []

    async def reader():
        read.extend(await follow(node.journal))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader)
        await trio.sleep(1)
        assert read == [] and node.lives == 1  # neither served, nor skipped, nor given up
        await next(one for one in world.running.values() if one is not node).journal.append([b"meanwhile"])
        world.wires.heal()
        await world.until(lambda: bool(read))
    assert read[: len(good)] == good


async def test_what_does_not_fit_the_chain_is_not_taken(world, monkeypatch):
    """A node answers with a good block of another history, with garbage, or with another one of this log; the third
    node has the right one."""
    node, leader = victim_of(world), world.leader()
    good = await follow(leader.journal)
    liar = next(one for one in world.running.values() if one not in (node, leader))
    fork = make_block(node.journal.log_id, 5, good[3].hash, good[4].time, [b"forged"])
    lies = [
        linkwire.BlockBody(5, 1, fork.prev, fork.time, fork.hash, fork.records),
        linkwire.BlockBody(6, 1, good[5].prev, good[5].time, good[5].hash, good[5].records),
        linkwire.BlockBody(5, 1, good[4].prev, good[4].time, good[4].hash, (b"forged",)),
    ]
    told, answer = [], liar.cell.answer

    async def lie(peer, message):
        if isinstance(message, linkwire.FetchBlocks) and lies:
            told.append(lies.pop())
            return linkwire.BlocksPart((told[-1],))
        return await answer(peer, message)

    monkeypatch.setattr(liar.cell, "answer", lie)
    world.wires.part(node.name, leader.name)
    for _ in range(3):
        await change(node, DAMAGE["sealed"], 5)
        assert await node.journal.read(5) == good[4]
    assert len(told) == 3


async def test_a_store_whose_block_nobody_has_is_set_aside(world):
    """The others have released it: they have no use for it any more, and a store of theirs takes it from there."""
    node = victim_of(world)
    old, path = node.journal.own.store, world.path(node.name)
    for other in world.running.values():
        if other is not node:
            await other.journal.save_checkpoint(8, [b"state"])
            await other.journal._disk.release(7)
            other.journal.raft.compacted(7)
    await change(node, DAMAGE["sealed"], 5)
    leader = world.leader().journal
    with pytest.raises(StoreDamaged, match="block 5"):
        await node.journal.read(5)
    await world.until(lambda: old not in leader.raft.members.ids and len(leader.raft.members.voters) == 3)
    assert [one.name.split("-")[1] for one in (path / "quarantine").iterdir()] == [old.hex()]
    await world.until(lambda: node.journal.tip == leader.tip)
    assert await load_checkpoint(node.journal) == (8, [b"state"])


async def test_a_node_does_not_give_what_is_damaged_or_gone_or_of_another_log(world):
    leader, peer = world.leader(), Peer("norden", CELL, "n9")
    log_id, good = leader.journal.log_id, await follow(leader.journal)
    await change(leader, DAMAGE["hash"], 4)
    part = await leader.cell.answer(peer, linkwire.FetchBlocks(log_id, 2, 9))
    assert [body.index for body in part.blocks] == [2, 3]
    assert (await leader.cell.answer(peer, linkwire.FetchBlocks(log_id, 4, 9))).blocks == ()
    assert (await leader.cell.answer(peer, linkwire.FetchBlocks(log_id, len(good) + 1, len(good) + 5))).blocks == ()
    await leader.journal.save_checkpoint(3, [b"state"])
    await leader.journal.release(3)
    assert (await leader.cell.answer(peer, linkwire.FetchBlocks(log_id, 1, 1))).blocks == ()
    with pytest.raises(PeerError, match="another log"):
        await leader.cell.answer(peer, linkwire.FetchBlocks(bytes(16), 3, 3))


async def test_a_block_that_is_released_while_it_is_mended_is_gone(world):
    node = victim_of(world)
    others = [name for name in world.nodes if name != node.name]
    await node.journal.save_checkpoint(8, [b"state"])
    await change(node, DAMAGE["sealed"], 4)
    world.wires.part(node.name, *others)
    ended = []

    async def read():
        with pytest.raises(LookupError):
            await node.journal.read(4)
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(0.2)
        await node.journal._disk.release(6)
        await world.until(lambda: bool(ended))


def test_sqlite_replaces_a_row_of_any_kind():
    """What REPLACE is relied on for: whatever stands at the index goes."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE block (idx INTEGER PRIMARY KEY, sealed BLOB NOT NULL)")
    database.execute("INSERT INTO block VALUES (1, 'x')")
    database.execute("REPLACE INTO block VALUES (1, x'00')")
    assert database.execute("SELECT * FROM block").fetchall() == [(1, b"\0")]


async def test_a_block_of_another_history_is_found_although_it_is_good_by_itself(world):
    """A disk that brought an old page back: what lies there was sealed here once, and is not what was committed."""
    node = victim_of(world)
    good = await follow(world.leader().journal)
    disk, log_id = node.journal.disk, node.journal.log_id
    term = node.journal.raft.log.term(5)

    async def bring_back():
        stale = make_block(log_id, 5, good[3].hash, good[4].time, [b"never committed"])
        await disk.store.repair(disk.sealer.block_row(stale, term))

    await bring_back()
    assert await follow(node.journal) == good
    await bring_back()
    assert await Scrubber(disk, Metrics()).scrub() == 0
    assert await follow(node.journal) == good and node.lives == 1


async def test_the_scrubber_mends_from_the_others(world, monkeypatch):
    monkeypatch.setattr("relay.journal.scrub.SCRUB_RATE", 1 << 40)
    node = victim_of(world)
    good = await follow(world.leader().journal)
    for index in (1, 2, 7, 8, len(good)):
        await change(node, DAMAGE["sealed"], index)
    metrics = Metrics()
    assert await Scrubber(node.journal.disk, metrics).scrub() == 0
    assert metrics.registry.get_sample_value("posthouse_repaired_total") == 5
    node.journal.disk.mender = None  # and now nobody has to be asked
    assert await follow(node.journal) == good


async def test_a_checkpoint_that_rotted_is_not_given_as_a_snapshot(world):
    leader, peer = world.leader(), Peer("norden", CELL, "n9")
    await leader.journal.save_checkpoint(8, [b"state"])
    asked = []
    leader.journal.disk.renew_checkpoint = lambda: asked.append(True)
    await change(leader, "UPDATE checkpoint_row SET sealed = zeroblob(50) WHERE ordinal = ?", 1)
    with pytest.raises(StoreDamaged):
        await leader.cell.answer(peer, linkwire.FetchCheckpoint(leader.journal.log_id, 8, 0))
    assert asked == [True] and leader.lives == 1


ELSEWHERE = {  # each row of a checkpoint lies where another says, or as another
    "lies": "UPDATE checkpoint_row SET lies_at = 3 WHERE ordinal = 2",
    "twice": "UPDATE checkpoint_row SET ordinal = 9 WHERE ordinal = 2",
    "gone": "DELETE FROM checkpoint_row WHERE ordinal = 2",
}


@pytest.mark.parametrize("statement", ELSEWHERE.values(), ids=ELSEWHERE)
async def test_a_row_that_is_not_the_one_is_not_given_with_a_snapshot(world, statement):
    """It opens where it lies; only who knows which one belongs there can tell."""
    leader, peer = world.leader(), Peer("norden", CELL, "n9")
    log_id, disk = leader.journal.log_id, leader.journal.disk
    await leader.journal.save_checkpoint(8, [b"one", b"two", b"three"])
    whole = await leader.cell.answer(peer, linkwire.FetchCheckpoint(log_id, 8, 1))
    assert whole.rows == (b"one", b"two", b"three")
    asked = []
    disk.renew_checkpoint = lambda: asked.append(True)
    await change(leader, statement)
    with pytest.raises(StoreDamaged):
        await leader.cell.answer(peer, linkwire.FetchCheckpoint(log_id, 8, 1))
    assert asked == [True]
    await leader.journal.save_checkpoint(9, [b"one", b"two", b"three"])
    again = await leader.cell.answer(peer, linkwire.FetchCheckpoint(log_id, 9, 1))
    assert again.rows == whole.rows


async def test_a_leader_whose_facts_rotted_gives_up_its_store_and_leads_no_more(world):
    """They are not in the log any more when its blocks are gone: they are not to be had block by block."""
    node, peer = world.leader(), Peer("norden", CELL, "n9")
    old, log_id = node.journal.own.store, node.journal.log_id
    await node.journal.append([b"fact one"])
    await change(node, "UPDATE fact SET sealed = zeroblob(60)")
    with pytest.raises(StoreDamaged):
        await node.cell.answer(peer, linkwire.FetchFacts(log_id, node.journal.tip, b""))
    others = [one for one in world.running.values() if one is not node]

    def replaced():
        members = others[0].journal.raft.members
        return old not in members.ids and len(members.voters) == 3

    await world.until(replaced)
    assert [one.name.split("-")[1] for one in (world.path(node.name) / "quarantine").iterdir()] == [old.hex()]
