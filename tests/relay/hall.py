"""A cell with a broadcast channel, its owner and its readers, for tests; over a journal in memory."""

from __future__ import annotations

from trio.testing import wait_all_tasks_blocked

from relay.core import wire
from relay.core.posts import read_header
from relay.core.trust.channels import make_ticket
from relay.core.wire import Code
from relay.limits import CHANNEL_PAGE
from tests.channels import Channel
from tests.relay.conftest import CELL, FakeLine
from tests.relay.core.mailroom.conftest import User, key

NONCE = b"n" * 32


class Hall:
    """A cell with anna, who owns a channel, and any number of readers, all devices of otto."""

    def __init__(self, cell, nursery):
        self.cell, self.nursery = cell, nursery
        self.anna, self.otto = User("anna", CELL), User("otto", CELL)
        self.anna.record("a1")
        self.otto.record("o1")
        self.channel = Channel(key("a1"), CELL)

    async def open(self, **terms):
        self.owner = await self.cell.join(self.nursery, self.anna, "a1", receive=False)
        await self.cell.join(self.nursery, self.otto, "o1", receive=False)
        await self.publish(**terms)

    async def publish(self, **terms):
        await self.cell.office.channels.publish(self.owner, self.channel.publish(**terms).terms)
        await wait_all_tasks_blocked()

    async def post(self, *texts):
        await self.cell.office.channels.post(self.owner, [self.channel.seal(text) for text in texts])
        await wait_all_tasks_blocked()

    async def reader(self, *, live=True, room=1_000_000, secret=None, channel=None, request=7):
        line = FakeLine(self.otto, "o1", room)
        await self.subscribe(line, live=live, secret=secret, channel=channel, request=request)
        return line

    async def subscribe(self, line, *, live=True, secret=None, channel=None, request=7):
        channel = channel or self.channel.id
        ticket = make_ticket(secret or self.channel.secret, channel, NONCE, line.device)
        await self.cell.office.channels.subscribe(line, wire.Subscribe(request, channel, ticket, live), NONCE)

    async def read(self, line, after=0):
        """Everything past `after`, page by page, as a client does it."""
        posts = []
        while True:
            await self.cell.office.channels.read(line, wire.Read(self.channel.id, after))
            page = line.of(wire.Page)[-1]
            assert page.code == Code.STORED and sum(map(len, page.posts[:-1])) <= CHANNEL_PAGE
            if not page.posts:
                return posts
            posts += page.posts
            after = number(posts[-1])


def number(post):
    return read_header(post).number


def live_of(line):
    return [number(one.post) for one in line.of(wire.Posted)]
