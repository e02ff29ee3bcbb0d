"""Broadcast channels for the app: make one and post to it, join one by its card and read it (ADR 36).

    card = await client.channels.create("news")             its owner
    await client.channels.post(card.channel, b"hello")

    await client.channels.join(card)                        anybody who was given the card
    async for post in client.channels.posts(card.channel):
        ...

The reader's place lies in the reader's own store; the relay keeps nothing of who reads. What was drafted or queued
lives in the owner's store, and goes out with the next call where this one was cut short.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, TypeVar
from weakref import WeakValueDictionary

import trio

from relay.client import channelstore as store
from relay.client.channelcard import ChannelCard
from relay.client.channeltalk import ChannelTalk, Live
from relay.client.connection import HungUp
from relay.client.desk import Desk
from relay.client.errors import TooLarge, send_refused
from relay.client.store import Db
from relay.core import wire
from relay.core.posts import MAX_NUMBER, MAX_TEXT, open_post, read_header, verify_post
from relay.core.trust.channels import VerifiedTerms
from relay.core.wire import Code
from relay.errors import BadSignature, OperatorError, ProtocolError, Rollback, TrustError
from relay.limits import DAY, MAX_STRING, MIB

T = TypeVar("T")

AGAIN_S: Final = 0.2  # seconds until what may be tried again is, doubling
AGAIN_MAX_S: Final = 5.0
TRIES: Final = 8  # answers STALE to one post: with each it is sealed anew; subscriptions that show older terms
KEEP_MS, KEEP_POSTS, KEEP_BYTES = 7 * DAY, 1_000, 4 * MIB  # the window of a channel for which none was said


@dataclass(frozen=True, slots=True)
class ChannelPost:
    """A post. `number` counts all posts of the channel from 1; `gap`: so many before it are not to be had (they left
    the window, or were withheld); `created`: Unix ms by the owner's clock."""

    channel: bytes
    number: int
    content: bytes
    name: str
    created: int
    gap: int


class Channels:
    """`client.channels`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._talk: ChannelTalk | None = None
        self._connected = trio.Event()
        self._posting: defaultdict[bytes, trio.Lock] = defaultdict(trio.Lock)
        self.reading: WeakValueDictionary[bytes, ChannelPosts] = WeakValueDictionary()  # who subscribed last

    def connected(self, talk: ChannelTalk) -> None:
        """There is a new connection."""
        self._talk = talk
        self._connected.set()
        self._connected = trio.Event()

    async def talk(self) -> ChannelTalk:
        """The connection, when there is one. Raises why the client ended."""
        while self._talk is None or self._talk.ended:
            self._desk.check()
            connected = self._connected
            with trio.move_on_after(1.0):  # the client may end meanwhile
                await connected.wait()
        return self._talk

    async def run(self, work: Callable[[Db], T], *, lazily: bool = False) -> T:
        """One transaction over the store."""
        return await self._desk.run(work, lazily=lazily)

    # --- own channels ----------------------------------------------------------------------------
    async def create(
        self, title: str, keep_ms: int = KEEP_MS, keep_posts: int = KEEP_POSTS, keep_bytes: int = KEEP_BYTES
    ) -> ChannelCard:
        """Make a channel that keeps posts so long, so many, so many bytes of them. The title stays here.

        Raises SendRefused (CHANNELS_FULL; LIFETIME: the region keeps mail for less), TrustError (a window that is out
        of bounds), OperatorError (an empty title)."""
        self._check(title, b"")
        if not title.strip():
            raise OperatorError("a channel needs a title", "It stays on this device: `posthouse channel create news`")
        desk, draw = self._desk, self._desk.seams.random_bytes
        kept = {"keep_ms": keep_ms, "keep_posts": keep_posts, "keep_bytes": keep_bytes}
        seed, secret = draw(32), draw(32)
        card = await self.run(lambda db: store.create(db, desk.own, title, seed, secret, kept))
        await self._publish(card.channel)
        return card

    async def renew(self, channel: bytes) -> ChannelCard:
        """Draw a new secret: from here on, only who gets the new card reads. Raises like `create`; NotOwner."""
        secret = self._desk.seams.random_bytes(32)
        async with self._posting[channel]:  # a post is by the terms that the relay has
            await self._publish(channel)
            await self.run(lambda db: store.redraft(db, channel, {}, secret))
            await self._publish(channel)
        return next(one.card for one in await self.list() if one.card.channel == channel)

    async def close(self, channel: bytes) -> None:
        """End a channel: what it kept goes, and it is forgotten here."""
        async with self._posting[channel]:
            if not await self.run(lambda db: store.closing(db, channel)):
                await self._publish(channel)
                await self.run(lambda db: store.redraft(db, channel, {"keep_ms": 0}))
            await self._publish(channel)

    async def _publish(self, channel: bytes) -> None:
        """Have the relay take our newest terms, if it has not yet."""
        draft = await self.run(lambda db: store.draft_of(db, channel), lazily=True)
        if not draft:
            return
        item = await self._until_final(lambda talk: talk.publish(draft))
        if not Code(item.code).taken:
            await self.run(lambda db: store.abandoned(db, channel, draft))
            raise send_refused(item.code, "the channel")
        await self.run(lambda db: store.published(db, channel, draft))

    async def post(self, channel: bytes, content: bytes, name: str = "") -> int:
        """Post to an own channel; its number, once it is durable in our cell. In our store when this is cancelled.

        Raises SendRefused, TooLarge, UnknownChannel, NotOwner, TrustError (the node lies), or why the client ended."""
        self._check(name, content)
        row = await self.run(lambda db: store.queue(db, channel, name, content))
        async with self._posting[channel]:
            await self._publish(channel)
            number = 0
            while await self.run(lambda db: store.waits(db, row), lazily=True):
                number = await self._post_next(channel)
        return number

    async def _post_next(self, channel: bytes) -> int:
        """Post what waits first. Its number; 0 where another process was faster."""
        desk = self._desk
        for _ in range(TRIES):
            out = await self.run(
                lambda db: store.next_post(db, channel, desk.server_now, desk.seams.random_bytes)
            )
            if out is None:
                return 0
            if await self._post_once(channel, out):
                return out.number
        raise send_refused(Code.STALE, "the post")

    async def _post_once(self, channel: bytes, out: store.Outgoing) -> bool:
        """True where it was taken; False where it is to be sealed anew. Raises SendRefused."""
        item = await self._until_final(lambda talk: talk.post(out.post))
        if Code(item.code).taken:
            await self.run(lambda db: store.settle_post(db, channel, out))
            return True
        if item.code != Code.STALE:
            await self.run(lambda db: store.drop_post(db, out))
            raise send_refused(item.code, "the post")
        if item.newest > MAX_NUMBER // 2:  # kept as ours it would leave no number to post under
            raise TrustError(f"the node says that post {item.newest} was taken, and nobody ever posts so many")
        await self.run(lambda db: store.reseal_post(db, channel, out, item.newest))
        return False

    async def _until_final(self, ask: Callable[[ChannelTalk], Awaitable[wire.ReceiptItem]]) -> wire.ReceiptItem:
        """Ask, on one connection after the other, until the outcome is final."""
        talk, pause = await self.talk(), AGAIN_S
        while True:
            try:
                item = await ask(talk)
                if item.code not in Code.__members__.values():
                    raise send_refused(item.code, "the post")
                if Code(item.code).final:
                    return item
                await trio.sleep(pause)
                pause = min(2 * pause, AGAIN_MAX_S)
            except HungUp:
                talk = await self.talk()

    def _check(self, name: str, content: bytes) -> None:
        self._desk.check()
        if len(content) > MAX_TEXT:
            raise TooLarge(f"a post of {len(content)} bytes", f"At most {MAX_TEXT}: send a link, or split it")
        if len(name) > MAX_STRING:
            raise TooLarge(f"a name of {len(name)} characters", f"At most {MAX_STRING}")

    # --- channels of others ----------------------------------------------------------------------
    async def join(self, card: ChannelCard, title: str = "") -> None:
        """Keep a card. Nobody is told: not the owner, and not a relay before `posts` reads."""
        self._check(title, b"")
        await self.run(lambda db: store.join(db, card, title))

    async def leave(self, channel: bytes) -> None:
        """Forget a channel, and the place in it. Raises UnknownChannel."""
        await self.run(lambda db: store.leave(db, channel))
        if (posts := self.reading.get(channel)) is not None:
            await posts.aclose()

    async def list(self) -> list[store.Known]:
        """All channels that this device owns or reads."""
        return await self.run(store.known)

    def posts(self, channel: bytes, *, follow: bool = True) -> ChannelPosts:
        """What comes after our place, in order; with `follow` for ever, else what there is now. A post is settled when
        the next one is asked for. Raises UnknownChannel, SendRefused (NOT_SUBSCRIBER, UNKNOWN_CHANNEL), TrustError (the
        node shows what the owner did not sign), or why the client ended."""
        return ChannelPosts(self, self._desk, channel, follow=follow)


class ChannelPosts(AsyncIterator[ChannelPost]):
    """The iterator over one channel."""

    def __init__(self, channels: Channels, desk: Desk, channel: bytes, *, follow: bool) -> None:
        self._channels = channels
        self._desk = desk
        self._channel = channel
        self._follow = follow
        self._secrets: list[bytes] = []
        self._have = -1  # the number of the last post that was fetched; -1: nothing was begun
        self._newest = 0  # of the newest post that we heard of on this connection
        self._void = 0  # up to here the node has no more past `_have`: what is missing below it is not to be had
        self._ahead: deque[ChannelPost] = deque()
        self._last = 0  # the number of the post that the app has
        self._talk: ChannelTalk | None = None  # the connection on which we have subscribed
        self._closed = False
        self._terms: VerifiedTerms

    def __aiter__(self) -> ChannelPosts:
        return self

    async def aclose(self) -> None:
        """Read no more, and let the node know. (Who just stops is sent live posts as long as the connection lasts.)"""
        self._closed = True
        talk, self._talk = self._talk, None
        if talk is not None and self._channels.reading.get(self._channel) is self:
            with suppress(HungUp):  # it ended with the connection
                await talk.unsubscribe(self._channel)

    async def __anext__(self) -> ChannelPost:
        channels, last = self._channels, self._last
        if last:
            await channels.run(lambda db: store.put_place(db, self._channel, last), lazily=True)
            self._last = 0
        while not self._ahead or self._closed:
            self._desk.check()
            if self._closed:
                raise StopAsyncIteration
            try:
                if not await self._more():
                    await self.aclose()
                    raise StopAsyncIteration
            except HungUp:
                self._talk = None
        post = self._ahead.popleft()
        self._last = post.number
        return post

    async def _more(self) -> bool:
        """One step on. False where there is no more now, and nobody wants to wait."""
        talk = await self._channels.talk()
        if talk is not self._talk:
            await self._subscribe(talk)
            self._talk = talk
        elif max(self._have, self._void) < self._newest:
            await self._read(talk)
        elif not self._follow:
            return False
        else:
            self._take_live(await talk.next(self._channel))
        return True

    async def _subscribe(self, talk: ChannelTalk) -> None:
        cell, self._secrets, place = await self._channels.run(
            lambda db: store.reading(db, self._channel), lazily=True
        )
        self._channels.reading[self._channel] = self
        self._have = max(self._have, place)
        self._newest = self._void = 0  # what another node said of its end is nothing to go by: this one may be behind
        for attempt in range(TRIES):
            news = await talk.subscribe(self._channel, cell, self._secrets[0], live=self._follow)
            try:
                await self._news(news)
                return
            except Rollback:
                if attempt == TRIES - 1:
                    raise
                await trio.sleep(AGAIN_S * (attempt + 1))  # a node that is behind the one that we asked before

    async def _news(self, news: wire.Channel) -> None:
        if news.code == Code.OVERLOADED or (self._follow and news.code == Code.UNREACHABLE):
            await trio.sleep(AGAIN_MAX_S / 2)
            raise HungUp("the node is overloaded, or does not reach the channel's cell")
        if news.code != Code.STORED:
            raise send_refused(news.code, "reading the channel")
        self._terms = await self._channels.run(lambda db: store.learn(db, self._channel, news.terms))
        self._newest = max(self._newest, news.last)

    async def _read(self, talk: ChannelTalk) -> None:
        page = await talk.read(self._channel, self._have)
        if page.code == Code.OVERLOADED:
            await trio.sleep(AGAIN_S)
        elif page.code != Code.STORED:
            self._talk = None  # the terms may have changed: the next ticket tells
        else:
            self._newest, before = max(self._newest, page.last), self._have
            for post in page.posts:
                self._take(post)
            if self._have == before:
                self._newest = self._void = page.last  # what there was up to it has left the window, or is not shown

    def _take_live(self, live: Live) -> None:
        news, live.news = live.news, None
        if news is not None:
            if news.code != Code.STORED:
                raise send_refused(news.code, "reading the channel")
            self._newest = max(self._newest, news.last)
            self._talk = None if news.terms != self._terms.signed else self._talk  # verified when we subscribe anew
        while live.posts:
            number = read_header(live.posts[0]).number
            if number > max(self._have, self._void) + 1:
                self._newest = max(self._newest, number)  # we missed some: read them
                return
            self._take(live.pop())
        if live.missed:
            live.missed = False
            self._newest = max(self._newest, self._have + 1, self._void + 1)

    def _take(self, post: bytes) -> None:
        """A post from a node, if it is news. Raises TrustError where it is not the owner's."""
        try:
            header = verify_post(post, self._terms.terms.owner_key)
        except ProtocolError as error:
            raise TrustError(f"the node shows a post that is none: {error.text}") from None
        if header.channel != self._channel:
            raise TrustError("the node shows a post of another channel")
        if header.number <= self._have:
            return
        gap, self._have = (header.number - self._have - 1 if self._have > 0 else 0), header.number
        for secret in self._secrets:
            try:
                content = open_post(post, secret)
            except (BadSignature, ProtocolError):
                continue
            one = ChannelPost(self._channel, header.number, content.data, content.name, header.created, gap)
            self._ahead.append(one)
            return
        self._desk.stats.unreadable += 1  # of a time when another secret held
