"""The outbox: order, bound and wholeness, over real sockets and over streams in memory."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
import trustme

from relay.core.frames import server_frame
from relay.gateway.outbox import IOV_MAX, Outbox, Queued
from relay.gateway.tls import TlsStream
from relay.limits import OUTBOX_LEAST
from tests.patience import PATIENCE_S
from tests.relay.gateway.honest import FakeMetrics

LIMIT = 256 * 1024


class Box:
    """An outbox, the other end of its stream, and what was told about it."""

    def __init__(self, stream: Any, peer: Any, nursery: trio.Nursery, limit: int) -> None:
        self.metrics = FakeMetrics()
        self.queued = Queued(self.metrics.outbox_bytes)
        self.outbox = Outbox(stream, nursery, self.queued, self._broke, limit)
        self.peer = peer
        self.broken = 0

    def _broke(self) -> None:
        self.broken += 1

    @property
    def gauge(self) -> float:
        return float(self.metrics.outbox_bytes._value.get())


@asynccontextmanager
async def open_box(kind: str, limit: int = LIMIT) -> AsyncIterator[Box]:
    if kind in {"socket", "tls"}:
        ours, theirs = trio.socket.socketpair()
        ours.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_SNDBUF, 8192)
        stream: Any = trio.SocketStream(ours)
        peer: Any = trio.SocketStream(theirs)
        if kind == "tls":
            stream, peer = await secured(stream, peer)
    else:
        stream, peer = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        box = Box(stream, peer, nursery, limit)
        yield box
        box.outbox.discard()
        nursery.cancel_scope.cancel()
    await stream.aclose()
    await peer.aclose()


async def read(peer: Any, size: int) -> bytes:
    data = b""
    with trio.fail_after(PATIENCE_S):
        while len(data) < size:
            data += await peer.receive_some(4096)
    return data


async def secured(stream: trio.SocketStream, peer: trio.SocketStream) -> tuple[Any, Any]:
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client = ssl.create_default_context()
    authority.issue_cert("norden.example").configure_cert(server)
    authority.configure_trust(client)
    ours = TlsStream(stream, server)
    theirs = trio.SSLStream(peer, client, server_hostname="norden.example", https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.do_handshake)
        nursery.start_soon(theirs.do_handshake)
    return ours, theirs


every = pytest.mark.parametrize("kind", ["socket", "tls", "memory"])


@every
async def test_frames_leave_in_order_and_whole(kind: str) -> None:
    async with open_box(kind) as box:
        frames = [server_frame(bytes([i]) * size) for i, size in enumerate((1, 200, 70_000, 3, 40_000))]
        assert box.outbox.push(frames[:3]) and box.outbox.push(frames[3:])
        box.outbox.flush()
        assert await read(box.peer, sum(map(len, frames))) == b"".join(frames)
        await box.outbox.written()
        assert box.outbox.size == box.gauge == 0


async def test_a_socket_that_takes_it_is_written_without_a_task() -> None:
    async with open_box("socket") as box:
        assert box.outbox.push([b"one", b"two"])
        box.outbox.flush()
        assert box.outbox.size == 0
        assert box.peer.socket._sock.recv(100) == b"onetwo"
        box.outbox.flush()


@every
async def test_who_gives_writes_at_once_and_behind_what_is_queued(kind: str) -> None:
    async with open_box(kind) as box:
        frames = [server_frame(bytes([i]) * size) for i, size in enumerate((1, 70_000, 3, 40_000, 5))]
        for frame in frames[:3]:
            assert box.outbox.give(frame)
        assert box.outbox.size == box.gauge == box.queued.size
        assert box.outbox.push(frames[3:4]) and box.outbox.give(frames[4])
        assert await read(box.peer, sum(map(len, frames))) == b"".join(frames)
        await box.outbox.written()
        assert box.outbox.size == box.gauge == 0
        assert box.outbox.give(b"again") and await read(box.peer, 5) == b"again"


@every
async def test_what_is_given_is_bounded_as_what_is_pushed(kind: str) -> None:
    async with open_box(kind) as box:
        assert not box.outbox.give(bytes(LIMIT + 1)) and box.outbox.size == 0
        taken = 0
        while box.outbox.give(bytes(1000)):
            taken += 1
            await trio.lowlevel.checkpoint()
        assert LIMIT - 1000 < box.outbox.size == box.gauge <= LIMIT
        box.outbox.finish([b"bye"])
        assert not box.outbox.give(b"x")
        assert (await read(box.peer, taken * 1000 + 3))[-3:] == b"bye"


async def test_who_gives_to_a_socket_that_broke_is_told_once() -> None:
    async with open_box("socket") as box:
        await box.peer.aclose()
        for _ in range(3):
            box.outbox.give(b"x")
        assert (box.broken, box.outbox.size, box.gauge) == (1, 0, 0)
        assert not box.outbox.give(b"x")


async def test_more_pieces_than_one_writev_takes() -> None:
    async with open_box("socket") as box:
        pieces = [i.to_bytes(2, "big") for i in range(3 * IOV_MAX)]
        assert box.outbox.push(pieces)
        box.outbox.flush()
        assert await read(box.peer, len(pieces) * 2) == b"".join(pieces)


@every
async def test_a_reader_that_never_reads_costs_the_limit_and_no_more(kind: str) -> None:
    async with open_box(kind) as box:
        frame = bytes(1000)
        taken = 0
        for _ in range(5000):
            taken += box.outbox.push([frame])
            box.outbox.flush()
            await trio.lowlevel.checkpoint()
        size = box.outbox.size
        assert LIMIT - 1000 < size <= LIMIT
        assert box.gauge == size
        assert not box.outbox.push([frame])
        assert box.outbox.size == size  # nothing queued
        with trio.move_on_after(0.05) as scope:
            await box.outbox.send(frame)
        assert scope.cancelled_caught
        assert box.outbox.size == size
        assert len(await read(box.peer, taken * 1000)) == taken * 1000
        await box.outbox.send(frame)
        assert await read(box.peer, 1000) == frame


@every
async def test_past_what_all_outboxes_may_queue_who_does_not_read_costs_less(kind: str) -> None:
    async with open_box(kind) as box:
        box.queued.limit = 1_000_000
        box.queued.add(1_000_001)  # of others
        whole = bytes(2 * OUTBOX_LEAST)
        assert box.outbox.push([whole])  # an empty one takes what fits: its socket may be quick
        box.outbox.flush()
        while box.outbox.push([bytes(1_000)]):
            box.outbox.flush()
            await trio.lowlevel.checkpoint()
        assert 0 < box.outbox.size <= 2 * OUTBOX_LEAST
        box.queued.add(-1_000_001)
        assert box.outbox.push([whole[:1_000]])
        assert box.queued.size == box.gauge


@every
async def test_send_waits_for_room_and_keeps_the_order(kind: str) -> None:
    async with open_box(kind, limit=20_000) as box:
        frames = [bytes([i]) * 9_000 for i in range(50)]

        async def send_all() -> None:
            for frame in frames:
                await box.outbox.send(frame)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            assert await read(box.peer, 50 * 9_000) == b"".join(frames)


async def test_a_frame_above_the_limit_goes_alone() -> None:
    async with open_box("socket", limit=100) as box:
        big = bytes(5000)
        assert not box.outbox.push([big])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.outbox.send, big)
            assert await read(box.peer, 5000) == big


@every
async def test_the_librarys_writes_never_cut_into_a_frame(kind: str) -> None:
    order = random.Random(3)
    async with open_box(kind, limit=10_000_000) as box:
        said: list[bytes] = []

        async def library() -> None:
            for number in range(100):
                pong = b"\x8a\x04" + number.to_bytes(4, "big")
                said.append(pong)
                await box.outbox.send_all(pong)

        async def shared() -> None:
            for number in range(300):
                frame = server_frame(bytes([number % 256]) * order.randrange(1, 20_000))
                said.append(frame)
                assert box.outbox.push([frame])
                if order.random() < 0.7:
                    box.outbox.flush()
                if order.random() < 0.5:
                    await trio.lowlevel.checkpoint()
            box.outbox.flush()

        got = bytearray()

        async def reader() -> None:
            while True:
                got.extend(await box.peer.receive_some(order.randrange(1, 9000)))

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader)
                async with trio.open_nursery() as writers:
                    writers.start_soon(library)
                    writers.start_soon(shared)
                await box.outbox.written()
                while len(got) < sum(map(len, said)):  # noqa: ASYNC110  the kernel holds the rest
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        assert bytes(got) == b"".join(said)


@every
async def test_a_cancelled_write_of_the_library_goes_out_whole_or_not_at_all(kind: str) -> None:
    async with open_box(kind) as box:
        filler = bytes(200_000)
        assert box.outbox.push([filler])
        box.outbox.flush()
        with trio.move_on_after(0.02) as scope:
            await box.outbox.send_all(b"pong")
        assert scope.cancelled_caught
        assert box.outbox.push([b"after"])
        box.outbox.flush()
        assert await read(box.peer, len(filler) + 9) == filler + b"pong" + b"after"


async def test_the_pongs_of_a_busy_connection_do_not_wait_for_silence() -> None:
    async with open_box("socket", limit=10_000_000) as box:
        done = trio.Event()

        async def busy() -> None:
            while not done.is_set():
                box.outbox.push([bytes(3000)] * 10)
                box.outbox.flush()
                await trio.lowlevel.checkpoint()

        async def reader() -> None:
            while True:
                await box.peer.receive_some(4096)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            nursery.start_soon(busy)
            with trio.fail_after(PATIENCE_S):
                await box.outbox.send_all(b"pong")
            done.set()
            nursery.cancel_scope.cancel()


@every
async def test_last_words_pass_the_limit_and_are_the_last(kind: str) -> None:
    async with open_box(kind, limit=10_000) as box:
        assert box.outbox.push([bytes(10_000)])
        box.outbox.finish([b"ERROR", b"CLOSE"])
        box.outbox.finish([b"again"])
        assert not box.outbox.push([b"x"])
        with pytest.raises(trio.ClosedResourceError):
            await box.outbox.send_all(b"pong")
        assert await read(box.peer, 10_010) == bytes(10_000) + b"ERRORCLOSE"
        await box.outbox.written()
        with trio.move_on_after(0.02) as scope:
            await box.outbox.send(b"x")  # waits to be cancelled
        assert scope.cancelled_caught
        assert box.outbox.size == 0


@every
async def test_a_broken_stream_is_told_once_and_everybody_is_let_go(kind: str) -> None:
    async with open_box(kind) as box:
        assert box.outbox.push([bytes(200_000)])
        box.outbox.flush()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_expect_broken, box.outbox.send_all, b"pong")
                nursery.start_soon(_expect_broken, box.outbox.written)
                await trio.testing.wait_all_tasks_blocked()
                await box.peer.aclose()
        assert (box.broken, box.outbox.size, box.gauge) == (1, 0, 0)
        assert not box.outbox.push([b"x"])
        box.outbox.flush()
        box.outbox.discard()
        assert box.broken == 1


async def test_a_socket_found_broken_while_flushing() -> None:
    async with open_box("socket") as box:
        await box.peer.aclose()
        for _ in range(3):
            box.outbox.push([b"x"])
            box.outbox.flush()
        assert (box.broken, box.outbox.size) == (1, 0)


async def _expect_broken(wait: Any, *args: Any) -> None:
    with pytest.raises(trio.BrokenResourceError):
        await wait(*args)


@every
async def test_deliveries_a_drain_and_the_answer_to_a_close_leave_whole_in_the_order_queued(kind: str) -> None:
    """Pieces of a fan-out are many frames joined; the socket takes them bit by bit, and what else is said queues up."""
    async with open_box(kind) as box:
        pieces = [b"".join(server_frame(bytes([part]) * 900) for _ in range(60)) for part in range(3)]
        drain, answer = server_frame(b"drain"), b"\x88\x02\x03\xe8"
        said = [pieces[0], drain, pieces[1], pieces[2], answer]
        for frame in said[:4]:
            assert box.outbox.push([frame])
            box.outbox.flush()
        assert box.outbox.size
        async with trio.open_nursery() as nursery:
            nursery.start_soon(box.outbox.send_all, answer)
            await trio.testing.wait_all_tasks_blocked()
            assert not box.outbox.push([bytes(LIMIT)])
            assert await read(box.peer, sum(map(len, said))) == b"".join(said)
        assert box.outbox.size == box.gauge == box.broken == 0
