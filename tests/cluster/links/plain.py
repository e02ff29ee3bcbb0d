"""Security without any: who is there is told at once, and believed. For networks in memory."""

from __future__ import annotations

import msgspec
import trio

from cluster.core.linkwire import Peer
from cluster.pki import Claim


class PlainSecurity:
    """cluster.links.Security. Says to be `peer`, vouched for by the authority of `vouched_by`, or of its own region."""

    def __init__(self, peer: Peer, vouched_by: str | None = None) -> None:
        self.peer = peer
        self._told = msgspec.msgpack.encode(Claim(peer, peer.region if vouched_by is None else vouched_by))

    async def secure_client(self, transport: trio.abc.Stream, region: str) -> tuple[trio.abc.Stream, Claim]:
        """See cluster.links.Security."""
        return await self.secure_server(transport)

    async def secure_server(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        """See cluster.links.Security."""
        await transport.send_all(len(self._told).to_bytes(2, "big") + self._told)
        size = int.from_bytes(await _exactly(transport, 2), "big")
        return transport, msgspec.msgpack.decode(await _exactly(transport, size), type=Claim)


async def _exactly(transport: trio.abc.Stream, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = await transport.receive_some(count - len(data))
        if not more:
            raise trio.BrokenResourceError
        data += more
    return data
