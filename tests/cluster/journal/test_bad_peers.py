"""Peers that send garbage, holes or the past; stores of another log; two logs in one cell: refused, reported, never
merged, and nobody starts again and again. Through the journal of a node, in virtual time."""

from __future__ import annotations

import pytest
import structlog.testing
import trio

from cluster.cli.exits import Exit, exit_of
from cluster.core import linkwire
from cluster.core.linkwire import CellNote, Peer
from cluster.core.raft import Append, Entry, Members, Point, Role
from cluster.journal.notes import pack_note
from cluster.journal.shapes import from_members
from relay.core.block import make_block
from relay.errors import Overloaded, PeerError, RolledBack, StoreDamaged, StoreForeign
from tests.cluster.journal.conftest import CELL, World
from tests.cluster.journal.virtual import FlowingClock, VirtualEnv, virtual_cell, virtually


@pytest.fixture
async def world(tmp_path):
    async with virtual_cell(tmp_path) as made:
        for number in range(5):
            await made.leader().journal.append([b"fact %d" % number])
        await same_tip(made)
        yield made


async def same_tip(world):
    await world.until(lambda: len({node.journal.tip for node in world.running.values()}) == 1)


def follower_of(world):
    return next(node for node in world.running.values() if node is not world.leader())


def tell(world, node, message):
    """As the leader would: through its link, under its store's name."""
    leader = world.leader()
    payload = pack_note(message, lambda index: None)
    note = CellNote(node.journal.log_id, message.source, world.machines[node.name].clock.wall_ms(), payload)
    node.journal.on_note(Peer("norden", CELL, leader.name), note)


def append(world, node, prev, *entries, term=None, commit=0):
    source = world.leader().journal.own.store
    term = node.journal.raft.term if term is None else term
    return Append(source, node.journal.own.store, term, prev, entries, commit, (), False)


async def goes_on(world, node):
    """The cell takes records, the node has them, and nobody has begun a new life."""
    await world.leader().journal.append([b"goes on"])
    await same_tip(world)
    assert (await node.journal.read(node.journal.tip)).records == (b"goes on",)
    assert [one.lives for one in world.running.values()] == [1, 1, 1]


# --- garbage, holes, the past --------------------------------------------------------------------
@virtually
async def test_garbage_is_the_peers_mistake(world):
    node = follower_of(world)
    for payload in (b"", b"garbage", b"\x93\x01\x02\x03"):
        note = CellNote(node.journal.log_id, world.leader().journal.own.store, 0, payload)
        with pytest.raises(PeerError, match="makes no sense"):
            node.journal.on_note(Peer("norden", CELL, "n1"), note)
    await goes_on(world, node)


@virtually
async def test_a_block_with_a_wrong_hash_is_the_peers_mistake(world):
    node = follower_of(world)
    tip = await node.journal.read(node.journal.tip)
    wrong = make_block(node.journal.log_id, tip.index + 1, tip.hash, tip.time, [b"one"])
    object.__setattr__(wrong, "hash", bytes(32))
    entry = Entry(wrong.index, node.journal.raft.term, wrong.size, None, wrong)
    with pytest.raises(PeerError, match="its hash does not match"):
        tell(world, node, append(world, node, node.journal.raft.log.tip, entry))
    await goes_on(world, node)


@virtually
async def test_holes_are_refused_and_reported(world):
    node = follower_of(world)
    tip, at, term = await node.journal.read(node.journal.tip), node.journal.raft.log.tip, node.journal.raft.term
    later = make_block(node.journal.log_id, tip.index + 2, bytes(32), tip.time, [b"hole"])
    with structlog.testing.capture_logs() as logs:
        tell(world, node, append(world, node, at, Entry(later.index, term, later.size, None, later)))
        await trio.sleep(0.01)
    assert [entry["text"] for entry in logs if entry["event"] == "note_refused"] == [
        f"an append after entry {tip.index} with gaps"
    ]
    await goes_on(world, node)


@virtually
async def test_the_past_changes_nothing(world):
    """An append of a term that is over: a leader that slept."""
    node = follower_of(world)
    await node.journal.append([b"one"])
    await same_tip(world)
    tip, raft = node.journal.tip, node.journal.raft
    block = make_block(node.journal.log_id, 3, (await node.journal.read(2)).hash, 2**40, [b"old"])
    old = append(world, node, Point(0, 2), Entry(3, 1, block.size, None, block), term=raft.term - 1, commit=3)
    tell(world, node, old)
    await trio.sleep(0.5)
    assert raft.role is Role.FOLLOWER and node.journal.tip == tip
    assert b"old" not in (await node.journal.read(3)).records
    await goes_on(world, node)


@virtually
async def test_another_committed_history_stops_the_node_loudly(world):
    """RolledBack of the core. No store is set aside: one of the two that speak is wrong, and nobody knows which."""
    node = follower_of(world)
    node.may_end = True
    tip, term = await node.journal.read(node.journal.tip), node.journal.raft.term
    tell(world, node, append(world, node, Point(term + 7, tip.index)))
    await world.until(lambda: node.ended is not None)
    assert isinstance(node.ended, RolledBack) and "is committed here" in node.ended.text and node.ended.remedy
    assert exit_of(node.ended) is Exit.UNTRUSTED  # a service manager does not start it again
    assert node.lives == 1 and world.machines[node.name].disk.content is not None


@virtually
async def test_blocks_that_do_not_follow_stop_the_node_loudly(world):
    """The terms fit, the hashes do not: two histories of one log."""
    node = follower_of(world)
    node.may_end = True
    index, at, term = node.journal.tip + 1, node.journal.raft.log.tip, node.journal.raft.term
    other = make_block(node.journal.log_id, index, b"x" * 32, 2**40, [b"another history"])
    tell(world, node, append(world, node, at, Entry(index, term, other.size, None, other)))
    await world.until(lambda: node.ended is not None)
    assert isinstance(node.ended, StoreDamaged) and "keep all stores" in node.ended.remedy
    assert exit_of(node.ended) is Exit.OPERATOR and not world.machines[node.name].disk.aside


@virtually
async def test_what_is_not_served_or_is_no_batch_is_the_peers_mistake(world):
    leader, peer = world.leader(), Peer("norden", CELL, "n9")
    log_id = leader.journal.log_id
    members = from_members(Members())
    for request, text in (
        (linkwire.Ping(), "is not served here"),
        (linkwire.Propose(bytes(16), (b"x",)), "another log"),
        (linkwire.FetchFacts(bytes(16), 1, b""), "another log"),
        (linkwire.FetchCheckpoint(bytes(16), 1, 0), "another log"),
        (linkwire.Propose(log_id, (members,)), "change of the cell's members"),
    ):
        with pytest.raises(PeerError, match=text):
            await leader.cell.answer(peer, request)
    await goes_on(world, follower_of(world))


@virtually
async def test_who_joins_and_is_not_in_the_root_stays_out(world):
    leader = world.leader()
    before = leader.journal.raft.members
    with trio.move_on_after(5):
        while True:
            await leader.cell.answer(Peer("norden", CELL, "n9"), linkwire.Join(b"s" * 16))
            await trio.sleep(0.5)
    assert leader.journal.raft.members == before


@virtually
async def test_a_closed_node_answers_nobody(world):
    node = follower_of(world)
    cell, peer = node.cell, Peer("norden", CELL, "n1")
    world.kill(node.name)
    await trio.sleep(0.1)
    for request in (linkwire.Join(b"s" * 16), linkwire.CellStatus(), linkwire.FetchBlocks(cell.journal.log_id, 1, 1)):
        with pytest.raises(Overloaded):
            await cell.answer(peer, request)


# --- other logs ----------------------------------------------------------------------------------
@virtually
async def test_a_store_of_another_log_is_refused_and_nothing_is_merged(world, tmp_path):
    """The same cell, federation and key, but a log of another life: the data directory of a cell that was given up."""
    (tmp_path / "other").mkdir()
    async with virtual_cell(tmp_path / "other", salt="other") as other:
        await other.leader().journal.append([b"of the other life"])
        other.kill("n3")
        await trio.sleep(0.1)
        stranger = other.machines["n3"].disk.content
        other.nursery.cancel_scope.cancel()
    old = world.running["n3"].journal.own.store
    world.kill("n3")
    await trio.sleep(0.1)
    machine = world.machines["n3"]
    machine.disk.content = stranger.copy()
    world.start("n3")
    node = world.running["n3"]
    node.may_end = True
    await world.until(lambda: node.ended is not None)
    assert isinstance(node.ended, StoreForeign) and "goes on with log" in node.ended.text and node.ended.remedy
    assert exit_of(node.ended) is Exit.OPERATOR and node.lives == 1
    assert machine.disk.content is not None and not machine.disk.aside  # it is left alone
    leader = world.leader().journal
    assert old in leader.raft.members.voter_ids and stranger.meta.store not in leader.raft.members.ids


@virtually
async def test_two_founders_make_two_logs_that_never_meet(tmp_path):
    """A config that names the first node twice, say. Nobody serves until it is mended, and everybody says why."""
    machines, clock = {}, FlowingClock()
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            world = World(nursery, tmp_path, lambda name: machines.setdefault(name, VirtualEnv(name, clock)))
            world.path("n2").mkdir()
            (world.path("n2") / "bootstrap").touch()
            world.start()
            await trio.sleep(20)
            one, two, third = (world.running[name].journal for name in world.nodes)
            assert one.log_id != two.log_id and third is None
            assert [len(journal.raft.members.voters) for journal in (one, two)] == [1, 1]  # too few to serve
            told = [entry for entry in logs if entry["event"] == "two_logs"]
            assert len(told) == 3 and all("move the data directory" in entry["remedy"] for entry in told)
            world.kill("n2")
            await trio.sleep(0.1)
            machines["n2"].disk.content = None  # the operator does what they are told
            world.start("n2")
            assert (await world.whole()).journal.log_id == one.log_id
            nursery.cancel_scope.cancel()
