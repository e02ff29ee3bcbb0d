"""A WebSocket client in forty lines: the device's side of the protocol, without a library's tasks (RFC 6455).

It masks with zeros, which costs nothing and which a server takes like any other mask.
"""

from __future__ import annotations

import trio

from relay.core.wire import SUBPROTOCOL

PING, PONG, CLOSE, BINARY = 9, 10, 8, 2
_UPGRADE = (
    "GET / HTTP/1.1\r\nHost: node\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n"
).encode()


class Gone(Exception):
    """The connection is over."""


def client_frame(opcode: int, payload: bytes) -> bytes:
    """One unfragmented frame, masked with zeros."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
    else:
        head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
    return head + bytes(4) + payload


class Socket:
    """Frames over a stream; one task receives, and whoever has something sends."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = bytearray()
        self._sending = trio.Lock()

    async def open(self) -> None:
        """The HTTP handshake. Raises Gone."""
        await self._write(_UPGRADE)
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            await self._feed()
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        if b" 101 " not in head[:16]:
            raise Gone(head[:32].decode("latin-1"))

    async def send(self, payload: bytes, opcode: int = BINARY) -> None:
        """Raises Gone."""
        await self._write(client_frame(opcode, payload))

    async def receive(self) -> bytes | None:
        """The next binary message; None for a pong. Raises Gone."""
        while True:
            frame = self._frame()
            if frame is None:
                await self._feed()
                continue
            opcode, payload = frame
            if opcode == BINARY:
                return payload
            if opcode == PONG:
                return None
            if opcode == PING:
                await self.send(payload, PONG)
            else:
                raise Gone(f"closed with {int.from_bytes(payload[:2], 'big')}")

    def _frame(self) -> tuple[int, bytes] | None:
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1], 2
        if size > 125:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        if len(buffer) < at + size:
            return None
        opcode, payload = buffer[0] & 15, bytes(buffer[at : at + size])
        del buffer[: at + size]
        return opcode, payload

    async def _write(self, data: bytes) -> None:
        async with self._sending:
            try:
                await self.stream.send_all(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise Gone(str(error)) from None

    async def _feed(self) -> None:
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise Gone(str(error)) from None
        if not data:
            raise Gone("end of the stream")
        self._buffer += data
