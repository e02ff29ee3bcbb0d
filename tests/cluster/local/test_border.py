"""Cutting a region off and letting it back, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from cluster.config_keys import Address
from cluster.local.border import Border, Crossing
from cluster.local.capture import Reel
from relay.errors import OperatorError
from tests.patience import PATIENCE_S
from tests.ports import free_ports


@asynccontextmanager
async def crossing_to_echo(
    reel: Reel | None = None, delay_s: float = 0.0
) -> AsyncIterator[tuple[Crossing, Address, Address]]:
    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    to = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    at = Address("127.0.0.1", *free_ports(1))
    crossing = Crossing(at, to, reel, delay_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, echo, listeners)
        await nursery.start(crossing.run)
        with trio.fail_after(PATIENCE_S):
            yield crossing, at, to
        nursery.cancel_scope.cancel()


async def test_forwards_both_ways_and_the_end() -> None:
    async with crossing_to_echo() as (_, at, _), await trio.open_tcp_stream(*at) as stream:
        data = bytes(range(256)) * 4096
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            got = b""
            while len(got) < len(data):
                got += await stream.receive_some()
        assert got == data


async def test_a_long_way_takes_its_time_and_keeps_order_and_bytes() -> None:
    async with crossing_to_echo(delay_s=0.05) as (_, at, _), await trio.open_tcp_stream(*at) as stream:
        began, got, data = trio.current_time(), b"", bytes(range(256)) * 256
        for place in range(0, len(data), 4096):
            await stream.send_all(data[place : place + 4096])
        while len(got) < len(data):
            got += await stream.receive_some()
        took = trio.current_time() - began
    assert got == data
    assert 0.1 <= took < 0.1 * 16, "the way there and back, not once for each piece"


async def test_cut_breaks_what_is_there_and_refuses_what_comes() -> None:
    async with crossing_to_echo() as (crossing, at, _):
        border = Border("norden", [crossing])
        stream = await trio.open_tcp_stream(*at)
        await stream.send_all(b"x")
        assert await stream.receive_some() == b"x"
        border.cut()
        with pytest.raises((trio.BrokenResourceError, EOFError)):
            if not await stream.receive_some():
                raise EOFError
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*at)
        border.heal()
        await trio.testing.wait_all_tasks_blocked()
        async with await trio.open_tcp_stream(*at) as again:
            await again.send_all(b"y")
            assert await again.receive_some() == b"y"


async def test_a_crossing_between_two_cut_regions_opens_when_both_are_back() -> None:
    async with crossing_to_echo() as (crossing, at, _):
        norden, sauda = Border("norden", [crossing]), Border("sauda", [crossing])
        norden.cut()
        sauda.cut()
        norden.heal()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError):
            await trio.open_tcp_stream(*at)
        sauda.heal()
        await trio.testing.wait_all_tasks_blocked()
        await (await trio.open_tcp_stream(*at)).aclose()


async def test_nobody_behind_it_ends_the_connection() -> None:
    at, to = (Address("127.0.0.1", port) for port in free_ports(2))
    async with trio.open_nursery() as nursery:
        await nursery.start(Crossing(at, to).run)
        async with await trio.open_tcp_stream(*at) as stream:
            with trio.fail_after(PATIENCE_S):
                assert await stream.receive_some() == b""
        nursery.cancel_scope.cancel()


async def test_a_taken_port_is_an_operators_business() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    at = Address("127.0.0.1", listeners[0].socket.getsockname()[1])
    with pytest.raises(OperatorError, match="cannot listen"):
        await Crossing(at, at).run()
    await listeners[0].aclose()
