"""Posthouse, as the generator speaks to it (bench.dialect): devices of one group, and the owner who sends to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.client import Client, Net
from bench.device import Device
from bench.dialect import Desk, Known, Message, Recipient
from bench.envelopes import make_envelope, read_envelope
from bench.frames import FrameReader
from bench.pipes import Receive, Send
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.frames import server_frame
from relay.errors import PeerError
from relay.limits import KIB, MAX_BATCH

_DELIVER = b"\x93\x43"  # msgpack: an array of three that begins with Deliver's tag, 67
_EMPTY = b"\x92\x44"  # an array of two that begins with Empty's tag, 68
_SUBMIT_BYTES = 512 * KIB  # bytes of envelopes in one SUBMIT, below MAX_FRAME


class Members:
    """The receiving half: members of the group, one device each."""

    def __init__(self, order: Receive) -> None:
        self._plan, self._devices = order.plan, order.devices
        self.recipients = len(order.devices)

    def client(self, net: Net, recipient: Recipient, place: int) -> Device:
        return Device(net, self._devices[place], recipient, place)

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
        return deliver.position, *read_envelope(deliver.envelope, self._plan.group, self._plan.seed)

    def cutter(self) -> Callable[[bytes], list[bytes]]:
        return FrameReader().feed

    def sample(self, sequence: int) -> bytes:
        plan = self._plan
        envelope = make_envelope(plan.group, plan.seed, sequence, 0, plan.size, 0)
        return server_frame(wire.encode_deliver(sequence + 1, envelope))


class Owner:
    """The sending half: the group's owner, who publishes its roster first."""

    def __init__(self, order: Send, net: Net, desk: Desk) -> None:
        self._order, self._desk = order, desk
        self.client = Device(net, order.device, self)
        self.ready = False

    def live(self) -> None:
        """Connected, or again: the roster first; then all that has no answer, oldest first."""
        if self.ready:
            self.submit(self._desk.unanswered())
        else:
            self.client.send(wire.Roster(self._order.head, self._order.parts))

    def make(self, sequence: int, due_ns: int, now_ms: int) -> Message:
        plan = self._order.plan
        envelope = make_envelope(plan.group, plan.seed, sequence, due_ns, plan.size, now_ms)
        return envelope_id(envelope), envelope

    def submit(self, messages: list[Message]) -> None:
        """In batches."""
        batch: list[wire.SubmitItem] = []
        size = 0
        for _, envelope in messages:
            if len(batch) == MAX_BATCH or size + len(envelope) > _SUBMIT_BYTES:
                self.client.send(wire.Submit(tuple(batch)))
                batch, size = [], 0
            batch.append(wire.SubmitItem("", envelope))
            size += len(envelope)
        if batch:
            self.client.send(wire.Submit(tuple(batch)))

    def read(self, messages: list[bytes], now_ns: int) -> int:
        """Receipts; what else is delivered to the owner is acked like anybody's."""
        deliveries = 0
        for message in messages:
            decoded = self.client.other(message)
            if isinstance(decoded, wire.Receipt):
                for item in decoded.items:
                    self._receipt(item, now_ns)
            elif isinstance(decoded, wire.Deliver | wire.Notice):
                self.client.cursor = max(self.client.cursor, decoded.position)
                deliveries += 1
        return deliveries

    def _receipt(self, item: wire.ReceiptItem, now_ns: int) -> None:
        if item.id != digest(self._order.head):
            self._desk.answered(item.id, item.code, now_ns)
        elif item.code >= wire.Code.STALE:
            raise PeerError(f"the node refused the bench's roster: {_code_name(item.code)}")
        else:
            self.ready = True


def _code_name(code: int) -> str:
    return wire.Code(code).name if code in set(wire.Code) else str(code)
