"""The server's half of WebSockets: the handshake, and what clients send. The only file that imports websockets, whose
sans-I/O protocol reads a frame in a twentieth of the time that trio_websocket takes, and needs no task of its own
(ADR 33). What the server sends are frames that relay.core.frames made, through the outbox; so are the pongs.

The library's own closes on errors are kept back: the connection says ERROR first and closes itself.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from websockets.exceptions import PayloadTooBig
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from relay.core.wire import SUBPROTOCOL
from relay.errors import PosthouseError, ProtocolError
from relay.gateway.source import Read
from relay.limits import MAX_FRAME
from relay.ws import PATH, RECEIVE_BYTES, Closed

MAX_PIECES: Final = 1024  # fragments of one message; each costs memory, however few bytes it carries
MIN_PIECE: Final = 256  # bytes of a message for each piece past those: what a read brings counts as one, and a full TCP
# segment has at least 536 (RFC 9293 3.7.1)
_TURN: Final = 32  # messages that came with one read, until others have their turn
_END: Final = b"\r\n\r\n"  # of a request
_HEADER: Final = "Sec-WebSocket-Protocol"
_log = logging.getLogger("relay.gateway.websocket")
_log.setLevel(logging.ERROR)  # below that the library tells of every connection and frame

Write = Callable[[bytes], Awaitable[None]]  # raises trio.BrokenResourceError or trio.ClosedResourceError


class ServerSocket:
    """The receiving half of an accepted connection; the sending half is the outbox."""

    __slots__ = ("_messages", "_over", "_pieces", "_protocol", "_read", "_size", "_write")

    def __init__(self, protocol: ServerProtocol, write: Write, read: Read) -> None:
        self._protocol = protocol
        self._write = write
        self._read = read
        self._messages: list[bytes] = []  # what came and was not received yet, the last one first
        self._pieces: list[bytes] | None = None  # of a message that is cut into fragments
        self._size = 0  # bytes of them
        self._over: PosthouseError | None = None  # why nothing more comes

    async def receive(self) -> bytes:
        """The next binary message. Raises Closed at the end, ProtocolError for what is not one of at most MAX_FRAME."""
        while not self._messages:
            if self._over is not None:
                if isinstance(self._over, Closed):
                    await self._answer()  # only now that what came before a close is dealt with
                raise self._ended()
            data = await self._read(RECEIVE_BYTES)
            if not data:
                self._protocol.receive_eof()
            await self.take(data)
        if len(self._messages) % _TURN == 0:
            await trio.lowlevel.checkpoint()
        return self._messages.pop()

    def _ended(self) -> PosthouseError:
        """Why nothing more comes, for whoever raises it. It is not kept, see `discard`: its traceback leads to all that
        a connection is made of."""
        over, self._over = self._over, Closed(1006)
        assert over is not None
        return over

    def discard(self) -> None:
        """It is over. What points in circles goes only when the collector finds it (ADR 38): the library's parser does,
        and the error that it ended with."""
        self._protocol.parser.close()
        if self._protocol.parser_exc is not None:
            self._protocol.parser_exc.__traceback__ = None

    async def take(self, data: bytes | bytearray) -> None:
        """What was read."""
        if data:
            self._protocol.receive_data(data)
        messages: list[bytes] = []
        try:
            for frame in self._protocol.events_received():
                assert isinstance(frame, Frame)
                self._take(frame, messages)
        except ProtocolError as error:
            self._over = error
        else:
            self._over = self._why()
        self._messages = messages[::-1]
        if self._over is None:
            await self._answer()

    def _take(self, frame: Frame, messages: list[bytes]) -> None:
        """Put pieces together (RFC 6455 5.4). The library checks their order, and bounds their bytes."""
        if frame.opcode is Opcode.TEXT:
            raise ProtocolError("A text message", f"{SUBPROTOCOL} is spoken in binary messages")
        if frame.opcode is Opcode.BINARY and frame.fin:
            messages.append(bytes(frame.data))
        elif frame.opcode is Opcode.BINARY:
            self._pieces, self._size = [bytes(frame.data)], len(frame.data)
        elif frame.opcode is Opcode.CONT and self._pieces is not None:
            self._pieces.append(bytes(frame.data))
            self._size += len(frame.data)
            if len(self._pieces) - self._size // MIN_PIECE > MAX_PIECES:
                raise ProtocolError(f"A message of more than {MAX_PIECES} fragments", "Send each message as one frame")
            if frame.fin:
                messages.append(b"".join(self._pieces))
                self._pieces, self._size = None, 0

    def _why(self) -> PosthouseError | None:
        """Why nothing more comes; None where something may."""
        protocol = self._protocol
        match protocol.parser_exc:
            case None:
                return Closed(protocol.close_rcvd.code) if protocol.close_rcvd is not None else None
            case EOFError():
                return Closed(1006)
            case PayloadTooBig():
                return ProtocolError(f"A message of more than {MAX_FRAME} bytes", "Send smaller batches")
            case error:
                return ProtocolError(f"Bytes that are no WebSocket frame ({error})", "See RFC 6455")

    async def _answer(self) -> None:
        """Pongs, and the answer to a close."""
        if data := b"".join(self._protocol.data_to_send()):
            await self._write(data)


async def accept(write: Write, read: Read) -> ServerSocket:
    """Answer the WebSocket handshake on a stream that the caller owns: it sets the deadline, and closes it.

    Raises Closed when the client left or sent no WebSocket handshake (it then got an HTTP error), ProtocolError when it
    asked for another path or subprotocol (it then got HTTP 404 or 400 with the text)."""
    protocol = ServerProtocol(subprotocols=[Subprotocol(SUBPROTOCOL)], max_size=MAX_FRAME, logger=_log)
    request, rest = await _request(protocol, write, read)
    refused = _refusal(request)
    response = protocol.reject(refused[0], f"{refused[1]}\n") if refused else protocol.accept(request)
    protocol.send_response(response)
    await write(b"".join(protocol.data_to_send()))
    if refused:
        raise ProtocolError(f"The handshake was refused with {refused[0]}: {refused[1]}")
    if protocol.state is not OPEN:
        raise Closed(1006)
    socket = ServerSocket(protocol, write, read)
    await socket.take(rest)
    return socket


async def _request(protocol: ServerProtocol, write: Write, read: Read) -> tuple[Request, bytes]:
    """What the client asks for, and what came behind it: no frame is looked at before the request is answered. Raises
    Closed."""
    last = b""
    while True:
        data = await read(RECEIVE_BYTES)
        seen = last + data
        end = seen.find(_END)
        cut = len(data) if end < 0 else end + len(_END) - len(last)
        last = seen[1 - len(_END) :]
        if data:
            protocol.receive_data(data[:cut])
        else:
            protocol.receive_eof()
        for request in protocol.events_received():
            assert isinstance(request, Request)
            return request, bytes(data[cut:])
        if protocol.handshake_exc is not None:
            if last:
                await write(_NO_HTTP)
            raise Closed(1006)


def _refusal(request: Request) -> tuple[int, str] | None:
    """The HTTP status and why, where a WebSocket is asked for that is not spoken here."""
    if request.path != PATH:
        return 404, f"There is nothing at this path. Connect to {PATH}"
    offered = [one.strip() for value in request.headers.get_all(_HEADER) for one in value.split(",")]
    if request.headers.get_all("Upgrade") and SUBPROTOCOL not in offered:
        return 400, f"This node speaks {SUBPROTOCOL}. Send {_HEADER}: {SUBPROTOCOL}"
    return None


def busy_response(retry_after_s: int) -> bytes:
    """HTTP 503 for a client that there is no room for (RFC 9110 15.6.4), complete."""
    body = b"This node has no room for another connection now. Try again later, or at another node\n"
    return _complete("503 Service Unavailable", body, f"Retry-After: {retry_after_s}\r\n")


def _complete(status: str, body: bytes, headers: str = "") -> bytes:
    """An HTTP response that is the last on its connection."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
        f"{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


_NO_HTTP: Final = _complete("400 Bad Request", b"This is no HTTP request for a WebSocket\n")
