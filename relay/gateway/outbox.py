"""The outbox of one connection: the one door through which everything leaves.

Data frames are encoded once and shared between outboxes; what the WebSocket library writes (handshake, pongs, closes)
queues behind them, whole. The rules:

* A socket, plain or with TLS, is written by whoever flushes (or gives), with one non-blocking call for all that is
  queued. What it does not take is left to a writer task, which lives only as long as something is left.
* Any other stream is written by the writer task only: joined, with `send_all`.
* While a writer task lives, nobody else writes.
* `limit` bounds what shared frames may queue, and `Queued` what all outboxes do. What the library writes may pass it:
  each write waits until it has left, so there are few of them. The last words of a connection may, too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import trio

from relay.gateway.tls import Piece, TlsStream
from relay.limits import KIB, OUTBOX_BYTES, OUTBOX_LEAST, OUTBOXES_BYTES

IOV_MAX: Final = 1024  # pieces in one writev (POSIX guarantees 16, Linux and BSD take 1024)
JOIN: Final = 64 * KIB  # bytes joined for one `send_all`


class Gauge(Protocol):
    """As of prometheus_client."""

    def inc(self, amount: float = 1) -> None: ...


class Queued:
    """Bytes that all outboxes of a gateway queue. `gauge` shows what sockets did not take at once."""

    __slots__ = ("gauge", "limit", "size")

    def __init__(self, gauge: Gauge, limit: int = OUTBOXES_BYTES) -> None:
        self.gauge = gauge
        self.limit = limit
        self.size = 0

    def add(self, amount: int) -> None:
        """More, or less, is queued."""
        self.size += amount
        self.gauge.inc(amount)


class Sink(Protocol):
    """A socket that is written without waiting."""

    socket: trio.socket.SocketType

    def write(self, queue: list[Piece]) -> int:
        """Write the front of a queue that is not empty (or what was taken from it earlier), and take it off. Returns
        how many bytes of the queue have left by this call; 0 when the socket takes no more now. Raises OSError."""


class SocketSink:
    """A plain socket: one writev for all."""

    __slots__ = ("socket",)

    def __init__(self, socket: trio.socket.SocketType) -> None:
        self.socket = socket

    def write(self, queue: list[Piece]) -> int:
        """See Sink."""
        try:
            if len(queue) == 1:
                sent = os.write(self.socket.fileno(), queue[0])
            else:
                sent = os.writev(self.socket.fileno(), queue if len(queue) <= IOV_MAX else queue[:IOV_MAX])
        except BlockingIOError:
            return 0
        _drop(queue, sent)
        return sent


def _sink(stream: trio.abc.Stream) -> Sink | None:
    if isinstance(stream, trio.SocketStream):
        return SocketSink(stream.socket)
    return stream if isinstance(stream, TlsStream) else None


class Outbox:
    """A queue of whole frames in front of one stream, bounded by `limit` bytes."""

    __slots__ = (
        "_broke", "_broken", "_direct", "_ended", "_gone", "_limit", "_nursery", "_progress", "_queue",
        "_queued", "_reported", "_sink", "_size", "_stream", "_writing",
    )  # fmt: skip

    def __init__(
        self,
        stream: trio.abc.Stream,
        nursery: trio.Nursery,
        queued: Queued,
        broke: Callable[[], None],
        limit: int = OUTBOX_BYTES,
    ) -> None:
        """`nursery` holds the writer task; `queued` is that of the gateway; `broke` is called once when the stream
        turns out to be broken."""
        self._stream = stream
        self._sink = _sink(stream)
        self._direct = self._sink.socket if isinstance(self._sink, SocketSink) else None
        self._nursery = nursery
        self._queued = queued
        self._broke = broke
        self._limit = limit
        self._queue: list[Piece] = []
        self._size = 0  # bytes that have not left: in the queue, and in the sink
        self._gone = 0  # bytes that have left, since the start
        self._reported = 0  # bytes that `queued` knows of
        self._writing = False  # a writer task lives
        self._ended = False  # no more shared frames
        self._broken = False
        self._progress: trio.Event | None = None  # set when bytes have left, or never will

    @property
    def size(self) -> int:
        """Bytes that are queued."""
        return self._size

    # --- shared frames ---------------------------------------------------------------------------
    def push(self, frames: Sequence[bytes]) -> bool:
        """Queue whole frames. False, and nothing queued, past the limit and after `finish`. While all outboxes
        together are past theirs, one that is not empty takes no more than OUTBOX_LEAST."""
        size = self._size + (len(frames[0]) if len(frames) == 1 else sum(map(len, frames)))
        if self._ended or size > self._limit:
            return False
        if self._queued.size > self._queued.limit and self._size and size > OUTBOX_LEAST:
            return False
        self._queue.extend(frames)
        self._size = size
        return True

    def give(self, data: bytes) -> bool:
        """`push` of whole frames that are joined, and `flush`: in one step where nothing is queued before them."""
        if self._size or self._ended or self._direct is None or len(data) > self._limit:
            pushed = self.push((data,))
            self.flush()
            return pushed
        try:
            sent = os.write(self._direct.fileno(), data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._break()
            return True
        self._gone += sent
        if sent < len(data):
            self._queue.append(memoryview(data)[sent:])
            self._size = len(data) - sent
            self.flush()
        return True

    async def send(self, frame: bytes) -> None:
        """Queue one frame and write it, waiting for room (a frame above the limit waits for an empty queue). Waits for
        ever once ended: the connection cancels it."""
        while self._size and self._size + len(frame) > self._limit:
            await self._wait_progress()
        if self._ended:
            await trio.sleep_forever()
        self._append(frame)
        self.flush()
        await trio.lowlevel.checkpoint()

    async def room(self) -> None:
        """Write, and wait until some of what is queued has left; at once where nothing is. Waits for ever once ended:
        the connection cancels it."""
        self.flush()
        if self._ended:
            await trio.sleep_forever()
        if self._size:
            await self._wait_progress()
        else:
            await trio.lowlevel.checkpoint()

    def flush(self) -> None:
        """Write what is queued, as far as the socket takes it now. Never blocks, never raises."""
        if self._size and not self._writing:
            if self._sink is not None:
                self._write_now(self._sink)
            if self._size:
                self._writing = True
                self._nursery.start_soon(self._write, name="outbox writer")
        if self._size != self._reported:
            self._report()

    # --- for the connection and the library ------------------------------------------------------
    async def send_all(self, data: bytes) -> None:
        """Queue `data` behind everything else and return when it is written. Cancelled, it may still be written, whole.
        Raises trio.ClosedResourceError after `finish`, trio.BrokenResourceError."""
        if self._ended:
            raise trio.ClosedResourceError
        self._append(data)
        self.flush()
        await self.written()

    async def written(self) -> None:
        """Returns when everything that is queued now has been written. Raises trio.BrokenResourceError."""
        await trio.lowlevel.checkpoint()
        end = self._gone + self._size
        while self._gone < end and not self._broken:
            await self._wait_progress()
        if self._broken:
            raise trio.BrokenResourceError

    def finish(self, frames: Sequence[bytes]) -> None:
        """The last words: queue `frames` past the limit and take no more."""
        if not self._ended:
            for frame in frames:
                self._append(frame)
            self._ended = True
            self.flush()

    def discard(self) -> None:
        """Drop what is left: the stream is, or is about to be, closed."""
        self._ended = True
        self._broken = True
        self._queue.clear()
        self._size = 0
        self._report()
        self._broke = _told  # it leads back here: what points in circles goes only when the collector finds it
        self._wake()

    # --- writing ---------------------------------------------------------------------------------
    def _write_now(self, sink: Sink) -> None:
        """Write until nothing is left, or the socket takes no more."""
        try:
            while self._size and (sent := sink.write(self._queue)):
                self._left(sent)
        except OSError:
            self._break()

    async def _write(self) -> None:
        """The writer task: until nothing is left."""
        try:
            while self._size:
                if self._sink is not None:
                    await trio.lowlevel.wait_writable(self._sink.socket)
                    self._write_now(self._sink)
                else:
                    await self._write_joined()
                self._report()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._break()
        finally:
            self._writing = False

    async def _write_joined(self) -> None:
        count, size = 0, 0
        while count < len(self._queue) and size < JOIN:
            size += len(self._queue[count])
            count += 1
        data = b"".join(self._queue[:count])
        del self._queue[:count]
        try:
            await self._stream.send_all(data)
        except trio.Cancelled:
            self.discard()  # nobody knows how much of it went out, so nothing may follow
            raise
        if not self._broken:
            self._left(size)

    def _append(self, data: bytes) -> None:
        self._queue.append(data)
        self._size += len(data)

    def _left(self, size: int) -> None:
        self._size -= size
        self._gone += size
        if self._progress is not None:
            self._wake()

    def _break(self) -> None:
        if not self._broken:
            broke = self._broke
            self.discard()
            broke()

    async def _wait_progress(self) -> None:
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    def _wake(self) -> None:
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _report(self) -> None:
        if self._size != self._reported:
            self._queued.add(self._size - self._reported)
            self._reported = self._size


def _drop(queue: list[Piece], sent: int) -> None:
    """Take the first `sent` bytes off the queue; a piece that went out in part stays with its rest."""
    if len(queue) == 1 and sent == len(queue[0]):
        queue.clear()  # nearly always
        return
    gone = 0
    for piece in queue:
        if sent < len(piece):
            break
        sent -= len(piece)
        gone += 1
    del queue[:gone]
    if sent:
        queue[0] = memoryview(queue[0])[sent:]


def _told() -> None:
    """Nobody is left to hear that it broke."""
