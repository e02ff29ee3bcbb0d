"""The client's side of WebSocket (RFC 6455), as little as a load generator needs. Pure: bytes in, bytes out.

The generator has its own so that no client library is measured: one pass over what a `recv` brought, no copies but the
payloads. Client frames are masked with the key zero, which leaves the payload as it is: masking guards browsers and
proxies against each other (10.3), and on a loopback there is neither.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1

from bench.cutter import Cutter
from relay.core.wire import SUBPROTOCOL
from relay.errors import ProtocolError
from relay.limits import KIB, MAX_FRAME

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_FIN = 0x80
_MASKED = 0x80
_KEY = bytes(4)
_MAX_RESPONSE = 8 * KIB  # bytes of the answer to the upgrade
_MAX_MESSAGE = 4 * MAX_FRAME  # bytes, as relay.core.wire.decode_server takes
_ACCEPT = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 1.3


def upgrade_request(host: str, nonce: bytes) -> bytes:
    """The opening handshake (4.1) for `host` (name:port) with a `nonce` of 16 bytes."""
    key = b64encode(nonce).decode()
    lines = [
        "GET / HTTP/1.1", f"Host: {host}", "Upgrade: websocket", "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Protocol: {SUBPROTOCOL}", "", "",
    ]  # fmt: skip
    return "\r\n".join(lines).encode()


def read_upgrade(data: bytes, nonce: bytes) -> int:
    """How many bytes the server's answer to the upgrade took; 0 when it is not complete yet.

    Raises ProtocolError where the server did not switch to our subprotocol."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > _MAX_RESPONSE:
            raise ProtocolError("the node answered the upgrade with a header without an end")
        return 0
    status, *lines = data[:end].decode("latin-1").split("\r\n")
    if status.split(" ")[1:2] != ["101"]:
        raise ProtocolError(f"the node did not switch to WebSocket: {status[:80]}")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    accept = b64encode(sha1(b64encode(nonce) + _ACCEPT, usedforsecurity=False).digest()).decode()
    if headers.get("sec-websocket-accept") != accept or headers.get("sec-websocket-protocol") != SUBPROTOCOL:
        raise ProtocolError("the node switched to WebSocket for another key or subprotocol")
    return end + 4


def client_frame(payload: bytes, opcode: int = BINARY) -> bytes:
    """One masked, unfragmented frame (5.2)."""
    size = len(payload)
    if size < 126:
        head = bytes((_FIN | opcode, _MASKED | size))
    elif size < 1 << 16:
        head = bytes((_FIN | opcode, _MASKED | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((_FIN | opcode, _MASKED | 127)) + size.to_bytes(8, "big")
    return head + _KEY + payload


class FrameReader(Cutter):
    """Splits a server's byte stream into messages. `closed` once it sent CLOSE; `pongs` is what its pings are owed."""

    SHORT, WHOLE = 126, 0x82  # a binary message in one frame
    __slots__ = ("_parts", "closed", "pongs")

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] | None = None
        self.pongs: list[bytes] = []
        self.closed = False

    def length(self, data: bytes, at: int) -> tuple[int, int] | None:
        if data[at + 1] > 127:
            raise ProtocolError("the node sent a masked frame")
        start = at + (4 if data[at + 1] == 126 else 10)
        if start > len(data):
            return None
        size = int.from_bytes(data[at + 2 : start], "big")
        if size > _MAX_MESSAGE:
            raise ProtocolError(f"the node sent a frame of {size} bytes")
        return start, size

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """What is not a whole binary message: fragments and control frames."""
        opcode, final = first & 0x0F, bool(first & _FIN)
        if first & 0x70 or (opcode not in (0, BINARY, CLOSE, PING, PONG)):
            raise ProtocolError(f"the node sent a frame that begins with {first:#04x}")
        if opcode == PING:
            self.pongs.append(client_frame(payload, PONG))
        elif opcode == CLOSE:
            self.closed = True
        elif opcode == BINARY:
            self._parts = [payload]
        elif opcode == 0:
            if self._parts is None:
                raise ProtocolError("the node continued a message that it never began")
            self._parts.append(payload)
            if sum(map(len, self._parts)) > _MAX_MESSAGE:
                raise ProtocolError("the node sent a message above the limit")
            if final:
                messages.append(b"".join(self._parts))
                self._parts = None
