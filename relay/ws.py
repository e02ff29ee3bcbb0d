"""WebSockets, both sides. The only file that imports trio_websocket; its exceptions are translated here, once.

Server: `accept` answers the HTTP handshake on a stream that the gateway owns. Everything the library writes goes
through the gateway's outbox, so that pongs, closes and shared data frames never interleave.
The library's own closes on errors are kept back: the connection says ERROR first and closes itself.

Client: `connect` for ws://, wss:// and ws+unix: addresses.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, cast
from urllib.parse import urlsplit

import trio
import trio_websocket as library

from relay.core.frames import close_code
from relay.core.wire import SUBPROTOCOL
from relay.errors import Overloaded, PosthouseError, ProtocolError, TrustError
from relay.limits import MAX_FRAME, SECOND

PATH: Final = "/"
CLIENT_MAX_MESSAGE: Final = 4 * MAX_FRAME  # bytes; what wire.decode_server takes
RECEIVE_BYTES: Final = 16 * 1024  # bytes asked of the socket at a time: few calls for a full frame, little memory
MAX_PIECES: Final = 1024  # fragments of one message; each costs memory, however few bytes it carries
MIN_PIECE: Final = 256  # bytes of a message for each piece past those: what a read brings counts as one, and a full TCP
# segment has at least 536 (RFC 9293 3.7.1)
CLOSE_S: Final = 2.0  # seconds a client waits for the other side's close frame

_PROTOCOL_CODES: Final = (1002, 1007, 1009)  # what the library found wrong itself (RFC 6455 7.4.1)


class Closed(PosthouseError):
    """The connection is over: closed by the other side, or broken. `code` is the close code, 1006 where none came."""

    def __init__(self, code: int) -> None:
        super().__init__(f"The connection was closed (WebSocket code {code})", "Reconnect")
        self.code = code


class NotConnected(PosthouseError):
    """No connection could be made now: nobody there, a timeout, or no WebSocket. Trying again later is fine."""


Write = Callable[[bytes], Awaitable[None]]  # raises trio.BrokenResourceError or trio.ClosedResourceError
Read = Callable[[int | None], Awaitable[bytes | bytearray]]  # at most so many; empty at the end; raises the same


class _Reader:
    """Stands where the library wants a nursery for its reader task, which ends in many ways: with an exception of
    the peer's making (a header that is not ASCII, a refusal) or, in the handshake, without a word. Here all of them
    end what waits for the reader, and none ends the connection's other tasks."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waiting: list[trio.CancelScope] = []
        self.error: Exception | None = None
        self.ended = False

    def start_soon(self, task: Callable[[], Awaitable[None]]) -> None:
        self._nursery.start_soon(self._run, task, name="websocket reader")

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        try:
            await task()
        except Exception as error:  # noqa: BLE001  whatever the peer's bytes made the library raise
            self.error = error
        finally:
            self.ended = True
            for scope in self._waiting:
                scope.cancel()

    @contextmanager
    def while_it_reads(self, seconds: float = math.inf) -> Iterator[None]:
        """Leave the block when the reader has ended, or after so many seconds."""
        with trio.move_on_after(seconds) as scope:
            if self.ended:
                scope.cancel()
            self._waiting.append(scope)
            try:
                yield
            finally:
                self._waiting.remove(scope)

    def as_nursery(self) -> trio.Nursery:
        return cast("trio.Nursery", self)


class _Door(trio.abc.Stream):
    """The stream that the library sees. It cannot close the real one: the connection does, after its last words."""

    def __init__(self, write: Write, read: Read) -> None:
        self._write = write
        self._read = read
        self._closed = False
        self.echoed = False  # the answer to the client's close frame went through
        self.crumbled = False  # the client cut a message into too many fragments
        self.crumbs: Callable[[], int] = lambda: 0  # pieces that the library holds beyond what their bytes are worth

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed:
            raise trio.ClosedResourceError
        code = close_code(data := bytes(data))
        if code in _PROTOCOL_CODES:
            return
        self.echoed = self.echoed or code is not None
        await self._write(data)

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._closed:
            raise trio.ClosedResourceError
        if self.crumbs() > MAX_PIECES:
            self.crumbled = True
            return b""
        return await self._read(max_bytes)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()


class ServerSocket:
    """The receiving half of an accepted connection; the sending half is the outbox."""

    def __init__(self, connection: library.WebSocketConnection, door: _Door) -> None:
        self._connection = connection
        self._door = door
        # The library bounds the bytes of a message, not the number of its pieces.
        door.crumbs = lambda: len(connection._message_parts) - connection._message_size // MIN_PIECE

    async def receive(self) -> bytes:
        """The next binary message. Raises Closed at the end, ProtocolError for what is not one of at most MAX_FRAME."""
        try:
            message = await self._connection.get_message()
        except library.ConnectionClosed as closed:
            raise self._why(closed.reason) from None
        if isinstance(message, str):
            raise ProtocolError("A text message", f"{SUBPROTOCOL} is spoken in binary messages")
        return message

    def _why(self, reason: library.CloseReason | None) -> PosthouseError:
        if self._door.crumbled:
            return ProtocolError(f"A message of more than {MAX_PIECES} fragments", "Send each message as one frame")
        code = 1006 if reason is None else reason.code
        if self._door.echoed or code not in _PROTOCOL_CODES:
            return Closed(code)
        if code == 1009:
            return ProtocolError(f"A message of more than {MAX_FRAME} bytes", "Send smaller batches")
        return ProtocolError(f"Bytes that are no WebSocket frame ({reason and reason.reason})", "See RFC 6455")


async def accept(nursery: trio.Nursery, write: Write, read: Read) -> ServerSocket:
    """Answer the WebSocket handshake on a stream that the caller owns: it sets the deadline, and closes it. `nursery`
    holds the library's reader task.

    Raises Closed when the client left or sent no WebSocket handshake (it then got HTTP 400), ProtocolError when it
    asked for another path or subprotocol (it then got HTTP 404 or 400 with the text)."""
    reader = _Reader(nursery)
    door = _Door(write, read)
    request = None
    with reader.while_it_reads():
        request = await library.wrap_server_stream(
            reader.as_nursery(), door, message_queue_size=1, max_message_size=MAX_FRAME,
            receive_buffer_size=RECEIVE_BYTES,
        )  # fmt: skip
    if request is None:
        raise Closed(1006)
    try:
        if request.path != PATH:
            await _reject(request, 404, f"There is nothing at this path. Connect to {PATH}")
        if SUBPROTOCOL not in request.proposed_subprotocols:
            await _reject(request, 400, f"This node speaks {SUBPROTOCOL}. Send Sec-WebSocket-Protocol: {SUBPROTOCOL}")
        return ServerSocket(await request.accept(subprotocol=SUBPROTOCOL), door)
    except library.ConnectionClosed:
        raise Closed(1006) from None


async def _reject(request: library.WebSocketRequest, status: int, text: str) -> None:
    """Answer with HTTP `status` and text; raises ProtocolError."""
    headers = [(b"Content-Type", b"text/plain; charset=utf-8"), (b"Connection", b"close")]
    await request.reject(status, extra_headers=headers, body=text.encode() + b"\n")
    raise ProtocolError(f"The handshake was refused with {status}: {text}")


def busy_response(retry_after_s: int) -> bytes:
    """HTTP 503 for a client that there is no room for (RFC 9110 15.6.4), complete."""
    body = b"This node has no room for another connection now. Try again later, or at another node\n"
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
        f"Retry-After: {retry_after_s}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


# --- client --------------------------------------------------------------------------------------
class ClientSocket:
    """A connection to a node."""

    def __init__(self, connection: library.WebSocketConnection, stream: trio.abc.Stream, reader: _Reader) -> None:
        self._connection = connection
        self._stream = stream
        self._reader = reader

    async def send(self, message: bytes) -> None:
        """Send one binary message. Raises Closed."""
        try:
            await self._connection.send_message(message)
        except (library.ConnectionClosed, trio.ClosedResourceError) as closed:
            raise _closed(closed) from None

    async def receive(self) -> bytes:
        """The next binary message. Raises Closed at the end, ProtocolError for a text message."""
        try:
            message = await self._connection.get_message()
        except library.ConnectionClosed as closed:
            raise _closed(closed) from None
        if isinstance(message, str):
            raise ProtocolError("The node sent a text message", f"It does not speak {SUBPROTOCOL}")
        return message

    async def ping(self) -> None:
        """Send a ping and wait for its pong. The pong is read behind the messages before it, so another task has to
        receive meanwhile. Raises Closed."""
        with self._reader.while_it_reads():
            try:
                await self._connection.ping()
            except library.ConnectionClosed as closed:
                raise _closed(closed) from None
            return
        raise Closed(1006)

    async def aclose(self) -> None:
        """Close, waiting at most CLOSE_S for the other side. Idempotent; raises nothing."""
        try:
            with self._reader.while_it_reads(CLOSE_S):
                await self._connection.aclose()
        except (library.ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(self._stream)


def _closed(error: Exception) -> Closed:
    reason = getattr(error, "reason", None)
    return Closed(1006 if reason is None else reason.code)


Dial = Callable[[str, int], Awaitable[trio.abc.Stream]]


async def dial_tcp(host: str, port: int) -> trio.abc.Stream:
    """A TCP connection (RFC 8305 over all addresses of the host). Raises OSError."""
    return await trio.open_tcp_stream(host, port)


@asynccontextmanager
async def connect(
    url: str, ssl_context: ssl.SSLContext | None = None, deadline_s: float = 10.0, *, dial: Dial = dial_tcp
) -> AsyncIterator[ClientSocket]:
    """A connection to a node at ws://host:port, wss://host:port or ws+unix:/path, made within `deadline_s` seconds.

    Raises NotConnected (try again later), TrustError (its certificate does not hold), ProtocolError (it refused the
    handshake), Overloaded (no room, with a time to wait); ValueError for any other address."""
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        try:
            socket = await _open(nursery, url, ssl_context, deadline_s, dial)
            try:
                yield socket
            finally:
                with trio.CancelScope(shield=True):  # bounded by CLOSE_S
                    await socket.aclose()
        except Exception as error:  # noqa: BLE001  raised again below, outside of the nursery that would wrap it
            failed = error
        nursery.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def _open(
    nursery: trio.Nursery, url: str, ssl_context: ssl.SSLContext | None, deadline_s: float, dial: Dial
) -> ClientSocket:
    stream: trio.abc.Stream | None = None
    try:
        with trio.fail_after(deadline_s):
            host, stream = await _transport(url, ssl_context, dial)
            return await _shake_hands(nursery, stream, host, url)
    except BaseException as error:
        if stream is not None:
            await trio.aclose_forcefully(stream)
        if isinstance(error, trio.TooSlowError):
            raise NotConnected(f"{url} did not answer within {deadline_s:g} s", "Is it running?") from None
        raise


async def _transport(url: str, ssl_context: ssl.SSLContext | None, dial: Dial) -> tuple[str, trio.abc.Stream]:
    """(Host header, connected stream with TLS on where it belongs)."""
    parts = urlsplit(url)
    try:
        match parts.scheme:
            case "ws+unix" if parts.path:
                return "localhost", await trio.open_unix_socket(parts.path)
            case "ws" if parts.hostname:
                return parts.netloc, await dial(parts.hostname, parts.port or 80)
            case "wss" if parts.hostname:
                context = ssl_context or ssl.create_default_context()
                stream = await dial(parts.hostname, parts.port or 443)
                return parts.netloc, await _secured(stream, context, parts.hostname, url)
            case _:
                raise ValueError(f"{url} is none of ws://host:port, wss://host:port and ws+unix:/path")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotConnected(f"{url} could not be reached ({reason})", "Is it running?") from None


async def _secured(stream: trio.abc.Stream, context: ssl.SSLContext, host: str, url: str) -> trio.abc.Stream:
    secure = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
    try:
        await secure.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(secure)
        if isinstance(error, trio.BrokenResourceError):
            if isinstance(cause := error.__cause__, ssl.SSLCertVerificationError):
                raise TrustError(f"The certificate of {url} does not hold: {cause.verify_message}") from None
            raise NotConnected(f"{url} broke off the TLS handshake", "Does it speak TLS?") from None
        raise
    return secure


async def _shake_hands(nursery: trio.Nursery, stream: trio.abc.Stream, host: str, url: str) -> ClientSocket:
    reader = _Reader(nursery)
    connection = None
    any_stream = cast("trio.SocketStream", stream)  # the library's annotation names two classes, its code takes any
    with reader.while_it_reads():
        connection = await library.wrap_client_stream(
            reader.as_nursery(), any_stream, host, PATH, subprotocols=[SUBPROTOCOL],
            max_message_size=CLIENT_MAX_MESSAGE, receive_buffer_size=RECEIVE_BYTES,
        )  # fmt: skip
    if isinstance(reader.error, library.ConnectionRejected):
        raise _rejected(reader.error, url)
    if connection is None:
        raise NotConnected(f"{url} broke off the WebSocket handshake", "Is it a Posthouse node?")
    if connection.subprotocol != SUBPROTOCOL:
        raise ProtocolError(f"{url} does not speak {SUBPROTOCOL}", "Is it a Posthouse node?")
    return ClientSocket(connection, stream, reader)


def _rejected(error: library.ConnectionRejected, url: str) -> PosthouseError:
    text = (error.body or b"").decode("utf-8", "replace").strip()
    if error.status_code == 503:
        wait = dict(error.headers).get(b"retry-after", b"")
        return Overloaded(f"{url} has no room", (int(wait) if wait.isdigit() else 5) * SECOND)
    return ProtocolError(f"{url} refused the handshake with HTTP {error.status_code}", text)
