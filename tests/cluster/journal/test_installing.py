"""The moment in which a snapshot takes the place of everything: whatever else has to do with the store comes too late,
or is not done."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cluster.core.raft import Point, Snapshot
from cluster.core.raft import Write as CoreWrite
from cluster.journal import Rejoin
from cluster.journal.disk import Head
from cluster.journal.shapes import from_members
from relay.core.codec import encode
from relay.journal.disk import Kept
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.virtual import virtual_cell, virtually


@pytest.fixture
async def world(tmp_path):
    async with virtual_cell(tmp_path, nodes=("n1",)) as made:
        for number in range(5):
            await made.leader().journal.append([b"letter %d" % number])
        yield made


async def a_snapshot(stage, journal):
    """One of this very log, without blocks."""
    tip, hash_, time = journal._tail.newest
    term = journal.raft.log.term(tip)
    await stage.add([encode(Head(term, hash_, time, from_members(journal.raft.members))), b"row"])
    return CoreWrite(1, Snapshot(Point(term, tip), journal.raft.members), None, (), None, ())


@virtually
async def test_what_waits_for_the_store_does_not_change_what_the_snapshot_brought(world):
    """Numbers of blocks and generations that were known before mean others now: rows of the new checkpoint would go,
    or blocks of the old log would come back, and with the next start the store would be damaged."""
    node, journal = world.running["n1"], world.running["n1"].journal
    disk, index, ends = journal.disk, journal.tip, []
    await journal.save_checkpoint(index, [b"old"])
    kept = Kept(await journal.read(2), journal.raft.log.term(2))

    async def staging():
        async with disk.staging(index):
            pass

    async def one(call):
        try:
            await call()
        except Rejoin as end:
            ends.append(end)

    async with trio.open_nursery() as nursery:
        async with disk.staging(index) as stage:
            write = await a_snapshot(stage, journal)
            stage.check(index + 1)
            await disk.writing.acquire()
            nursery.start_soon(one, lambda: disk.put(write, journal._chain))
            await wait_all_tasks_blocked()
            for call in (
                lambda: disk.release(4), lambda: disk.put_back(kept), lambda: disk.stage_rows(9, 0, [b"row"]),
            ):  # fmt: skip
                nursery.start_soon(one, call)
                await wait_all_tasks_blocked()
            disk.writing.release()
            await world.until(lambda: disk.tail.ended)
        nursery.start_soon(one, staging)
        nursery.start_soon(one, lambda: disk.save_checkpoint(index, [b"other"]))
    assert len(ends) == 5
    await world.until(lambda: node.lives == 2 and node.journal is not journal and world.leader() is node)
    assert await load_checkpoint(node.journal) == (index, [b"row"])
    assert node.journal.first == index + 1


@virtually
@pytest.mark.parametrize("whole", [True, False])
async def test_a_snapshot_whose_fetching_ended_before_it_was_written_is_not_taken_over(world, whole):
    """The link that asked for it broke: its rows may be gone, or another one's be in their place."""
    journal = world.running["n1"].journal
    disk, index = journal.disk, journal.tip
    before = dict(world.machines["n1"].disk.content.rows)
    async with disk.staging(index) as stage:
        write = await a_snapshot(stage, journal)
        stage.check(index + 1)
    if whole:
        with pytest.raises(Rejoin, match="not taken over"):
            await disk.put(write, journal._chain)
    else:
        async with disk.staging(index) as stage:
            await a_snapshot(stage, journal)
            with pytest.raises(Rejoin, match="not taken over"):
                await disk.put(write, journal._chain)
    rows = world.machines["n1"].disk.content.rows
    assert {key: rows[key] for key in before} == before


@virtually
async def test_a_journal_that_has_ended_takes_no_further_step(world, monkeypatch):
    """Its log may be another one by now: what the core says of that must not be looked for in the old one."""
    node, journal, steps = world.running["n1"], world.running["n1"].journal, []
    monkeypatch.setattr(journal, "_step", lambda: steps.append(journal.tip))
    journal._tail.end(Rejoin("it is over"))
    journal.wake()
    await world.until(lambda: node.lives == 2)
    assert not steps


@virtually
async def test_a_checkpoint_that_is_saved_meanwhile_waits_for_the_end(world):
    node, journal = world.running["n1"], world.running["n1"].journal
    index = journal.tip
    journal.raft.log.reset(Point(9, index + 10), journal.raft.members)
    ended = []

    async def save():
        with pytest.raises(Rejoin):
            await journal.save_checkpoint(index, [b"row"])
        ended.append(node.lives)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(save)
        await wait_all_tasks_blocked()
        assert not ended
        journal._tail.end(Rejoin("it is over"))
    assert ended == [1]
