"""Reading a socket: what trio's own stream gives, in the same cases."""

from __future__ import annotations

import os
import socket
import struct

import pytest
import trio
import trio.testing

from relay.gateway.source import Source
from tests.patience import PATIENCE_S


def pair() -> tuple[Source, trio.SocketStream, trio.SocketStream]:
    ours, theirs = map(trio.SocketStream, trio.socket.socketpair())
    return Source(ours), ours, theirs


async def test_what_came_and_what_comes_is_read_in_order_to_the_end() -> None:
    source, _, peer = pair()
    await peer.send_all(b"abcdef")
    assert [await source.receive_some(4), await source.receive_some(4)] == [b"abcd", b"ef"]
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def write() -> None:
                await trio.testing.wait_all_tasks_blocked()
                await peer.send_all(b"late")
                await peer.aclose()

            assert await source.receive_some(100) == b"late"
            assert [await source.receive_some(100) for _ in range(2)] == [b"", b""]


async def test_who_took_all_does_not_ask_the_socket_again_before_there_is_something(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, ours, peer = pair()
    asked = 0

    def read(fd: int, size: int) -> bytes:
        nonlocal asked
        asked += fd == ours.socket.fileno()
        return real(fd, size)

    real = os.read
    monkeypatch.setattr(os, "read", read)
    for n in range(5):
        await peer.send_all(b"%d" % n)
        assert await source.receive_some(100) == b"%d" % n
    assert asked == 5
    with trio.move_on_after(0.01):
        await source.receive_some(100)
    assert asked == 5
    await peer.send_all(b"more than asked for")
    assert await source.receive_some(4) + await source.receive_some(100) == b"more than asked for"


async def test_nobody_else_starves_beside_a_peer_that_writes_all_the_time() -> None:
    source, _, peer = pair()
    await peer.send_all(bytes(64))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for _ in range(64):
            assert len(await source.receive_some(1)) == 1
        nursery.cancel_scope.cancel()
    assert turns >= 32


async def test_a_reset_breaks_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        ours = trio.SocketStream(trio.socket.from_stdlib_socket(listener.accept()[0]))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
    with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError):
        await Source(ours).receive_some(1)


async def test_closed_here_before_and_while_it_waits() -> None:
    source, ours, _ = pair()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def wait() -> None:
                with pytest.raises(trio.ClosedResourceError):
                    await source.receive_some(1)

            await trio.testing.wait_all_tasks_blocked()
            await ours.aclose()
        for _ in range(2):
            with pytest.raises(trio.ClosedResourceError):
                await source.receive_some(1)


async def test_cancelled_it_has_read_nothing() -> None:
    source, _, peer = pair()
    await peer.send_all(b"still there")
    with trio.CancelScope() as scope:
        scope.cancel()
        await source.receive_some(100)
    assert scope.cancelled_caught
    assert await source.receive_some(100) == b"still there"
