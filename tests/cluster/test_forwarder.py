"""The forwarder against a destination that answers as it likes: nothing is skipped, doubled or taken on trust."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from cluster.core import linkwire
from cluster.forwarder import Forwarders
from relay.core import records, wire
from relay.core.trust import read_home
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import MAX_BATCH
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, make_root
from tests.relay.core.mailroom.conftest import User
from tests.relay.test_office import seal


class Destination:
    """Takes hand-overs as a cell does, and can be told to misbehave."""

    def __init__(self) -> None:
        self.log = b"1" * 16
        self.vector = 0
        self.taken: list[bytes] = []
        self.requests: list[tuple[int, int]] = []
        self.code = int(Code.STORED)
        self.says: int | None = None
        self.at_most = 1_000
        self.lose = 0
        self.carries = 1 << 30  # bytes that get through the line before the link gives up
        self.before = None

    async def request(self, cell, message, deadline_s):
        await trio.lowlevel.checkpoint()
        self.requests.append((message.first, len(message.items)))
        if self.before is not None:
            await self.before()
        if sum(len(item.item) for item in message.items) > self.carries:
            raise Refused(Code.UNREACHABLE, "not a byte for 12 s")
        outcomes = []
        for number, item in enumerate(message.items[: self.at_most], message.first):
            if number == self.vector + 1:
                self.vector = number
                self.taken.append(item.item)
            if number <= self.vector:
                outcomes.append(records.HandedAnswer(number, self.code, 1))
        if self.lose:
            self.lose -= 1
            raise Refused(Code.UNREACHABLE, "the answer was lost")
        return linkwire.HandOverAnswer(self.log, self.vector if self.says is None else self.says, tuple(outcomes))


class World:
    def __init__(self, there=None):
        self.there = there or Destination()

    async def __aenter__(self):
        self._manager = trio.open_nursery()
        self.nursery = await self._manager.__aenter__()
        env = FakeEnv()
        self.cell = Cell(env)
        for task in (self.cell.delivery.run, self.cell.intake.run):
            self.nursery.start_soon(task)
        forwarders = Forwarders(
            make_root(), self.cell.journal, self.cell.delivery, self.cell.intake, self.there, self.cell.metrics, env
        )
        self.nursery.start_soon(forwarders.run)
        self.alice, carol = User("alice", CELL), User("carol", ABROAD)
        self.alice.record("a1")
        carol.record("c1")
        self.cell.directory.known[carol.id] = read_home(carol.chain[0])
        self.carol = carol.id
        self.line = await self.cell.join(self.nursery, self.alice, "a1")
        return self

    async def __aexit__(self, *error):
        self.nursery.cancel_scope.cancel()
        return await self._manager.__aexit__(*error)

    async def send(self, *numbers, size=1):
        sealed = [seal(self.cell, self.carol, body=bytes([n]) * size) for n in numbers]
        await self.cell.office.submit(self.line, [wire.SubmitItem("sauda", one) for one in sealed])
        return sealed

    def notices(self):
        return [notice.code for notice in self.line.of(wire.Notice)]


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
