"""Eclipse Mosquitto: one server, QoS 1 both ways. MQTT 3.1.1, as little of it as a load generator needs.

Subscribers keep their sessions (clean session 0), so that what is not acknowledged comes again after a reconnect, and
the queues have no bound, so that nothing is dropped on purpose. The server keeps all of it in memory and saves it only
now and then, so that a crash loses what was acknowledged.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from bench.cutter import Cutter
from bench.peers.api import HOST, TOPIC, Program, Promises, Server
from bench.peers.lines import MAX_PAYLOAD
from bench.pipes import Endpoint
from relay.errors import ProtocolError

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP = 2, 3, 4, 9, 13  # packet types (2.2.1), upper half of the first byte
_PUBLISH_QOS1: Final = 0x32
_PING: Final = b"\xc0\x00"
_KEEP_ALIVE: Final = 0  # seconds; 0: the server waits for ever (3.1.2.10)
_MAX_PACKET_ID: Final = 0xFFFF
_CONFIG: Final = """\
listener {port} {host}
allow_anonymous true
user {user}
persistence true
persistence_location {directory}/
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
"""


def packet(first: int, rest: bytes) -> bytes:
    """A control packet: first byte, remaining length in 7 bits a byte (2.2.3), the rest."""
    size, length = len(rest), bytearray()
    while True:
        size, low = divmod(size, 128)
        length.append(low | (0x80 if size else 0))
        if not size:
            return bytes([first]) + length + rest


def _string(text: bytes) -> bytes:
    return len(text).to_bytes(2, "big") + text


def connect(client: bytes, keep: bool) -> bytes:
    """CONNECT (3.1) with a session that is kept, or not."""
    flags = 0 if keep else 2
    return packet(0x10, _string(b"MQTT") + bytes([4, flags]) + _KEEP_ALIVE.to_bytes(2, "big") + _string(client))


def publish(identifier: int, payload: bytes) -> bytes:
    """PUBLISH with QoS 1 (3.3)."""
    return packet(_PUBLISH_QOS1, _string(TOPIC) + identifier.to_bytes(2, "big") + payload)


class MqttLine(Cutter):
    """Cuts the stream into packets; a payload is all behind the fixed header."""

    SHORT = 0x80

    def __init__(self, greeting: bytes) -> None:
        super().__init__()
        self.output = bytearray(greeting)
        self.live = False

    @property
    def ended(self) -> bool:
        """Never: the server closes the connection."""
        return False

    def length(self, data: bytes, at: int) -> tuple[int, int] | None:
        size = 0
        for place in range(4):
            if at + 1 + place >= len(data):
                return None
            byte = data[at + 1 + place]
            size |= (byte & 0x7F) << (7 * place)
            if byte < 0x80:
                if size > MAX_PAYLOAD:
                    break
                return at + 2 + place, size
        raise ProtocolError("the server sent a packet of too many bytes")

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        kind = first >> 4
        if kind == CONNACK:
            if payload[1:2] != b"\0":
                raise ProtocolError(f"the server refused the connection: code {payload[1:2].hex()}")
            self.connected()
        elif kind != PINGRESP:
            raise ProtocolError(f"the server sent a packet that begins with {first:#04x}")

    def connected(self) -> None:
        """CONNACK came."""
        self.live = True

    def ping(self) -> None:
        """Queue a PINGREQ."""
        self.output += _PING


class SubscriberLine(MqttLine):
    """Subscribes with QoS 1, is live when that is granted, and acknowledges what comes."""

    _START = 2 + len(TOPIC) + 2  # of the payload: after topic and packet identifier
    _TOPIC = _string(TOPIC)

    def __init__(self, number: int) -> None:
        super().__init__(connect(b"r%d" % number, keep=True))

    def connected(self) -> None:
        self.output += packet(0x82, b"\0\1" + self._TOPIC + b"\1")

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        if first & 0xF6 == _PUBLISH_QOS1 and payload.startswith(self._TOPIC):  # again (DUP) or retained, or not
            start = self._START
            self.output += b"\x40\x02" + payload[start - 2 : start]
            messages.append(payload[start:])
        elif first >> 4 == SUBACK:
            if payload != b"\0\1\1":
                raise ProtocolError(f"the server did not grant QoS 1: {payload.hex()}")
            self.live = True
        else:
            super().take(first, payload, messages)


class PublisherLine(MqttLine):
    """Its messages are the identifiers that were acknowledged, in two bytes."""

    def __init__(self) -> None:
        super().__init__(connect(b"publisher", keep=False))

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        if first >> 4 == PUBACK and len(payload) == 2:
            messages.append(payload)
        else:
            super().take(first, payload, messages)

    def publish(self, key: Hashable, message: bytes) -> None:
        """Queue a PUBLISH."""
        self.output += message

    def answer(self, message: bytes) -> tuple[Hashable, bool]:
        """The identifier."""
        return int.from_bytes(message, "big"), True


class Mosquitto:
    """See bench.peers.api."""

    name = "mosquitto"
    promises = Promises(
        "memory, QoS 1 acks", "no, in memory, saved now and then", "to the publisher, and by every subscriber", "no"
    )
    settings = "MQTT 3.1.1, QoS 1 both ways, sessions kept, no bound on queues, one server"
    program = Program(name="mosquitto", wheel="", install="apt install mosquitto", version=("-h",))
    answers = True
    alike = False

    def servers(self, directory: Path, ports: Iterator[int]) -> list[Server]:
        port, config = next(ports), directory / "mosquitto.conf"
        user = pwd.getpwuid(os.getuid()).pw_name  # it would become another one, who may not write here
        config.write_text(_CONFIG.format(port=port, host=HOST, user=user, directory=directory), "utf-8")
        return [Server("mosquitto", ("-c", str(config)), port)]

    async def prepare(self, endpoints: Sequence[Endpoint]) -> None:
        await trio.lowlevel.checkpoint()

    def subscriber(self, number: int) -> SubscriberLine:
        return SubscriberLine(number)

    def publisher(self) -> PublisherLine:
        return PublisherLine()

    def message(self, sequence: int, payload: bytes) -> tuple[Hashable, bytes]:
        identifier = sequence % _MAX_PACKET_ID + 1
        return identifier, publish(identifier, payload)

    def delivery(self, sequence: int, payload: bytes) -> bytes:
        return publish(sequence % _MAX_PACKET_ID + 1, payload)
