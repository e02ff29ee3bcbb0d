"""The client's half of WebSockets: `connect` for ws://, wss:// and ws+unix: addresses. The only file that imports
trio_websocket; its exceptions are translated here, once. The server's half is relay.gateway.websocket.
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

from relay.core.wire import SUBPROTOCOL
from relay.dialing import dial_tcp
from relay.errors import Overloaded, PosthouseError, ProtocolError, TrustError
from relay.limits import MAX_FRAME, SECOND

PATH: Final = "/"
CLIENT_MAX_MESSAGE: Final = 4 * MAX_FRAME  # bytes; what wire.decode_server takes
RECEIVE_BYTES: Final = 16 * 1024  # bytes asked of the socket at a time: few calls for a full frame, little memory
CLOSE_S: Final = 2.0  # seconds a client waits for the other side's close frame


class Closed(PosthouseError):
    """The connection is over: closed by the other side, or broken. `code` is the close code, 1006 where none came."""

    def __init__(self, code: int) -> None:
        super().__init__(f"The connection was closed (WebSocket code {code})", "Reconnect")
        self.code = code


class NotConnected(PosthouseError):
    """No connection could be made now: nobody there, a timeout, or no WebSocket. Trying again later is fine."""



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
