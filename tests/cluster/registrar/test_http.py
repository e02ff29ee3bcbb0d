"""The server and the client over memory streams: limits, deadlines, several requests on a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MemorySendStream, MockClock, memory_stream_pair

from cluster.registrar.http import Caller, Reply, serve_http
from relay.errors import PeerError
from relay.limits import HTTP_ANSWER_S, HTTP_CONNECTIONS, HTTP_CROWDED_S, HTTP_IDLE_S, HTTP_REQUEST_S, MAX_HTTP_HEAD

Pair = trio.StapledStream[MemorySendStream, trio.testing.MemoryReceiveStream]


class Echo:
    """Says what it was asked, on /slow never."""

    def takes(self, method: str, path: str) -> int | None:
        return {"/echo": 100, "/slow": 0, "/bad": 0}.get(path)

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        if path == "/bad":
            raise RuntimeError("a mistake of ours")
        await trio.sleep(1e9 if path == "/slow" else 0)
        return Reply(200, f"{method} {path} ".encode() + body)


class Doors(trio.abc.Listener[trio.abc.Stream]):
    """A listener in memory."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](0)
        self.dialled = 0

    async def dial(self) -> Pair:
        ours, theirs = memory_stream_pair()
        self.dialled += 1
        await self._send.send(theirs)
        return ours

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def aclose(self) -> None:
        await self._receive.aclose()


@asynccontextmanager
async def serving() -> AsyncIterator[Doors]:
    doors = Doors()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_http, [doors], Echo())
        yield doors
        nursery.cancel_scope.cancel()


async def read_all(stream: Pair) -> bytes:
    data = b""
    while part := await stream.receive_some(65536):
        data += part
    return data


async def test_many_requests_on_one_connection() -> None:
    async with serving() as doors:
        caller = Caller("echo", doors.dial)
        for number in range(3):
            assert await caller.ask("POST", "/echo", b"%d" % number) == (200, b"POST /echo %d" % number)
        assert await caller.ask("GET", "/nothing") == (404, b"No such page\n")
        assert await caller.ask("GET", "/echo") == (200, b"GET /echo ")
        assert (await caller.ask("GET", "/bad"))[0] == 500
        assert (await caller.ask("POST", "/echo", bytes(101)))[0] == 413
        assert await caller.ask("GET", "/echo") == (200, b"GET /echo ")
        assert doors.dialled <= 3


async def test_what_is_no_request(autojump_clock: MockClock) -> None:
    async with serving() as doors:
        for data, status in (
            (b"nonsense\r\n\r\n", b"400"),
            (b"GET /" + b"x" * (MAX_HTTP_HEAD + 1) + b" HTTP/1.1\r\n", b"431"),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000000\r\n\r\n" + bytes(200), b"413"),
            (b"POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n12345", b"408"),
            (b"HEAD /echo HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", b"200"),
        ):
            stream = await doors.dial()
            await stream.send_all(data)
            answer = await read_all(stream)
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            assert b"HEAD" not in data or answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"HEAD /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 200\r\n\r\n" + bytes(200),  # more than the page takes
        b"HEAD /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\n\r\n",  # never comes
        b"HEAD /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
        b"GET /echo HTTP/1.1\r\nHost: h\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"CONNECT /none HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /echo HTTP/1.0\r\n\r\n",
        b"GET /echo HTTP/1.1\r\nHost: h\r\n\r\nnonsense\r\n\r\n",
    ],
)
async def test_no_request_ends_the_server(data: bytes, autojump_clock: MockClock) -> None:
    async with serving() as doors:
        stream = await doors.dial()
        await stream.send_all(data)
        answer = await read_all(stream)
        assert answer.startswith(b"HTTP/1.1 ") and (not data.startswith(b"HEAD") or answer.endswith(b"\r\n\r\n"))
        assert await Caller("echo", doors.dial).ask("GET", "/echo") == (200, b"GET /echo ")


async def test_nobody_holds_a_connection_for_nothing(autojump_clock: MockClock) -> None:
    async with serving() as doors:
        silent, slow, asking = [await doors.dial() for _ in range(3)]
        begun = trio.current_time()
        await slow.send_all(b"GET /ec")
        await read_all(slow)
        assert trio.current_time() - begun <= HTTP_REQUEST_S + 2
        await asking.send_all(b"GET /slow HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await read_all(asking)).startswith(b"HTTP/1.1 503")
        assert trio.current_time() - begun <= HTTP_REQUEST_S + HTTP_ANSWER_S + 4
        assert await read_all(silent) == b""
        assert trio.current_time() - begun <= HTTP_IDLE_S + 2


async def test_who_is_idle_makes_room_in_a_crowd(autojump_clock: MockClock) -> None:
    async with serving() as doors:
        idle = [await doors.dial() for _ in range(HTTP_CONNECTIONS)]
        turned_away = await doors.dial()
        assert await read_all(turned_away) == b""
        begun = trio.current_time()
        assert await read_all(idle[-1]) == b""
        assert trio.current_time() - begun <= HTTP_CROWDED_S + 2
        assert await Caller("echo", doors.dial).ask("GET", "/echo") == (200, b"GET /echo ")


async def test_a_caller_gives_up_and_dials_anew(autojump_clock: MockClock) -> None:
    async with serving() as doors:
        caller = Caller("echo", doors.dial)
        await caller.ask("GET", "/echo")
        await trio.sleep(HTTP_IDLE_S + 5)  # the server has closed it
        assert await caller.ask("GET", "/echo") == (200, b"GET /echo ")
        assert doors.dialled == 2
        with pytest.raises(PeerError, match="more than 3 bytes"):
            await caller.ask("GET", "/echo", most=3)
        assert await caller.ask("GET", "/echo") == (200, b"GET /echo ")

    async def nobody() -> trio.abc.Stream:
        raise OSError("nobody there")

    with pytest.raises(PeerError, match="nobody there"):
        await Caller("nobody", nobody).ask("GET", "/")

    async def silence() -> trio.abc.Stream:
        return memory_stream_pair()[0]

    with pytest.raises(PeerError, match="no answer in time"):
        await Caller("silence", silence).ask("GET", "/")
