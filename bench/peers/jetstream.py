"""NATS JetStream: three servers, a stream with three copies, every write fsynced, one durable consumer a subscriber.

Acknowledgements are cumulative (AckPolicy all), one for each read: the cheapest way that JetStream has, and what
Posthouse's recipients do. Each server is given a third of the subscribers.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio

from bench.peers.api import HOST, TOPIC, Promises, Server
from bench.peers.lines import CRLF, NOTHING, line_end, payload_size
from bench.peers.nats import PROGRAM, NatsLine, pub
from bench.pipes import Endpoint
from relay.errors import OperatorError, ProtocolError
from relay.limits import KIB

SERVERS: Final = 3
_ELECTED_S: Final = 30.0  # seconds for the servers to find a leader, and to make the stream
_PAUSE_S: Final = 0.2  # seconds before each try
_ASK_S: Final = 3.0  # seconds for one answer
_STREAM: Final = {"name": "bench", "subjects": ["bench"], "storage": "file", "num_replicas": SERVERS}
_API: Final = b"$JS.API."
_DELIVERY: Final = b"MSG %b 1 " % TOPIC  # a push consumer's deliveries have the subject that was published to
_CONFIG: Final = """\
server_name: {name}
listen: "{host}:{port}"
jetstream {{ store_dir: "{store}", sync_interval: always }}
cluster {{ name: bench, listen: "{host}:{route}", routes: [{routes}] }}
"""


class SubscriberLine(NatsLine):
    """Makes its durable consumer, or finds it again, and is live when there is one."""

    __slots__ = ()

    def __init__(self, number: int) -> None:
        super().__init__(b"d.%d" % number, b"i.%d" % number)
        config = {
            "durable_name": f"r{number}", "deliver_subject": f"d.{number}", "deliver_policy": "new",
            "ack_policy": "all", "replay_policy": "instant",
        }  # fmt: skip
        wanted = json.dumps({"stream_name": "bench", "config": config}).encode()
        self.output += pub(_API + b"CONSUMER.DURABLE.CREATE.bench.r%d" % number, wanted, b"i.%d" % number)

    def parse(self, data: bytes, at: int) -> tuple[int, int] | None:
        if data.startswith(_DELIVERY, at):  # the hot path: every head has another subject to answer to
            stop = line_end(data, at)
            return None if stop < 0 else (stop + 2, payload_size(data[data.rfind(b" ", at, stop) + 1 : stop]))
        found = super().parse(data, at)
        if found is None or found[1] == NOTHING:
            return found
        start, size = found
        if start + size + 2 > len(data):
            return None
        if refusal := error_of(read_answer(data[start : start + size])):
            raise ProtocolError(f"JetStream made no consumer: {refusal}")
        self.live = True
        return start + size + 2, NOTHING

    def control(self, head: bytes) -> None:
        """PONG says that it is subscribed, not that there is a consumer."""
        if head != b"PONG":
            super().control(head)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads; the last one's acknowledgement, which is for all before as well, goes to the output."""
        payloads = super().feed(data)
        if payloads:
            head = self._head
            self.output += b"PUB %b 0\r\n\r\n" % head[len(_DELIVERY) : head.rfind(b" ")]
        return payloads


class PublisherLine(NatsLine):
    """Each message asks for its answer on a subject of its own; these answers, with their heads, are its messages."""

    WHOLE = True
    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(b"a.*")

    def answer(self, message: bytes) -> tuple[Hashable, bool]:
        """`MSG a.<key> 1 <size>`, then JSON, which has `error` in it where the message was not taken."""
        head, _, said = message.partition(CRLF)
        key = head.split(b" ")[1].removeprefix(b"a.")
        if not key.isdigit():
            raise ProtocolError(f"the server sent {head[:80]!r} to the publisher")
        return int(key), "error" not in read_answer(said)


def read_answer(answer: bytes) -> dict[str, Any]:
    """JetStream's answer to a request. Raises ProtocolError for what is none."""
    try:
        said = json.loads(answer)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ProtocolError(f"JetStream answered {answer[:80]!r}")
    return said


def error_of(answer: dict[str, Any]) -> str:
    """Why JetStream refused; empty where it did not."""
    error = answer.get("error", "")
    return str(error.get("description", error)) if isinstance(error, dict) else str(error)


class JetStream:
    """See bench.peers.api."""

    name = "jetstream"
    promises = Promises(
        "fsync 2 of 3, acked", "fsync on 2 of 3 servers before it is delivered",
        "to the publisher, and by every subscriber", "3 servers",
    )  # fmt: skip
    settings = "one stream of 3 servers (R3), sync_interval always, a durable push consumer a subscriber, AckPolicy all"
    program = PROGRAM
    answers = True
    alike = False

    def servers(self, directory: Path, ports: Iterator[int]) -> list[Server]:
        names = [f"js{number}" for number in range(1, SERVERS + 1)]
        places = {name: (next(ports), next(ports)) for name in names}
        routes = ", ".join(f'"nats://{HOST}:{route}"' for _, route in places.values())
        found = []
        for name, (port, route) in places.items():
            config = directory / f"{name}.conf"
            store = directory / name
            config.write_text(
                _CONFIG.format(name=name, host=HOST, port=port, route=route, routes=routes, store=store), "utf-8"
            )
            found.append(Server(name, ("--config", str(config)), port))
        return found

    async def prepare(self, endpoints: Sequence[Endpoint]) -> None:
        """Make the stream, as soon as the servers have found each other."""
        said = "nobody answers"
        with trio.move_on_after(_ELECTED_S):
            while said:
                await trio.sleep(_PAUSE_S)
                with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(_ASK_S):
                    said = error_of(await _ask(endpoints[0], b"STREAM.CREATE.bench", json.dumps(_STREAM).encode()))
        if said:
            raise OperatorError(f"JetStream made no stream in {_ELECTED_S:.0f} s: {said}", "See the servers' logs")

    def subscriber(self, number: int) -> SubscriberLine:
        return SubscriberLine(number)

    def publisher(self) -> PublisherLine:
        return PublisherLine()

    def message(self, sequence: int, payload: bytes) -> tuple[Hashable, bytes]:
        return sequence, pub(TOPIC, payload, b"a.%d" % sequence)

    def delivery(self, sequence: int, payload: bytes) -> bytes:
        reply = b"$JS.ACK.bench.r0.1.%d.%d.1700000000000000000.0" % (sequence + 1, sequence + 1)
        return _DELIVERY + b"%b %d\r\n%b\r\n" % (reply, len(payload), payload)


async def _ask(endpoint: Endpoint, request: bytes, payload: bytes) -> dict[str, Any]:
    """One request to JetStream's API, over a connection of its own."""
    line = NatsLine(b"i.ask")
    line.output += pub(_API + request, payload, b"i.ask")
    async with await trio.open_tcp_stream(endpoint.host, endpoint.port) as stream:
        while True:
            await stream.send_all(bytes(line.output))
            line.output.clear()
            data = await stream.receive_some(64 * KIB)
            if not data:
                raise trio.BrokenResourceError("the server closed the connection")
            for answer in line.feed(bytes(data)):
                return read_answer(answer)
