"""The generator's two halves with a peer on the other side (bench.dialect): subscribers, and who publishes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bench.client import Client, Net
from bench.dialect import Desk, Known, Message, Recipient
from bench.envelopes import body, read_body
from bench.peers.api import PublishingLine, SubscribingLine
from bench.peers.registry import PEERS
from bench.pipes import Endpoint, Publish, Subscribe
from relay.core.wire import Code


class Subscriber(Client[SubscribingLine]):
    """One subscriber, who subscribes again whenever its connection ended."""

    __slots__ = ("_open_line", "_recipient")

    def __init__(self, net: Net, open_line: Callable[[], SubscribingLine], recipient: Recipient, place: int) -> None:
        super().__init__(net, place)
        self._open_line, self._recipient = open_line, recipient

    def dial(self, endpoint: Endpoint) -> SubscribingLine:
        return self._open_line()

    def live(self) -> None:
        super().live()
        if self.tape is not None and self.line is not None:
            self.line.follow(self.tape)
        self._recipient.live()
        self._recipient.ready()

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        self._recipient.read(messages, now_ns)


class Subscribers:
    """The receiving half."""

    def __init__(self, order: Subscribe) -> None:
        self._peer, self._plan, self._numbers = PEERS[order.peer], order.plan, order.subscribers
        self.recipients = len(order.subscribers)

    def stream(self, place: int) -> int:
        return 0  # all have the one subject

    @property
    def alike(self) -> bool:
        return self._peer.alike

    def client(self, net: Net, recipient: Recipient, place: int) -> Subscriber:
        number = self._numbers[place]
        return Subscriber(net, partial(self._peer.subscriber, number), recipient, number)

    def delivers(self, client: Client[Any], recipient: Recipient, message: bytes) -> bool:
        return True  # a line gives nothing else

    def decode(self, message: bytes) -> Known:
        return 0, *read_body(message, self._plan.seed)

    def cutter(self) -> SubscribingLine:
        line = self._peer.subscriber(0)
        line.live = True
        return line

    def sample(self, sequence: int) -> bytes:
        return self._peer.delivery(sequence, body(self._plan.seed, sequence, 0, self._plan.size))


class Publisher(Client[PublishingLine]):
    """The sending half. Where the peer does not answer, a message counts as taken once it was written."""

    __slots__ = ("_desk", "_peer", "_plan", "ready")

    def __init__(self, order: Publish, net: Net, desk: Desk) -> None:
        super().__init__(net)
        self._peer, self._plan, self._desk = PEERS[order.peer], order.plan, desk
        self.ready = False

    @property
    def clients(self) -> tuple[Publisher]:
        """Itself."""
        return (self,)

    def dial(self, endpoint: Endpoint) -> PublishingLine:
        return self._peer.publisher()

    def live(self) -> None:
        super().live()
        self.ready = True
        self.submit(self._desk.unanswered())

    def make(self, sequence: int, due_ns: int, now_ms: int) -> Message:
        return self._peer.message(sequence, body(self._plan.seed, sequence, due_ns, self._plan.size))

    def submit(self, messages: list[Message]) -> None:
        line = self.line
        if line is None:
            return
        for key, message in messages:
            line.publish(key, message)
        self.flush()
        if not self._peer.answers:
            for key, _ in messages:
                self._desk.answered(key, Code.ACCEPTED, None)

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        line = self.line
        assert line is not None
        for message in messages:
            key, taken = line.answer(message)
            self._desk.answered(key, Code.ACCEPTED if taken else Code.OVERLOADED, now_ns)
