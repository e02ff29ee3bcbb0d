"""The two ends of a connection to the fake federation."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from relay.core import wire
from relay.ws import Closed


@dataclass
class Entry:
    """One record of a cell's log: who gets it, and as what."""

    devices: frozenset[bytes]
    message: wire.Deliver | wire.Notice


class Socket:
    """The client's end."""

    def __init__(self) -> None:
        self.to_server, self.server_in = trio.open_memory_channel[bytes](1_000)
        self.to_client, self.client_in = trio.open_memory_channel[bytes](100_000)
        self.dead = False

    async def send(self, message: bytes) -> None:
        if self.dead:
            raise Closed(1006)
        try:
            await self.to_server.send(bytes(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Closed(1006) from None

    async def receive(self) -> bytes:
        try:
            return await self.client_in.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            raise Closed(1006) from None

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.dead:
            raise Closed(1006)

    def say(self, message: wire.ServerMessage | bytes) -> None:
        if not self.dead:
            self.to_client.send_nowait(message if isinstance(message, bytes) else wire.encode_message(message))

    def kill(self) -> None:
        self.dead = True
        self.to_client.close()
        self.server_in.close()


@dataclass
class Session:
    socket: Socket
    user: bytes
    device: bytes
    receive: bool
    sent: int = 0  # position up to which this connection was served
