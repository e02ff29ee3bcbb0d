"""A replicated log on real stores: what is appended anywhere is everywhere, whoever dies, is wiped or is old."""

from __future__ import annotations

import shutil

import pytest
import trio

from cluster.core.linkwire import CellNote, Peer
from cluster.core.raft import Accepted, Entry
from cluster.env import RealEnv
from relay.errors import OperatorError, PeerError, ResidencyError, StoreForeign
from relay.journal.portal import open_portal
from relay.journal.solo import open_solo
from cluster.journal import open_raft
from cluster.journal.notes import pack_note
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.conftest import CELL, NODES, RING, Anything, FakeLinks, Wires, World, a_cell
from tests.patience import PATIENCE_S


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


@pytest.fixture
def make_env(portal):
    return lambda name: RealEnv(portal)


async def records_of(journal):
    blocks = [await journal.read(index) for index in range(journal.first, journal.tip + 1)]
    return [record for block in blocks for record in block.records]


def others(world, leader):
    return [node for node in world.running.values() if node is not leader]


async def test_appends_from_any_node_are_in_one_order_on_all(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        await world.whole()

        async def write(node):
            for number in range(20):
                await node.journal.append([f"{node.name}.{number}".encode()])

        async with trio.open_nursery() as nursery:
            for node in world.running.values():
                nursery.start_soon(write, node)
        await world.until(lambda: len({node.journal.tip for node in world.running.values()}) == 1)
        logs = [await records_of(node.journal) for node in world.running.values()]
        assert logs[0] == logs[1] == logs[2]
        for name in NODES:
            assert [one for one in logs[0] if one.startswith(name.encode())] == [
                f"{name}.{number}".encode() for number in range(20)
            ]


async def test_the_cell_carries_on_without_its_leader_and_takes_it_back(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        await leader.journal.append([b"before"])
        one, other = others(world, leader)
        await world.end(leader.name)
        with trio.fail_after(PATIENCE_S):
            await one.journal.append([b"without it"])
        world.start(leader.name)
        await world.until(lambda: (back := world.running[leader.name].journal) and back.tip >= other.journal.tip)
        assert b"without it" in await records_of(world.running[leader.name].journal)


async def test_a_cut_off_leader_confirms_nothing_and_its_rest_gives_way(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        one, other = others(world, leader)
        world.wires.part(leader.name, one.name, other.name)
        confirmed = []

        async def write_alone():
            await leader.journal.append([b"alone"])
            confirmed.append(b"alone")

        world.nursery.start_soon(write_alone)
        await world.until(lambda: one.journal.leads or other.journal.leads)
        await one.journal.append([b"together"])
        assert confirmed == []
        world.wires.heal()
        await world.until(lambda: bool(confirmed))  # it was proposed again, to the new leader
        await world.until(lambda: other.journal.tip >= leader.journal.tip)
        assert [one for one in await records_of(other.journal) if one in (b"alone", b"together")] == [
            b"together", b"alone",
        ]  # fmt: skip


async def test_a_wiped_store_comes_back_by_snapshot_under_a_new_id(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        victim = others(world, leader)[0]
        old = victim.journal.own.store
        await world.end(victim.name)
        shutil.rmtree(world.path(victim.name))
        journal = leader.journal
        for number in range(10):
            await journal.append([b"fact %d" % number])
        await journal.save_checkpoint(journal.tip - 2, [b"row one", b"row two" * 1_000])
        await journal.release(journal.tip - 2)
        world.start(victim.name)
        await world.until(lambda: old not in journal.raft.members.voter_ids and len(journal.raft.members.voters) == 3)
        back = world.running[victim.name].journal
        assert back.own.store in journal.raft.members.voter_ids
        assert await load_checkpoint(back) == await load_checkpoint(journal)
        await back.append([b"again"])
        await world.until(lambda: journal.tip >= back.tip)  # its own disk may be the last one
        assert (await records_of(journal))[-1] == b"again"


async def test_an_older_copy_of_a_store_is_set_aside(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        victim, path = others(world, leader)[0].name, tmp_path / "copy"
        await world.end(victim)
        shutil.copytree(world.path(victim), path)
        world.start(victim)
        await world.until(lambda: world.running[victim].journal is not None)
        for number in range(5):
            await leader.journal.append([b"%d" % number])
        await world.until(lambda: world.running[victim].journal.tip == leader.journal.tip)
        old = world.running[victim].journal.own.store
        await world.end(victim)
        shutil.rmtree(world.path(victim))
        shutil.copytree(path, world.path(victim))  # with the mark of its time: only the others know better
        world.start(victim)
        members = leader.journal.raft
        await world.until(lambda: old not in members.members.voter_ids and len(members.members.voters) == 3)
        assert list((world.path(victim) / "quarantine").iterdir())


async def test_a_record_that_must_not_rest_here_is_refused_alone(tmp_path, make_env, monkeypatch):
    def check(self, items, above=(), *, made=False):
        for ordinal, item in enumerate(items):
            if item == b"foreign":
                raise ResidencyError("not here", ordinal=ordinal)
        return []

    monkeypatch.setattr(Anything, "check", check)
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        one, other = others(world, leader)
        refused = []

        async def try_foreign():
            with pytest.raises(ResidencyError) as caught:
                await one.journal.append([b"good", b"foreign"])
            refused.append(caught.value.ordinal)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(try_foreign)
            nursery.start_soon(other.journal.append, [b"fine"])
        assert refused == [1]
        await world.until(lambda: leader.journal.tip >= other.journal.tip)  # its own disk may be the last one
        assert b"fine" in (found := await records_of(leader.journal)) and b"good" not in found


async def test_a_founder_that_dies_before_its_first_block_still_founds_the_cell(tmp_path, make_env):
    async with trio.open_nursery() as nursery:
        world = World(nursery, tmp_path, make_env, patience_s=PATIENCE_S)
        async with open_raft(
            world.path("n1"), env=make_env("n1"), ring=RING, residency=Anything(), cell=CELL,
            federation=bytes(range(32)), node="n1", nodes=NODES, links=FakeLinks(world.wires, "n1", NODES),
        ) as cell:  # fmt: skip
            log_id = cell.journal.log_id
        world.start()
        assert (await world.whole()).journal.log_id == log_id
        nursery.cancel_scope.cancel()


async def test_a_removed_node_stays_away_until_it_is_let_in_again(tmp_path, make_env):
    async with a_cell(tmp_path, make_env, nodes=(*NODES, "n4")) as world:  # of three nobody goes: two bear no loss
        leader = await world.whole()
        gone = others(world, leader)[0]
        gone.may_end = True
        raft = leader.journal.raft
        await world.until(lambda: raft.log.members_at.index <= leader.journal.tip)  # one change at a time
        leader.journal.change(raft.members.without(gone.journal.own.store))
        await world.until(lambda: gone.ended is not None)
        assert "was removed" in gone.ended.text and "repair" in gone.ended.remedy
        await trio.sleep(1.0)  # its request to join, of a moment ago, does not bring the old store back
        assert gone.journal.own.store not in raft.members.ids
        with pytest.raises(OperatorError, match="was removed"):
            async with open_raft(
                world.path(gone.name), env=make_env(gone.name), ring=RING, residency=Anything(), cell=CELL,
                federation=bytes(range(32)), node=gone.name, nodes=world.nodes,
                links=FakeLinks(world.wires, gone.name, world.nodes),
            ):  # fmt: skip
                pass
        await leader.journal.append([b"without it"])
        (world.path(gone.name) / "removed").unlink()
        (world.path(gone.name) / "log.sqlite.mark").unlink()  # and its store is none of the cell's any more
        world.start(gone.name)
        assert (await world.whole()) is not None


async def test_entries_read_from_the_disk_are_those_that_were_meant(tmp_path, make_env):
    """An index may stand for another entry by the time that it is read: that one is not sent in its place."""
    async with a_cell(tmp_path, make_env, nodes=("n1",)) as world:
        await world.until(lambda: world.leader() is not None)
        journal = world.leader().journal
        await journal.append([b"this"])
        log, disk = journal.raft.log, journal._disk
        meant = Entry(log.last, log.tip.term, 4, None, None)
        assert [block.records for block in await disk.load_entries([meant])] == [(b"this",)]
        with pytest.raises(LookupError):
            await disk.load_entries([Entry(log.last, log.tip.term + 1, 4, None, None)])


async def test_a_node_speaks_for_its_own_store_only(tmp_path, make_env):
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        one, other = others(world, leader)
        journal, message = leader.journal, Accepted(one.journal.own.store, leader.journal.own.store, 1, 1)
        note = CellNote(journal.log_id, one.journal.own.store, 0, pack_note(message, lambda index: None))
        journal.on_note(Peer("norden", CELL, one.name), note)
        with pytest.raises(PeerError, match="another store"):
            journal.on_note(Peer("norden", CELL, other.name), note)


async def test_a_store_of_one_node_is_not_taken_for_that_of_a_cell_nor_the_other_way(tmp_path, make_env, portal):
    """Also not for damage: it would be set aside, and with it the only log there is."""
    kit = {"ring": RING, "residency": Anything(), "cell": CELL, "federation": bytes(range(32))}
    async with open_solo(tmp_path / "n1", env=make_env("n1"), **kit) as solo:
        await solo.append([b"alone"])
        await solo.save_checkpoint(1, [b"row"])
    links = FakeLinks(Wires(), "n1", NODES)
    with pytest.raises(StoreForeign, match="cell of one node"):
        async with open_raft(tmp_path / "n1", env=make_env("n1"), node="n1", nodes=NODES, links=links, **kit):
            pass
    async with open_solo(tmp_path / "n1", env=make_env("n1"), **kit) as solo:
        assert (await solo.read(1)).records == (b"alone",)
    async with a_cell(tmp_path / "cell", make_env, nodes=("n1",)) as world:
        await world.until(lambda: world.leader() is not None and world.leader().journal.tip > 0)
    with pytest.raises(StoreForeign, match="cell of several nodes"):
        async with open_solo(tmp_path / "cell" / "n1", env=make_env("n1"), **kit):
            pass


async def test_a_block_that_memory_has_let_go_of_is_not_written_again(tmp_path, make_env, monkeypatch):
    """What was placed is known again by its term: memory need not hold the block itself any more."""
    monkeypatch.setattr("cluster.journal.opening.RECENT_BLOCKS", 1_000)
    async with a_cell(tmp_path, make_env) as world:
        leader = await world.whole()
        for number, node in enumerate(world.running.values()):
            with trio.fail_after(PATIENCE_S):
                await node.journal.append([bytes([number]) * 5_000])
        await world.until(lambda: leader.journal.tip >= node.journal.tip)  # two others may commit without its disk
        records = await records_of(leader.journal)
        assert [records.count(bytes([number]) * 5_000) for number in range(3)] == [1, 1, 1]
