"""The forwarder and logs of other cells that were renewed, or are older copies (ADR 15)."""

from __future__ import annotations

import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from relay.core import records
from relay.core.wire import Code
from relay.limits import MAX_BATCH
from tests.cluster.forwarding import World
from tests.relay.conftest import ABROAD


async def test_a_renewed_log_that_lost_a_suffix_is_gone_on_with(autojump_clock):
    """What was confirmed and lost has nobody any more, and goes out void; what is here still is handed over again."""
    async with World() as world:
        lost = await world.send(*range(6))
        await trio.sleep(5)
        assert world.there.taken == lost and world.cell.state.outboxes[ABROAD].done == 6
        world.there.lose = 1  # the answer: what is taken meanwhile stays here
        again = await world.send(6, 7)
        await wait_all_tasks_blocked()
        assert world.there.vector == 8 and world.cell.state.outboxes[ABROAD].done == 6
        world.there.log, world.there.vector, world.there.taken[:] = b"2" * 16, 2, []
        with structlog.testing.capture_logs() as said:
            new = await world.send(8)
            await trio.sleep(10)
        assert [one["numbers"] for one in said if one["event"] == "hand_over_lost"] == [4]
        assert world.there.taken == [b""] * 4 + again + new
        assert world.notices() == [Code.STORED] * 9
        outbox = world.cell.state.outboxes[ABROAD]
        assert (outbox.done, outbox.last, outbox.logs) == (9, 9, (b"1" * 16, b"2" * 16))
        world.there.vector = 4  # and of the renewed log, too, an older copy is one
        await world.send(9)
        await trio.sleep(60)
        assert world.notices() == [Code.STORED] * 9 and outbox.done == 9


async def test_a_long_lost_suffix_goes_out_in_batches_and_lost_answers_are_harmless(autojump_clock):
    async with World() as world:
        for start in range(0, 600, 100):
            await world.send(*((start + n) % 256 for n in range(100)), size=start + 1)
        await trio.sleep(20)
        assert world.cell.state.outboxes[ABROAD].done == 600
        world.there.log, world.there.vector, world.there.taken[:] = b"2" * 16, 3, []

        async def lose_the_second():
            if world.there.vector > 3:
                world.there.lose, world.there.before = 1, None

        world.there.before = lose_the_second
        new = await world.send(1, size=2_000)
        await trio.sleep(20)
        assert world.there.taken == [b""] * 597 + new
        assert max(count for _, count in world.there.requests) <= MAX_BATCH
        assert world.notices() == [Code.STORED] * 601


async def test_a_log_that_was_renewed_does_not_come_back(autojump_clock):
    async with World() as world:
        for log in (b"1" * 16, b"2" * 16):
            world.there.log = log
            await world.send(log[0])
            await trio.sleep(5)
        world.there.log = b"1" * 16
        await world.send(3)
        await trio.sleep(60)
        assert world.notices() == [Code.STORED] * 2
        world.there.log = b"2" * 16
        await trio.sleep(120)
        assert world.notices() == [Code.STORED] * 3


async def test_who_takes_nothing_of_what_is_skipped_is_asked_again_and_not_without_a_pause(autojump_clock):
    async with World() as world:
        await world.send(*range(6))
        await trio.sleep(5)
        world.there.log, world.there.vector, world.there.at_most = b"2" * 16, 2, 0
        world.there.taken.clear()
        world.there.requests.clear()
        new = await world.send(6)

        async def enough():
            assert len(world.there.requests) < 100

        world.there.before = enough
        await trio.sleep(10)
        assert not world.there.taken and len(world.there.requests) > 2
        world.there.at_most = 1_000
        await trio.sleep(10)
        assert world.there.taken == [b""] * 4 + new and world.notices() == [Code.STORED] * 7


async def test_what_is_skipped_goes_to_the_log_that_lost_it_only(autojump_clock):
    """Another one answers in the midst of it, the one that was renewed at that: all that is asked is asked anew."""
    async with World() as world:
        for start in range(0, 600, 100):
            await world.send(*((start + n) % 256 for n in range(100)), size=start + 1)
        await trio.sleep(20)
        world.there.log, world.there.vector, world.there.taken[:] = b"2" * 16, 3, []

        async def the_old_one_is_back():
            if world.there.vector > 3:
                world.there.log, world.there.vector, world.there.before = b"1" * 16, 500, None
                world.there.taken.clear()

        world.there.before = the_old_one_is_back
        await world.send(1, size=2_000)
        await trio.sleep(60)
        assert world.there.vector == 3 + 2 * MAX_BATCH  # of the batch that was under way
        assert world.notices() == [Code.STORED] * 600


async def test_an_answer_from_before_the_renewal_does_not_bring_the_old_log_back(autojump_clock):
    """It was asked for before anybody knew any log; meanwhile another node recorded the answer of the renewed one."""
    async with World() as world:

        async def late():
            world.there.before = None
            answers = (records.HandedAnswer(1, Code.STORED, 1),)
            handed = records.Handed(ABROAD, 1, answers, b"2" * 16, b"")
            world.cell.intake.offer([records.encode_record(handed)])
            await wait_all_tasks_blocked()

        world.there.before = late
        sent = await world.send(*range(3))
        await trio.sleep(1)
        outbox = world.cell.state.outboxes[ABROAD]
        assert (outbox.done, outbox.logs) == (1, (b"2" * 16,)) and world.there.vector == 3
        world.there.log, world.there.vector, world.there.taken[:] = b"2" * 16, 1, []
        await trio.sleep(30)
        assert (outbox.done, outbox.logs) == (3, (b"2" * 16,)) and world.there.taken == sent[1:]
