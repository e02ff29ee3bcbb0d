"""The shell of a worker: non-blocking sockets, timers and the pipe to the bench in one loop. No threads, no library.

Receivers wait with epoll (many sockets), the sender with select (two descriptors, and a timeout that is exact to the µs
where epoll's is whole ms).
"""

from __future__ import annotations

import errno
import heapq
import os
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from bench.pipes import Endpoint, FromWorker, Reader, ToWorker, frame, to_worker
from bench.scenario import NS
from relay.errors import ProtocolError
from relay.limits import KIB

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_NARROW = 4 * KIB  # bytes of a narrow connection's window
_SEGMENT = 536  # bytes, the least that TCP takes (RFC 9293 3.7.1): the sender's buffer grows with it
_WIDE = 256 * KIB  # bytes of its window once who did not read reads again
_RECV = 64 * KIB  # bytes asked for in one recv; CPython makes room for them before: 128 KiB and more cost a mmap


class Hub:
    """One loop over sockets and timers. `run` returns after `stop`."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.selector = selector
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self._running = True

    def at(self, when_ns: int, action: Callable[[], None]) -> None:
        """Call `action` once, not before `when_ns` (monotonic)."""
        self._count += 1
        heapq.heappush(self._timers, (when_ns, self._count, action))

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        select, timers = self.selector.select, self._timers
        while self._running:
            timeout = max(0.0, (timers[0][0] - time.monotonic_ns()) / NS) if timers else None
            for key, mask in select(timeout):
                key.data(mask)
            now = time.monotonic_ns()
            while timers and timers[0][0] <= now:
                heapq.heappop(timers)[2]()


class Control:
    """The worker's end of the pipes: `on_message` for each order; the end of the pipe ends the worker."""

    def __init__(self, hub: Hub, on_message: Callable[[ToWorker], None], stdin: int = 0, stdout: int = 1) -> None:
        self._hub, self._on_message = hub, on_message
        self._in, self._out = stdin, stdout
        self._reader: Reader[ToWorker] = to_worker()
        hub.selector.register(stdin, READ, self._ready)

    def _ready(self, _mask: int) -> None:
        data = os.read(self._in, _RECV)
        if not data:
            self._hub.stop()
        for message in self._reader.feed(data):
            self._on_message(message)

    def say(self, message: FromWorker) -> None:
        """Write one message; the bench is always reading."""
        left = memoryview(frame(message))
        while left:
            left = left[os.write(self._out, left) :]


def client_context(authority: str) -> ssl.SSLContext | None:
    """What checks the node's certificate, or None for plain ws."""
    if not authority:
        return None
    context = ssl.create_default_context(cadata=authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


class Line(Protocol):
    """One connection's protocol, sans I/O: bytes in, messages and bytes out.

    `output` is what is to be written. `live` once the greeting is over, and the client is served."""

    output: bytearray
    live: bool

    @property
    def ended(self) -> bool:
        """The other side said that this was all."""

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completed. Raises ProtocolError where the other side breaks the protocol."""

    def ping(self) -> None:
        """Queue what shows that the client is there."""


LineT = TypeVar("LineT", bound=Line)


class Owner(Protocol):
    """Whose connection it is."""

    def live(self) -> None:
        """It is served."""

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        """What one read brought once it is live, and when."""

    def lost(self, why: str) -> None:
        """The connection ended, or never came about. Called once, unless `close` was called before."""


class Connection(Generic[LineT]):
    """A line over one socket."""

    __slots__ = (
        "_connecting", "_context", "_deaf", "_endpoint", "_events", "_handshaking", "_hub", "_owner", "_sock", "closed",
        "line",
    )  # fmt: skip

    def __init__(
        self,
        hub: Hub,
        endpoint: Endpoint,
        context: ssl.SSLContext | None,
        line: LineT,
        owner: Owner,
        narrow: bool = False,
    ) -> None:
        """`narrow`: little fits into the connection itself, so that who does not read is felt at the other end soon."""
        self._hub, self._endpoint, self._context, self.line, self._owner = hub, endpoint, context, line, owner
        self._sock, address = self._socket(endpoint)
        self._sock.setblocking(False)
        if narrow:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _NARROW)
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, _SEGMENT)
        self._deaf = self.closed = False
        self._connecting, self._handshaking = True, context is not None
        self._events = WRITE
        failed = self._sock.connect_ex(address)
        hub.selector.register(self._sock, WRITE, self._ready)
        if failed not in (0, errno.EINPROGRESS):
            hub.at(time.monotonic_ns(), lambda: self._lose(os.strerror(failed)))

    def _socket(self, endpoint: Endpoint) -> tuple[socket.socket, Any]:
        """A socket, and the address that it is to be connected to."""
        family, kind, proto, _, address = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, proto)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock, address

    def flush(self) -> None:
        """Write what the line has; what does not fit waits for the socket."""
        if self._connecting or self._handshaking or self.closed:
            return
        output = self.line.output
        try:
            while output:
                del output[: self._sock.send(output)]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._lose(error.strerror or type(error).__name__)
            return
        self._watch(READ | WRITE if output else READ)

    def deafen(self, deaf: bool) -> None:
        """Read nothing from now on, not even that the other side has gone; or read again."""
        self._deaf = deaf
        if not self.closed and not self._connecting and not self._handshaking:
            if not deaf:
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WIDE)
            self._watch(READ | WRITE if self.line.output else READ)

    def close(self) -> None:
        """Let go; nothing is called any more."""
        if not self.closed:
            self._watch(0)
            self.closed = True
            self._sock.close()

    def _watch(self, events: int) -> None:
        """What the loop tells of: none at all where nobody reads, and nothing is to be written."""
        events = events & ~READ if self._deaf else events
        if events == self._events:
            return
        if not events:
            self._hub.selector.unregister(self._sock)
        elif not self._events:
            self._hub.selector.register(self._sock, events, self._ready)
        else:
            self._hub.selector.modify(self._sock, events, self._ready)
        self._events = events

    def _lose(self, why: str) -> None:
        if not self.closed:
            self.close()
            self._owner.lost(why)

    def _ready(self, mask: int) -> None:
        if self._connecting or self._handshaking:
            self._establish()
            return
        if mask & READ:
            self._read()
        if mask & WRITE:
            self.flush()

    def _establish(self) -> None:
        try:
            if self._connecting:
                failed = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, os.strerror(failed))
                self._connecting = False
                if self._context is not None:
                    self._hub.selector.unregister(self._sock)
                    self._sock = self._context.wrap_socket(
                        self._sock, server_hostname=self._endpoint.host, do_handshake_on_connect=False
                    )
                    self._hub.selector.register(self._sock, self._events, self._ready)
            if isinstance(self._sock, ssl.SSLSocket):
                self._sock.do_handshake()
            self._handshaking = False
        except ssl.SSLWantReadError:
            self._watch(READ)
        except ssl.SSLWantWriteError:
            self._watch(WRITE)
        except OSError as error:
            self._lose(str(error))
        else:
            self.flush()

    def _read(self) -> None:
        while not self.closed and not self._deaf:
            try:
                data = self._sock.recv(_RECV)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except OSError as error:
                self._lose(error.strerror or type(error).__name__)
                return
            now = time.monotonic_ns()
            if not data:
                self._lose("the node closed the connection")
                return
            self._take(data, now)
            if self._context is None and len(data) < _RECV:
                return  # nothing more was there: spare the recv that would say so

    def _take(self, data: bytes, now: int) -> None:
        line, fresh = self.line, not self.line.live
        try:
            messages = line.feed(data)
            if fresh and line.live:
                self._owner.live()
            if messages:
                self._owner.messages(messages, now)
        except ProtocolError as error:
            self._lose(str(error))
            return
        if line.output:
            self.flush()
        if line.ended:
            self._lose("the node closed the connection")


def make_hub(sockets: int) -> Hub:
    """A loop for about so many sockets (see above)."""
    return Hub(selectors.SelectSelector() if sockets < 16 else selectors.DefaultSelector())
