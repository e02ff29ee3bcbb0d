"""What is sent to a peer of which the core no longer holds all: the rest is read, and nothing that is not there yet."""

from __future__ import annotations

import pytest

from cluster.core.raft import Append, Entry, Member, Members
from cluster.env import RealEnv
from cluster.journal.notes import unpack_note
from cluster.journal.post import Post
from relay.core.block import make_block
from relay.journal.portal import open_portal
from tests.cluster.journal.conftest import a_cell


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


class Links:
    def __init__(self):
        self.sent = []

    def note(self, node, note):
        self.sent.append((node, note))
        return True


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
        post = Post(journal.own, disk, links, RealEnv().clock, journal.clocks)
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
