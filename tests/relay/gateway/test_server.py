"""The gateway on real sockets: entrances, the cap, slow and hostile clients, the gentle stop."""

from __future__ import annotations

import errno
import gc
import ssl
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import trustme
from websockets.server import ServerProtocol

from relay import ws
from relay.core import wire
from relay.core.wire import Fault
from relay.errors import Overloaded, TrustError
from relay.gateway.connection import Bounds, Connection
from relay.gateway.outbox import Outbox
from relay.gateway.server import Entrance
from relay.gateway.websocket import ServerSocket
from tests.relay.gateway.honest import Caller, HonestOffice, deliver, open_house

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
PROTOCOL = b"Sec-WebSocket-Protocol: posthouse.v0\r\n\r\n"


async def dial(url: str) -> trio.SocketStream:
    host, port = url.removeprefix("ws://").split(":")
    return await trio.open_tcp_stream(host, int(port))


async def whole(stream: trio.abc.Stream) -> bytes:
    data = b""
    with trio.fail_after(5):
        while more := await stream.receive_some(65536):
            data += more
    return data


async def until(condition: Any) -> None:
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110  nothing here tells when
            await trio.sleep(0.005)


@pytest.mark.parametrize(
    ("request_bytes", "status", "says"),
    [
        (REQUEST + b"\r\n", 400, "Sec-WebSocket-Protocol: posthouse.v0"),
        (REQUEST + b"Sec-WebSocket-Protocol: posthouse.v9, chat\r\n\r\n", 400, "posthouse.v0"),
        (REQUEST.replace(b"GET /", b"GET /other") + PROTOCOL, 404, "Connect to /"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 405, "GET"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426, "WebSocket"),
        (b"\x16\x03\x01 this is TLS, or anything else\r\n\r\n", 400, ""),
        (b"A" * 100_000, 400, ""),
    ],
)
async def test_what_is_no_handshake_gets_a_clear_answer(request_bytes: bytes, status: int, says: str) -> None:
    async with open_house() as house:
        stream = await dial(house.url)
        await stream.send_all(request_bytes)
        answer = await whole(stream)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode()) and says.encode() in answer
        await until(lambda: house.gateway.connections == 0)


@pytest.mark.parametrize("header", [b"Host: \xff\xfe", b"Sec-WebSocket-Protocol: \xff", b"Upgrade: \xc3\xa9"])
async def test_headers_that_are_not_ascii_trouble_nobody_else(header: bytes) -> None:
    async with open_house() as house, ws.connect(house.url) as socket:
        caller = Caller(socket)
        await caller.enter()
        stream = await dial(house.url)
        await stream.send_all(REQUEST.replace(b"Host: x\r\n", b"") + header + b"\r\n" + PROTOCOL)
        await stream.send_eof()
        await whole(stream)
        await until(lambda: house.gateway.connections == 1)
        assert isinstance(await caller.hear(), wire.Empty)


async def test_a_client_that_leaves_in_the_middle_of_anything_is_forgotten() -> None:
    async with open_house() as house:
        for part in (b"", REQUEST, REQUEST + PROTOCOL, REQUEST + PROTOCOL + b"\x82\xfe\xff"):
            stream = await dial(house.url)
            await stream.send_all(part)
            await until(lambda: house.gateway.connections == 1)
            await stream.aclose()
            await until(lambda: house.gateway.connections == 0)
        assert house.metrics.connections._value.get() == 0


async def test_a_silent_socket_does_not_hold_a_slot() -> None:
    async with open_house(bounds=Bounds(handshake_s=0.05, linger_s=0.05)) as house:
        assert await whole(await dial(house.url)) == b""
        await until(lambda: house.gateway.connections == 0)


async def test_a_slow_reader_is_demoted_and_the_others_are_served() -> None:
    office = HonestOffice()
    async with open_house(office=office, bounds=Bounds(outbox_bytes=100_000, linger_s=0.1)) as house:
        async with ws.connect(house.url) as quick_socket:
            quick = Caller(quick_socket)
            await quick.enter()
            await quick.hear()
            slow = await dial(house.url)
            slow_caller = await _enter_raw(slow)
            await until(lambda: slow_caller in office.lines)
            with trio.fail_after(20):
                for position in range(1, 400):
                    office.spread([deliver(position, 30_000)])
                    assert (await quick.hear()).position == position
            assert office.demoted == {slow_caller}
            assert 0 < house.metrics.outbox_bytes._value.get() <= 100_000
            await slow.aclose()
            await until(lambda: house.gateway.connections == 1)
        assert house.metrics.outbox_bytes._value.get() == 0


async def _enter_raw(stream: trio.SocketStream) -> bytes:
    """Enter and then never read again, with the socket's own buffer kept small. Returns the device."""
    stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4096)
    await stream.send_all(REQUEST + PROTOCOL)

    async def send(message: wire.ClientMessage) -> None:
        data = wire.encode_message(message)
        await stream.send_all(b"\x82\xfe" + len(data).to_bytes(2, "big") + bytes(4) + data)

    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some(4096)
    await send(wire.Hello(0, b"", 0, True, "x" * 200))
    data = data.split(b"\r\n\r\n", 1)[1]
    while len(data) < 2 or len(data) < 2 + data[1]:
        data += await stream.receive_some(4096)
    caller = Caller(None)
    await send(caller.auth(wire.decode_server(data[2:])))
    return caller.device


async def test_beyond_the_cap_clients_are_told_when_to_come_back() -> None:
    async with open_house(max_connections=1) as house:
        async with ws.connect(house.url) as socket:
            await Caller(socket).enter()
            with pytest.raises(Overloaded) as told:
                async with ws.connect(house.url):
                    pass
            assert told.value.retry_after_ms == 10_000
            assert house.metrics.refused.labels("overloaded")._value.get() == 1
        await until(lambda: house.gateway.connections == 0)
        async with ws.connect(house.url) as socket:
            await Caller(socket).enter()


async def test_drain_tells_everybody_and_waits_for_those_who_leave() -> None:
    async with open_house(drain_s=30) as house, ws.connect(house.url) as first, ws.connect(house.url) as second:
        callers = [Caller(first), Caller(second)]
        for caller in callers:
            await caller.enter()
            await caller.hear()
        silent = await dial(house.url)
        house.gateway.stop()
        assert await whole(silent) == b""  # not served yet: let go at once
        for caller in callers:
            assert (await caller.hear()).spread_ms >= 1000
        with pytest.raises(OSError, match="all attempts to connect"):
            await dial(house.url)
        await callers[0].say(wire.Lookup(1, callers[0].user, "", 0))  # still served
        assert isinstance(await callers[0].hear(), wire.Record)
        await first.aclose()
        assert not house.stopped.is_set()
        await second.aclose()
        with trio.fail_after(5):
            await house.stopped.wait()
        assert len(house.office.detached) == 2


async def test_drain_closes_those_who_stay() -> None:
    async with open_house(drain_s=0.05) as house, ws.connect(house.url) as socket:
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        house.gateway.stop()
        assert isinstance(await caller.hear(), wire.Drain)
        with pytest.raises(ws.Closed) as closed:
            await caller.hear()
        assert closed.value.code == 1001
        with trio.fail_after(5):
            await house.stopped.wait()


async def test_stop_before_the_first_client() -> None:
    async with open_house() as house:
        house.gateway.stop()
        house.gateway.stop()
        with trio.fail_after(5):
            await house.stopped.wait()


async def test_accept_errors_are_survived(autojump_clock: Any, capfd: pytest.CaptureFixture[str]) -> None:
    class Trouble(trio.abc.Listener[trio.abc.Stream]):
        def __init__(self) -> None:
            self.errors = [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED]

        async def accept(self) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            if self.errors:
                raise OSError(self.errors.pop(), "trouble with 127.0.0.77")
            ours, self.client = trio.testing.memory_stream_pair()
            self.accept = trio.sleep_forever
            return ours

        async def aclose(self) -> None:
            await trio.lowlevel.checkpoint()

    listener = Trouble()
    async with open_house(entrances=[Entrance(listener)]):
        await trio.sleep(1)

        async def memory(_h: str, _p: int) -> trio.abc.Stream:
            await trio.lowlevel.checkpoint()
            return listener.client

        async with ws.connect("ws://memory:1", dial=memory) as socket:
            await Caller(socket).enter()
    logged = "".join(capfd.readouterr())
    assert "accept_failed" in logged and "127.0.0.77" not in logged


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


def server_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


def client_context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_tls_a_unix_socket_and_plain_tcp_side_by_side(authority: trustme.CA, tmp_path: Path) -> None:
    [plain] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    [secure] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    unix = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await unix.bind(str(tmp_path / "s"))
    unix.listen()
    served = server_context(authority)
    entrances = [Entrance(plain), Entrance(secure, lambda: served), Entrance(trio.SocketListener(unix))]
    office = HonestOffice()
    urls = [
        f"ws://127.0.0.1:{plain.socket.getsockname()[1]}",
        f"wss://127.0.0.1:{secure.socket.getsockname()[1]}",
        f"ws+unix:{tmp_path / 's'}",
    ]
    async with open_house(office=office, entrances=entrances) as house:
        for url in urls:
            context = client_context(authority) if url.startswith("wss") else None
            async with ws.connect(url, context) as socket:
                caller = Caller(socket)
                await caller.enter()
                await caller.hear()
                with trio.fail_after(10):
                    for position in range(1, 200):
                        office.spread([deliver(position, position * 40)])
                    for position in range(1, 200):
                        assert (await caller.hear()).position == position
                    await socket.ping()
            await until(lambda: house.gateway.connections == 0)
        with pytest.raises(TrustError, match="certificate"):
            async with ws.connect(urls[1]):
                pass
        with pytest.raises(ws.NotConnected, match="TLS"):
            async with ws.connect(urls[0].replace("ws:", "wss:"), client_context(authority)):
                pass
        with pytest.raises(ws.NotConnected):
            async with ws.connect(urls[1].replace("wss:", "ws:")):
                pass
        await until(lambda: house.gateway.connections == 0)


async def test_tls_errors_reach_the_client_and_a_silent_handshake_ends(authority: trustme.CA) -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    entrances = [Entrance(listener, partial(server_context, authority))]
    bounds = Bounds(handshake_s=0.5, linger_s=0.1)
    async with open_house(entrances=entrances, max_connections=1, bounds=bounds) as house:
        async with ws.connect(f"wss://127.0.0.1:{port}", client_context(authority)) as socket:
            with pytest.raises(Overloaded):
                async with ws.connect(f"wss://127.0.0.1:{port}", client_context(authority)):
                    pass
            await socket.send(bytes(2**20 + 1))
            error, _code = await Caller(socket).farewell()
            assert error.code == Fault.PROTOCOL
        await until(lambda: house.gateway.connections == 0)
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        assert await whole(silent) == b""
        await until(lambda: house.gateway.connections == 0)


async def test_each_connection_gets_the_context_of_its_time(authority: trustme.CA) -> None:
    """A certificate that is renewed is shown to whoever comes after that; who is there stays."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    url = f"wss://127.0.0.1:{listener.socket.getsockname()[1]}"
    newer = trustme.CA()
    contexts = [server_context(authority), server_context(newer), server_context(newer)]
    async with (
        open_house(entrances=[Entrance(listener, lambda: contexts.pop(0))]),
        ws.connect(url, client_context(authority)) as socket,
    ):
        with pytest.raises(TrustError, match="certificate"):
            async with ws.connect(url, client_context(authority)):
                pass
        async with ws.connect(url, client_context(newer)) as other:
            await other.ping()
        await socket.ping()


async def test_many_come_and_go_at_once() -> None:
    office = HonestOffice()
    async with open_house(office=office) as house:

        async def visit(number: int) -> None:
            async with ws.connect(house.url) as socket:
                caller = Caller(socket)
                await caller.enter(receive=number % 2 == 0)
                if number % 3 == 0:
                    await socket.send(b"\xc1")
                    await caller.farewell()

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(visit, number)
            await until(lambda: house.gateway.connections == 0)
        assert len(office.detached) == 60
        assert office.lines == {}
        assert house.metrics.sessions._value.get() == house.metrics.connections._value.get() == 0


@pytest.mark.parametrize("abruptly", [False, True])
async def test_what_a_connection_was_made_of_is_freed_without_the_collector(abruptly: bool) -> None:
    """Ten thousand that end would otherwise be garbage that a look at everything has to find (ADR 38)."""
    kinds = (Connection, Outbox, ServerSocket, ServerProtocol)
    office = HonestOffice()

    def parts() -> int:
        return sum(isinstance(one, kinds) for one in gc.get_objects())

    async with open_house(office=office) as house:
        gc.collect()
        gc.disable()
        try:
            before = parts()
            for _ in range(3):
                async with ws.connect(house.url) as socket:
                    caller = Caller(socket)
                    await caller.enter()
                    await caller.hear()
                    assert parts() >= before + len(kinds)
                    if abruptly:
                        await trio.aclose_forcefully(socket._stream)
                await until(lambda: office.detached)
                office.detached.clear()
                await until(lambda: parts() <= before + 2)  # whoever accepts remembers the last one, and its outbox
        finally:
            gc.enable()
