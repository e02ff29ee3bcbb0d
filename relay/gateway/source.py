"""Reading a socket. trio asks the socket first, and waits where there was nothing: an exception and a call of the
system for nothing, each time, where messages come one by one. Who took all that there was waits at once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable

import trio

# At most so many bytes; empty at the end. Raises trio.BrokenResourceError or trio.ClosedResourceError.
Read = Callable[[int], Awaitable[bytes | bytearray]]
_CLOSED = "this socket was closed here"


class Source:
    """The receiving half of a socket, beside relay.gateway.outbox's."""

    __slots__ = ("_more", "_socket")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._socket = stream.socket
        self._more = True  # there may be something already

    async def receive_some(self, max_bytes: int) -> bytes:
        """At most so many; empty at the end. Raises trio.BrokenResourceError, or trio.ClosedResourceError where it is
        closed here."""
        if self._more:
            await trio.lowlevel.checkpoint()
        elif self._socket.fileno() < 0:
            raise trio.ClosedResourceError(_CLOSED)
        while True:
            try:
                if not self._more:
                    await trio.lowlevel.wait_readable(self._socket)
                data = os.read(self._socket.fileno(), max_bytes)
            except BlockingIOError:
                self._more = False
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise trio.ClosedResourceError(_CLOSED) from None
                raise trio.BrokenResourceError(f"the socket is broken: {error}") from error
            else:
                self._more = len(data) == max_bytes
                return data


def reader(stream: trio.abc.Stream) -> Read:
    """How a stream is read: a plain socket by a Source, any other in its own way."""
    return Source(stream).receive_some if isinstance(stream, trio.SocketStream) else stream.receive_some
