"""HTTP/1.1 (RFC 9112, through h11) over trio streams: the server and the client that registrars use.

One request at a time on a connection, which stays open for more. Sizes are checked before anything is decoded; every
wait has a deadline; no address of anybody's is kept, logged or said.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, NamedTuple, Protocol

import h11
import structlog
import trio

from relay.errors import PeerError
from relay.limits import (
    HTTP_ANSWER_S, HTTP_CONNECTIONS, HTTP_CROWDED_S, HTTP_IDLE_S, HTTP_REQUEST_S, MAX_HTTP_HEAD,
)  # fmt: skip

_log = structlog.get_logger("cluster.registrar.http")
TEXT: Final = "text/plain; charset=utf-8"
BYTES: Final = "application/octet-stream"
_CHUNK: Final = 64 * 1024  # bytes of one read


class Reply(NamedTuple):
    """A status (RFC 9110 section 15), a body and its type. `retry_s`: for Retry-After; 0: without."""

    status: int
    body: bytes
    content_type: str = TEXT
    retry_s: int = 0


class Site(Protocol):
    """What a server serves."""

    def takes(self, method: str, path: str) -> int | None:
        """Bytes of a body that this page takes at most; None where there is no such page or method."""

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        """Answer a request of `takes`."""


Wrap = Callable[[trio.abc.Stream], Awaitable[trio.abc.Stream]]


async def serve_http(
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    site: Site,
    wrap: Wrap | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `wrap`: a TLS handshake, say; it raises OSError, trio.BrokenResourceError or PeerError."""
    limiter = trio.CapacityLimiter(HTTP_CONNECTIONS)

    async def handle(stream: trio.abc.Stream) -> None:
        if limiter.available_tokens < 1:
            await trio.aclose_forcefully(stream)
            return
        async with limiter:
            try:
                await _serve_connection(stream, site, wrap, limiter)
            except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError, OSError, PeerError):
                pass  # whoever asked has gone, or was never there
            except h11.LocalProtocolError:  # ours, and it must not end the other connections
                _log.exception("answer_failed")
            finally:
                await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(trio.serve_listeners, handle, [listener])
        task_status.started()


async def _serve_connection(
    transport: trio.abc.Stream, site: Site, wrap: Wrap | None, limiter: trio.CapacityLimiter
) -> None:
    stream = transport
    if wrap is not None:
        with trio.fail_after(HTTP_REQUEST_S):
            stream = await wrap(transport)
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HTTP_HEAD)
    while True:
        crowded = limiter.available_tokens < HTTP_CONNECTIONS // 2
        reply, head = await _one(connection, stream, site, HTTP_CROWDED_S if crowded else HTTP_IDLE_S)
        if reply is None:
            return
        with trio.fail_after(HTTP_REQUEST_S):
            await stream.send_all(_encode(connection, reply, head))
            if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                await _linger(stream)
                return
        connection.start_next_cycle()


async def _one(
    connection: h11.Connection, stream: trio.abc.Stream, site: Site, idle_s: float
) -> tuple[Reply | None, bool]:
    """Read a request, which begins within `idle_s`, and answer it; and whether only the head was asked for. None at the
    end of the connection."""
    request: h11.Request | None = None
    body, most = bytearray(), 0
    deadline = trio.CancelScope(deadline=trio.current_time() + idle_s)
    with deadline:
        while True:
            try:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    data = bytes(await stream.receive_some(_CHUNK))
                    if not request:
                        deadline.deadline = min(deadline.deadline, trio.current_time() + HTTP_REQUEST_S)
                    connection.receive_data(data)
                    continue
            except h11.RemoteProtocolError as error:
                return Reply(error.error_status_hint, b"Not a request that is understood here\n"), _is_head(request)
            if isinstance(event, h11.Request):
                request = event
                deadline.deadline = trio.current_time() + HTTP_REQUEST_S
                takes = site.takes(*_asked(event))
                if takes is None:
                    return Reply(HTTPStatus.NOT_FOUND, b"No such page\n"), _is_head(request)
                most = takes
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    return Reply(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"More than this page takes\n"), _is_head(request)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                break
            else:
                return None, False
    if deadline.cancelled_caught or request is None:
        late = Reply(HTTPStatus.REQUEST_TIMEOUT, b"The request did not arrive in time\n") if request else None
        return late, _is_head(request)
    return await _answer(site, request, bytes(body)), _is_head(request)


def _is_head(request: h11.Request | None) -> bool:
    return request is not None and request.method == b"HEAD"


def _asked(request: h11.Request) -> tuple[str, str]:
    method = request.method.decode("ascii")
    return "GET" if method == "HEAD" else method, request.target.decode("ascii", "replace")


async def _answer(site: Site, request: h11.Request, body: bytes) -> Reply:
    with trio.move_on_after(HTTP_ANSWER_S):
        try:
            return await site.reply(*_asked(request), body)
        except Exception:  # noqa: BLE001 - one request that fails must not end the others
            _log.exception("request_failed")
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"The registrar could not answer; its log says why\n")
    return Reply(HTTPStatus.SERVICE_UNAVAILABLE, b"No answer in time\n", retry_s=5)


def _encode(connection: h11.Connection, reply: Reply, head: bool) -> bytes:
    headers = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body)))]
    if reply.retry_s:
        headers.append(("Retry-After", str(reply.retry_s)))
    if connection.their_state is not h11.DONE:
        headers.append(("Connection", "close"))
    data = connection.send(h11.Response(status_code=reply.status, headers=headers)) or b""
    if not head:
        data += connection.send(h11.Data(data=reply.body)) or b""
    if connection.their_state is h11.DONE:
        data += connection.send(h11.EndOfMessage()) or b""
    return data


async def _linger(stream: trio.abc.Stream) -> None:
    """Let the other side read the answer: closing over unread bytes would cut it off."""
    with trio.move_on_after(1.0):
        while await stream.receive_some(_CHUNK):
            pass


# --- asking --------------------------------------------------------------------------------------
Dial = Callable[[], Awaitable[trio.abc.Stream]]


@dataclass
class Caller:
    """A client of one server: one connection, kept open, one request at a time. `dial` raises OSError or PeerError."""

    name: str  # of the server, for errors
    dial: Dial
    _stream: trio.abc.Stream | None = None
    _connection: h11.Connection | None = None
    _lock: trio.Lock = field(default_factory=trio.Lock)

    async def ask(self, method: str, path: str, body: bytes = b"", most: int = 64 * 1024) -> tuple[int, bytes]:
        """Status and body of at most `most` bytes. Raises PeerError. A connection that the server closed between two
        requests is dialled anew."""
        async with self._lock:
            for fresh in (self._stream is None, True):
                try:
                    with trio.fail_after(HTTP_ANSWER_S):
                        return await self._ask(method, path, body, most)
                except trio.TooSlowError:
                    raise PeerError(f"{self.name}: no answer in time") from None
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError) as error:
                    if fresh:
                        raise PeerError(f"{self.name}: {str(error) or type(error).__name__}") from None
                finally:
                    if self._connection is None or self._connection.states != _READY:
                        await self._drop()
            raise AssertionError("the second try is a fresh one")

    async def _ask(self, method: str, path: str, body: bytes, most: int) -> tuple[int, bytes]:
        if self._stream is None:
            self._stream = await self.dial()
            self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HTTP_HEAD)
        stream, connection = self._stream, self._connection
        assert connection is not None
        headers = [("Host", "registrar"), ("Content-Length", str(len(body)))]
        data = connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
        data += (connection.send(h11.Data(data=body)) or b"") + (connection.send(h11.EndOfMessage()) or b"")
        await stream.send_all(data)
        status, answer = 0, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(_CHUNK)))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
                if len(answer) > most:
                    raise PeerError(f"{self.name}: an answer of more than {most} bytes")
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise trio.BrokenResourceError("the connection ended before the answer")
        if connection.states == _DONE:
            connection.start_next_cycle()
        return status, bytes(answer)

    async def _drop(self) -> None:
        stream, self._stream, self._connection = self._stream, None, None
        if stream is not None:
            await trio.aclose_forcefully(stream)


_READY: Final = {h11.CLIENT: h11.IDLE, h11.SERVER: h11.IDLE}
_DONE: Final = {h11.CLIENT: h11.DONE, h11.SERVER: h11.DONE}
