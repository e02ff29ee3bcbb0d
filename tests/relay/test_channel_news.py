"""Broadcast channels on a node: what readers hear whose sockets are full, and pages while the state moves."""

from __future__ import annotations

import trio

import relay.channels as module
from relay.core import records, wire
from relay.core.mailroom import expiry
from relay.core.wire import Code
from relay.limits import MINUTE
from tests.relay.hall import live_of, number


async def test_a_line_that_is_full_hears_later_that_its_subscription_ended(open_hall, autojump_clock):
    """Else its reader would wait for posts for ever."""
    async with open_hall() as hall:
        slow, other = await hall.reader(room=1), await hall.reader(room=1)
        hall.channel.secret = b"new secret" * 4
        await hall.publish(reader_key=hall.channel.draft().reader_key)
        await trio.sleep(3)
        assert [line.of(wire.Channel)[-1].code for line in (slow, other)] == [Code.STORED] * 2
        hall.cell.office.detach(other)
        slow.make_room(10)
        await trio.sleep(3)
        assert slow.of(wire.Channel)[-1].code == Code.NOT_SUBSCRIBER
        assert not hall.cell.delivery.channels._owed


async def test_a_line_that_is_full_hears_of_other_terms_later_and_of_the_newest_only(open_hall, autojump_clock):
    async with open_hall() as hall:
        slow, asks = await hall.reader(room=1), await hall.reader(room=1, live=False)
        for kept in range(10, 40):
            await hall.publish(keep_posts=kept)
        await trio.sleep(3)
        assert len(hall.cell.delivery.channels._owed) == 2  # however many versions there were
        for line in (slow, asks):
            line.make_room(10)
        await trio.sleep(3)
        newest = hall.cell.state.channels[hall.channel.id].terms.signed
        for line in (slow, asks):
            assert [news.terms for news in line.of(wire.Channel)[1:]] == [newest]
        await hall.post(b"hello")
        await trio.sleep(1)
        assert live_of(slow) == [1] and live_of(asks) == []


async def test_who_subscribes_anew_is_told_nothing_older(open_hall, autojump_clock):
    async with open_hall() as hall:
        slow = await hall.reader(room=1)
        await hall.post(b"missed")
        await trio.sleep(2)
        slow.make_room(10)
        await hall.subscribe(slow, live=False)
        await trio.sleep(3)
        await hall.post(b"not live any more")
        await trio.sleep(3)
        assert len(slow.of(wire.Channel)) == 2 and live_of(slow) == []


async def test_a_page_is_empty_only_where_there_is_no_more(open_hall, autojump_clock, monkeypatch):
    """What cannot be read just now is asked for again: readers take an empty page for the end."""
    async with open_hall() as hall:
        await hall.post(b"hello")
        line, journal = await hall.reader(live=False), hall.cell.delivery.channels.journal

        async def gone(index):
            await trio.lowlevel.checkpoint()
            raise LookupError(index)

        with monkeypatch.context() as patch:
            patch.setattr(journal, "read", gone)
            await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, 0))
        assert line.of(wire.Page)[-1].code == Code.OVERLOADED
        assert len(await hall.read(line)) == 1


async def test_a_page_goes_on_where_the_window_moved_while_it_was_read(open_hall, autojump_clock, monkeypatch):
    async with open_hall(keep_posts=1) as hall:
        await hall.post(b"1")
        line, journal = await hall.reader(live=False), hall.cell.delivery.channels.journal
        read, left = journal.read, [b"2"]

        async def slow(index):
            while left:
                await hall.post(left.pop())
            return await read(index)

        monkeypatch.setattr(journal, "read", slow)
        assert [number(post) for post in await hall.read(line)] == [2]


async def test_a_page_is_not_given_to_who_may_not_read_any_more(open_hall, autojump_clock, monkeypatch):
    async with open_hall() as hall:
        await hall.post(b"hello")
        line, journal = await hall.reader(live=False), hall.cell.delivery.channels.journal
        read = journal.read

        async def slow(index):
            monkeypatch.setattr(journal, "read", read)
            hall.channel.secret = b"new secret" * 4
            await hall.publish(reader_key=hall.channel.draft().reader_key)
            return await read(index)

        monkeypatch.setattr(journal, "read", slow)
        await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, 0))
        assert line.of(wire.Page)[-1].code == Code.NOT_SUBSCRIBER


async def test_who_unsubscribes_is_owed_nothing(open_hall, autojump_clock):
    async with open_hall() as hall:
        slow = await hall.reader(room=1)
        await hall.post(b"missed")
        await trio.sleep(2)
        hall.cell.office.channels.unsubscribe(slow, hall.channel.id)
        slow.make_room(10)
        await trio.sleep(3)
        assert len(slow.of(wire.Channel)) == 1


async def test_two_versions_of_terms_one_after_the_other_are_both_told(open_hall, autojump_clock):
    """The second comes while no news may be told yet, and nothing else wakes the round."""
    async with open_hall() as hall:
        line = await hall.reader()
        await hall.publish(keep_posts=10)
        await trio.sleep(0.1)
        await hall.publish(keep_posts=11)
        await trio.sleep(2)
        assert line.of(wire.Channel)[-1].terms == hall.cell.state.channels[hall.channel.id].terms.signed


async def test_who_only_asks_is_not_made_live_by_news(open_hall, autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "FANOUT_BYTES", 1)
    async with open_hall() as hall:
        line = await hall.reader(live=False)
        await hall.post(b"more than rounds give away")
        await trio.sleep(3)
        monkeypatch.undo()
        await hall.post(b"hello")
        await trio.sleep(3)
        assert live_of(line) == [] and len(line.of(wire.Channel)) == 1


async def test_the_largest_post_is_a_page_of_its_own(open_hall, autojump_clock):
    async with open_hall() as hall:
        await hall.post(b"small", bytes(90_000), b"small")
        assert [number(post) for post in await hall.read(await hall.reader(live=False))] == [1, 2, 3]


async def test_pages_that_are_kept_are_those_of_now_and_bounded(open_hall, autojump_clock, monkeypatch):
    monkeypatch.setattr(module, "CHANNEL_PAGES", 4_000)
    async with open_hall() as hall:
        line, pages = await hall.reader(live=False), hall.cell.delivery.channels.pages
        for n in range(1, 20):
            await hall.post(bytes(900))
            assert [number(post) for post in await hall.read(line)] == list(range(1, n + 1))
            assert pages._bytes == sum(len(frame) + 512 for _, frame in pages._kept.values()) <= 4_000


async def test_what_is_too_old_is_not_given_though_it_has_not_gone_yet(open_hall, autojump_clock, monkeypatch):
    """A block lets go a bounded number."""
    monkeypatch.setattr(expiry, "MAX_EXPIRIES", 0)
    async with open_hall(keep_ms=MINUTE) as hall:
        await hall.post(b"hello")
        line = await hall.reader(live=False)
        await trio.sleep(2 * MINUTE / 1000)
        hall.cell.intake.offer([records.encode_record(records.Tick())])
        await trio.sleep(1)
        await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, 0))
        assert not line.of(wire.Page)[-1].posts and len(hall.cell.state.channels[hall.channel.id].window) == 1


def test_writes_are_joined_up_to_a_bound(monkeypatch):
    monkeypatch.setattr(module, "FANOUT_PIECE", 250)
    assert [len(piece) for piece in module._joined([bytes(100)] * 5 + [bytes(300)])] == [200, 200, 100, 300]


async def test_who_asks_from_everywhere_makes_a_node_keep_nothing_much(open_hall, autojump_clock, monkeypatch):
    """The bound is on what pages take, not on their bytes alone; and an empty one is made faster than found."""
    monkeypatch.setattr("relay.channels.CHANNEL_PAGES", 200_000)
    async with open_hall() as hall:
        hall.channel.number = 999
        await hall.post(b"a post")
        line, pages = await hall.reader(live=False), hall.cell.delivery.channels.pages
        for after in range(1_000, 2_000):
            await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, after))
        assert not pages._kept
        await hall.post(*(b"a post" for _ in range(20)))
        for after in range(999, 1_019):
            await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, after))
        sizes = [len(frame) for _, frame in pages._kept.values()]
        assert 0 < sum(sizes) + 512 * len(sizes) <= 200_000
