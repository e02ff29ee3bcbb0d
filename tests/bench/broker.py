"""A broker that speaks core NATS, in memory; it can lie on purpose. For the bench, in a peer's place."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from bench.pipes import Endpoint
from bench.samples import Samples

Lie = Callable[[int, list[bytes]], list[bytes]]


def truly(number: int, log: list[bytes]) -> list[bytes]:
    """What a good broker delivers for message `number` (from 1) of its log."""
    return [log[number - 1]]


class Broker:
    """A stage of the bench (bench.target.Stage). `delivers(number, log)` is what every subscriber gets."""

    def __init__(self, delivers: Lie = truly) -> None:
        self.pids = {"broker": os.getpid()}
        self.endpoints: list[Endpoint] = []
        self.log: list[bytes] = []
        self._delivers = delivers
        self._subscribers: list[trio.SocketStream] = []

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.endpoints = [Endpoint("127.0.0.1", listeners[0].socket.getsockname()[1])]
        task_status.started()
        await trio.serve_listeners(self._connection, listeners)

    async def samples(self) -> dict[str, Samples]:
        await trio.lowlevel.checkpoint()
        return {}

    async def died(self) -> None:
        await trio.sleep_forever()

    async def _connection(self, stream: trio.SocketStream) -> None:
        buffer = bytearray()
        try:
            await stream.send_all(b"INFO {}\r\n")
            while data := await stream.receive_some():
                buffer += data
                while (end := buffer.find(b"\r\n")) >= 0:
                    words = bytes(buffer[:end]).split(b" ")
                    size = int(words[2]) if words[0] == b"PUB" else -2
                    if len(buffer) < end + 2 + size + 2:
                        break
                    payload = bytes(buffer[end + 2 : end + 2 + size])
                    del buffer[: end + 2 + size + 2]
                    await self._take(stream, words[0], payload)
        except trio.BrokenResourceError:
            pass

    async def _take(self, stream: trio.SocketStream, what: bytes, payload: bytes) -> None:
        if what == b"SUB":
            self._subscribers.append(stream)
        elif what == b"PING":
            await stream.send_all(b"PONG\r\n")
        elif what == b"PUB":
            self.log.append(payload)
            found = self._delivers(len(self.log), self.log)
            data = b"".join(b"MSG bench 1 %d\r\n%b\r\n" % (len(one), one) for one in found)
            for subscriber in self._subscribers:
                await subscriber.send_all(data)
