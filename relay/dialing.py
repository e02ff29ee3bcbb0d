"""TCP connections to addresses that others wrote: what a root document names is not ours to trust."""

from __future__ import annotations

import errno

import trio


async def dial_tcp(host: str, port: int) -> trio.SocketStream:
    """A TCP connection (RFC 8305 over all addresses of the host). Raises OSError, also for what is no host name: else
    whoever writes one could end those who dial it."""
    try:
        return await trio.open_tcp_stream(host, port)
    except UnicodeError as error:  # of IDNA: an empty label, one that is too long, characters that are none
        raise OSError(errno.EINVAL, "no host name") from error
