"""Readers of another region, and a cell there that errs: what one answer spoils, and for whom."""

from __future__ import annotations

import pytest
import trio
from msgspec import structs

from relay.core import wire
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import FAR_FRESH_S, FAR_POLL_S, FAR_REST_S
from tests.channels import Channel
from tests.relay.conftest import CELL
from tests.relay.core.mailroom.conftest import key
from tests.relay.hall import live_of
from tests.relay.test_farchannels import POLL, codes_of, two


async def second(made):
    """Another channel of the same owner."""
    other = Channel(key("a1"), CELL, b"o" * 32)
    await made.cell.office.channels.publish(made.owner, other.publish().terms)
    await trio.sleep(1)
    return other


async def test_what_does_not_hold_of_one_channel_ends_no_other(autojump_clock):
    async with two() as made:
        other = await second(made)
        line = await made.abroad(live=True, channel=other.id, secret=other.secret)
        lied = await made.abroad(live=True)
        made.crossing.change = lambda reply: structs.replace(reply, terms=b"") if reply.last == 3 else reply
        await trio.sleep(4 * FAR_REST_S)
        assert codes_of(line) == [Code.STORED] and codes_of(lied) == [Code.STORED]
        made.crossing.change = None
        await made.post(b"four")
        await made.cell.office.channels.post(made.owner, [other.seal(b"one")])
        await trio.sleep(FAR_REST_S + POLL)
        assert live_of(line) == [1] and live_of(lied) == [4]


async def test_who_asks_for_another_channel_is_not_told_that_it_does_not_hold(autojump_clock):
    async with two() as made:
        other = await second(made)
        line = await made.abroad()
        made.crossing.change = lambda reply: structs.replace(reply, terms=b"")
        assert (await made.page(line)).code == Code.BAD_RECORD
        late = await made.abroad(channel=other.id, secret=other.secret)
        assert codes_of(late) == [Code.UNREACHABLE]


@pytest.mark.parametrize("code", [Code.BAD_ENVELOPE, Code.BAD_RECORD, Code.LIFETIME, Code.OVERLOADED])
async def test_a_refusal_that_says_nothing_of_the_channel_ends_nothing(autojump_clock, code):
    async with two() as made:
        line = await made.abroad(live=True)

        def refused(reply):
            raise Refused(code, "an odd node")

        made.crossing.change = refused
        await trio.sleep(POLL)
        made.crossing.change = None
        await made.post(b"four")
        await trio.sleep(FAR_REST_S + POLL)
        assert codes_of(line) == [Code.STORED] and live_of(line) == [4]


async def test_terms_for_two_cells_are_read_in_one(autojump_clock):
    """An owner can sign them. What is known of a channel here is of one cell only."""
    async with two() as made:
        other = await second(made)
        twin = structs.replace(other.terms, cell="norden/2")
        lie = other.sign(twin)
        made.desk.far._check = lambda cell: None  # both cells are of the federation

        def change(reply):
            return structs.replace(reply, terms=lie) if made.crossing.cells[-1] == "norden/2" else reply

        made.crossing.change, made.crossing.cells = change, []
        ask = made.crossing.read_channel

        async def slowly(cell, question):
            if cell == "norden/2":
                await trio.sleep(1)
            made.crossing.cells.append(cell)
            return await ask(cell, question)

        made.crossing.read_channel = slowly
        async with trio.open_nursery() as nursery:
            lines = []

            async def reads(cell):
                lines.append(await made.abroad(channel=other.id, secret=other.secret, cell=cell))

            nursery.start_soon(reads, "norden/2")
            nursery.start_soon(reads, CELL)
        assert [codes_of(line) for line in lines] == [[Code.STORED], [Code.UNKNOWN_CHANNEL]]
        assert made.desk.far._far[other.id].known.terms.terms.cell == CELL


async def test_who_begins_to_read_live_is_not_sent_what_was_there_before(autojump_clock):
    async with two() as made:
        await made.abroad()
        await made.post(b"four", b"five")
        await trio.sleep(POLL)
        line = await made.abroad(live=True)
        assert line.of(wire.Channel)[-1].last == 5
        await trio.sleep(POLL)
        await made.post(b"six")
        await trio.sleep(POLL)
        assert live_of(line) == [6]


async def test_a_page_is_given_again_for_a_while_only(autojump_clock):
    """Then the channel's cell is asked: whether it still gives it, and what came since."""
    async with two() as made:
        line = await made.abroad()
        assert await made.numbers(line) == [1, 2, 3]
        assert made.crossing.pages() == [0], "that there is no more is known"
        await made.post(b"four")
        assert await made.numbers(line) == [1, 2, 3]
        await trio.sleep(FAR_FRESH_S)
        assert await made.numbers(line) == [1, 2, 3, 4]


async def test_a_reader_and_the_look_for_news_ask_the_same_once(autojump_clock):
    async with two() as made:
        line = await made.abroad(live=True)
        made.desk.far._far[made.channel.id].heard = -FAR_FRESH_S
        made.crossing.pause, asked = 3 * FAR_POLL_S, len(made.crossing.asked)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.page, line, 3)
            await trio.sleep(2.5 * FAR_POLL_S)
            assert len(made.crossing.asked) == asked + 1
        made.crossing.pause = 0
        await made.post(b"four")
        await trio.sleep(3 * FAR_POLL_S + POLL)  # one may have begun before it was fast again
        assert live_of(line) == [4]


async def test_who_come_at_the_same_time_are_no_more_than_may(autojump_clock, monkeypatch):
    monkeypatch.setattr("relay.farchannels.MAX_FAR_CHANNELS", 1)
    async with two() as made:
        other, lines = await second(made), []
        made.crossing.pause = 1

        async def reads(channel):
            lines.append(await made.abroad(channel=channel.id, secret=channel.secret))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reads, other)
            nursery.start_soon(reads, made.channel)
        assert sorted(code for line in lines for code in codes_of(line)) == [Code.STORED, Code.OVERLOADED]
        assert len(made.desk.far._far) == 1


async def test_terms_of_another_cell_and_numbers_that_go_back_do_not_hold(autojump_clock):
    async with two() as made:
        line, elsewhere = await made.abroad(), structs.replace(made.channel.terms, cell="norden/2")
        lies = (
            lambda reply: structs.replace(reply, terms=made.channel.sign(elsewhere)),
            lambda reply: structs.replace(reply, first=4, last=3, posts=()),
        )
        for lie in lies:
            made.crossing.change = lie
            assert (await made.page(line, 1)).code == Code.BAD_RECORD
            await trio.sleep(FAR_REST_S)


async def test_the_largest_post_crosses(autojump_clock):
    async with two(posts=0) as made:
        await made.post(b"small", bytes(90_000), b"small")
        assert await made.numbers(await made.abroad()) == [1, 2, 3]


async def test_a_page_that_cannot_be_made_now_is_no_empty_one(autojump_clock, monkeypatch):
    """Which would say that there is no more."""
    async with two() as made:
        line, channels = await made.abroad(), made.cell.delivery.channels

        async def moved(channel, after):
            return wire.Page(channel, after, Code.OVERLOADED, 0, 0, ())

        monkeypatch.setattr(channels, "_make", moved)
        assert (await made.page(line)).code == Code.OVERLOADED
        monkeypatch.undo()
        assert await made.numbers(line) == [1, 2, 3]
