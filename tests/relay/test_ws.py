"""The client side of relay.ws against servers that misbehave (the good one is in tests/relay/gateway)."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from wsproto.utilities import generate_accept_token

from relay import ws
from relay.errors import Overloaded, PosthouseError, ProtocolError
from relay.gateway.websocket import busy_response
from tests.patience import PATIENCE_S

Handler = Callable[[trio.SocketStream, bytes], Awaitable[None]]


@asynccontextmanager
async def open_server(handler: Handler) -> AsyncIterator[str]:
    """A server that reads an HTTP request and hands the rest to `handler`; yields its URL."""

    async def serve(stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request and (more := await stream.receive_some(4096)):
            request += more
        if request:
            with suppress(trio.BrokenResourceError):
                await handler(stream, request)

    async with trio.open_nursery() as nursery:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"ws://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def agree(stream: trio.SocketStream, request: bytes, protocol: bytes = b"posthouse.v0") -> None:
    key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
    head = b"HTTP/1.1 101 Go\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    await stream.send_all(head + generate_accept_token(key) + b"\r\n")
    await stream.send_all((b"Sec-WebSocket-Protocol: " + protocol if protocol else b"X: y") + b"\r\n\r\n")


def answering(data: bytes) -> Handler:
    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await stream.send_all(data)

    return handler


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"HTTP/1.1 400 No\r\nContent-Length: 5\r\n\r\nSpeak", ProtocolError, "HTTP 400.*Speak"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", ProtocolError, "HTTP 404"),
        (b"HTTP/1.1 503 No\r\nRetry-After: 7\r\nContent-Length: 2\r\n\r\nno", Overloaded, "7000 ms"),
        (b"HTTP/1.1 503 No\r\nRetry-After: Sun, 06 Nov 1994\r\nContent-Length: 2\r\n\r\nno", Overloaded, "5000 ms"),
        (busy_response(9), Overloaded, "9000 ms"),
        (b"SSH-2.0-OpenSSH\r\n", ws.NotConnected, "broke off"),
        (b"", ws.NotConnected, "broke off"),
    ],
)
async def test_a_handshake_that_fails_says_why(data: bytes, error: type[PosthouseError], says: str) -> None:
    async with open_server(answering(data)) as url:
        with trio.fail_after(PATIENCE_S), pytest.raises(error, match=says):
            async with ws.connect(url):
                pytest.fail("connected")


async def test_a_server_of_another_kind_is_refused() -> None:
    async def no_protocol(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request, b"")
        await stream.receive_some()

    async with open_server(no_protocol) as url:
        with trio.fail_after(PATIENCE_S), pytest.raises(ProtocolError, match="does not speak"):
            async with ws.connect(url):
                pytest.fail("connected")


async def test_a_server_that_is_silent_or_absent() -> None:
    async def silent(stream: trio.SocketStream, _request: bytes) -> None:
        await stream.receive_some()

    async with open_server(silent) as url:
        with pytest.raises(ws.NotConnected, match="did not answer within"):
            async with ws.connect(url, deadline_s=0.05):
                pytest.fail("connected")
        tls = url.replace("ws:", "wss:")
        with pytest.raises(ws.NotConnected, match="did not answer within"):
            async with ws.connect(tls, ssl.create_default_context(), deadline_s=0.05):
                pytest.fail("connected")
    for gone in (url, "ws+unix:/nowhere/socket"):
        with pytest.raises(ws.NotConnected, match="could not be reached"):
            async with ws.connect(gone):
                pytest.fail("connected")


@pytest.mark.parametrize("url", ["http://x", "ws:", "ws://", "ws+unix:", "", "norden"])
async def test_an_address_of_another_kind(url: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        async with ws.connect(url):
            pytest.fail("connected")


@pytest.mark.parametrize("ending", [b"", b"\x88\x02\x0f\xa4", b"\x88\x00", b"\xf2\x00", b"\x82\x7f\xff"])
async def test_every_end_is_closed(ending: bytes) -> None:
    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        await stream.send_all(b"\x82\x02hi" + ending)

    async with open_server(handler) as url:
        with trio.fail_after(PATIENCE_S):
            async with ws.connect(url) as socket:
                assert await socket.receive() == b"hi"
                for attempt in (socket.receive, socket.receive, socket.ping, lambda: socket.send(b"x")):
                    with pytest.raises(ws.Closed) as closed:
                        await attempt()
                assert closed.value.code == (4004 if ending[2:] == b"\x0f\xa4" else closed.value.code)


async def test_a_ping_does_not_outlive_the_connection() -> None:
    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        await stream.receive_some()  # the ping

    async with open_server(handler) as url, ws.connect(url) as socket:
        with trio.fail_after(PATIENCE_S), pytest.raises(ws.Closed):
            await socket.ping()


async def test_a_text_message_is_an_error() -> None:
    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        await stream.send_all(b"\x81\x02hi")
        await stream.receive_some()

    async with open_server(handler) as url, ws.connect(url) as socket:
        with pytest.raises(ProtocolError, match="text message"):
            await socket.receive()


async def test_a_server_that_never_answers_a_close_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ws, "CLOSE_S", 0.05)

    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        while await stream.receive_some():
            pass

    async with open_server(handler) as url:
        with trio.fail_after(PATIENCE_S):
            async with ws.connect(url) as socket:
                await socket.aclose()
                await socket.aclose()


async def test_what_the_caller_raises_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        await stream.receive_some()

    monkeypatch.setattr(ws, "CLOSE_S", 0.05)  # this server never answers a close
    async with open_server(handler) as url:
        for error in (KeyError("mine"), ExceptionGroup("mine", [KeyError("inner")])):
            with pytest.raises(type(error)) as caught:
                async with ws.connect(url):
                    raise error
            assert caught.value is error
        with trio.move_on_after(0.02) as scope:
            async with ws.connect(url):
                await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_cancelling_at_any_step_of_connecting_leaves_nothing_open() -> None:
    opened: list[trio.SocketStream] = []

    async def dial(host: str, port: int) -> trio.abc.Stream:
        opened.append(await trio.open_tcp_stream(host, port))
        return opened[-1]

    async def handler(stream: trio.SocketStream, request: bytes) -> None:
        await agree(stream, request)
        await stream.receive_some()

    async def stay(url: str) -> None:
        async with ws.connect(url, dial=dial):
            await trio.sleep_forever()

    async with open_server(handler) as url:
        for steps in range(1, 25):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    nursery.start_soon(stay, url)
                    for _ in range(steps):
                        await trio.lowlevel.checkpoint()
                    scope.cancel()
    assert opened and all(stream.socket.fileno() == -1 for stream in opened)
