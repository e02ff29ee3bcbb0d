"""The forwarder against a destination that answers as it likes: nothing is skipped, doubled or taken on trust."""

from __future__ import annotations

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relay.core import records
from relay.core.trust import Policy
from relay.core.wire import Code
from relay.limits import HANDOVERS_AHEAD, MAX_HANDOVER
from tests.cluster.forwarding import Slow, World
from tests.policies import root_with
from tests.relay.conftest import ABROAD, make_root


async def test_in_order_and_the_senders_are_told(autojump_clock):
    async with World() as world:
        sent = await world.send(*range(10))
        await trio.sleep(5)
        assert world.there.taken == sent
        assert world.notices() == [Code.STORED] * 10
        assert not world.cell.state.sources


async def test_partial_and_lost_answers_are_harmless(autojump_clock):
    async with World() as world:
        world.there.at_most, world.there.lose = 3, 2
        sent = await world.send(*range(10))
        await trio.sleep(30)
        assert world.there.taken == sent
        assert world.notices() == [Code.STORED] * 10


async def _one_after_the_other(world, count, size=1):
    sent = []
    for n in range(count):
        sent += await world.send(n, size=size)
        await trio.sleep(0.05)
    return sent


async def test_batches_follow_each_other_without_waiting(autojump_clock):
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 40)
        assert len(world.there.taken) > 20
        await trio.sleep(5)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 41
        assert world.there.most == HANDOVERS_AHEAD
        assert len(world.there.requests) < 30  # what finds no room goes together


async def _kinds(world, after):
    """What is in each block after block `after`."""
    journal = world.cell.journal
    blocks = [await journal.read(index) for index in range(after + 1, journal.tip + 1)]
    return [{type(records.decode_record(one)) for one in block.records} for block in blocks]


async def test_while_more_is_under_way_what_was_stored_is_recorded_along_with_other_mail(autojump_clock):
    async with World(Slow()) as world:
        await world.send(0)
        await trio.sleep(5)
        before = world.cell.journal.tip
        await _one_after_the_other(world, 40)
        during = await _kinds(world, before)
        assert {records.Handed} not in during
        assert sum(records.Handed in one for one in during) > 5  # and still it is not left for later
        last = trio.current_time()
        while len(world.notices()) < 41:
            await world.line.came.wait()
        assert trio.current_time() - last < 0.6  # as soon as the last answer is there


async def test_a_refusal_is_told_at_once_though_more_is_under_way(autojump_clock):
    class Refusing(Slow):
        async def request(self, cell, message, deadline_s):
            self.code = int(Code.MAILBOX_FULL if message.first == 2 else Code.STORED)
            return await super().request(cell, message, deadline_s)

    async with World(Refusing()) as world:
        await world.send(0)
        await trio.sleep(5)
        began = trio.current_time()
        await _one_after_the_other(world, 4)
        while Code.MAILBOX_FULL not in world.notices():
            await world.line.came.wait()
        assert trio.current_time() - began < 0.52


async def test_what_is_under_way_is_bounded_in_bytes(autojump_clock):
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 60, size=50_000)
        await trio.sleep(20)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 61
        assert 1 < world.there.most <= HANDOVERS_AHEAD and world.there.most_bytes <= MAX_HANDOVER + 60_000


async def test_a_batch_that_fails_takes_those_behind_it_back_to_what_the_log_says(autojump_clock):
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        world.there.fail = (3, 9)
        sent += await _one_after_the_other(world, 12)
        await trio.sleep(60)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 13
        assert [first for first, _ in world.there.requests].count(2) == 1  # it was recorded before the next failed


async def test_a_cell_that_takes_a_part_is_asked_for_the_rest_at_once(autojump_clock):
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        world.there.at_most = 1
        sent += await _one_after_the_other(world, 6)
        await trio.sleep(1.5)  # three answers; a pause would make it longer
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 7


async def test_each_number_has_its_own_outcome_in_whatever_order_answers_come(autojump_clock):
    class Shuffled(Slow):
        """The first answer of several is the last to come back."""

        async def request(self, cell, message, deadline_s):
            self.code = int(Code.MAILBOX_FULL if message.first == 2 else Code.STORED)
            answer = await super().request(cell, message, deadline_s)
            if message.first == 2:
                await trio.sleep(3)
            return answer

    async with World(Shuffled()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 4)
        await trio.sleep(20)
        assert world.there.taken == sent
        assert world.notices() == [Code.STORED, Code.MAILBOX_FULL] + [Code.STORED] * 3


async def test_what_a_slow_line_does_not_carry_at_once_it_carries_in_parts(autojump_clock):
    async with World() as world:
        world.there.carries = 45_000
        sent = await world.send(*range(40), size=20_000)
        await trio.sleep(60)
        assert world.there.taken == sent
        assert world.notices() == [Code.STORED] * 40
        world.there.carries, world.there.requests[:] = 1 << 30, []
        await world.send(*range(40, 80), size=20_000)
        await trio.sleep(10)
        assert max(count for _, count in world.there.requests) > 2  # and a good one takes more again


async def test_an_answer_that_is_recorded_late_does_not_shift_the_numbers(autojump_clock):
    """The outbox moves on while a batch is under way: its numbers are those it was read with."""
    async with World() as world:

        async def late():
            world.there.before = None
            done = world.cell.state.outboxes[ABROAD].done
            answers = tuple(records.HandedAnswer(done + n, Code.STORED, 1) for n in (1, 2))
            world.there.vector = done + 2
            world.there.taken += [b"by an earlier answer"] * 2
            late = records.Handed(ABROAD, done + 2, answers, world.there.log, b"")
            world.cell.intake.offer([records.encode_record(late)])
            await wait_all_tasks_blocked()

        world.there.before = late
        sent = await world.send(*range(6))
        await trio.sleep(10)
        assert world.there.taken[2:] == sent[2:]
        assert world.notices() == [Code.STORED] * 6


class TellsMore(Slow):
    """It has an opinion on numbers that it was not asked about. (The first answer of several is the last to come.)"""

    async def request(self, cell, message, deadline_s):
        answer = await super().request(cell, message, deadline_s)
        if message.first == 2:
            await trio.sleep(3)
        theirs = {one.number for one in answer.outcomes}
        more = (records.HandedAnswer(n, Code.MAILBOX_FULL, 1) for n in range(1, 40) if n not in theirs)
        return msgspec.structs.replace(answer, outcomes=(*answer.outcomes, *more))


async def test_an_answer_says_nothing_of_other_batches(autojump_clock):
    async with World(TellsMore()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 6)
        await trio.sleep(20)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 7


class TellsNewest(Slow):
    """Its answer to a batch is made when those behind it are applied, too: its vector is beyond what was asked."""

    async def request(self, cell, message, deadline_s):
        answer = await super().request(cell, message, deadline_s)
        return msgspec.structs.replace(answer, vector=self.vector)


async def test_an_answer_that_knows_of_later_batches_counts_for_its_own(autojump_clock):
    """What a record does not tell of counts as void: the senders would be told that it expired."""
    async with World(TellsNewest()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 12)
        await trio.sleep(20)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 13


async def test_a_log_that_is_renewed_without_a_loss_while_batches_are_under_way(autojump_clock):
    """What is answered under another log than it left for is asked again, alone: nobody knows what that one lost."""
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        sent += await _one_after_the_other(world, 6)
        world.there.log = b"2" * 16
        sent += await _one_after_the_other(world, 6)
        await trio.sleep(20)
        firsts = [first for first, _ in world.there.requests]
        assert len(firsts) > len(set(firsts)) and world.there.most > 1
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 13
        assert world.cell.state.outboxes[ABROAD].logs == (b"1" * 16, b"2" * 16)


async def test_what_another_forwarder_has_handed_over_meanwhile_does_not_go_out_again(autojump_clock, monkeypatch):
    """This node leads no more, or not yet alone: the fold is ahead of what this one knows to be under way."""
    async with World(Slow()) as world:
        await world.send(0)
        await trio.sleep(5)
        read, slow = world.cell.journal.read, trio.Event()

        async def reads(index):
            await slow.wait()
            return await read(index)

        monkeypatch.setattr(world.cell.journal, "read", reads)
        await world.send(1)
        await trio.sleep(1)
        await world.send(2, 3, 4)
        answers = tuple(records.HandedAnswer(number, Code.STORED, 1) for number in (2, 3, 4))
        handed = records.Handed(ABROAD, 4, answers, world.there.log, world.there.log)
        world.cell.intake.offer([records.encode_record(handed)])
        await trio.sleep(1)
        world.there.vector, world.there.requests[:] = 4, []
        slow.set()
        await trio.sleep(20)
        assert [first for first, _ in world.there.requests] in ([2, 5], [5])
        assert world.notices() == [Code.STORED] * 5


@pytest.mark.parametrize("warm", [False, True])
async def test_what_was_judged_by_the_root_document_of_before_is_judged_anew(autojump_clock, monkeypatch, warm):
    """A batch is being read, or on its way to the link, when a policy comes that forbids it."""
    async with World() as world:
        sent = await world.send(0) if warm else []
        await trio.sleep(5)
        read, slow = world.cell.journal.read, trio.Event()

        async def reads(index):
            await slow.wait()
            return await read(index)

        monkeypatch.setattr(world.cell.journal, "read", reads)
        await world.send(1, 2, 3)
        await trio.sleep(1)
        world.forwarders.follow(root_with(norden=Policy(send_to=())))
        slow.set()
        await trio.sleep(10)
        assert world.there.taken == [*sent, b"", b"", b""] and len(world.notices()) == len(sent) + 3


async def test_following_loses_doubles_and_delays_nothing(autojump_clock):
    async with World(Slow()) as world:
        sent = await world.send(0)
        await trio.sleep(5)
        for n in range(1, 13):
            sent += await world.send(n)
            await trio.sleep(0.05)
            world.forwarders.follow(make_root())
        await trio.sleep(20)
        assert world.there.taken == sent and world.notices() == [Code.STORED] * 13


async def test_codes_of_a_newer_release_are_refusals(autojump_clock):
    async with World() as world:
        world.there.code = 77
        await world.send(1)
        await trio.sleep(5)
        assert world.notices() == [Code.NOT_PERMITTED]


@pytest.mark.parametrize("says", [0, 1_000])
async def test_a_vector_that_cannot_be_stops_the_hand_over_and_nothing_else(autojump_clock, says):
    async with World() as world:
        await world.send(1)
        await trio.sleep(5)
        world.there.says = says
        await world.send(2, 3)
        await trio.sleep(60)
        assert world.notices() == [Code.STORED]
        assert world.cell.state.outboxes[ABROAD].done == 1
        world.there.says = None
        await trio.sleep(120)
        assert world.notices() == [Code.STORED] * 3
