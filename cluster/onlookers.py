"""The nodes of a cell keep each other's word for their audit logs (ADR 26).

Each tells the others the newest signed checkpoint of its log, and notes theirs in its own: what it has signed it cannot
take back without all of them. A log that turns up shorter, or with another history, is told loudly.
"""

from __future__ import annotations

import structlog
import trio

from cluster.core import linkwire
from cluster.core.auditlog import whose_log
from cluster.core.linkwire import Peer
from relay.core.tlog import ED25519, Checkpoint, LogError, Trust, VerifierKey, parse_checkpoint, parse_note
from relay.core.tlog import verify_checkpoint
from cluster.links import Links
from cluster.trail import Trail
from relay.core.receipts import Certify
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import Overloaded, PeerError, Refused, TrustError
from relay.limits import AUDIT_TELL_S, LINK_DEADLINE_S

_log = structlog.get_logger("cluster.audit")
_AWAY_S = 1.0  # seconds until a node that could not be told is told again
_STRANGE_S = 60.0  # seconds until one that did not take it is: an older release ends the link over it


class Onlookers:
    """One node's part. `run` must be running for the others to hear of this node's log."""

    def __init__(self, trail: Trail, root: Root, certify: Certify, links: Links) -> None:
        self._trail, self._root, self._certify, self._links = trail, root, certify, links
        self._grown = trio.Event()
        self._heard: dict[str, float] = {}  # node → when it last told us (trio's clock)

    def follow(self, root: Root) -> None:
        """Whose word counts is asked of this root document from now on."""
        self._root = root

    async def run(self) -> None:
        """Tell the others, until cancelled."""
        self._trail.on_note = self._wake
        try:
            async with trio.open_nursery() as nursery:
                for node in self._links.peers():
                    nursery.start_soon(self._tell, node)
        finally:
            self._trail.on_note = lambda: None

    def _wake(self) -> None:
        self._grown.set()
        self._grown = trio.Event()

    async def _tell(self, node: str) -> None:
        """One node. What is new meanwhile is told with the next one."""
        trail, told = self._trail, 0
        while True:
            grown = self._grown
            if told == trail.told:
                await grown.wait()
            elif not self._links.reaches(node):
                await trio.sleep(_AWAY_S)
            else:
                now = trail.told
                told = now if await self._told(node) else told
                await trio.sleep(AUDIT_TELL_S)

    async def _told(self, node: str) -> bool:
        """Tell a node that can be reached, and wait before the next try where it will not have it."""
        head = linkwire.AuditHead(self._trail.checkpoint(), self._trail.certificate)
        try:
            await self._links.ask(node, head, LINK_DEADLINE_S)
            return True
        except (Refused, PeerError) as error:
            if not (isinstance(error, Refused) and error.code == Code.OVERLOADED):  # it starts, or was told just now
                _log.warning("audit_not_kept", node=node, text=error.text)
                await trio.sleep(_STRANGE_S)
            return False

    async def answer(self, peer: Peer, message: linkwire.AuditHead) -> linkwire.Answer:
        """Another node's newest checkpoint. Raises PeerError for what is not its own word, Overloaded, DiskFailed."""
        if trio.current_time() - self._heard.get(peer.node, -AUDIT_TELL_S) < AUDIT_TELL_S / 2:
            raise Overloaded("an audit log's checkpoint was told a moment ago", int(AUDIT_TELL_S * 1000))
        theirs = self._verified(peer, message)
        self._heard[peer.node] = trio.current_time()
        whose = f"{peer.cell}/{peer.node}"
        if text := self._trail.keep(whose, theirs, message.checkpoint):
            _log.error("audit_log_contradicts_itself", node=peer.node, text=text)
        return linkwire.Done()

    def _verified(self, peer: Peer, message: linkwire.AuditHead) -> Checkpoint:
        try:
            proven = self._certify(message.certificate, self._root)
            note = parse_note(message.checkpoint)
            origin = parse_checkpoint(note.text).origin
            trust = Trust(VerifierKey(origin, ED25519, proven.key), (), 0)
            checkpoint = verify_checkpoint(note, trust).checkpoint
            if (proven.cell, proven.node) != (peer.cell, peer.node):
                raise LogError(f"the certificate is of {proven.cell}/{proven.node}")
            if whose_log(origin)[0] != f"{peer.cell}/{peer.node}":
                raise LogError(f"it is of {origin}")
        except TrustError as error:
            raise PeerError(f"{peer.node} told of an audit log that is not its own: {error.text}") from None
        return checkpoint
