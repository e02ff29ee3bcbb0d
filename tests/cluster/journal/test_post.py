"""What is sent to a peer of which the core no longer holds all: the rest is read, and nothing that is not there yet."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cluster.core.linkwire import CellNote, Peer
from cluster.core.raft import Accepted, Append, Entry, Member, Members, Point, Recall, Recollection
from cluster.env import RealEnv
from cluster.journal.notes import pack_note, unpack_note
from cluster.journal.post import Post
from cluster.journal.stamp import CellClock
from relay.core.block import make_block
from relay.errors import PeerError
from relay.journal.portal import open_portal
from relay.limits import MAX_INBOX, RAFT_INFLIGHT_APPENDS
from tests.cluster.journal.conftest import a_cell
from tests.relay.journal.conftest import FakeClock


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


class Links:
    def __init__(self):
        self.sent, self.dropped = [], []

    def note(self, node, note):
        self.sent.append((node, note))
        return True

    def count_dropped(self, *what):
        self.dropped.append(what)


async def test_what_is_sent_while_it_is_written_is_not_looked_for_on_the_disk(tmp_path, portal):
    """A leader that has just started sends entries that lie on its disk together with its first own one, which does
    not yet: it must not take that for damage (found by power cuts: the store was set aside)."""
    async with a_cell(tmp_path, lambda name: RealEnv(portal), nodes=("n1",)) as world:
        await world.until(lambda: world.leader() is not None)
        journal = world.leader().journal
        await journal.append([b"on the disk"])
        log, disk = journal.raft.log, journal._disk
        kept = await journal.read(log.last)
        fresh = make_block(journal.log_id, kept.index + 1, kept.hash, kept.time, [b"not yet"])
        term = log.tip.term
        entries = (Entry(kept.index, term, kept.size, None, None), Entry(fresh.index, term, fresh.size, None, fresh))
        links, peer = Links(), Member(b"p" * 16, "n2")
        post = Post(journal.own, disk, links, journal.clocks)
        message = Append(journal.own.store, peer.store, term, log.tip, entries, 0, (), False)
        disk.tail.released(kept.index + 1)  # memory does not have it
        disk.tail.first = 1
        post.send(message, Members((journal.own, peer)), world.nursery)
        await world.until(lambda: links.sent)
        sent = unpack_note(links.sent[0][1].payload, journal.log_id)
        assert [entry.payload for entry in sent.entries] == [kept, fresh]


async def test_an_entry_that_was_cut_off_meanwhile_is_not_damaged(tmp_path, portal):
    async with a_cell(tmp_path, lambda name: RealEnv(portal), nodes=("n1",)) as world:
        await world.until(lambda: world.leader() is not None)
        journal = world.leader().journal
        await journal.append([b"this"])
        log = journal.raft.log
        gone = [Entry(log.last + number, log.tip.term, 4, None, None) for number in range(2)]
        with pytest.raises(LookupError):
            await journal._disk.load_entries(gone)


async def test_no_more_blocks_are_read_for_a_peer_than_may_be_in_flight():
    """One that is damaged on the disk is waited for until others can be asked; the core sends it at each heartbeat."""
    reading, may_go_on = [], trio.Event()

    async def load_entries(entries):
        reading.append(entries)
        await may_go_on.wait()
        raise LookupError

    clock, tail = FakeClock(), SimpleNamespace(log_id=LOG, recent=lambda index: None)
    post = Post(OWN, SimpleNamespace(tail=tail, load_entries=load_entries), Links(), CellClock(clock))
    message = Append(OWN.store, PEER.store, 3, Point(3, 1), (Entry(2, 3, 4, None, None),), 1, (), False)
    async with trio.open_nursery() as nursery:
        for _ in range(3 * RAFT_INFLIGHT_APPENDS):
            post.send(message, CELL, nursery)
        await wait_all_tasks_blocked()
        assert len(reading) == RAFT_INFLIGHT_APPENDS
        may_go_on.set()
        await wait_all_tasks_blocked()
        post.send(message, CELL, nursery)  # there is room again
        await wait_all_tasks_blocked()
        assert len(reading) == RAFT_INFLIGHT_APPENDS + 1


# --- in ------------------------------------------------------------------------------------------
LOG, OWN, PEER = b"L" * 16, Member(b"o" * 16, "n1"), Member(b"p" * 16, "n2")
CELL = Members((OWN, PEER))


def a_post():
    clock = FakeClock()
    return Post(OWN, SimpleNamespace(tail=SimpleNamespace(log_id=LOG)), Links(), CellClock(clock))


def note_of(message, store=None, log_id=LOG):
    return CellNote(log_id, message.source if store is None else store, 0, pack_note(message, lambda index: None))


def accepted(source, match=1):
    return Accepted(source, OWN.store, 3, match)


def peer(node):
    return Peer("norden", "norden/1", node)


def test_what_comes_is_taken_in_order_once():
    post = a_post()
    messages = [accepted(PEER.store, number) for number in range(3)]
    for message in messages:
        post.take_in(peer("n2"), note_of(message), CELL)
    assert list(post.arrived()) == messages and list(post.arrived()) == []


def test_a_node_speaks_for_no_other_store():
    post = a_post()
    for note, node in (
        (note_of(accepted(PEER.store)), "n3"),
        (note_of(accepted(PEER.store), store=b"x" * 16), "n2"),
        (note_of(accepted(OWN.store)), "n2"),
    ):
        with pytest.raises(PeerError, match="speaks for another store"):
            post.take_in(peer(node), note, CELL)
    assert list(post.arrived()) == []


def test_notes_of_another_log_say_nothing():
    post = a_post()
    post.take_in(peer("n2"), note_of(accepted(PEER.store), log_id=b"M" * 16), CELL)
    post.take_in(peer("n2"), CellNote(b"M" * 16, PEER.store, 0, b"garbage"), CELL)
    assert list(post.arrived()) == []


def test_what_waits_is_bounded_and_what_is_too_much_is_lost():
    post, block = a_post(), make_block(LOG, 1, bytes(32), 5, [b"x" * 1_000_000])
    big = Append(PEER.store, OWN.store, 3, Point(0, 0), (Entry(1, 3, block.size, None, block),), 0, (), True)
    sent = 2 * MAX_INBOX // 1_000_000
    for _ in range(sent):
        post.take_in(peer("n2"), note_of(big), CELL)
    taken = len(list(post.arrived()))
    assert MAX_INBOX - 2_000_000 < 1_000_000 * taken <= MAX_INBOX
    assert post._links.dropped == [("n2", "inbox", 1)] * (sent - taken)
    post.take_in(peer("n2"), note_of(accepted(PEER.store)), CELL)
    assert list(post.arrived()) == [accepted(PEER.store)]  # there is room again


def test_a_store_that_is_no_member_yet_is_answered_where_it_was_heard():
    post = a_post()
    post.take_in(peer("n7"), note_of(Recall(b"s" * 16, OWN.store, 0, 5)), CELL)
    assert post.node_of(b"s" * 16, CELL) == "n7" and post.node_of(PEER.store, CELL) == "n2"
    assert post.node_of(b"?" * 16, CELL) == "" == post.node_of(None, CELL)
    for number in range(1_000):
        post.take_in(peer("n7"), note_of(Recall(b"%16d" % number, OWN.store, 0, 5)), CELL)
    assert len(post._where) <= 128


def test_a_new_store_is_told_whom_to_ask():
    post = a_post()
    told = Recollection(PEER.store, OWN.store, 3, 5, Point(0, 0), Point(1, 1), Members((PEER, Member(b"q" * 16, "n3"))))
    post.take_in(peer("n2"), note_of(told), Members())
    assert post.node_of(b"q" * 16, Members()) == "n3"
