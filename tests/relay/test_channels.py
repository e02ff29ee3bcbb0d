"""Broadcast channels on a node: tickets, live posts, pages, slow readers and floods; over a journal in memory."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

import relay.channels as module
from relay.core import records, wire
from relay.core.mailroom import reading
from relay.core.mailroom.state import split_key
from relay.core.trust.channels import make_ticket
from relay.core.wire import Code
from relay.limits import MAX_SUBSCRIPTIONS, MINUTE
from tests.channels import Channel
from tests.flipping import flipped
from tests.relay.conftest import ABROAD, CELL, FakeLine
from tests.relay.core.mailroom.conftest import key
from tests.relay.hall import NONCE, live_of, number


async def test_posts_go_to_who_is_subscribed_and_wait_for_nobody(open_hall, autojump_clock):
    async with open_hall() as hall:
        readers = [await hall.reader() for _ in range(100)]
        only_asks = await hall.reader(live=False)
        tip = hall.cell.journal.tip
        await hall.post(b"hello")
        assert hall.owner.codes() == [Code.STORED, Code.STORED]  # the terms, the post
        assert hall.cell.journal.tip == tip + 1  # one record; a subscription is none
        await trio.sleep(1)
        assert all(live_of(line) == [1] for line in readers) and live_of(only_asks) == []
        assert len(await hall.read(only_asks)) == 1
        for line in (*readers, only_asks):
            hall.cell.office.detach(line)
        channels = hall.cell.delivery.channels
        assert not channels._readers and not channels._channels and not channels._keys


async def test_a_frame_is_encoded_once(open_hall, autojump_clock, monkeypatch):
    async with open_hall() as hall:
        taken = []
        monkeypatch.setattr(FakeLine, "push", lambda self, frames: taken.append(frames[0]) or True)
        for _ in range(40):
            await hall.reader()
        await hall.cell.office.channels.post(hall.owner, [hall.channel.seal(b"hello")])
        await trio.sleep(1)
        frames = [one for one in taken if b"hello" not in one and len(one) > 500]
        assert len(frames) == 40 and len(set(map(id, frames))) == 1


async def test_who_shows_no_good_ticket_reads_nothing(open_hall, autojump_clock):
    async with open_hall() as hall:
        await hall.post(b"hello")
        stranger = await hall.reader(secret=b"s" * 32)
        assert stranger.of(wire.Channel)[-1].code == Code.NOT_SUBSCRIBER
        await hall.cell.office.channels.read(stranger, wire.Read(hall.channel.id, 0))
        assert (page := stranger.of(wire.Page)[-1]).code == Code.NOT_SUBSCRIBER and not page.posts
        ticket = make_ticket(hall.channel.secret, hall.channel.id, b"another connection's nonce", stranger.device)
        for bad in (ticket, flipped(ticket), bytes(64)):
            await hall.cell.office.channels.subscribe(stranger, wire.Subscribe(8, hall.channel.id, bad, True), NONCE)
            assert stranger.of(wire.Channel)[-1].code == Code.NOT_SUBSCRIBER
        await hall.post(b"again")
        await trio.sleep(1)
        assert live_of(stranger) == []


async def test_a_ticket_that_fails_ends_what_an_earlier_one_permitted(open_hall, autojump_clock):
    async with open_hall() as hall:
        line = await hall.reader()
        await hall.subscribe(line, secret=b"s" * 32)
        await hall.cell.office.channels.read(line, wire.Read(hall.channel.id, 0))
        assert line.of(wire.Page)[-1].code == Code.NOT_SUBSCRIBER


async def test_pages(open_hall, autojump_clock):
    async with open_hall(keep_posts=1000, keep_bytes=4 << 20) as hall:
        texts = [bytes([n % 256]) * 900 for n in range(300)]
        for start in range(0, 300, 100):
            await hall.post(*texts[start : start + 100])
        line = await hall.reader(live=False)
        assert (news := line.of(wire.Channel)[-1]).first == 1 and news.last == 300 and news.request == 7
        assert [number(post) for post in await hall.read(line)] == list(range(1, 301))
        assert [number(post) for post in await hall.read(line, after=290)] == list(range(291, 301))
        assert await hall.read(line, after=300) == []
        again = await hall.reader(live=False)
        await hall.read(again)
        one, two = line.of(wire.Page)[0], again.of(wire.Page)[0]
        assert one == two and hall.cell.delivery.channels.pages._bytes > 0


async def test_what_left_the_window_is_not_given(open_hall, autojump_clock):
    async with open_hall(keep_posts=3, keep_ms=MINUTE) as hall:
        for text in (b"1", b"2", b"3", b"4", b"5"):
            await hall.post(text)
        line = await hall.reader(live=False)
        assert [number(post) for post in await hall.read(line)] == [3, 4, 5]
        assert line.of(wire.Page)[0].after == 2  # where it begins: 1 and 2 are not to be had
        await trio.sleep(120)
        assert await hall.read(line) == []
        assert (line.of(wire.Page)[-1].first, line.of(wire.Page)[-1].last) == (0, 5)
        assert not hall.cell.state.sources


async def test_a_slow_reader_reads_on_demand_and_delays_nobody(open_hall, autojump_clock):
    async with open_hall() as hall:
        slow, quick = await hall.reader(room=3), await hall.reader()
        for text in b"abcdefgh":
            await hall.post(bytes([text]))
            await trio.sleep(0.2)
        assert live_of(quick) == list(range(1, 9))
        assert live_of(slow) == [1, 2] and slow.ended is None
        slow.make_room(100)
        await trio.sleep(2)
        news = slow.of(wire.Channel)[-1]
        assert (news.request, news.code, news.last) == (0, Code.STORED, 8)
        assert [number(post) for post in await hall.read(slow, after=2)] == list(range(3, 9))
        await hall.post(b"i")
        await trio.sleep(1)
        assert live_of(slow) == [1, 2, 9]


async def test_a_flood_goes_out_as_pages(open_hall, autojump_clock, monkeypatch):
    """More is posted at once than lines are written to: nothing is lost, and what waits in memory is bounded."""
    monkeypatch.setattr(module, "FANOUT_BYTES", 20_000)
    async with open_hall() as hall:
        readers = [await hall.reader() for _ in range(3)]
        await hall.post(*[bytes([n]) * 3_000 for n in range(30)])
        assert hall.cell.delivery.channels._filed_bytes <= 20_000
        await trio.sleep(3)
        for line in readers:
            seen = live_of(line)
            assert line.ended is None and seen == sorted(set(seen)) and len(seen) < 30
            assert line.of(wire.Channel)[-1].last == 30
            assert [number(post) for post in await hall.read(line)] == list(range(1, 31))


async def test_news_that_has_aged_while_others_were_told_is_told_anew(open_hall, autojump_clock, monkeypatch):
    """Another overrun comes while those who missed something hear of it: nobody is told the older end of it last."""
    monkeypatch.setattr(module, "_SLICE", 1)
    monkeypatch.setattr(module, "FANOUT_BYTES", 1)
    async with open_hall() as hall:
        readers = [await hall.reader() for _ in range(60)]
        first, take = readers[0], readers[0].push
        left = [b"2"]

        def push(frames):
            while left:
                hall.nursery.start_soon(hall.post, left.pop())
            return take(frames)

        first.push = push
        await hall.post(b"1")
        await trio.sleep(5)
        assert [line.of(wire.Channel)[-1].last for line in readers] == [2] * 60


async def test_what_strangers_send_costs_no_record(open_hall, autojump_clock):
    async with open_hall() as hall:
        desk, otto = hall.cell.office.channels, FakeLine(hall.otto, "o1")
        hall.cell.delivery.attach(otto)
        tip = hall.cell.journal.tip
        await desk.post(otto, [hall.channel.seal(b"not mine"), b"no post"])
        await desk.post(hall.owner, [flipped(hall.channel.seal(b"changed"))])
        await desk.publish(otto, hall.channel.sign(hall.channel.draft()))
        await desk.publish(otto, b"no terms")
        await desk.publish(hall.owner, Channel(key("a1"), ABROAD).publish().terms)
        await wait_all_tasks_blocked()
        assert otto.codes() == [Code.NOT_OWNER, Code.BAD_ENVELOPE, Code.NOT_OWNER, Code.BAD_RECORD]
        assert hall.owner.codes()[1:] == [Code.BAD_ENVELOPE, Code.BAD_RECORD]
        assert hall.cell.journal.tip == tip
        await desk.post(hall.owner, [hall.channel.seal(b"ahead", 1, version=9)])
        assert hall.owner.codes()[-1] == Code.BAD_ENVELOPE
        assert hall.cell.journal.tip == tip + 1  # by terms that nobody knows: it was seen to that we are not behind
        assert otto.ended is None


async def test_asking_for_channels_that_nobody_has_costs_a_block_a_second(open_hall, autojump_clock):
    async with open_hall() as hall:
        lines = [FakeLine(hall.otto, "o1") for _ in range(20)]
        await trio.sleep(5)
        tip = hall.cell.journal.tip
        async with trio.open_nursery() as nursery:
            for n, line in enumerate(lines):
                request = wire.Subscribe(1, bytes([n]) * 32, bytes(64), True)
                nursery.start_soon(hall.cell.office.channels.subscribe, line, request, NONCE)
        assert all(line.of(wire.Channel)[-1].code == Code.UNKNOWN_CHANNEL for line in lines)
        assert hall.cell.journal.tip - tip <= 2


async def test_a_new_secret_ends_subscriptions(open_hall, autojump_clock):
    async with open_hall() as hall:
        line, idle = await hall.reader(), await hall.reader(live=False)
        await hall.publish(keep_posts=50)
        await trio.sleep(1)
        assert line.of(wire.Channel)[-1].code == Code.STORED  # other terms, the same secret
        old, hall.channel.secret = hall.channel.secret, b"new secret" * 4
        await hall.publish(reader_key=hall.channel.draft().reader_key)
        await hall.post(b"not for them")
        await trio.sleep(1)
        for one in (line, idle):
            assert one.of(wire.Channel)[-1].code == Code.NOT_SUBSCRIBER and live_of(one) == []
            await hall.cell.office.channels.read(one, wire.Read(hall.channel.id, 0))
            assert one.of(wire.Page)[-1].code == Code.NOT_SUBSCRIBER
        assert (await hall.reader(secret=old)).of(wire.Channel)[-1].code == Code.NOT_SUBSCRIBER
        assert len(await hall.read(await hall.reader())) == 1


async def test_a_channel_that_is_closed(open_hall, autojump_clock):
    async with open_hall() as hall:
        line = await hall.reader()
        await hall.post(b"hello")
        await hall.publish(keep_ms=0)
        await trio.sleep(1)
        assert line.of(wire.Channel)[-1].code == Code.UNKNOWN_CHANNEL
        assert not hall.cell.state.channels and not hall.cell.state.sources


async def test_a_connection_has_so_many_subscriptions(open_hall, autojump_clock):
    async with open_hall() as hall:
        line = await hall.reader()
        channels, known = hall.cell.delivery.channels, hall.cell.state.channels[hall.channel.id]
        channels._channels[line] = tuple(bytes([n]) * 32 for n in range(MAX_SUBSCRIPTIONS))
        assert not channels.subscribe(line, known.terms, live=True)
        hall.cell.office.channels.unsubscribe(line, bytes(32))
        assert channels.subscribe(line, known.terms, live=True)


async def test_a_post_is_read_from_where_a_carry_put_it(open_hall, autojump_clock):
    async with open_hall() as hall:
        await hall.post(b"hello")
        state, items = hall.cell.state, []
        for source in reading.to_carry(state, state.index + 1):
            block = await hall.cell.journal.read(source.index)
            record = records.encode_record(reading.record_of(block, source))
            items.append(records.Carried(*split_key(source.key), record))
        hall.cell.intake.offer([records.encode_record(records.Carry(tuple(items)))])
        await wait_all_tasks_blocked()
        assert len(await hall.read(await hall.reader())) == 1


async def test_a_region_keeps_posts_no_longer_than_its_policy(open_hall, autojump_clock, monkeypatch):
    async with open_hall() as hall:
        monkeypatch.setattr(hall.cell.office._policies, "longest", lambda *cells: MINUTE)
        await hall.publish(keep_ms=MINUTE + 1)
        item = hall.owner.of(wire.Receipt)[-1].items[0]
        assert (item.code, item.newest) == (Code.LIFETIME, MINUTE)


async def test_a_node_that_is_behind_denies_nobody(open_hall, autojump_clock):
    """Terms that the cell has taken, and this node has not applied: posts by them, and tickets for their secret."""
    async with open_hall() as hall:
        hall.channel.secret = b"new secret" * 4
        terms = hall.channel.publish(reader_key=hall.channel.draft().reader_key).terms
        post, line = hall.channel.seal(b"by the new terms"), FakeLine(hall.otto, "o1")
        with hall.cell.delivery.still():
            hall.nursery.start_soon(hall.cell.office.channels.publish, hall.owner, terms)
            await trio.sleep(0.5)
            hall.nursery.start_soon(hall.cell.office.channels.post, hall.owner, [post])
            hall.nursery.start_soon(hall.subscribe, line)
            await trio.sleep(0.5)
            assert hall.owner.codes() == [Code.STORED] and not line.messages
        await trio.sleep(5)
        assert hall.owner.codes() == [Code.STORED] * 3
        assert line.of(wire.Channel)[0].code == Code.STORED


async def test_a_channel_is_made_without_a_block_of_its_own(open_hall, autojump_clock):
    """The fold judges: only who would be refused is worth asking the cell whether this node is behind."""
    async with open_hall() as hall:
        tip = hall.cell.journal.tip
        await hall.cell.office.channels.publish(hall.owner, Channel(key("a1"), CELL, b"\x05" * 32).publish().terms)
        await wait_all_tasks_blocked()
        assert hall.owner.codes()[-1] == Code.STORED and hall.cell.journal.tip == tip + 1
