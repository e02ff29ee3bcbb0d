"""Broadcast channels in the SDK: what is kept, what goes out again, and a node that lies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
from nacl.signing import SigningKey
from trio.testing import MockClock

from relay.client import ChannelCard, ChannelPost, Client, NotOwner, SendRefused, TooLarge, UnknownChannel
from relay.client import channelstore as store
from relay.client.channeltalk import Live
from relay.client.connection import HungUp
from relay.client.errors import BadCard
from relay.core import wire
from relay.core.codec import digest
from relay.core.posts import MAX_NUMBER, MAX_TEXT, open_post, post_id, read_header
from relay.core.trust.channels import verify_terms
from relay.core.wire import Code
from relay.errors import OperatorError, Rollback, TrustError
from tests.channels import Channel
from tests.flipping import flipped
from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import enrol, opened

OWNER, THIEF = SigningKey(b"\x01" * 32), SigningKey(b"\x02" * 32)
CELL = "norden/1"


class Node:
    """What a node says of one channel; tests change it. Also stands for the connection to it."""

    def __init__(self) -> None:
        self.ended = False
        self.terms = b""
        self.posts: list[bytes] = []
        self.codes: list[Code] = []  # of the next answers to a post, instead of STORED
        self.taken: list[bytes] = []
        self.lose = 0  # so many receipts are lost with the connection
        self.last: int | None = None
        self.live = Live()
        self.older: list[bytes] = []  # terms that are shown first
        self.stale = 7  # what it says to be the newest number, with STALE
        self.reads = 1_000  # pages that may be asked for
        self.left: list[bytes] = []

    def _newest(self) -> int:
        return self.last if self.last is not None else max((read_header(post).number for post in self.posts), default=0)

    async def publish(self, terms: bytes) -> wire.ReceiptItem:
        code = self.codes.pop(0) if self.codes else Code.STORED
        self.terms = terms if code is Code.STORED else self.terms
        return wire.ReceiptItem(digest(terms), code, 0, 0, CELL)

    async def post(self, post: bytes) -> wire.ReceiptItem:
        code = self.codes.pop(0) if self.codes else Code.STORED
        if code is Code.STORED and post not in self.taken:
            self.taken.append(post)
        if self.lose:
            self.lose -= 1
            raise HungUp("cut")
        return wire.ReceiptItem(post_id(post), code, 0, self.stale if code is Code.STALE else 0, CELL)

    async def subscribe(self, channel: bytes, cell: str, secret: bytes, *, live: bool) -> wire.Channel:
        code, terms = self.codes.pop(0) if self.codes else Code.STORED, self.older.pop(0) if self.older else self.terms
        return wire.Channel(1, channel, code, terms, 1, self._newest())

    async def read(self, channel: bytes, after: int) -> wire.Page:
        self.reads -= 1
        assert self.reads >= 0, "asked again and again for what is not there"
        posts = tuple(self.posts)
        return wire.Page(channel, after, Code.STORED, 1, self._newest(), posts if after < self._newest() else ())

    async def next(self, channel: bytes) -> Live:
        return self.live

    async def unsubscribe(self, channel: bytes) -> None:
        self.left.append(channel)


class Desk:
    """A client of the fake federation, that speaks to `node` of channels."""

    def __init__(self, client: Client, node: Node) -> None:
        self.client, self.node, self.channels = client, node, client.channels
        self.channels.talk = self._talk  # type: ignore[method-assign,assignment]
        self.channel = Channel(OWNER, CELL)
        node.terms = self.channel.publish().terms
        self.card = ChannelCard(CELL, self.channel.id, self.channel.secret)

    async def _talk(self, but: object = None) -> Node:
        return self.node

    async def read(self) -> list[ChannelPost]:
        return [post async for post in self.channels.posts(self.channel.id, follow=False)]


@asynccontextmanager
async def desk_of(fed: Federation, tmp_path: Path) -> AsyncIterator[Desk]:
    path = enrol(fed, tmp_path / "reader.sqlite", "norden") if not (tmp_path / "reader.sqlite").exists() else (
        tmp_path / "reader.sqlite"
    )
    async with opened(fed, path) as client:
        desk = Desk(client, Node())
        await desk.channels.join(desk.card, "news")
        yield desk


def test_a_card_is_read_back() -> None:
    card = ChannelCard(CELL, bytes(range(32)), bytes(32))
    assert ChannelCard.parse(f" {card}\n") == card
    for bad in ("", "posthouse:norden:abc", str(card)[:-1], str(card)[:-1] + "b", str(card).upper()):
        with pytest.raises(BadCard) as refused:
            ChannelCard.parse(bad)
        assert str(card)[-52:] not in str(refused.value)  # the secret is not shown


async def test_the_place_is_kept_here(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        desk.node.posts = posts = [desk.channel.seal(b"one"), desk.channel.seal(b"two")]
        assert [post.content for post in await desk.read()] == [b"one", b"two"]
    async with desk_of(fed, tmp_path) as desk:
        desk.channel.number = 4
        desk.node.posts = [*posts, desk.channel.seal(b"five")]
        (post,) = await desk.read()
        assert (post.number, post.content, post.gap) == (5, b"five", 2)  # 3 and 4 are not to be had
        assert await desk.read() == []


async def test_what_is_not_settled_comes_again(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        desk.node.posts = [desk.channel.seal(b"one"), desk.channel.seal(b"two")]
        posts = desk.channels.posts(desk.channel.id, follow=False)
        assert (await anext(posts)).number == 1
        assert (await anext(posts)).number == 2  # which settles 1
        assert [post.number for post in await desk.read()] == [2]


async def test_live_posts_and_what_was_missed(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        sealed = [desk.channel.seal(b"%d" % n) for n in range(1, 7)]
        posts, live = desk.channels.posts(desk.channel.id), desk.node.live
        live.posts.extend(sealed[:2])
        assert [(await anext(posts)).number for _ in range(2)] == [1, 2]
        desk.node.posts = sealed[:4]
        live.posts.append(sealed[4])  # 3 and 4 were not sent: they are read
        desk.node.posts = sealed[:5]
        assert [(await anext(posts)).number for _ in range(3)] == [3, 4, 5]
        live.missed, desk.node.posts = True, sealed
        assert (await anext(posts)).number == 6


async def test_what_left_the_window_is_a_gap(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        desk.node.posts = [desk.channel.seal(b"one")]
        assert len(await desk.read()) == 1
        desk.node.posts, desk.node.last = [], 9
        assert await desk.read() == []
        desk.node.last, desk.channel.number = None, 11
        desk.node.posts = [desk.channel.seal(b"twelve")]
        assert [(post.number, post.gap) for post in await desk.read()] == [(12, 10)]


async def test_a_node_that_is_behind_the_one_before_hides_nothing(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    """We heard of posts on one connection, and the next one is to a node that has not applied them yet."""
    async with desk_of(fed, tmp_path) as desk:
        one, two, three = (desk.channel.seal(b"%d" % n) for n in range(1, 4))
        posts = desk.channels.posts(desk.channel.id)
        desk.node.posts, desk.node.last = [one], 3
        assert (await anext(posts)).number == 1
        before = desk.node
        desk.node = Node()
        desk.node.terms, desk.node.posts = before.terms, [one]
        desk.node.live.posts.extend([two, three])  # when it applies them
        desk.node.reads = 10
        assert [(await anext(posts)).number for _ in range(2)] == [2, 3]


async def test_a_live_post_is_given_though_what_came_before_it_is_not_to_be_had(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    async with desk_of(fed, tmp_path) as desk:
        sealed = [desk.channel.seal(b"%d" % n) for n in range(1, 6)]
        posts = desk.channels.posts(desk.channel.id)
        desk.node.posts, desk.node.reads = sealed[:1], 10
        assert (await anext(posts)).number == 1
        desk.node.posts, desk.node.last = [], 5  # the window is short: when we read, it has gone
        desk.node.live.posts.extend(sealed[3:])
        assert [((post := await anext(posts)).number, post.gap) for _ in range(2)] == [(4, 2), (5, 0)]


# --- a node that lies ----------------------------------------------------------------------------
async def test_a_post_that_the_owner_did_not_sign(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        forger = Channel(THIEF, CELL)
        forger.id, forger.secret, forger.terms = desk.channel.id, desk.channel.secret, desk.channel.terms
        other = Channel(OWNER, CELL, b"\x05" * 32)
        other.publish()
        for bad in (forger.seal(b"forged"), flipped(desk.channel.seal(b"x", 1), 60), b"none", other.seal(b"other's")):
            desk.node.posts, desk.node.last = [bad], 1
            with pytest.raises(TrustError):
                await desk.read()


async def test_posts_shown_twice_or_out_of_order_are_given_once(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    async with desk_of(fed, tmp_path) as desk:
        one, two = desk.channel.seal(b"one"), desk.channel.seal(b"two")
        desk.node.posts = [one, one, two, one, two]
        assert [post.number for post in await desk.read()] == [1, 2]
        desk.node.last = 3
        assert await desk.read() == []


async def test_terms_that_do_not_hold(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        first = desk.node.terms
        desk.node.terms = desk.channel.publish(keep_posts=9).terms
        assert await desk.read() == []
        desk.node.terms = first
        with pytest.raises(Rollback):
            await desk.read()
        assert desk.channel.terms is not None
        fork = Channel(OWNER, CELL)
        fork.secret = desk.channel.secret
        fork.publish()
        desk.node.terms = fork.publish(keep_posts=10).terms
        with pytest.raises(TrustError, match="fork"):
            await desk.read()
        for bad in (
            Channel(THIEF, CELL).publish().terms, Channel(OWNER, "sueden/1").publish().terms, flipped(first),
            desk.channel.publish(reader_key=bytes(THIEF.verify_key)).terms,
        ):  # fmt: skip
            desk.node.terms = bad
            with pytest.raises(TrustError):
                await desk.read()


async def test_a_node_that_is_behind_is_asked_again(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        first, second = desk.node.terms, desk.channel.publish(keep_posts=9).terms
        desk.node.terms = second
        assert await desk.read() == []
        desk.node.older = [first, first]
        assert await desk.read() == [] and not desk.node.older


async def test_what_was_sealed_before_the_secret_that_we_have(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    async with desk_of(fed, tmp_path) as desk:
        old = desk.channel.seal(b"old")
        desk.channel.secret = b"new secret" * 3 + b"!!"
        desk.node.terms = desk.channel.publish(reader_key=desk.channel.draft().reader_key).terms
        before = desk.channel.secret
        desk.node.posts = [old, desk.channel.seal(b"new")]
        await desk.channels.leave(desk.channel.id)
        await desk.channels.join(ChannelCard(CELL, desk.channel.id, before))
        assert [post.content for post in await desk.read()] == [b"new"]
        assert desk.client.stats.unreadable == 1


# --- the owner -----------------------------------------------------------------------------------
async def test_a_post_whose_receipt_was_lost_goes_out_as_it_was(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    async with desk_of(fed, tmp_path) as desk:
        card = await desk.channels.create("mine")
        desk.node.lose = 2
        assert await desk.channels.post(card.channel, b"one") == 1
        assert len(desk.node.taken) == 1  # the same bytes each time
        desk.node.codes = [Code.STALE]  # another process of ours was faster: up to 7 is taken
        assert await desk.channels.post(card.channel, b"two") == 8
        desk.node.codes = [Code.OVERLOADED, Code.OVERLOADED]
        assert await desk.channels.post(card.channel, b"three") == 9
        assert [read_header(post).number for post in desk.node.taken] == [1, 8, 9]


async def test_refusals(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        desk.node.codes = [Code.CHANNELS_FULL]
        with pytest.raises(SendRefused) as refused:
            await desk.channels.create("mine")
        assert refused.value.code == Code.CHANNELS_FULL
        assert [one.title for one in await desk.channels.list()] == ["news"]
        card = await desk.channels.create("mine")
        desk.node.codes = [Code.STALE] * 8
        with pytest.raises(SendRefused):
            await desk.channels.post(card.channel, b"x")
        desk.node.codes = [Code.UNKNOWN_CHANNEL]
        with pytest.raises(SendRefused):
            await desk.channels.post(card.channel, b"x")
        with pytest.raises(NotOwner):
            await desk.channels.post(desk.channel.id, b"x")
        with pytest.raises(UnknownChannel):
            await desk.channels.post(b"u" * 32, b"x")
        with pytest.raises(TooLarge):
            await desk.channels.post(card.channel, bytes(MAX_TEXT + 1))
        with pytest.raises(TrustError):
            await desk.channels.create("too long", keep_ms=1 << 50)


async def test_renewing_and_closing(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        card = await desk.channels.create("mine")
        renewed = await desk.channels.renew(card.channel)
        assert renewed.channel == card.channel and renewed.secret != card.secret
        assert verify_terms(desk.node.terms).version == 2
        await desk.channels.close(card.channel)
        assert verify_terms(desk.node.terms).terms.keep_ms == 0
        assert [one.title for one in await desk.channels.list()] == ["news"]


async def test_a_new_secret_that_the_cell_refuses_is_forgotten(
    fed: Federation, tmp_path: Path, clock: MockClock
) -> None:
    """Else posts would be sealed with it, and nobody could open them: the region keeps mail for less by now."""
    async with desk_of(fed, tmp_path) as desk:
        card = await desk.channels.create("mine")
        desk.node.codes = [Code.LIFETIME]
        with pytest.raises(SendRefused):
            await desk.channels.renew(card.channel)
        assert [one.card for one in await desk.channels.list() if one.mine] == [card]
        await desk.channels.post(card.channel, b"hello")
        assert open_post(desk.node.taken[-1], card.secret).data == b"hello"


async def test_a_post_to_a_channel_whose_closing_was_begun(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    """It was said to be stored, and went with the channel."""
    async with desk_of(fed, tmp_path) as desk:
        card = await desk.channels.create("mine")
        await desk.channels.run(lambda db: store.redraft(db, card.channel, {"keep_ms": 0}))
        with pytest.raises(UnknownChannel):
            await desk.channels.post(card.channel, b"hello")
        await desk.channels.close(card.channel)
        assert [one.title for one in await desk.channels.list()] == ["news"]


async def test_a_node_cannot_use_up_the_numbers(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        card = await desk.channels.create("mine")
        desk.node.codes, desk.node.stale = [Code.STALE], MAX_NUMBER
        with pytest.raises(TrustError):
            await desk.channels.post(card.channel, b"one")
        assert await desk.channels.post(card.channel, b"two") == 2  # the first one goes out with it
        assert [read_header(post).number for post in desk.node.taken] == [1, 2]


async def test_who_reads_no_more_tells_the_node(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        desk.node.posts = [desk.channel.seal(b"one"), desk.channel.seal(b"two")]
        assert len(await desk.read()) == 2 and desk.node.left == [desk.channel.id]
        async with aclosing(desk.channels.posts(desk.channel.id)) as never_asked:
            pass
        assert desk.node.left == [desk.channel.id]
        desk.node.posts.append(desk.channel.seal(b"three"))
        older, newer = desk.channels.posts(desk.channel.id), desk.channels.posts(desk.channel.id)
        assert [(await anext(one)).number for one in (older, newer)] == [3, 3]
        await older.aclose()
        assert desk.node.left == [desk.channel.id], "somebody else reads it"
        await newer.aclose()
        await newer.aclose()
        assert desk.node.left == [desk.channel.id] * 2
        for ended in (never_asked, newer):
            with pytest.raises(StopAsyncIteration):
                await anext(ended)
        desk.node.posts.append(desk.channel.seal(b"four"))
        left = desk.channels.posts(desk.channel.id)
        assert (await anext(left)).number == 4
        await desk.channels.leave(desk.channel.id)
        assert desk.node.left == [desk.channel.id] * 3


async def test_a_channel_without_a_title_is_not_made(fed: Federation, tmp_path: Path, clock: MockClock) -> None:
    async with desk_of(fed, tmp_path) as desk:
        for empty in ("", " \t"):
            with pytest.raises(OperatorError, match="title"):
                await desk.channels.create(empty)
        assert [one.title for one in await desk.channels.list()] == ["news"]
