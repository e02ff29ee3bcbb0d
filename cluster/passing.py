"""Envelopes that may not wait at home (`hold = "deny"`): they are passed on without touching a disk of the sender's
region, or not at all (ADR 25). The recipient's cell admits them as first submits; its outcome is the sender's receipt.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.links import Links
from relay.barrier import Barrier
from relay.core import records
from relay.core.envelope import To, envelope_id, read_header
from relay.core.policy import Policies
from relay.core.trust import Root
from relay.core.wire import Code, ReceiptItem
from relay.delivery import Delivery
from relay.errors import NotPermitted, Overloaded, PeerError, ProtocolError, ResidencyError
from relay.intake import Intake
from relay.limits import LINK_DEADLINE_S, PASS_S

_log = structlog.get_logger("cluster.passing")


async def pass_on(links: Links, cell: str, envelopes: Sequence[bytes]) -> Sequence[ReceiptItem]:
    """See relay.ports.Abroad."""
    answer = await links.request(cell, linkwire.PassOn(tuple(envelopes)), PASS_S)
    ids = [envelope_id(one) for one in envelopes]
    if not isinstance(answer, linkwire.PassedOn) or [item.id for item in answer.items] != ids:
        raise PeerError(f"{cell} did not answer for what was passed on to it")
    return [_known(cell, item) for item in answer.items]


def _known(cell: str, item: ReceiptItem) -> ReceiptItem:
    """A code that this release does not know (the other cell may run a newer one) as what it must mean."""
    if item.cell != cell or item.code < Code.STORED:
        raise PeerError(f"{cell} answered for what was passed on to it with what it may not say")
    known = item.code in Code.__members__.values()
    return item if known else ReceiptItem(item.id, Code.NOT_PERMITTED, 0, 0, cell)


class Passage:
    """The receiving half. It owns who waits for which outcome."""

    def __init__(self, root: Root, delivery: Delivery, intake: Intake, barrier: Barrier) -> None:
        self.policies = Policies(root)
        self._barrier = barrier
        self._delivery = delivery
        self._intake = intake
        self._found: list[dict[bytes, ReceiptItem | None]] = []  # by id, of each request; None: not applied yet
        delivery.passed_on = self._passed_on

    def _passed_on(self, item: ReceiptItem) -> None:
        for found in self._found:
            if item.id in found:
                found[item.id] = item

    async def take(self, peer: Peer, request: linkwire.PassOn) -> linkwire.PassedOn:
        """Have what belongs here written and applied, and answer for everything. Raises Overloaded: asked again, what
        was applied meanwhile has the same outcome."""
        found: dict[bytes, ReceiptItem | None] = {}
        fresh: list[records.Passed] = []
        if any(self._refusal(peer, sealed) is Code.UNKNOWN_USER for sealed in request.envelopes):
            await self._barrier.reach(peer.cell)
        for sealed in request.envelopes:
            own, code = envelope_id(sealed), self._refusal(peer, sealed)
            if own not in found:
                found[own] = None if code is None else self._receipt(peer, own, code)
                fresh += [records.Passed(peer.cell, sealed)] if code is None else []
        self._found.append(found)
        try:
            with trio.move_on_after(LINK_DEADLINE_S / 2):
                while (refused := await self._append(fresh, found)) is not None:
                    own = envelope_id(fresh.pop(refused.ordinal).envelope)
                    code = Code.NOT_PERMITTED if isinstance(refused, NotPermitted) else Code.UNKNOWN_USER
                    found[own] = self._receipt(peer, own, code)
        finally:
            self._found = [one for one in self._found if one is not found]
        items = [found[envelope_id(sealed)] for sealed in request.envelopes]
        if None in items:
            raise Overloaded("the journal did not take in time what was passed on")
        return linkwire.PassedOn(tuple(item for item in items if item is not None))

    async def _append(
        self, fresh: list[records.Passed], found: dict[bytes, ReceiptItem | None]
    ) -> ResidencyError | None:
        """Wait until they are written and applied; or what the disk writer has against one."""
        refusals: list[ResidencyError] = []
        if fresh:
            self._intake.offer([records.encode_record(record) for record in fresh], refusals.append)
            await self._delivery.wait_for(lambda: bool(refusals) or None not in found.values())
        return refusals[0] if refusals else None

    def _refusal(self, peer: Peer, sealed: bytes) -> Code | None:
        """The receiving node's own check (section 5, rule 2): why it must not rest here; None if it may."""
        state = self._delivery.room.state
        try:
            header = read_header(sealed)
        except ProtocolError:
            return Code.BAD_ENVELOPE
        if header.kind is To.ROSTER or self.policies.forbidden(peer.cell, state.cell):
            return Code.NOT_PERMITTED
        if self.policies.rests_too_long(header, state.cell):
            return Code.LIFETIME
        if header.to in state.moved:
            return Code.UNREACHABLE  # tried again, it goes where the user is at home by then, as the fold has it
        return None if header.to in state.users else Code.UNKNOWN_USER

    def _receipt(self, peer: Peer, own: bytes, code: Code) -> ReceiptItem:
        _log.warning("not_passed", cell=peer.cell, code=code.name.lower())
        cell = self._delivery.room.state.cell
        return ReceiptItem(own, code, 0, self.policies.longest(cell) if code is Code.LIFETIME else 0, cell)
