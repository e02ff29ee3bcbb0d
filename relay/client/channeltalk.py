"""What is said of broadcast channels on one connection: questions with their answers, and the posts that come live."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import trio

from relay.client.connection import HungUp
from relay.core import wire
from relay.core.codec import digest
from relay.core.posts import post_id, read_header
from relay.core.trust.channels import make_ticket
from relay.limits import MIB

ANSWER_S: Final = 30.0  # seconds for an answer; then the connection is taken for dead
LIVE_BYTES: Final = 1 * MIB  # bytes of live posts that the app has not asked for; what comes past them is read later


class _Place(NamedTuple):
    """What READ asks for."""

    channel: bytes
    after: int

    def is_answered_by(self, page: wire.Page) -> bool:
        """Is it from that place, or from the beginning where that was let go? Else it answers another question: what
        lies between would seem not to be had."""
        ours = page.channel == self.channel and page.after >= self.after
        return ours and (page.after == self.after or page.after == page.first - 1 or not page.posts)


class Live:
    """Live posts of one channel that nobody has taken yet, and the newest news. `missed`: there were more."""

    def __init__(self) -> None:
        self.posts: deque[bytes] = deque()
        self.size = 0
        self.missed = False
        self.news: wire.Channel | None = None
        self.came = trio.Event()

    def pop(self) -> bytes:
        """The oldest one."""
        post = self.posts.popleft()
        self.size -= len(post)
        return post

    def ring(self) -> None:
        self.came.set()
        self.came = trio.Event()


class ChannelTalk:
    """`say` sends a message; `device` and the CHALLENGE's `nonce` are what tickets are made of. Methods raise HungUp
    where the connection ends first."""

    def __init__(
        self, say: Callable[[wire.ClientMessage], Awaitable[None]], device: bytes, nonce: bytes, cell: str
    ) -> None:
        self._say = say
        self._device = device
        self._nonce = nonce
        self._cell = cell  # the node's
        self._request = 0
        self._asked: dict[object, list[tuple[trio.Event, list[Any]]]] = {}
        self._live: dict[bytes, Live] = {}
        self.ended = False

    # --- what comes ------------------------------------------------------------------------------
    def took(self, receipt: wire.Receipt) -> None:
        """Some of it may be of terms or posts."""
        if self._asked:
            for item in receipt.items:
                self._answer(item.id, item)

    def take(self, message: wire.Channel | wire.Page | wire.Posted) -> None:
        """Raises ProtocolError where a post cannot be read."""
        match message:
            case wire.Channel(request=0):
                live = self._live.get(message.channel)
                if live is not None:
                    live.news = message
                    live.ring()
            case wire.Channel():
                self._answer(message.request, message)
            case wire.Page():
                for key in [one for one in self._asked if isinstance(one, _Place) and one.is_answered_by(message)]:
                    self._answer(key, message)
            case wire.Posted(post):
                self._posted(post)

    def _posted(self, post: bytes) -> None:
        live = self._live.get(read_header(post).channel)
        if live is None:
            return
        if live.size + len(post) > LIVE_BYTES:
            live.missed = True
        else:
            live.posts.append(post)
            live.size += len(post)
        live.ring()

    def end(self) -> None:
        """The connection is over."""
        self.ended = True
        for waiters in self._asked.values():
            for event, _ in waiters:
                event.set()
        for live in self._live.values():
            live.came.set()

    def _answer(self, key: object, answer: object) -> None:
        for event, answers in self._asked.get(key, ()):
            answers.append(answer)
            event.set()

    # --- what is asked ---------------------------------------------------------------------------
    async def _ask(self, key: object, message: wire.ClientMessage) -> Any:
        waiter = (trio.Event(), list[Any]())
        self._asked.setdefault(key, []).append(waiter)
        try:
            self._check()
            with trio.move_on_after(ANSWER_S):
                try:
                    await self._say(message)
                except trio.TooSlowError:
                    raise HungUp("the node takes nothing") from None
                await waiter[0].wait()
        finally:
            self._asked[key].remove(waiter)
            if not self._asked[key]:
                del self._asked[key]
        if not waiter[1]:
            raise HungUp("the connection ended before the answer")
        return waiter[1][0]

    def _check(self) -> None:
        if self.ended:
            raise HungUp("the connection is over")

    async def publish(self, terms: bytes) -> wire.ReceiptItem:
        """The outcome of TERMS."""
        item: wire.ReceiptItem = await self._ask(digest(terms), wire.Terms(terms))
        return item

    async def post(self, post: bytes) -> wire.ReceiptItem:
        """The outcome of one post."""
        item: wire.ReceiptItem = await self._ask(post_id(post), wire.Posts((post,)))
        return item

    async def subscribe(self, channel: bytes, cell: str, secret: bytes, *, live: bool) -> wire.Channel:
        """Show a ticket for a channel of `cell`."""
        self._request += 1
        if live:
            self._live[channel] = Live()
        ticket = make_ticket(secret, channel, self._nonce, self._device)
        said: wire.ClientMessage = wire.Subscribe(self._request, channel, ticket, live)
        if cell != self._cell:
            said = wire.SubscribeFar(self._request, channel, ticket, live, cell)
        news: wire.Channel = await self._ask(self._request, said)
        return news

    async def read(self, channel: bytes, after: int) -> wire.Page:
        """The next posts past a place."""
        page: wire.Page = await self._ask(_Place(channel, after), wire.Read(channel, after))
        return page

    async def unsubscribe(self, channel: bytes) -> None:
        """Nobody here reads it any more. Raises HungUp."""
        if (live := self._live.pop(channel, None)) is not None:
            live.ring()
        if not self.ended:
            try:
                await self._say(wire.Unsubscribe(channel))
            except trio.TooSlowError:
                raise HungUp("the node takes nothing") from None

    async def next(self, channel: bytes) -> Live:
        """Wait until there is something live of a channel that was subscribed to."""
        live = self._live[channel]
        while not (live.posts or live.missed or live.news):
            self._check()
            if self._live.get(channel) is None:
                raise HungUp("nobody reads this channel any more")
            await live.came.wait()
        return live
