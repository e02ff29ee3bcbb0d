"""Lanes of the fan-out rest, each for itself: that of a large group, and one of a few more than are served at once."""

from __future__ import annotations

import trio

import relay.fanout
from relay.core import wire
from relay.limits import FANOUT_REST, FANOUT_REST_S
from tests.relay.conftest import Cell
from tests.relay.core.mailroom.conftest import Group
from tests.relay.test_fanout import CROWD, Crowd, SlowLine, join, publish, user
from tests.relay.test_office import seal


class Pair:
    """A large group, and one of a few more than are served at once; one owner, and slow lines."""

    def __init__(self, cell: Cell, nursery: trio.Nursery) -> None:
        self.large, self.small = Crowd(cell, nursery), Group("owner 1", "small")
        self.few: list[SlowLine] = []

    async def gather(self, clock: trio.testing.MockClock) -> None:
        large = self.large
        await large.gather(clock)
        users = [user(f"few {number}") for number in range(10)]
        self.few = [await join(large.cell, large.nursery, one, f"{one.name} 1", SlowLine) for one in users]
        await publish(large.cell, large.line, self.small, [large.owner.id, *(one.id for one in users)])
        for line in self.few:
            line.wrote.clear()

    async def say_few(self, body: bytes) -> bytes:
        large = self.large
        sealed = seal(large.cell, self.small.id, roster=True, body=body)
        await large.cell.office.submit(large.line, [wire.SubmitItem("", sealed)])
        return sealed


async def test_a_small_group_does_not_wait_while_a_large_one_rests(open_cell, autojump_clock):
    async with open_cell() as (cell, nursery):
        pair = Pair(cell, nursery)
        await pair.gather(autojump_clock)
        await trio.sleep(1)
        await pair.large.say(b"large")
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        rests, later = trio.current_time(), await pair.large.say(b"large, in its rest")
        sealed = await pair.say_few(b"small")
        await trio.sleep(1)
        for line in pair.few:
            assert [d.envelope for d in line.of(wire.Deliver)] == [sealed]
            assert line.wrote[0][0] <= rests + 0.001 * (len(pair.few) + 5)
        rest = min(FANOUT_REST_S, FANOUT_REST * 0.001 * CROWD)
        for line in pair.large.lines:
            assert line.of(wire.Deliver)[-1].envelope == later
            assert line.wrote[-1][0] >= rests + rest


async def test_lanes_that_share_a_round_rest_as_long_as_all_of_it(open_cell, autojump_clock, monkeypatch):
    """So many groups take no larger share of a node than one."""
    monkeypatch.setattr(relay.fanout, "FANOUT_REST_S", 1.0)
    async with open_cell() as (cell, nursery):
        pair = Pair(cell, nursery)
        await pair.gather(autojump_clock)
        await trio.sleep(1)
        fanout, dues = cell.delivery._fanout, []
        sealed = [seal(cell, to, roster=True, body=b"both") for to in (pair.large.group.id, pair.small.id)]
        await cell.office.submit(pair.large.line, [wire.SubmitItem("", one) for one in sealed])
        began = trio.current_time()
        while not pair.large.lines[-1].of(wire.Deliver):
            await trio.lowlevel.checkpoint()
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        for size, group in ((len(pair.few), pair.small), (CROWD, pair.large.group)):
            dues.append(fanout._lanes[True, group.id].due - began)
            assert dues[-1] >= FANOUT_REST * 2 * 0.001 * size
        few, many = ([line.wrote[0][0] for line in lines] for lines in (pair.few, pair.large.lines))
        assert max(few) <= min(many), "the smallest goes first"


async def test_a_lane_that_holds_something_while_it_rests_counts_for_the_rests_of_others(
    open_cell, autojump_clock, monkeypatch
):
    """Else each has its round in the rests of the others: three groups that always have something leave no rest."""
    monkeypatch.setattr(relay.fanout, "FANOUT_REST_S", 1.0)
    async with open_cell() as (cell, nursery):
        pair = Pair(cell, nursery)
        await pair.gather(autojump_clock)
        await trio.sleep(1)
        fanout, large, small = cell.delivery._fanout, (True, pair.large.group.id), (True, pair.small.id)
        await pair.large.say(b"large")
        while fanout._lanes[large].due <= trio.current_time():
            await trio.lowlevel.checkpoint()
        await pair.large.say(b"large, in its rest")
        before = trio.current_time()
        assert fanout._lanes[large] in fanout._dirty and fanout._lanes[large].due > before
        await pair.say_few(b"small")
        while fanout._lanes[small].due <= before:
            await trio.lowlevel.checkpoint()
        took = max(line.wrote[-1][0] for line in pair.few) - before
        assert fanout._lanes[small].due - trio.current_time() > FANOUT_REST * 1.5 * took
