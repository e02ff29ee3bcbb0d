"""The admin face of a node: /metrics, /healthz and /readyz over HTTP/1.1 (RFC 9112), on a loopback port.

It answers one request a connection, to few at once and within a deadline; nothing it says is secret, and nothing that
arrives can do more than cost a little time. Who composes a node may add pages, on a Unix socket also such that take
orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

import h11
import structlog
import trio

from relay.limits import KIB
from relay.observe.metrics import CONTENT_TYPE, Metrics

REQUEST_S: Final = 5.0  # seconds to send a request, and again to take the answer; a scraper needs milliseconds
LINGER_S: Final = 1.0  # seconds for the other side to hear the answer before the connection goes
MAX_HEAD: Final = 8 * KIB  # bytes of request line and headers
MAX_AT_ONCE: Final = 32  # connections; a scraper and a few curious operators

MAX_BODY: Final = 8 * KIB  # bytes of a POST; an order takes a few dozen
_TEXT: Final = "text/plain; charset=utf-8"
_log = structlog.get_logger("relay.observe.admin")


class Answer(NamedTuple):
    """A status (RFC 9110 section 15) and a body, which a HEAD request only gets the length of."""

    status: HTTPStatus
    body: bytes
    content_type: str = _TEXT
    head: bool = False
    allow: str = ""


class Page(NamedTuple):
    """A page beside the node's own: what GET (and HEAD) answers, and what POST does with the body that came."""

    get: Callable[[], Answer] | None = None
    post: Callable[[bytes], Answer] | None = None

    @property
    def methods(self) -> str:
        """For Allow (RFC 9110 section 10.2.1)."""
        return ", ".join([*(("GET", "HEAD") if self.get else ()), *(("POST",) if self.post else ())])


Pages = Mapping[str, Page]


async def serve_admin(
    listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
    metrics: Metrics,
    ready: Callable[[], str | None],
    pages: Pages | None = None,
    warning: Callable[[], str] = str,
    *,
    task_status: trio.TaskStatus[list[trio.abc.Listener[trio.abc.Stream]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled. `ready` returns None, or in a few words why the node is not ready; `warning` what is wrong
    even so, or nothing. `pages`: by path."""
    limiter = trio.CapacityLimiter(MAX_AT_ONCE)
    all_pages = {**node_pages(metrics, ready, warning), **(pages or {})}

    async def handle(stream: trio.abc.Stream) -> None:
        async with stream:
            if limiter.available_tokens < 1:
                return
            async with limiter:
                await _serve_one(stream, all_pages)

    await trio.serve_listeners(handle, list(listeners), task_status=task_status)


def node_pages(metrics: Metrics, ready: Callable[[], str | None], warning: Callable[[], str] = str) -> Pages:
    """The pages that every node has."""

    def show_ready() -> Answer:
        reason = ready()
        if reason is None:
            wrong = warning()
            return Answer(HTTPStatus.OK, b"ready\n" + (f"warning: {wrong}\n".encode() if wrong else b""))
        return Answer(HTTPStatus.SERVICE_UNAVAILABLE, f"not ready: {reason}\n".encode())

    return {
        "/metrics": Page(lambda: Answer(HTTPStatus.OK, metrics.render(), CONTENT_TYPE)),
        "/healthz": Page(lambda: Answer(HTTPStatus.OK, b"ok\n")),
        "/readyz": Page(show_ready),
    }


def answer(method: str, target: str, body: bytes, pages: Pages) -> Answer:
    """What a request gets. Queries are ignored."""
    page = pages.get(target.partition("?")[0])
    if page is None:
        return Answer(HTTPStatus.NOT_FOUND, f"No such page. There are: {', '.join(pages)}\n".encode())
    if method in ("GET", "HEAD") and page.get is not None:
        return page.get()
    if method == "POST" and page.post is not None:
        return page.post(body)
    return Answer(HTTPStatus.METHOD_NOT_ALLOWED, f"Only {page.methods}\n".encode(), allow=page.methods)


async def _serve_one(stream: trio.abc.Stream, pages: Pages) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD)
    try:
        with trio.move_on_after(REQUEST_S) as deadline:
            reply = await _reply(connection, stream, pages)
        if deadline.cancelled_caught:
            reply = Answer(HTTPStatus.REQUEST_TIMEOUT, b"The request did not arrive in time\n")
        if reply is not None:
            with trio.move_on_after(REQUEST_S):
                await _send(connection, stream, reply)
                await _linger(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass  # whoever asked has gone


async def _reply(connection: h11.Connection, stream: trio.abc.Stream, pages: Pages) -> Answer | None:
    """Read one request. None when the other side closed without one."""
    request: h11.Request | None = None
    body = b""
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(bytes(await stream.receive_some(MAX_HEAD)))
            elif isinstance(event, h11.Request):
                request = event
                if event.method in (b"GET", b"HEAD"):
                    return _answer_to(event, b"", pages)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY:
                    return Answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, b"More than any order takes\n")
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                return _answer_to(request, body, pages)
            else:
                return None
    except h11.RemoteProtocolError as error:
        return Answer(HTTPStatus(error.error_status_hint), f"Not a request that is understood here: {error}\n".encode())
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return None  # whoever asked has gone
    except Exception:  # noqa: BLE001 - a mistake in what is shown must not stop the node
        _log.exception("admin_request_failed")
        return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"The node could not answer; its log says why\n")


def _answer_to(request: h11.Request, body: bytes, pages: Pages) -> Answer:
    method = request.method.decode("ascii")
    reply = answer(method, request.target.decode("ascii", "replace"), body, pages)
    return reply._replace(head=method == "HEAD")


async def _send(connection: h11.Connection, stream: trio.abc.Stream, reply: Answer) -> None:
    headers = [("Content-Type", reply.content_type), ("Content-Length", str(len(reply.body))), ("Connection", "close")]
    if reply.allow:
        headers.append(("Allow", reply.allow))
    response = h11.Response(status_code=reply.status, headers=headers, reason=reply.status.phrase)
    data = connection.send(response) or b""
    if not reply.head:
        data += connection.send(h11.Data(data=reply.body)) or b""
    await stream.send_all(data)


async def _linger(stream: trio.abc.Stream) -> None:
    """Say that this was all and let the other side finish: closing over unread bytes would cut off the answer."""
    if isinstance(stream, trio.abc.HalfCloseableStream):
        await stream.send_eof()
    with trio.move_on_after(LINGER_S):
        while await stream.receive_some(MAX_HEAD):
            pass
