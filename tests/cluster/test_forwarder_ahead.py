"""The forwarder over a long line: several batches are under way (ADR 37), and their record may wait (ADR 40)."""

from __future__ import annotations

import trio

from relay.core import records
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import HANDOVERS_AHEAD, MAX_HANDOVER
from tests.cluster.test_forwarder import Destination, World


class Slow(Destination):
    """A long line: what arrives does so in its order, and its answer is back half a second later."""

    under_way = most = most_bytes = sent = 0
    fail: tuple[int, ...] = ()

    def __init__(self):
        super().__init__()
        self.took = trio.Event()

    async def request(self, cell, message, deadline_s):
        size = sum(len(item.item) for item in message.items)
        self.under_way, self.sent = self.under_way + 1, self.sent + size
        self.most, self.most_bytes = max(self.most, self.under_way), max(self.most_bytes, self.sent)
        try:
            if message.first in self.fail:
                self.fail = tuple(one for one in self.fail if one != message.first)
                raise Refused(Code.OVERLOADED, "not now")
            with trio.move_on_after(15):  # as a cell does, which may have what is before it under way
                while message.first > self.vector + 1:
                    await self.took.wait()
            answer = await super().request(cell, message, deadline_s)
            self.took.set()
            self.took = trio.Event()
            await trio.sleep(0.5)
            return answer
        finally:
            self.under_way, self.sent = self.under_way - 1, self.sent - size


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
        await trio.sleep(8)
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
