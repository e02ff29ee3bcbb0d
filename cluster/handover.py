"""What other cells ask of this one over their links: hand-overs, look-ups, ephemeral traffic."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import structlog
import trio

from cluster.core import linkwire
from cluster.directory.federation import FederationDirectory
from cluster.core.linkwire import Peer
from cluster.links import Links
from relay.core import records
from relay.core.envelope import To, read_header
from relay.core.mailroom.state import Origin
from relay.delivery import Delivery
from relay.errors import Overloaded, PeerError, ProtocolError, Refused, ResidencyError
from relay.intake import Intake
from relay.limits import LINK_DEADLINE_S, MAX_HANDOVER
from relay.office import Office

_log = structlog.get_logger("cluster.handover")


class Reception:
    """The handler behind the links. The peer was checked by the link: its cell is who it is."""

    def __init__(self, delivery: Delivery, intake: Intake, office: Office, directory: FederationDirectory) -> None:
        self._delivery = delivery
        self._intake = intake
        self._office = office
        self._directory = directory

    async def __call__(self, peer: Peer, message: linkwire.Request) -> linkwire.Answer:
        """Answer one request. Raises PosthouseError, which the link turns into a LinkFault."""
        match message:
            case linkwire.HandOver():
                return await self._hand_over(peer, message)
            case linkwire.LookUp():
                return await self._directory.answer(peer, message)
            case linkwire.EphemeralTo():
                self._office.deliver_ephemeral(message.user, message.from_user, message.from_device, message.payload)
                return linkwire.Done()
            case _:
                raise PeerError(f"{peer.cell} asked for {type(message).__name__}, which is not served here")

    async def _hand_over(self, peer: Peer, request: linkwire.HandOver) -> linkwire.HandOverAnswer:
        key = (peer.cell, request.origin_log)
        origins = self._delivery.room.state.origins
        vector = origins[key].vector if key in origins else 0
        last = request.first + len(request.items) - 1
        if request.first > vector + 1 or last <= vector:
            return _answer(origins.get(key, Origin()), request.first, last)
        fresh, size = list[records.HandIn](), 0
        for number in range(max(request.first, vector + 1), last + 1):
            record = self._record(peer, request, number)
            size += len(record.item) + len(record.part)
            if fresh and size > MAX_HANDOVER:
                last = number - 1  # a part of the batch is a good answer, too
                break
            fresh.append(record)

        def applied() -> bool:
            return key in origins and origins[key].vector >= last

        with trio.move_on_after(LINK_DEADLINE_S / 2):
            while (refused := await self._append(fresh, applied)) is not None:
                _log.error("hand_over_refused", cell=peer.cell, number=fresh[refused.ordinal].number, text=refused.text)
                fresh[refused.ordinal] = _refused(fresh[refused.ordinal])
        if not applied():
            raise Overloaded("the journal did not take the hand-over in time")
        return _answer(origins[key], request.first, last)

    async def _append(self, fresh: list[records.HandIn], applied: Callable[[], bool]) -> ResidencyError | None:
        """Have the records written, and wait until they are applied; or what the disk writer has against one."""
        refusals: list[ResidencyError] = []
        self._intake.offer([records.encode_record(record) for record in fresh], refusals.append)
        await self._delivery.wait_for(lambda: bool(refusals) or applied())
        return refusals[0] if refusals else None

    def _record(self, peer: Peer, request: linkwire.HandOver, number: int) -> records.HandIn:
        """The receiving node's own residency check (section 5, rule 2): bytes for a user who is not at home here are
        refused by number, and never reach the journal."""
        item = request.items[number - request.first]
        confirmed = request.confirmed
        record = records.HandIn(peer.cell, request.origin_log, number, confirmed, item.what, item.item, item.part)
        if item.what != records.HANDIN_ENVELOPE or self._is_ours(item.item):
            return record
        _log.warning("not_at_home", cell=peer.cell, number=number)
        return _refused(record)

    def _is_ours(self, envelope: bytes) -> bool:
        try:
            header = read_header(envelope)
        except ProtocolError:
            return False
        return header.kind is To.ROSTER or header.to in self._delivery.room.state.users


def _refused(record: records.HandIn) -> records.HandIn:
    """The same number without the bytes."""
    return msgspec.structs.replace(record, what=records.HANDIN_REFUSED, item=b"", part=b"")


def _answer(origin: Origin, first: int, last: int) -> linkwire.HandOverAnswer:
    outcomes = tuple(
        records.HandedAnswer(number, *origin.outcomes[number])
        for number in range(first, min(last, origin.vector) + 1)
        if number in origin.outcomes
    )
    return linkwire.HandOverAnswer(origin.vector, outcomes)


class LinksAbroad:
    """relay.ports.Abroad over the links: at once, or not at all."""

    def __init__(self, links: Links) -> None:
        self._links = links

    async def ephemeral(self, cell: str, user: bytes, from_user: bytes, from_device: bytes, payload: bytes) -> None:
        """See relay.ports.Abroad."""
        if not self._links.connected(cell):
            return
        try:
            await self._links.request(cell, linkwire.EphemeralTo(user, from_user, from_device, payload), 2.0)
        except (Refused, PeerError):
            return
