"""The listener's side: links from known nodes, each request handed to the handler, each answered once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from cluster.core.linkwire import (
    Answer, Asked, Done, LinkEvent, LinkFault, LinkHello, LinkMachine, Peer, Ping, Request, encode_message,
)
from cluster.links.secure import LinkLost, SecureStream, accept, farewell, receive, stream_errors
from cluster.pki import NodeCredentials
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import DiskFailed, Overloaded, PeerError, PosthouseError, ProtocolError, Refused, TrustError
from relay.limits import LINK_DEADLINE_S, LINK_SILENCE_S, MAX_LINKS

log = structlog.get_logger("relay.links")
Handler = Callable[[Peer, Request], Awaitable[Answer]]


class Incoming:
    """All inbound links of a node. A node has one at most: a newer one ends the older (its dialer has lost it)."""

    def __init__(
        self, root: Root, credentials: NodeCredentials, own: LinkHello, handler: Handler,
        on_refused: Callable[[], None],
    ) -> None:  # fmt: skip
        self._root, self._credentials, self._own, self._handler = root, credentials, own, handler
        self._on_refused = on_refused
        self._greeting: dict[trio.CancelScope, None] = {}  # oldest first
        self._links: dict[Peer, trio.CancelScope] = {}

    async def serve(self, transport: trio.abc.Stream) -> None:
        """One connection, from accept to its end. Never raises for what the peer or the network does."""
        try:
            await self._serve(transport)
        except LinkLost as error:
            log.info("link_not_opened", reason=str(error))
        except PeerError as error:
            self._on_refused()
            log.warning("link_refused", reason=str(error))
        finally:
            await trio.aclose_forcefully(transport)

    async def _serve(self, transport: trio.abc.Stream) -> None:
        stream, machine, peer, events = await self._greet(transport)
        older = self._links.get(peer)
        if older is None and len(self._links) >= MAX_LINKS:
            await farewell(stream, LinkFault(Code.OVERLOADED, "no room for another link", 1000))
            return
        if older is not None:
            older.cancel()
        link = _Link(stream, machine, peer, self._handler)
        self._links[peer] = link.scope
        names = {"region": peer.region, "cell": peer.cell, "node": peer.node}
        log.info("link_accepted", **names)
        try:
            reason = await link.run(events)
        finally:
            if self._links.get(peer) is link.scope:
                del self._links[peer]
        if isinstance(reason, PeerError):
            self._on_refused()
            log.warning("link_cut", **names, reason=str(reason))
        else:
            log.info("link_closed", **names, reason=str(reason))


    async def _greet(self, transport: trio.abc.Stream) -> tuple[SecureStream, LinkMachine, Peer, list[LinkEvent]]:
        """Where too many have not said hello yet, the oldest goes: a good node says it at once, so that strangers who
        only hold connections open keep nobody out. Raises LinkLost, PeerError."""
        if len(self._greeting) >= MAX_LINKS:
            oldest = next(iter(self._greeting))
            del self._greeting[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._greeting[scope] = None
            try:
                return await accept(transport, self._root, self._credentials, self._own)
            finally:
                self._greeting.pop(scope, None)
        raise LinkLost("too many connections that have not said hello")


class _Link:
    """One inbound link. Requests run side by side; the machine bounds how many, and their bytes."""

    def __init__(self, stream: SecureStream, machine: LinkMachine, peer: Peer, handler: Handler) -> None:
        self._stream, self._machine, self._peer, self._handler = stream, machine, peer, handler
        self._sending = trio.Lock()
        self._reason: LinkLost | PeerError = LinkLost("a newer link took its place, or this node stops")
        self.scope = trio.CancelScope()

    async def run(self, events: list[LinkEvent]) -> LinkLost | PeerError:
        """Serve until the link ends; returns why."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                try:
                    with stream_errors():
                        await self._read(events, nursery)
                except (LinkLost, PeerError) as error:
                    self._end(error)
        return self._reason

    def _end(self, reason: LinkLost | PeerError) -> None:
        self._reason = reason
        self.scope.cancel()

    async def _read(self, events: list[LinkEvent], nursery: trio.Nursery) -> None:
        while True:
            for event in events:
                assert isinstance(event, Asked)  # the table of states lets nothing else come to an open listener
                nursery.start_soon(self._answer, event)
            with trio.move_on_after(LINK_SILENCE_S) as silence:  # the dialer pings more often than that
                events = await receive(self._stream, self._machine)
            if silence.cancelled_caught:
                raise LinkLost(f"not a byte for {LINK_SILENCE_S:.0f} s")

    async def _answer(self, asked: Asked) -> None:
        """One request, from handler to socket."""
        answer = Done() if isinstance(asked.message, Ping) else await self._handle(asked.message)
        try:
            with stream_errors(), trio.fail_after(LINK_DEADLINE_S):
                async with self._sending:  # send_all is only ever cancelled together with the link
                    # Until now the request counted: a peer that does not read its answers may not go on asking.
                    await self._stream.send_all(self._machine.answer(asked.id, _pack(answer)))
        except (LinkLost, PeerError) as error:
            self._end(error)

    async def _handle(self, message: Request) -> Answer:
        kind, cell = type(message).__name__, self._peer.cell
        with trio.move_on_after(LINK_DEADLINE_S):
            try:
                return await self._handler(self._peer, message)
            except DiskFailed:
                raise  # rule 7: the node must not answer any more
            except PosthouseError as error:
                log.info("link_request_refused", cell=cell, request=kind, reason=str(error))
                return _fault(error)
            except Exception:  # a mistake of ours with one message must not take the node from everybody
                log.exception("link_handler_failed", cell=cell, request=kind)
        return LinkFault(Code.OVERLOADED, "the cell cannot serve this now", 1000)


def _pack(answer: Answer) -> bytes:
    try:
        return encode_message(answer)
    except ProtocolError as error:
        return encode_message(LinkFault(Code.BAD_ENVELOPE, f"the answer would be too large: {error.text}", 0))


def _fault(error: PosthouseError) -> LinkFault:
    text = error.text[:200]
    if isinstance(error, Refused):
        return LinkFault(error.code, text, error.retry_after_ms)
    if isinstance(error, Overloaded):
        return LinkFault(Code.OVERLOADED, text, error.retry_after_ms)
    if isinstance(error, TrustError):
        return LinkFault(Code.BAD_RECORD, text, 0)
    if isinstance(error, (ProtocolError, PeerError)):
        return LinkFault(Code.BAD_ENVELOPE, text, 0)
    return LinkFault(Code.OVERLOADED, "the cell cannot serve this now", 1000)
