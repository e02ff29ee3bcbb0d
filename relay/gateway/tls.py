"""TLS on a socket, with a sending half that never waits: it encrypts at once and writes as far as the socket takes it.

trio.SSLStream sends from a task only, which costs 40–60 µs of CPU for a frame of 400 bytes; this costs little more than
the plain socket. The protocol itself is OpenSSL's (ssl.SSLObject over memory BIOs); only the ferrying of bytes is ours.
"""

from __future__ import annotations

import os
import ssl
from typing import Final

import trio

from relay.gateway.source import Source
from relay.limits import KIB

Piece = bytes | memoryview
RECEIVE_BYTES: Final = 16 * KIB  # bytes asked of the socket at a time: about one TLS record (RFC 8446 5.1)
SEAL_BYTES: Final = 64 * KIB  # bytes joined and encrypted at a time; bounds what a slow reader holds that is not shared


class TlsStream(trio.abc.Stream):
    """One end of a TLS connection. Closes without close_notify: WebSocket says itself when it is over, and a frame
    between nodes says how long it is."""

    def __init__(self, transport: trio.abc.Stream, context: ssl.SSLContext, *, server_side: bool = True) -> None:
        """Raises TypeError where `transport` is no socket."""
        if not isinstance(transport, trio.SocketStream):
            raise TypeError(f"TLS is spoken on sockets, not on a {type(transport).__name__}")
        self.socket = transport.socket
        self._transport, self._source = transport, Source(transport)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._sealed: Piece = b""  # encrypted, not written yet
        self._sealed_from = 0  # bytes that it was before

    async def do_handshake(self) -> None:
        """Before anything else. Raises trio.BrokenResourceError; the caller sets the deadline."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._transport.send_all(self._outgoing.read())
                await self._feed()
            except ssl.SSLError as error:
                await self._transport.send_all(self._outgoing.read())  # the alert that says what is wrong
                raise trio.BrokenResourceError(f"TLS handshake: {error.reason}") from error
            else:
                await self._transport.send_all(self._outgoing.read())
                return

    def peer_certificate(self) -> bytes | None:
        """What the other end has shown, as DER; None where it has shown none."""
        return self._tls.getpeercert(binary_form=True)

    def write(self, queue: list[Piece]) -> int:
        """See relay.gateway.outbox.Sink."""
        if not self._sealed:
            self._seal(queue)
        try:
            sent = os.write(self.socket.fileno(), self._sealed)
        except BlockingIOError:
            return 0
        if sent < len(self._sealed):
            self._sealed = memoryview(self._sealed)[sent:]
            return 0
        self._sealed = b""
        return self._sealed_from

    def _seal(self, queue: list[Piece]) -> None:
        count, size = 0, 0
        while count < len(queue) and size < SEAL_BYTES:
            size += len(queue[count])
            count += 1
        self._tls.write(queue[0] if count == 1 else b"".join(queue[:count]))
        del queue[:count]
        # with it goes what reading left behind: an answer to KeyUpdate is due before the next data (RFC 8446 4.6.3)
        self._sealed, self._sealed_from = self._outgoing.read(), size

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Empty at the end, with or without close_notify. Raises trio.BrokenResourceError."""
        if self._incoming.pending:  # it may be thousands of records: somebody else's turn first
            await trio.lowlevel.checkpoint()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._tls.read(max_bytes or RECEIVE_BYTES)
            except ssl.SSLWantReadError:
                await self._feed()
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b""
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(f"TLS: {error.reason}") from error

    async def _feed(self) -> None:
        if data := await self._source.receive_some(RECEIVE_BYTES):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """For those who have no outbox. Raises trio.BrokenResourceError."""
        self._tls.write(data)
        await self._transport.send_all(self._outgoing.read())

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.abc.SendStream."""
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close the socket."""
        await self._transport.aclose()
