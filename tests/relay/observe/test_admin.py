"""The admin face, over real sockets and in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from http import HTTPStatus

import pytest
import structlog.testing
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from relay.observe import admin
from relay.observe.metrics import CONTENT_TYPE, Metrics


@asynccontextmanager
async def serving(
    ready: Callable[[], str | None] = lambda: None, metrics: Metrics | None = None, pages: admin.Pages | None = None
) -> AsyncIterator[int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(admin.serve_admin, listeners, metrics or Metrics(), ready, pages))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(port: int, request: bytes) -> tuple[int, dict[str, str], bytes]:
    with trio.fail_after(5):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            data = b"".join([chunk async for chunk in stream])
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return int(status.split()[1]), {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}, body


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


async def test_metrics_are_openmetrics_that_a_parser_reads() -> None:
    metrics = Metrics()
    metrics.submitted.inc(3)
    metrics.refused.labels("stale").inc()
    metrics.links_up.labels("sauda/1").set(1)
    metrics.commit_seconds.observe(0.0012)
    async with serving(metrics=metrics) as port:
        status, headers, body = await ask(port, get("/metrics?format=any"))
    assert (status, headers["content-type"], int(headers["content-length"])) == (200, CONTENT_TYPE, len(body))
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["posthouse_submitted"].samples[0].value == 3
    assert families["posthouse_refused"].samples[0].labels == {"reason": "stale"}
    assert families["posthouse_links_up"].samples[0].labels == {"cell": "sauda/1"}
    assert families["posthouse_commit_seconds"].type == "histogram"
    assert "process_resident_memory_bytes" in families


async def test_ready_says_why_not() -> None:
    reasons: list[str | None] = ["the journal is being replayed", None]
    async with serving(lambda: reasons.pop(0)) as port:
        status, _, body = await ask(port, get("/healthz"))
        assert (status, body) == (200, b"ok\n")
        status, _, body = await ask(port, get("/readyz"))
        assert (status, body) == (503, b"not ready: the journal is being replayed\n")
        status, _, body = await ask(port, get("/readyz"))
        assert (status, body) == (200, b"ready\n")


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as port:
        status, headers, body = await ask(port, get("/healthz", "HEAD"))
    assert (status, headers["content-length"], body) == (200, "3", b"")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (get("/"), 404),
        (get("/metrics/../etc/passwd"), 404),
        (get("/metrics", "POST"), 405),
        (get("/metrics", "DELETE"), 405),
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n\r\n", 400),  # HTTP/1.1 without Host
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"A: " + b"a" * admin.MAX_HEAD * 4 + b"\r\n\r\n", 431),
    ],
)
async def test_bad_requests_get_an_answer_and_the_next_one_is_served(request_bytes: bytes, status: int) -> None:
    async with serving() as port:
        got, headers, body = await ask(port, request_bytes)
        assert (got, headers["connection"]) == (status, "close")
        assert body.endswith(b"\n")
        assert ("allow" in headers) == (status == 405)
        assert (await ask(port, get("/healthz")))[0] == 200


async def test_a_broken_ready_is_500_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> str | None:
        raise LookupError("no mailroom")

    async with serving(broken) as port:
        assert (await ask(port, get("/readyz")))[0] == 500
        assert (await ask(port, get("/healthz")))[0] == 200
    captured = capsys.readouterr()
    assert "admin_request_failed" in captured.out + captured.err


async def test_pages_that_were_added_show_and_take_orders() -> None:
    bodies: list[bytes] = []

    def take(body: bytes) -> admin.Answer:
        bodies.append(body)
        return admin.Answer(HTTPStatus.ACCEPTED, b"done\n")

    pages = {
        "/cell": admin.Page(get=lambda: admin.Answer(HTTPStatus.OK, b"{}\n", "application/json")),
        "/cell/remove": admin.Page(post=take),
    }

    def post(path: str, body: bytes, head: bytes = b"") -> bytes:
        length = b"" if head else f"Content-Length: {len(body)}\r\n".encode()
        return f"POST {path} HTTP/1.1\r\nHost: localhost\r\n".encode() + length + head + b"\r\n" + body

    async with serving(pages=pages) as port:
        status, headers, body = await ask(port, get("/cell?x"))
        assert (status, headers["content-type"], body) == (200, "application/json", b"{}\n")
        assert (await ask(port, post("/cell/remove", b'{"node":"n1"}')))[0] == 202
        chunked = b"Transfer-Encoding: chunked\r\n"
        assert (await ask(port, post("/cell/remove", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", chunked)))[0] == 202
        assert bodies == [b'{"node":"n1"}', b"abcde"]
        status, headers, _ = await ask(port, get("/cell/remove"))
        assert (status, headers["allow"]) == (405, "POST")
        status, headers, _ = await ask(port, post("/cell", b"x"))
        assert (status, headers["allow"]) == (405, "GET, HEAD")
        assert (await ask(port, post("/cell/remove", bytes(2 * admin.MAX_BODY))))[0] == 413
        assert (await ask(port, get("/healthz")))[0] == 200 and len(bodies) == 2


async def test_a_silent_client_is_told_and_let_go(autojump_clock: trio.testing.MockClock) -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admin.serve_admin, [OneStream(theirs)], Metrics(), lambda: None)
        await ours.send_all(b"GET /healthz HT")
        start = trio.current_time()
        assert (await ours.receive_some()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - start == admin.REQUEST_S
        assert await ours.receive_some() == b""
        assert trio.current_time() - start <= admin.REQUEST_S + admin.LINGER_S
        nursery.cancel_scope.cancel()


async def test_more_than_a_few_at_once_are_closed(autojump_clock: trio.testing.MockClock) -> None:
    pairs = [trio.testing.memory_stream_pair() for _ in range(admin.MAX_AT_ONCE + 1)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(admin.serve_admin, [OneStream(*(theirs for _, theirs in pairs))], Metrics(), lambda: None)
        await trio.testing.wait_all_tasks_blocked()
        kept = []
        for ours, _ in pairs:
            with trio.move_on_after(0.01) as waiting:
                assert await ours.receive_some() == b""
            if waiting.cancelled_caught:
                kept.append(ours)
        assert len(kept) == admin.MAX_AT_ONCE
        await kept[0].send_all(get("/healthz"))
        assert (await kept[0].receive_some()).startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()


class OneStream(trio.abc.Listener[trio.abc.Stream]):
    """A listener that accepts the given streams, in order, and then nobody."""

    def __init__(self, *streams: trio.abc.Stream) -> None:
        self.streams = list(streams)

    async def accept(self) -> trio.abc.Stream:
        if self.streams:
            return self.streams.pop(0)
        await trio.sleep_forever()
        raise AssertionError

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def test_whoever_breaks_off_is_no_trouble_of_ours() -> None:
    class Reset(trio.abc.Stream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            raise trio.BrokenResourceError

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            pytest.fail("spoke to somebody who has gone")

        async def wait_send_all_might_not_block(self) -> None:
            return

        async def aclose(self) -> None:
            return

    with structlog.testing.capture_logs() as logs:
        await admin._serve_one(Reset(), {})
    assert not logs
