"""The beginning of a link: TLS both ways, who is there, hello. And the one place where stream errors are translated."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

import trio

from cluster.core.linkmachine import Ended, Greeted, LinkEvent, LinkMachine, Role
from cluster.core.linkwire import NO_REQUEST, VERSION, LinkFault, LinkHello, Peer, encode_frame, encode_message
from cluster.pki import Claim, admit, admit_again
from relay.core.trust import Root, RootNode
from relay.core.wire import Code
from relay.errors import PeerError
from relay.limits import LINK_HANDSHAKE_S
from relay.ports import Env

_NETWORK: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)  # of ssl.SSLError: nobody's lie


class LinkLost(Exception):
    """The network let go, or nobody is there: worth another try. The text has no address in it."""


class Security(Protocol):
    """What makes a channel of a transport and says who is at its other end: by TLS NodeCredentials; simulated in tests.

    `vouched_by` in the claim is for the implementation to prove. Whether the claim may stand is asked of the root
    afterwards, in one place (cluster.pki.admit). Both methods raise PeerError, and what `stream_errors` translates; the
    caller sets a deadline, and closes the transport when they fail."""

    @property
    def peer(self) -> Peer:
        """Who this node proves to be."""

    async def secure_client(self, transport: trio.abc.Stream, region: str) -> tuple[trio.abc.Stream, Claim]:
        """The dialer's side; believes nobody but `region`'s authority."""

    async def secure_server(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        """The listener's side."""


@dataclass(slots=True)
class Party:
    """This node as a party to links: whom it believes (now: `root` changes), what it proves, what it says first."""

    root: Root
    security: Security
    hello: LinkHello

    def is_near(self, cell: str) -> bool:
        """Is `cell` this node's own?"""
        return cell == self.hello.cell


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


async def receive(stream: trio.abc.Stream, machine: LinkMachine) -> list[LinkEvent]:
    """The next events, at least one. Raises LinkLost at the end of the stream, PeerError for a broken protocol."""
    while True:
        data = await stream.receive_some()
        if not data:
            raise LinkLost("the peer closed the connection")
        events = machine.receive(data)
        if events:
            return events


async def farewell(stream: trio.abc.Stream, fault: LinkFault) -> None:
    """Say why the link ends, to a peer that is known. What goes wrong here no longer matters."""
    with trio.move_on_after(1.0):
        try:
            await stream.send_all(encode_frame(NO_REQUEST, encode_message(fault)))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


async def dial(
    env: Env, party: Party, cell: str, node: RootNode, deadline_s: float
) -> tuple[trio.abc.Stream, LinkMachine, Claim]:
    """An open link to one node of `cell`, and what that has proven. Raises LinkLost, or PeerError where somebody else
    is there."""
    region = cell.partition("/")[0]
    host, port = split_address(node.link)
    with stream_errors(), trio.fail_after(deadline_s):
        transport = await env.dial(host, port)
        try:
            stream, claim = await party.security.secure_client(transport, region)
            peer = admit(claim, party.root)
            if peer != Peer(region, cell, node.name):
                raise PeerError(f"{peer.cell}/{peer.node} answers for {cell}/{node.name}", "Check its link address")
            machine = LinkMachine(Role.DIALER, inside=party.is_near(cell))
            await stream.send_all(encode_frame(NO_REQUEST, encode_message(party.hello)))
            for event in await receive(stream, machine):
                take_greeting(event, peer, party.hello)
            admit_again(claim, party.root)  # the root document of now, when nothing is awaited any more
        except BaseException:
            await trio.aclose_forcefully(transport)
            raise
        return stream, machine, claim


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
    transport: trio.abc.Stream, party: Party
) -> tuple[trio.abc.Stream, LinkMachine, Claim, list[LinkEvent]]:
    """An open link from a known node, what that has proven, and what it asked already. Raises LinkLost, PeerError."""
    with stream_errors(), trio.fail_after(LINK_HANDSHAKE_S):
        stream, claim = await party.security.secure_server(transport)
        peer = admit(claim, party.root)
        machine = LinkMachine(Role.LISTENER, inside=party.is_near(peer.cell))
        try:
            first, *more = await receive(stream, machine)
            assert isinstance(first, Greeted)  # the table of states lets nothing else be first
            check_hello(first.hello, peer, party.hello)
            if peer == party.security.peer:
                raise PeerError("the peer proves to be this very node", "Is a second process running with its files?")
        except PeerError as error:
            await farewell(stream, LinkFault(Code.NOT_PERMITTED, error.text, 0))
            raise
        await stream.send_all(encode_frame(NO_REQUEST, encode_message(party.hello)))
        admit_again(claim, party.root)  # as in `dial`
        return stream, machine, claim, more
