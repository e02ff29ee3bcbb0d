"""Readers of another region: their own node asks the channel's cell, keeps pages in memory, and nothing else."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from msgspec import structs
from trio.testing import wait_all_tasks_blocked

from cluster.core.linkwire import Done, Peer, ReadThere
from cluster.handover import LinksAbroad, Reception
from relay.core import wire
from relay.core.farposts import NO_POSTS, Question, Shown
from relay.core.policy import Policies
from relay.core.trust import Policy
from relay.core.trust.channels import make_ticket
from relay.core.wire import Code
from relay.errors import PeerError, Refused, RegionHalted
from relay.limits import (
    CHANNEL_PAGES, FAR_ASK_S, FAR_ASKS, FAR_POLL_S, FAR_REST_S, MAX_ENVELOPE, MAX_FAR_CHANNELS,
)
from tests.channels import Channel
from tests.policies import root_with
from tests.relay.conftest import ABROAD, CELL, Cell, FakeEnv, FakeLine, make_root
from tests.relay.core.mailroom.conftest import User, key
from tests.relay.hall import NONCE, Hall, live_of, number

POLL = 2 * FAR_POLL_S


class Crossing:
    """relay.ports.Abroad over a border: what was asked, and what a test does to the answers."""

    def __init__(self, reception):
        self.reception, self.asked, self.change, self.pause = reception, [], None, 0.0
        self.now = self.most = 0

    async def read_channel(self, cell, question):
        self.asked.append(question)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.pause)
            answer = await self.reception(Peer("sauda", ABROAD, "n1"), ReadThere(question))
            return self.change(answer.reply) if self.change else answer.reply
        finally:
            self.now -= 1

    def pages(self):
        return [question.after for question in self.asked if question.after != NO_POSTS]


class Two(Hall):
    """The hall is of `norden`, where the channel is; carol and her like read in `sauda`."""

    def __init__(self, nursery, near_root, far_root):
        env = FakeEnv()
        super().__init__(Cell(env, CELL), nursery)
        self.far = Cell(env, ABROAD)
        self.carol = User("carol", ABROAD)
        self.carol.record("c1")
        near = self.cell
        near.office.channels._policies.follow(near_root)
        self.far.office._policies.follow(far_root)
        self.crossing = Crossing(
            Reception(near_root, near.delivery, near.intake, near.barrier, near.office, None)
        )
        self.desk = self.far.office.channels
        self.desk.far._abroad = self.crossing
        for cell in (near, self.far):
            for task in (cell.delivery.run, cell.intake.run, cell.steward.run, cell.office.channels.far.run):
                nursery.start_soon(task)

    async def abroad(self, *, live=False, secret=None, channel=None, room=1_000_000, cell=CELL):
        line = FakeLine(self.carol, "c1", room)
        await self.enter(line, live=live, secret=secret, channel=channel, cell=cell)
        return line

    async def enter(self, line, *, live=False, secret=None, channel=None, cell=CELL):
        channel = channel or self.channel.id
        ticket = make_ticket(secret or self.channel.secret, channel, NONCE, line.device)
        await self.desk.subscribe(line, wire.SubscribeFar(7, channel, ticket, live, cell), NONCE)

    async def page(self, line, after=0):
        await self.desk.read(line, wire.Read(self.channel.id, after))
        return line.of(wire.Page)[-1]

    async def numbers(self, line):
        read, after = [], 0
        while posts := (await self.page(line, after)).posts:
            read += map(number, posts)
            after = read[-1]
        return read


def codes_of(line):
    return [one.code for one in line.of(wire.Channel)]


@asynccontextmanager
async def two(near_root=None, far_root=None, posts=3, **terms):
    async with trio.open_nursery() as nursery:
        made = Two(nursery, near_root or make_root(), far_root or make_root())
        await made.open(**terms)
        await made.post(*(b"post %d" % n for n in range(1, posts + 1)))
        yield made
        nursery.cancel_scope.cancel()


async def test_posts_are_read_on_demand_and_come_live(autojump_clock):
    async with two() as made:
        line = await made.abroad(live=True)
        assert codes_of(line) == [Code.STORED] and line.of(wire.Channel)[0].last == 3
        assert await made.numbers(line) == [1, 2, 3]
        await made.post(b"four", b"five")
        await trio.sleep(POLL)
        assert live_of(line) == [4, 5]


async def test_one_page_crosses_once_however_many_ask_and_when(autojump_clock):
    async with two() as made:
        lines = [await made.abroad() for _ in range(20)]
        made.crossing.pause = 1
        async with trio.open_nursery() as nursery:
            for line in lines:
                nursery.start_soon(made.page, line)
        late = await made.page(await made.abroad())
        assert made.crossing.pages() == [0] and [number(post) for post in late.posts] == [1, 2, 3]
        assert all(line.of(wire.Page) == [late] for line in lines)


async def test_news_are_asked_for_once_a_node_and_not_where_nobody_reads_live(autojump_clock):
    async with two() as made:
        still = await made.abroad()
        asked = len(made.crossing.asked)
        await trio.sleep(10)
        assert len(made.crossing.asked) == asked
        lines = [await made.abroad(live=True) for _ in range(5)]
        asked = len(made.crossing.asked)
        await trio.sleep(10)
        assert 5 <= len(made.crossing.asked) - asked <= 10 / FAR_POLL_S + 1
        for line in [*lines, still]:
            made.far.delivery.channels.leave(line)
        await trio.sleep(POLL)
        assert not made.desk.far._far and not made.far.delivery.channels.far


async def test_nothing_of_it_rests_in_the_far_cell(autojump_clock):
    async with two() as made:
        tip = made.far.journal.tip
        line = await made.abroad(live=True)
        await made.numbers(line)
        await made.post(b"canary")
        await trio.sleep(POLL)
        assert live_of(line) == [4] and made.far.journal.tip == tip
        assert made.channel.id not in b"".join(made.far.delivery.room.checkpoint())
        assert not made.far.state.channels


async def test_who_comes_later_hides_no_post_from_who_was_there(autojump_clock):
    async with two() as made:
        first = await made.abroad(live=True)
        await made.post(b"four")
        second = await made.abroad(live=True)
        assert second.of(wire.Channel)[0].last == 4
        await trio.sleep(POLL)
        assert live_of(first) == [4]


async def test_more_than_a_page_is_news_and_read_on_demand(autojump_clock):
    async with two() as made:
        line = await made.abroad(live=True)
        await made.post(*(b"x" * 30_000 for _ in range(6)))
        await trio.sleep(POLL)
        assert live_of(line) == [] and line.of(wire.Channel)[-1].last == 9
        assert await made.numbers(line) == list(range(1, 10))
        await made.post(b"ten")
        await trio.sleep(POLL)
        assert live_of(line) == [10]


async def test_the_owners_cell_judges_tickets(autojump_clock):
    async with two() as made:
        assert codes_of(await made.abroad(secret=b"s" * 32)) == [Code.NOT_SUBSCRIBER]
        assert codes_of(await made.abroad(channel=b"c" * 32)) == [Code.UNKNOWN_CHANNEL]
        stranger = FakeLine(made.carol, "c1")
        assert (await made.page(stranger)).code == Code.NOT_SUBSCRIBER
        shown = Shown(stranger.device, b"m" * 32, make_ticket(made.channel.secret, made.channel.id, NONCE, b"d" * 32))
        reply = await made.crossing.read_channel(CELL, Question(made.channel.id, shown, 0))
        assert reply.code == Code.NOT_SUBSCRIBER and not reply.posts and not reply.terms
        line, asked = await made.abroad(), len(made.crossing.asked)
        lines = [FakeLine(made.carol, "c1") for _ in range(10)]
        async with trio.open_nursery() as nursery:  # there may be newer terms: one question for all of them
            for one in lines:
                nursery.start_soon(partial(made.enter, one, secret=b"s" * 32))
        assert [codes_of(one) for one in lines] == [[Code.NOT_SUBSCRIBER]] * 10
        assert codes_of(line) == [Code.STORED] and len(made.crossing.asked) == asked + 1
        began = trio.current_time()
        for _ in range(10):
            await made.enter(lines[0], secret=b"s" * 32)
        assert len(made.crossing.asked) <= asked + 2 + (trio.current_time() - began) / FAR_POLL_S


async def test_a_closed_channel_ends(autojump_clock):
    async with two() as made:
        line = await made.abroad(live=True)
        await made.publish(keep_ms=0)
        await trio.sleep(POLL)
        assert codes_of(line)[-1] == Code.UNKNOWN_CHANNEL and not made.desk.far._far


@pytest.mark.parametrize("side", ["near_root", "far_root"])
@pytest.mark.parametrize("policies", [{"norden": Policy(send_to=())}, {"sauda": Policy(receive_from=())}])
async def test_each_side_alone_asks_both_policies(autojump_clock, side, policies):
    async with two(**{side: root_with(**policies)}) as made:
        line = await made.abroad()
        assert codes_of(line) == [Code.NOT_PERMITTED]
        assert bool(made.crossing.asked) is (side == "near_root")


async def test_a_policy_that_changes_ends_it(autojump_clock):
    async with two() as made:
        line, still = await made.abroad(live=True), await made.abroad()
        assert (await made.page(still)).code == Code.STORED
        made.far.office._policies = Policies(root_with(norden=Policy(send_to=())))
        assert (await made.page(still)).code == Code.NOT_PERMITTED  # though the page is kept here
        await trio.sleep(POLL)
        assert codes_of(line)[-1] == Code.NOT_PERMITTED


async def test_a_halted_and_a_removed_region(autojump_clock):
    async with two() as made:
        line = await made.abroad(live=True)
        await made.page(line)

        def halted(cell):
            raise RegionHalted(Code.UNREACHABLE, "forked", cell)

        made.far.office.halted = halted
        asked = len(made.crossing.asked)
        assert (await made.page(line)).code == Code.UNREACHABLE
        assert codes_of(await made.abroad()) == [Code.UNREACHABLE]
        await trio.sleep(POLL)
        assert len(made.crossing.asked) == asked
        assert codes_of(await made.abroad(cell="gone/1")) == [Code.UNKNOWN_REGION]


@pytest.mark.parametrize("error", [
    Refused(Code.UNREACHABLE, "no link"), PeerError("who?"), Refused(12345, "a code of tomorrow"),
])  # fmt: skip
async def test_no_answer_is_said_at_once_to_who_asks_next_and_it_goes_on_later(autojump_clock, error):
    async with two() as made:
        line = await made.abroad(live=True)

        def down(reply):
            raise error

        made.crossing.change = down
        assert (await made.page(line)).code == Code.UNREACHABLE
        asked = len(made.crossing.asked)
        assert (await made.page(line, 1)).code == Code.UNREACHABLE
        assert codes_of(await made.abroad()) == [Code.UNREACHABLE] and len(made.crossing.asked) == asked
        await made.post(b"four")
        made.crossing.change = None
        await trio.sleep(FAR_REST_S + POLL)
        assert live_of(line) == [4] and codes_of(line) == [Code.STORED]


async def test_a_slow_cell_holds_a_few_questions_and_who_leaves_takes_none_with_him(autojump_clock):
    async with two(posts=30) as made:
        line, made.crossing.pause = await made.abroad(), 100
        async with trio.open_nursery() as nursery:
            for after in range(20):
                nursery.start_soon(made.page, line, after)
            await wait_all_tasks_blocked()
            assert made.crossing.now == FAR_ASKS == made.crossing.most
            nursery.cancel_scope.cancel()
        made.crossing.pause = 0
        assert [number(post) for post in (await made.page(line, 28)).posts] == [29, 30]
        assert not made.desk.far._flights


async def test_who_gets_no_turn_in_time_is_told_so(autojump_clock):
    async with two(posts=30) as made, trio.open_nursery() as nursery:
        line, made.crossing.pause = await made.abroad(), 100
        _ = [nursery.start_soon(made.page, line, after) for after in range(FAR_ASKS)]
        await wait_all_tasks_blocked()
        with trio.fail_after(FAR_ASK_S + 1):
            assert (await made.page(line, FAR_ASKS)).code == Code.OVERLOADED
        nursery.cancel_scope.cancel()


async def test_who_asks_first_and_goes_leaves_the_question_to_the_next(autojump_clock):
    async with two() as made:
        one, other = await made.abroad(), await made.abroad()
        made.crossing.pause = 3
        async with trio.open_nursery() as nursery:
            leaver = trio.CancelScope()

            async def leaves():
                with leaver:
                    await made.page(one)

            nursery.start_soon(leaves)
            await wait_all_tasks_blocked()
            nursery.start_soon(made.page, other)
            await wait_all_tasks_blocked()
            leaver.cancel()
        assert [number(post) for post in other.of(wire.Page)[0].posts] == [1, 2, 3] and not one.of(wire.Page)


def other_channel(reply):
    channel = Channel(key("a1"), CELL, b"o" * 32)
    terms = channel.publish().terms
    return structs.replace(reply, terms=terms)


LIES = {
    "terms of another channel": other_channel,
    "terms that do not verify": lambda reply: structs.replace(reply, terms=reply.terms[:-1] + b"\x00"),
    "no terms": lambda reply: structs.replace(reply, terms=b""),
    "posts out of order": lambda reply: structs.replace(reply, posts=reply.posts[::-1]),
    "a post twice": lambda reply: structs.replace(reply, posts=reply.posts[:1] * 2),
    "posts past the newest": lambda reply: structs.replace(reply, posts=reply.posts, last=2),
    "bytes that are no post": lambda reply: structs.replace(reply, posts=(b"nothing",)),
    "a giant page": lambda reply: structs.replace(reply, posts=(b"x" * MAX_ENVELOPE,) * 3),
    "another place": lambda reply: structs.replace(reply, after=0),
    "numbers that no channel has": lambda reply: structs.replace(reply, first=2**63, last=2**64 - 1),
    "posts of another channel": lambda reply: structs.replace(
        reply, posts=(Channel(key("a1"), CELL, b"o" * 32).seal(b"x", 3, 1),)
    ),
    "a code that says it was taken": lambda reply: structs.replace(reply, code=Code.ACCEPTED),
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_hostile_cell_is_refused_and_nothing_of_it_is_kept(autojump_clock, lie):
    async with two() as made:
        line = await made.abroad()
        made.crossing.change = LIES[lie]
        page = await made.page(line, 1)
        assert page.code in (Code.BAD_RECORD, Code.OVERLOADED) and not page.posts
        assert not made.far.delivery.channels.pages._bytes
        made.crossing.change = None
        await trio.sleep(FAR_REST_S)
        assert [number(post) for post in (await made.page(line, 1)).posts] == [2, 3]


async def test_a_node_that_is_behind_the_one_asked_before_hides_nothing(autojump_clock):
    async with two() as made:
        line = await made.abroad()
        made.crossing.change = lambda reply: structs.replace(reply, last=2, posts=reply.posts[:1])
        assert (await made.page(line, 1)).code == Code.OVERLOADED
        made.crossing.change = None
        assert [number(post) for post in (await made.page(line, 1)).posts] == [2, 3]


async def test_pages_and_channels_of_others_are_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr("relay.farchannels.MAX_FAR_CHANNELS", 2)
    monkeypatch.setattr("relay.channels.CHANNEL_PAGES", 100_000)
    assert MAX_FAR_CHANNELS <= 256 and CHANNEL_PAGES <= 8 * 2**20
    async with two(posts=0) as made:
        await made.post(*(b"x" * 30_000 for _ in range(8)))
        line = await made.abroad()
        await made.numbers(line)
        assert 0 < made.far.delivery.channels.pages._bytes <= 100_000
        made.desk.far._far[b"2" * 32] = made.desk.far._far[made.channel.id]
        made.far.delivery.channels._readers[b"2" * 32] = {line: 0}
        assert codes_of(await made.abroad(channel=b"c" * 32)) == [Code.OVERLOADED]


async def test_an_answer_of_another_kind(autojump_clock):
    class Links:
        async def request(self, cell, message, deadline_s):
            await trio.sleep(deadline_s / 2)
            return Done()

    shown = Shown(b"d" * 32, NONCE, bytes(64))
    with pytest.raises(PeerError):
        await LinksAbroad(Links(), ABROAD).read_channel(CELL, Question(b"c" * 32, shown, 0))
