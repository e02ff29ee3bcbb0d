"""A broadcast channel, as the generator speaks to it (bench.dialect): who posts, and readers that read live and, where
they missed something, on demand. Posts are sealed and signed as real ones are."""

from __future__ import annotations

import time
from typing import Any

from nacl.signing import SigningKey

from bench.client import Client, Net
from bench.device import Device
from bench.dialect import Desk, Known, Message, Recipient
from bench.envelopes import body, read_body
from bench.frames import FrameReader
from bench.pipes import Endpoint, Receive, Send
from bench.session import Enrolled, Session
from relay.core import wire
from relay.core.codec import digest
from relay.core.frames import server_frame
from relay.core.posts import NONCE, Content, PostHeader, open_post, post_id, read_header, seal_post
from relay.core.sealing import SUITE
from relay.core.trust.channels import ChannelTerms, channel_id, make_ticket, reader_of, sign_terms
from relay.core.wire import Code
from relay.errors import BadSignature, PeerError, ProtocolError
from relay.limits import DAY, MAX_CHANNEL_BYTES, MAX_CHANNEL_POSTS

_POSTED = b"\x92\x4e"  # msgpack: an array of two that begins with Posted's tag, 78
_AGAIN_NS = 500_000_000  # until a reader that came before the channel asks again
_SOON = (Code.UNKNOWN_CHANNEL, Code.OVERLOADED)


def secret_of(seed: int) -> bytes:
    """The channel's secret, in a run with this seed."""
    return digest(b"%d" % seed, b"posthouse.bench")


def open_channel(owner: Enrolled, cell: str, seed: int) -> tuple[bytes, bytes]:
    """(id, signed terms) of a channel that keeps a whole run."""
    device, reader = bytes(owner.key.verify_key), bytes(reader_of(secret_of(seed)).verify_key)
    terms = ChannelTerms(1, bytes(32), 1, b"", device, cell, reader, DAY, MAX_CHANNEL_POSTS, MAX_CHANNEL_BYTES)
    return channel_id(device, bytes(32)), sign_terms(terms, owner.key)


def make_post(
    channel: bytes, seed: int, sequence: int, scheduled_ns: int, size: int, now_ms: int, owner: SigningKey
) -> bytes:
    """The post of message `sequence`, whose number is one more."""
    header = PostHeader(1, channel, 1, sequence + 1, now_ms, SUITE)
    nonce = digest(b"%d/%d" % (seed, sequence))[:NONCE]
    return seal_post(header, Content("", body(seed, sequence, scheduled_ns, size)), secret_of(seed), nonce, owner)


class Reader(Device):
    """One reader. While it is `behind`, live posts are left to the pages that it asks for."""

    __slots__ = ("_channel", "_counts", "_secret", "behind", "newest")

    def __init__(self, net: Net, enrolled: Enrolled, recipient: Recipient, place: int, order: Receive) -> None:
        super().__init__(net, enrolled, recipient, place)
        self._counts = recipient
        self._channel, self._secret = order.plan.addresses[0], secret_of(order.plan.seed)
        self.behind, self.newest = True, 0

    def dial(self, endpoint: Endpoint) -> Session:
        session = super().dial(endpoint)
        session.receive = False
        return session

    def live(self) -> None:
        super().live()
        self.behind = True
        self._subscribe()

    def _subscribe(self) -> None:
        if (line := self.line) is None:
            return
        device = bytes(self._enrolled.key.verify_key)
        ticket = make_ticket(self._secret, self._channel, line.challenge, device)
        self.send(wire.Subscribe(1, self._channel, ticket, True))

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        """Nothing is acked. What comes after news is not to be counted before what the news is of."""
        if not self.behind and all(message[:2] == _POSTED for message in messages):
            self._counts.read(messages, now_ns)
        else:
            for message in messages:
                self._message(message, now_ns)

    def _message(self, message: bytes, now_ns: int) -> None:
        if not self.behind:
            self._counts.read([message], now_ns)
        elif message[:2] == _POSTED:
            posted = wire.decode_server(message)
            assert isinstance(posted, wire.Posted)
            self.newest = max(self.newest, read_header(posted.post).number)
        elif isinstance(decoded := self.other(message), wire.Page):
            self.take(decoded, now_ns)
        else:
            self.heed(decoded)

    def heed(self, message: wire.ServerMessage) -> None:
        """News: there may be more than we have."""
        if isinstance(message, wire.Channel):
            if message.code in _SOON:
                self._counts.ready()  # the owner publishes once all readers are there; the first posts are read later
                self._net.hub.at(time.monotonic_ns() + _AGAIN_NS, self._subscribe)
                return
            if message.code != Code.STORED:
                raise PeerError(f"the node let no reader in: {message.code}")
            self.newest, self.behind = max(self.newest, message.last), True
            self._go_on()

    def take(self, page: wire.Page, now_ns: int) -> None:
        """A page that was asked for."""
        if page.code == Code.STORED:
            self._counts.read([wire.encode_message(wire.Posted(post)) for post in page.posts], now_ns)
            self.newest = max(self.newest, page.last)
        self._go_on()

    def _go_on(self) -> None:
        after = self._counts.have
        if after < self.newest:
            self.send(wire.Read(self._channel, after))
        else:
            self.behind = False
            self._counts.ready()


class Readers:
    """The receiving half."""

    alike = False  # each asks for pages where it is behind

    def __init__(self, order: Receive) -> None:
        self._order = order
        self.recipients = len(order.devices)

    def stream(self, place: int) -> int:
        return 0

    def client(self, net: Net, recipient: Recipient, place: int) -> Reader:
        return Reader(net, self._order.devices[place], recipient, place, self._order)

    def delivers(self, client: Client[Any], recipient: Recipient, message: bytes) -> bool:
        if message[:2] == _POSTED:
            return True
        if isinstance(client, Reader):
            client.heed(client.other(message))
        return False

    def decode(self, message: bytes) -> Known:
        posted = wire.decode_server(message)
        assert isinstance(posted, wire.Posted)
        seed = self._order.plan.seed
        try:
            said = open_post(posted.post, secret_of(seed)).data
        except BadSignature as error:
            raise ProtocolError(error.text) from None
        return 0, *read_body(said, seed)

    def cutter(self) -> FrameReader:
        return FrameReader()

    def sample(self, sequence: int) -> bytes:
        plan, anybody = self._order.plan, SigningKey(bytes(32))
        post = make_post(plan.addresses[0], plan.seed, sequence, 0, plan.size, 0, anybody)
        return server_frame(wire.encode_message(wire.Posted(post)))


class Poster:
    """The sending half: the channel's owner. It publishes the terms first."""

    def __init__(self, order: Send, net: Net, desk: Desk) -> None:
        (self._author,), self._plan, self._desk = order.authors, order.plan, desk
        self._device = Device(net, self._author.device, self, 0)
        self.clients = (self._device,)
        self.ready = False

    def make(self, sequence: int, due_ns: int, now_ms: int) -> Message:
        plan, key = self._plan, self._author.device.key
        post = make_post(plan.addresses[0], plan.seed, sequence, due_ns, plan.size, now_ms, key)
        return post_id(post), post

    def submit(self, messages: list[Message]) -> None:
        if messages:
            self._device.send(wire.Posts(tuple(post for _, post in messages)))

    def live(self) -> None:
        """Connected, or again: the terms first; then all that has no answer, in order."""
        if not self.ready:
            self._device.send(wire.Terms(self._author.head))
        else:
            for message in self._desk.unanswered():
                self.submit([message])

    def read(self, messages: list[bytes], now_ns: int) -> int:
        for message in messages:
            decoded = self._device.other(message)
            for item in decoded.items if isinstance(decoded, wire.Receipt) else ():
                if self.ready:
                    self._desk.answered(item.id, item.code, now_ns)
                elif item.code >= Code.STALE:
                    raise PeerError(f"the node refused the bench's channel: {item.code}")
                else:
                    self.ready = True
        return 0
