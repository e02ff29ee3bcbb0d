"""The listener's side: links from known nodes, each request handed to the handler, each answered once; notes of the own
cell handed over as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from cluster.core.linkmachine import Asked, LinkEvent, LinkMachine, Noted
from cluster.core.linkwire import Answer, CellNote, Done, LinkFault, Peer, Ping, Request, encode_message, patience
from cluster.links.pace import FAR, NEAR
from cluster.pki import Claim, admit_again
from cluster.links.secure import LinkLost, Party, accept, farewell, receive, stream_errors
from relay.core.wire import Code
from relay.errors import DiskFailed, Overloaded, PeerError, PosthouseError, ProtocolError, Refused, TrustError
from relay.limits import LINK_DEADLINE_S, MAX_LINKS

log = structlog.get_logger("relay.links")


class Handler(Protocol):
    """Whoever is behind the links."""

    async def answer(self, peer: Peer, message: Request) -> Answer:
        """Answer one request. PosthouseErrors go back as a LinkFault; DiskFailed ends the node (rule 7)."""

    def note(self, peer: Peer, note: CellNote) -> None:
        """A note of another node of the own cell, in the order in which that sent them. PeerError or ProtocolError, for
        one that makes no sense, ends that node's link; any other PosthouseError ends this node."""


class Incoming:
    """All inbound links of a node. A node has one at most: a newer one ends the older (its dialer has lost it)."""

    def __init__(self, party: Party, handler: Handler, on_refused: Callable[[], None]) -> None:
        self._party, self._handler, self._on_refused = party, handler, on_refused
        self._greeting: dict[trio.CancelScope, None] = {}  # oldest first
        self._links: dict[Peer, _Link] = {}

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
        stream, machine, claim, events = await self._greet(transport)
        peer = claim.peer
        older = self._links.get(peer)
        if older is None and len(self._links) >= MAX_LINKS and not machine.inside:
            await farewell(stream, LinkFault(Code.OVERLOADED, "no room for another link", 1000))
            return
        if older is not None:
            older.scope.cancel()
        link = self._links[peer] = _Link(stream, machine, claim, self._handler)
        names = {"region": peer.region, "cell": peer.cell, "node": peer.node}
        log.info("link_accepted", **names)
        try:
            reason = await link.run(events)
        finally:
            if self._links.get(peer) is link:
                del self._links[peer]
        if isinstance(reason, PeerError):
            self._on_refused()
            log.warning("link_cut", **names, reason=str(reason))
        else:
            log.info("link_closed", **names, reason=str(reason))

    def judge(self) -> None:
        """End the links of those whom the root document of now does not let in."""
        for link in tuple(self._links.values()):
            try:
                admit_again(link.claim, self._party.root)
            except PeerError as error:
                link.end(error)

    async def _greet(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, LinkMachine, Claim, list[LinkEvent]]:
        """Where too many have not said hello yet, the oldest goes: a good node says it at once, so that strangers who
        only hold connections open keep nobody out. Raises LinkLost, PeerError."""
        if len(self._greeting) >= MAX_LINKS:
            oldest = next(iter(self._greeting))
            del self._greeting[oldest]
            oldest.cancel()
        with trio.CancelScope() as scope:
            self._greeting[scope] = None
            try:
                return await accept(transport, self._party)
            finally:
                self._greeting.pop(scope, None)
        raise LinkLost("too many connections that have not said hello")


class _Link:
    """One inbound link. Requests run side by side; the machine bounds how many, and their bytes."""

    def __init__(self, stream: trio.abc.Stream, machine: LinkMachine, claim: Claim, handler: Handler) -> None:
        self.claim = claim
        self._stream, self._machine, self._peer, self._handler = stream, machine, claim.peer, handler
        self._silence_s = (NEAR if machine.inside else FAR).silence_s
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
                    self.end(error)
        return self._reason

    def end(self, reason: LinkLost | PeerError) -> None:
        """`run` ends, and returns this."""
        self._reason = reason
        self.scope.cancel()

    async def _read(self, events: list[LinkEvent], nursery: trio.Nursery) -> None:
        heard = trio.current_time()
        with trio.CancelScope(deadline=heard + self._silence_s) as silence:  # the dialer pings more often than that
            while True:
                for event in events:
                    if isinstance(event, Noted):
                        self._take_note(event.message)
                    else:
                        assert isinstance(event, Asked)  # the table of states lets an open listener hear nothing else
                        nursery.start_soon(self._answer, event)
                events = await receive(self._stream, self._machine)
                if (now := trio.current_time()) - heard > self._silence_s / 16:  # not at every note: near enough
                    heard, silence.deadline = now, now + self._silence_s
        raise LinkLost(f"not a byte for {self._silence_s:.0f} s")

    def _take_note(self, note: CellNote) -> None:
        """Raises PeerError for a note that makes no sense, which ends this link and nothing else."""
        try:
            self._handler.note(self._peer, note)
        except ProtocolError as error:
            raise PeerError(f"a note that makes no sense: {error.text}", "Look at the log of the peer") from None
        except PosthouseError:
            raise  # PeerError, or this node's own trouble: that ends the node
        except Exception:  # a mistake of ours with one message must not take the node from everybody
            log.exception("link_note_failed", cell=self._peer.cell, node=self._peer.node)
            raise PeerError("a note that this node could not take", "Report it, with the log of this node") from None

    async def _answer(self, asked: Asked) -> None:
        """One request, from handler to socket."""
        answer = Done() if isinstance(asked.message, Ping) else await self._handle(asked.message)
        try:
            with stream_errors(), trio.fail_after(LINK_DEADLINE_S):
                async with self._sending:  # send_all is only ever cancelled together with the link
                    # Until now the request counted: a peer that does not read its answers may not go on asking.
                    await self._stream.send_all(self._machine.answer(asked.id, _pack(answer)))
        except (LinkLost, PeerError) as error:
            self.end(error)

    async def _handle(self, message: Request) -> Answer:
        kind, cell = type(message).__name__, self._peer.cell
        with trio.move_on_after(patience(message)):
            try:
                return await self._handler.answer(self._peer, message)
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
