"""The TLS stream against trio's own, and against bytes that are none."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from relay.gateway.tls import TlsStream
from tests.patience import PATIENCE_S

NAME = "norden.example"


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client = ssl.create_default_context()
    authority.issue_cert(NAME).configure_cert(server)
    authority.configure_trust(client)
    return server, client


async def pair() -> tuple[TlsStream, trio.SSLStream[trio.SocketStream]]:
    server, client = contexts()
    ours, theirs = trio.socket.socketpair()
    stream = TlsStream(trio.SocketStream(ours), server)
    peer = trio.SSLStream(trio.SocketStream(theirs), client, server_hostname=NAME)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        nursery.start_soon(peer.do_handshake)
    return stream, peer


async def test_megabytes_both_ways_at_once() -> None:
    stream, peer = await pair()
    data = bytes(range(256)) * 8192

    async def read(from_: Any) -> None:
        got = bytearray()
        while len(got) < len(data):
            got += await from_.receive_some()
        assert got == data

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, data)
            nursery.start_soon(peer.send_all, data)
            nursery.start_soon(read, stream)
            nursery.start_soon(read, peer)
    await stream.wait_send_all_might_not_block()
    await trio.aclose_forcefully(stream)
    await trio.aclose_forcefully(peer)


@pytest.mark.parametrize("politely", [False, True])
async def test_the_end_is_the_end_with_close_notify_or_without(politely: bool) -> None:
    stream, peer = await pair()
    if politely:
        with trio.move_on_after(0.05):  # its second half waits for an answer that we never give
            await peer.unwrap()
    else:
        await peer.transport_stream.send_eof()
    with trio.fail_after(PATIENCE_S):
        assert await stream.receive_some() == b""
        assert await stream.receive_some() == b""
    await stream.aclose()


async def test_bytes_that_were_tampered_with_break_the_stream() -> None:
    stream, peer = await pair()
    await peer.transport_stream.send_all(b"\x17\x03\x03\x00\x20" + bytes(32))
    with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError, match="TLS"):
        await stream.receive_some()
    await stream.aclose()


@pytest.mark.parametrize(
    "opening", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", b"\x16\x03"]
)
async def test_a_handshake_that_is_none(opening: bytes) -> None:
    server, _client = contexts()
    ours, theirs = trio.socket.socketpair()
    stream = TlsStream(trio.SocketStream(ours), server)
    await theirs.send(opening)
    theirs.shutdown(trio.socket.SHUT_WR)
    with trio.fail_after(PATIENCE_S), pytest.raises(trio.BrokenResourceError, match="TLS handshake"):
        await stream.do_handshake()
    await stream.aclose()
    theirs.close()


async def test_only_a_socket_can_be_secured() -> None:
    memory, _ = trio.testing.memory_stream_pair()
    with pytest.raises(TypeError, match="on sockets"):
        TlsStream(memory, contexts()[0])


async def test_both_ends_and_what_is_written_without_waiting() -> None:
    """As links between nodes have it: the dialer's end is one of ours, too, and its frames leave with the call."""
    server, client = contexts()
    client.check_hostname = False
    near, far = trio.socket.socketpair()
    dialer = TlsStream(trio.SocketStream(near), client, server_side=False)
    listener = TlsStream(trio.SocketStream(far), server)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.do_handshake)
            nursery.start_soon(listener.do_handshake)
        assert dialer.peer_certificate() and listener.peer_certificate() is None
        assert dialer.write([b"one", b"two"]) == 6
        assert await listener.receive_some() == b"onetwo"
        await listener.send_all(b"three")
        assert await dialer.receive_some() == b"three"
    await trio.aclose_forcefully(dialer)
    await trio.aclose_forcefully(listener)


async def test_nobody_else_starves_beside_a_peer_that_sends_many_small_records() -> None:
    stream, peer = await pair()
    for _ in range(64):
        await peer.send_all(b".")
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(others)
            for _ in range(64):
                assert await stream.receive_some() == b"."
            nursery.cancel_scope.cancel()
    assert turns >= 32
    await trio.aclose_forcefully(stream)
    await trio.aclose_forcefully(peer)
