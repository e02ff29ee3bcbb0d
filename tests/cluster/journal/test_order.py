"""What one node's intake hands to the journal has its places in that order, whoever comes to lead meanwhile: batches
follow each other without waiting (ADR 28), and those after one that was lost may not come before it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.journal.line import Line
from relay.intake import Intake
from relay.observe.metrics import Metrics
from tests.cluster.journal.conftest import CELL
from tests.cluster.journal.virtual import virtual_cell, virtually


async def first_seen(journal) -> list[bytes]:
    """Records in the order in which the fold takes them: repeats are dropped."""
    blocks = [await journal.read(index) for index in range(journal.first, journal.tip + 1)]
    return list(dict.fromkeys(one for block in blocks for one in block.records if one.startswith(b"mail")))


async def load(world, node, faults, every_s=0.003) -> list[bytes]:
    """An intake of `node` that is handed a record every so often, while `faults` are under way; what came of it."""
    sent: list[bytes] = []
    async with trio.open_nursery() as nursery:
        intake = Intake(node.journal, Metrics())
        nursery.start_soon(intake.run)
        scope = await nursery.start(_offer, intake, sent, every_s)
        await faults()
        scope.cancel()
        await world.until(lambda: not intake._bytes)
        nursery.cancel_scope.cancel()
    await world.until(lambda: len({one.journal.tip for one in world.running.values()}) == 1)
    return sent


async def _offer(intake, sent, every_s, task_status=trio.TASK_STATUS_IGNORED):
    with trio.CancelScope() as scope:
        task_status.started(scope)
        while True:
            sent.append(b"mail %04d" % len(sent))
            intake.offer([sent[-1]])
            await trio.sleep(every_s)


@pytest.mark.parametrize("salt", ["", "b", "c", "d"])
@virtually
async def test_what_a_leader_that_is_cut_off_had_placed_comes_before_what_it_takes_later(tmp_path: Path, salt: str):
    async with virtual_cell(tmp_path, salt=salt) as world:
        old = world.leader()
        others = [node for node in world.running.values() if node is not old]

        async def cut_off():
            await trio.sleep(0.1)
            world.wires.part(old.name, *(node.name for node in others))
            await world.until(lambda: any(node.journal.leads for node in others))
            await trio.sleep(0.3)
            world.wires.heal()
            await trio.sleep(3)

        sent = await load(world, old, cut_off)
        assert world.leader() is not old
        assert await first_seen(old.journal) == sent


@pytest.mark.parametrize("salt", ["", "b", "c", "d"])
@virtually
async def test_a_node_says_again_what_went_with_its_leader_before_it_says_more(tmp_path: Path, salt: str):
    """The leader takes batches, and what it says of them is heard nowhere: all go with it."""
    async with virtual_cell(tmp_path, salt=salt) as world:
        old = world.leader()
        asker, third = (node for node in world.running.values() if node is not old)

        async def fall_dumb():
            await trio.sleep(0.5)
            note, old.journal._links.note = old.journal._links.note, lambda node, note: False
            await world.until(lambda: asker.journal.leads or third.journal.leads)
            await trio.sleep(2)
            old.journal._links.note = note
            await trio.sleep(1)

        sent = await load(world, asker, fall_dumb, every_s=0.25)
        assert world.leader() is not old
        assert await first_seen(asker.journal) == sent


@virtually
async def test_nothing_is_placed_in_another_term_than_what_came_before_it(tmp_path: Path):
    async with virtual_cell(tmp_path) as world:
        leader = world.leader()
        asker, journal = next(node for node in world.running.values() if node is not leader), leader.journal
        peer, term, last = Peer("norden", CELL, asker.name), journal.raft.term, journal.raft.log.last
        for other in (term + 1, term + 2):
            answer = await leader.cell.answer(peer, linkwire.Propose(journal.log_id, (b"late",), other))
            assert isinstance(answer, linkwire.NotLeading)
        assert journal.raft.log.last == last
        for good in (0, term):
            answer = await leader.cell.answer(peer, linkwire.Propose(journal.log_id, (b"now",), good))
            assert isinstance(answer, linkwire.Proposed) and answer.term == term


async def test_a_turn_waits_until_all_before_it_have_their_place_in_one_term(autojump_clock):
    line, told = Line(), []
    last = line.joined(lambda: None)  # who is behind: no matter
    with line.joined(lambda: None) as first, line.joined(lambda: None) as second, \
            line.joined(lambda: told.append("third")) as third, last:

        async def stands_still():
            with trio.move_on_after(1) as scope:
                await third.term_before()
            return scope.cancelled_caught

        assert await first.term_before() == 0
        assert await stands_still()
        first.placed(1)
        assert await stands_still()  # the second has none
        second.placed(1)
        assert await third.term_before() == 1
        third.placed(1)
        assert told == ["third"]
        first.lost()
        assert await stands_still()
        first.placed(2)
        assert await stands_still()  # the second is of the term before: lost, too, and not told yet
        async with trio.open_nursery() as nursery:
            nursery.start_soon(third.term_before)
            await trio.testing.wait_all_tasks_blocked()
            second.lost()
            second.placed(2)


async def test_who_gives_up_his_turn_is_waited_for_no_longer(autojump_clock):
    line = Line()
    with line.joined(lambda: None) as first:
        async with trio.open_nursery() as nursery:
            with line.joined(lambda: None):
                scope = await nursery.start(_behind, line)
                await trio.testing.wait_all_tasks_blocked()
                assert not scope.is_set()
                first.placed(3)
            await scope.wait()


async def _behind(line, task_status):
    done = trio.Event()
    with line.joined(lambda: None) as turn:
        task_status.started(done)
        assert await turn.term_before() == 3
        done.set()
