"""The beginning of a link: TLS both ways, who is there, hello. And the one place where stream errors are translated."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import trio

from cluster.core.linkwire import (
    FAREWELL, VERSION, Ended, Greeted, LinkEvent, LinkFault, LinkHello, LinkMachine, Peer, Role, encode_frame,
    encode_message,
)
from cluster.pki import NodeCredentials, identify
from relay.core.trust import Root, RootNode
from relay.core.wire import Code
from relay.errors import PeerError
from relay.limits import LINK_HANDSHAKE_S
from relay.ports import Env

SecureStream = trio.SSLStream[trio.abc.Stream]
_NETWORK: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # of ssl.SSLError: nobody's lie


class LinkLost(Exception):
    """The network let go, or nobody is there: worth another try. The text has no address in it."""


@contextmanager
def stream_errors() -> Iterator[None]:
    """What the network does raises LinkLost, what only the peer can have done raises PeerError."""
    try:
        yield
    except trio.TooSlowError:
        raise LinkLost("it took too long") from None
    except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise PeerError(f"the peer's certificate is refused: {cause.verify_message}") from None
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _NETWORK):
            raise PeerError(f"TLS does not hold: {cause.reason or type(cause).__name__}") from None
        raise LinkLost("the connection broke") from None
    except OSError as error:
        raise LinkLost(f"no connection ({type(error).__name__})") from None


def split_address(link: str) -> tuple[str, int]:
    """host:port or [IPv6]:port of the root document. Raises PeerError."""
    host, _, port = link.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise PeerError(f"the root names no usable link address: {link!r}", "It must be host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)


def check_hello(hello: LinkHello, peer: Peer, own: LinkHello) -> None:
    """Certificate and root have said who `peer` is; the hello must say the same. Raises PeerError."""
    if hello.version != own.version:
        raise PeerError(f"the peer speaks link version {hello.version}, this node {VERSION}", "Upgrade the older one")
    if hello.federation != own.federation:
        raise PeerError("the peer belongs to another federation", "Compare the root documents of both sides")
    if (hello.cell, hello.node) != (peer.cell, peer.node):
        claimed = f"{hello.cell}/{hello.node}"
        raise PeerError(f"the peer says that it is {claimed}, its certificate says {peer.cell}/{peer.node}")


async def receive(stream: SecureStream, machine: LinkMachine) -> list[LinkEvent]:
    """The next events, at least one. Raises LinkLost at the end of the stream, PeerError for a broken protocol."""
    while True:
        data = await stream.receive_some()
        if not data:
            raise LinkLost("the peer closed the connection")
        events = machine.receive(data)
        if events:
            return events


async def farewell(stream: SecureStream, fault: LinkFault) -> None:
    """Say why the link ends, to a peer that is known. What goes wrong here no longer matters."""
    with trio.move_on_after(1.0):
        try:
            await stream.send_all(encode_frame(FAREWELL, encode_message(fault)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def _certificate(stream: SecureStream) -> bytes:
    certificate: bytes | None = stream.getpeercert(binary_form=True)
    return certificate or b""


async def dial(
    env: Env, root: Root, credentials: NodeCredentials, own: LinkHello, cell: str, node: RootNode
) -> tuple[SecureStream, LinkMachine]:
    """An open link to one node of `cell`. Raises LinkLost, or PeerError where somebody else is there."""
    region = cell.partition("/")[0]
    host, port = split_address(node.link)
    with stream_errors(), trio.fail_after(LINK_HANDSHAKE_S):
        transport = await env.dial(host, port)
        stream = trio.SSLStream(transport, credentials.links_client(region))
        try:
            await stream.do_handshake()
            peer = identify(_certificate(stream), root)
            if peer != Peer(region, cell, node.name):
                raise PeerError(f"{peer.cell}/{peer.node} answers for {cell}/{node.name}", "Check its link address")
            machine = LinkMachine(Role.DIALER)
            await stream.send_all(encode_frame(FAREWELL, encode_message(own)))
            for event in await receive(stream, machine):
                take_greeting(event, peer, own)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return stream, machine


def take_greeting(event: LinkEvent, peer: Peer, own: LinkHello) -> None:
    """What a listener says first. Raises PeerError, or LinkLost where it only has no room."""
    if isinstance(event, Greeted):
        check_hello(event.hello, peer, own)
    elif isinstance(event, Ended):
        end_error(event.fault)


def end_error(fault: LinkFault) -> None:
    """Raises what a farewell means: LinkLost where the listener has no room or stops, else PeerError."""
    if fault.code >= Code.UNREACHABLE:
        raise LinkLost(f"the peer ended the link: {fault.text[:200]}")
    raise PeerError(f"the peer ended the link: {fault.text[:200]}", "Look at its log")


async def accept(
    transport: trio.abc.Stream, root: Root, credentials: NodeCredentials, own: LinkHello
) -> tuple[SecureStream, LinkMachine, Peer, list[LinkEvent]]:
    """An open link from a known node, and what it asked already. Raises LinkLost and PeerError."""
    stream = trio.SSLStream(transport, credentials.links_server, server_side=True)
    with stream_errors(), trio.fail_after(LINK_HANDSHAKE_S):
        await stream.do_handshake()
        peer = identify(_certificate(stream), root)
        machine = LinkMachine(Role.LISTENER)
        try:
            first, *more = await receive(stream, machine)
            assert isinstance(first, Greeted)  # the table of states lets nothing else be first
            check_hello(first.hello, peer, own)
        except PeerError as error:
            await farewell(stream, LinkFault(Code.NOT_PERMITTED, error.text, 0))
            raise
        await stream.send_all(encode_frame(FAREWELL, encode_message(own)))
        return stream, machine, peer, more
