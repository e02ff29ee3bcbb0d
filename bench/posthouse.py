"""Posthouse, as the generator speaks to it (bench.dialect): devices of groups or single ones, and who sends to them."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from bench.client import Client, Net
from bench.device import Device
from bench.dialect import Desk, Known, Message, Recipient
from bench.envelopes import make_envelope, read_envelope
from bench.frames import FrameReader
from bench.pipes import Author, Receive, Send
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import To, envelope_id
from relay.core.frames import server_frame
from relay.errors import PeerError
from relay.limits import KIB, MAX_BATCH

_DELIVER = b"\x93\x43"  # msgpack: an array of three that begins with Deliver's tag, 67
_EMPTY = b"\x92\x44"  # an array of two that begins with Empty's tag, 68
_SUBMIT_BYTES = 512 * KIB  # bytes of envelopes in one SUBMIT, below MAX_FRAME


class Members:
    """The receiving half: members of groups, or users, one device each."""

    alike = True

    def __init__(self, order: Receive) -> None:
        self._plan, self._devices, self._streams = order.plan, order.devices, order.streams
        self.recipients = len(order.devices)

    def stream(self, place: int) -> int:
        return self._streams[place]

    def client(self, net: Net, recipient: Recipient, place: int) -> Device:
        return Device(net, self._devices[place], recipient, place, self._plan.trickle)

    def delivers(self, client: Client[Any], recipient: Recipient, message: bytes) -> bool:
        if message[:2] == _DELIVER:
            return True
        if message[:2] == _EMPTY:
            recipient.ready()
        elif isinstance(client, Device):
            client.other(message)
        return False

    def decode(self, message: bytes) -> Known:
        deliver = wire.decode_server(message)
        assert isinstance(deliver, wire.Deliver)
        return deliver.position, *read_envelope(deliver.envelope, self._plan.addresses, self._plan.seed)

    def cutter(self) -> FrameReader:
        return FrameReader()

    def sample(self, sequence: int) -> bytes:
        plan = self._plan
        to = plan.addresses[sequence % len(plan.addresses)]
        envelope = make_envelope(to, plan.seed, sequence, 0, plan.size, 0)
        return server_frame(wire.encode_deliver(sequence + 1, envelope))


class Pen:
    """One author's device: it publishes the stream's roster first, where there is one."""

    def __init__(self, author: Author, stream: int, net: Net, desk: Desk, hint: str) -> None:
        """`hint`: the region where who gets its mail is at home; empty: here, or a group."""
        self._author, self._stream, self._desk, self._hint = author, stream, desk, hint
        self.device = Device(net, author.device, self, stream)
        self.ready = False
        self.due: list[bytes] = []  # what goes with the next submit

    def live(self) -> None:
        """Connected, or again: the roster first; then all that has no answer, oldest first."""
        if self._author.head and not self.ready:
            self.device.send(wire.Roster(self._author.head, self._author.parts))
            return
        self.ready = True
        self.due = [envelope for _, envelope in self._desk.unanswered(self._stream)]
        self.submit()

    def submit(self) -> None:
        """What is due, in batches."""
        batch: list[wire.SubmitItem] = []
        size, hint = 0, self._hint
        for envelope in self.due:
            if len(batch) == MAX_BATCH or size + len(envelope) > _SUBMIT_BYTES:
                self.device.send(wire.Submit(tuple(batch)))
                batch, size = [], 0
            batch.append(wire.SubmitItem(hint, envelope))
            size += len(envelope)
        if batch:
            self.device.send(wire.Submit(tuple(batch)))
        self.due = []

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Receipts; what else is delivered to the author is acked like anybody's."""
        deliveries = 0
        for message in messages:
            decoded = self.device.other(message)
            if isinstance(decoded, wire.Receipt):
                for item in decoded.items:
                    self._receipt(item, now_ns)
            elif isinstance(decoded, wire.Deliver | wire.Notice):
                self.device.cursor = max(self.device.cursor, decoded.position)
                deliveries += 1
        return deliveries

    def _receipt(self, item: wire.ReceiptItem, now_ns: int) -> None:
        if self.ready or item.id != digest(self._author.head):
            self._desk.answered(item.id, item.code, now_ns)
        elif item.code >= wire.Code.STALE:
            raise PeerError(f"the node refused the bench's roster: {_code_name(item.code)}")
        else:
            self.ready = True


class Authors:
    """The sending half: one author for each stream."""

    def __init__(self, order: Send, net: Net, desk: Desk) -> None:
        self._plan = order.plan
        self._pens = [Pen(author, stream, net, desk, order.plan.hint) for stream, author in enumerate(order.authors)]
        self._of: dict[Hashable, Pen] = {}  # of messages that are about to be submitted
        self.clients = tuple(pen.device for pen in self._pens)

    @property
    def ready(self) -> bool:
        return all(pen.ready for pen in self._pens)

    def make(self, sequence: int, due_ns: int, now_ms: int) -> Message:
        plan, stream = self._plan, sequence % len(self._pens)
        kind = To.MAILBOX if plan.mailboxes else To.ROSTER
        envelope = make_envelope(plan.addresses[stream], plan.seed, sequence, due_ns, plan.size, now_ms, kind)
        key = envelope_id(envelope)
        self._of[key] = self._pens[stream]
        return key, envelope

    def submit(self, messages: list[Message]) -> None:
        pens: dict[Pen, None] = {}
        for key, envelope in messages:
            pen = self._of.pop(key)
            pen.due.append(envelope)
            pens[pen] = None
        for pen in pens:
            pen.submit()


def _code_name(code: int) -> str:
    return wire.Code(code).name if code in set(wire.Code) else str(code)
