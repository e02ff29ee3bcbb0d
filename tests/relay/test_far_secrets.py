"""Readers of another region, and a channel that gets a new secret: whom that ends, and who is served at once."""

from __future__ import annotations

from functools import partial

import trio

from relay.core.wire import Code
from relay.limits import FAR_FRESH_S
from tests.relay.hall import live_of, number
from tests.relay.test_farchannels import POLL, codes_of, two


async def test_a_new_secret_ends_subscriptions_by_the_old_one(autojump_clock):
    async with two() as made:
        old = await made.abroad(live=True)
        made.channel.secret = b"n" * 32
        await made.publish()
        await trio.sleep(POLL)
        assert codes_of(old) == [Code.STORED, Code.NOT_SUBSCRIBER]
        new = await made.abroad(live=True)
        await made.post(b"four")
        await trio.sleep(POLL)
        assert live_of(new) == [4] and live_of(old) == []
        assert (await made.page(old)).code == Code.NOT_SUBSCRIBER


async def test_a_new_secret_is_good_at_once_where_others_read_by_the_old_one(autojump_clock):
    """The node has just heard the old terms, and may not judge by them that a ticket is bad."""
    async with two() as made:
        old = await made.abroad()
        made.channel.secret = b"n" * 32
        await made.publish()
        new = await made.abroad()
        assert codes_of(new) == [Code.STORED] and (await made.page(old)).code == Code.NOT_SUBSCRIBER
        assert [number(post) for post in (await made.page(new)).posts] == [1, 2, 3]


async def test_a_new_secret_is_good_although_a_bad_ticket_was_just_asked_about(autojump_clock):
    """What was asked before a ticket came says nothing against it."""
    async with two() as made:
        await made.abroad()
        made.crossing.pause = 0.5
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(made.abroad, secret=b"s" * 32))
            await trio.sleep(0.6)
            made.channel.secret = b"n" * 32
            await made.publish()
            assert codes_of(await made.abroad()) == [Code.STORED]


async def test_a_new_reader_with_a_new_secret_ends_the_others_at_once(autojump_clock):
    async with two() as made:
        old = await made.abroad()
        made.channel.secret = b"n" * 32
        await made.publish()
        await trio.sleep(2 * FAR_FRESH_S)
        new = await made.abroad()
        assert (await made.page(old)).code == Code.NOT_SUBSCRIBER
        assert [number(post) for post in (await made.page(new)).posts] == [1, 2, 3]
