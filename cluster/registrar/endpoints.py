"""Where a registrar is: `https://HOST:PORT`, `http://…` on a loopback address, or `unix:PATH`.

TLS is with the region's own authority, which the root names: who answers shows a certificate of that region, for
`posthouse://REGION/registrar/…`. A loopback address or a Unix socket has a terminator before it, or nobody else near.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trio

from cluster.config_keys import Address
from cluster.env import RealEnv
from cluster.pki import asking_context, read_claim, serving_context
from cluster.registrar.http import Caller, Wrap
from relay.core.trust import Root
from relay.dialing import dial_tcp
from relay.errors import OperatorError, PeerError

ROLE: Final = "registrar"  # the name after the region's in a registrar's certificate, where nodes have their cell's


class Endpoint(NamedTuple):
    """A parsed URL: an address with TLS or without, or the path of a Unix socket."""

    address: Address | None
    path: Path | None
    tls: bool

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Raises OperatorError."""
        scheme, _, rest = url.partition(":")
        try:
            if scheme == "unix" and rest:
                return cls(None, Path(rest), False)
            if scheme in ("http", "https") and rest.startswith("//"):
                address = Address.parse(rest[2:].rstrip("/"))
                if scheme == "https" or address.loopback:
                    return cls(address, None, scheme == "https")
                raise ValueError("http is for loopback addresses only")
            raise ValueError("of no kind that is known here")
        except ValueError as error:
            remedy = "Write https://HOST:PORT, http://127.0.0.1:PORT or unix:PATH"
            raise OperatorError(f"{url!r}: {error}", remedy) from None


def caller(name: str, url: str, root: Root | None, region: str) -> Caller:
    """A client of the registrar of `region`. `root` is needed for https. Raises OperatorError."""
    endpoint = Endpoint.parse(url)
    context = asking_context(root.region(region).authority) if endpoint.tls and root else None
    if endpoint.tls and context is None:
        raise OperatorError(f"{url}: without a root document nobody's certificate can be believed", "Give --dir")

    async def dial() -> trio.abc.Stream:
        if endpoint.path is not None:
            return await trio.open_unix_socket(endpoint.path)
        assert endpoint.address is not None
        stream: trio.abc.Stream = await dial_tcp(*endpoint.address)
        if context is None:
            return stream
        assert root is not None
        try:
            secured = trio.SSLStream(stream, context)
            await secured.do_handshake()
            check_registrar(secured.getpeercert(binary_form=True) or b"", root, region)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return secured

    return Caller(name, dial)


def check_registrar(certificate: bytes, root: Root, region: str) -> None:
    """A certificate (DER) of the region's registrar, by its own authority. Raises PeerError."""
    claim = read_claim(certificate, root)
    if (claim.vouched_by, claim.peer.cell) != (region, f"{region}/{ROLE}"):
        raise PeerError(f"who answers for the registrar of {region} shows a certificate for {claim.peer.cell}")


async def listen(
    env: RealEnv, url: str, certificate: Path | None, key: Path | None
) -> tuple[Sequence[trio.SocketListener], Wrap | None]:
    """Listeners for an endpoint, and the TLS handshake that connections begin with. Raises OperatorError."""
    endpoint = Endpoint.parse(url)
    if endpoint.path is not None:
        return await env.listen_unix(endpoint.path), None
    assert endpoint.address is not None
    wrap: Wrap | None = None
    if endpoint.tls:
        if certificate is None or key is None:
            raise OperatorError(f"{url}: no certificate", "Set [paths] certificate and private_key")
        wrap = _shake(serving_context(certificate, key))
    return await env.listen(*endpoint.address), wrap


def _shake(context: ssl.SSLContext) -> Wrap:
    async def wrap(transport: trio.abc.Stream) -> trio.abc.Stream:
        stream = trio.SSLStream(transport, context, server_side=True)
        await stream.do_handshake()
        return stream

    return wrap
