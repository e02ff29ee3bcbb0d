"""What other cells ask of this one over their links: hand-overs, look-ups, ephemeral traffic."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import msgspec
import structlog
import trio

from cluster.core import linkwire
from cluster.directory.federation import FederationDirectory
from cluster.core.linkwire import Peer
from cluster.links import Links
from cluster.movers import Batch, Movers, refused_number as _refused
from cluster.passing import Passage, pass_on
from relay.barrier import Barrier
from relay.core import records
from relay.core.envelope import To, read_header
from relay.core.farposts import Question, Reply
from relay.core.mailroom import rosters
from relay.core.mailroom.state import Origin
from relay.core.policy import MAIL, Policies
from relay.core.trust import Root, verify_part, verify_roster
from relay.core.wire import Code, ReceiptItem
from relay.delivery import Delivery
from relay.errors import (
    NotPermitted, Overloaded, PeerError, ProtocolError, Refused, ResidencyError, TrustError,
)
from relay.intake import Intake
from relay.limits import FAR_ASK_S, LINK_DEADLINE_S, MAX_HANDOVER
from relay.office import Office

_log = structlog.get_logger("cluster.handover")
_EPHEMERAL_S = 2.0  # seconds for what is off the log to get anywhere


class Reception:
    """The handler behind the links. The peer was checked by the link: its cell is who it is."""

    def __init__(
        self, root: Root, delivery: Delivery, intake: Intake, barrier: Barrier, office: Office,
        directory: FederationDirectory,
    ) -> None:
        self._movers = Movers(root, delivery)
        self._policies = Policies(root)
        self._passage = Passage(root, delivery, intake, barrier)
        self._delivery = delivery
        self._intake = intake
        self._barrier = barrier
        self._office = office
        self._directory = directory
        self._coming: dict[str, tuple[bytes, int]] = {}  # by cell: its log, and the newest number offered to ours

    def follow(self, root: Root) -> None:
        """Judge by this root document from now on."""
        self._movers.root = root
        self._policies.follow(root)
        self._passage.policies.follow(root)

    async def __call__(self, peer: Peer, message: linkwire.Request) -> linkwire.Answer:
        """Answer one request. Raises PosthouseError, which the link turns into a LinkFault."""
        match message:
            case linkwire.HandOver():
                return await self._hand_over(peer, message)
            case linkwire.PassOn():
                return await self._passage.take(peer, message)
            case linkwire.LookUp(user=linkwire.SPEAKS_CHANNELS):
                return linkwire.Records(Code.STORED, ())
            case linkwire.ReadThere(question):
                return linkwire.PageThere(await self._office.channels.read_there(peer.cell, question))
            case linkwire.LookUp():
                return await self._directory.answer(peer, message)
            case linkwire.EphemeralTo() if self._policies.forbidden(peer.cell, self._delivery.room.state.cell):
                return linkwire.Done()  # there is no answer for what is off the log
            case linkwire.EphemeralTo():
                await self._office.ephemeral_here(
                    message.user, message.from_user, message.from_device, message.payload
                )
                return linkwire.Done()
            case _:
                raise PeerError(f"{peer.cell} asked for {type(message).__name__}, which is not served here")

    async def _hand_over(self, peer: Peer, request: linkwire.HandOver) -> linkwire.HandOverAnswer:
        key = (peer.cell, request.origin_log)
        origins = self._delivery.room.state.origins

        def vector() -> int:
            return origins[key].vector if key in origins else 0

        last = request.first + len(request.items) - 1
        if request.first > vector() + 1:
            with trio.move_on_after(LINK_DEADLINE_S / 2):  # this node may be behind; to say less would prove a loss
                await self._follow(peer, request, vector)
                await self._delivery.wait_for(lambda: vector() + 1 >= request.first)
        if request.first > vector() + 1 or last <= vector():
            return self._answer(key, request.first, last)
        fresh, movers = self._judge(peer, request, vector() + 1)
        if any(map(_denies, fresh)):
            await self._barrier.reach(peer.cell)  # Overloaded: asked again
            fresh, movers = self._judge(peer, request, vector() + 1)
        if not fresh:  # another node has taken all of it meanwhile
            return self._answer(key, request.first, last)
        last = fresh[-1].number  # a part of the batch is a good answer, too: the rest may need what this part brings
        refused_here = [record for record in fresh if record.what == records.HANDIN_REFUSED]

        def applied() -> bool:
            return vector() >= last

        with trio.move_on_after(LINK_DEADLINE_S / 2):
            while (refused := await self._append(peer, movers.moves, fresh, applied)) is not None:
                place = refused.ordinal - len(movers.moves)
                if place < 0:  # without them what was sent on is refused as well
                    _log.error("move_refused", cell=peer.cell, text=refused.text)
                    movers.moves.clear()
                    continue
                _log.error("hand_over_refused", cell=peer.cell, number=fresh[place].number, text=refused.text)
                fresh[place] = _refused(fresh[place], _overruled(fresh[place], refused))
        if not applied():
            raise Overloaded("the journal did not take the hand-over in time")
        for record in refused_here:
            event = "not_permitted" if record.code in (Code.NOT_PERMITTED, Code.LIFETIME) else "not_at_home"
            _log.warning(event, cell=peer.cell, number=record.number, code=Code(record.code).name.lower())
        return self._answer(key, request.first, last)

    async def _follow(self, peer: Peer, request: linkwire.HandOver, vector: Callable[[], int]) -> None:
        """A batch behind one that this node has offered, and the fold has not yet: plain mail for whoever is at home
        goes into the log right behind it. A guess: the fold takes it in its place only. Returns when it is applied, or
        was passed over; whoever calls looks."""

        def before() -> int:
            log, number = self._coming.get(peer.cell, (b"", 0))
            return number if log == request.origin_log else 0

        await self._delivery.wait_for(lambda: max(vector(), before()) + 1 >= request.first)
        if vector() + 1 >= request.first or before() + 1 != request.first:
            return
        fresh, _ = self._judge(peer, request, request.first)
        if len(fresh) < len(request.items) or any(record.what != records.HANDIN_ENVELOPE for record in fresh):
            return
        written = trio.Event()
        self._offer(peer, fresh, fresh, lambda refused: written.set(), written.set)
        await written.wait()
        await self._delivery.caught_up()

    def _offer(
        self, peer: Peer, numbered: Sequence[records.HandIn], offered: Sequence[records.HandIn | records.Move],
        refused: Callable[[ResidencyError], None], written: Callable[[], None] | None = None,
    ) -> None:
        self._intake.offer([records.encode_record(record) for record in offered], refused, written=written)
        self._coming[peer.cell] = (numbered[-1].origin_log, numbered[-1].number)
        self._delivery.look_again()

    def _judge(self, peer: Peer, request: linkwire.HandOver, first: int) -> tuple[list[records.HandIn], Batch]:
        """What goes into the log of the numbers from `first` on, as they are or refused; and who moves with them."""
        fresh, size, learned = list[records.HandIn](), 0, False
        movers = self._movers.begin()
        for number in range(max(request.first, first), request.first + len(request.items)):
            record = self._record(peer, request, number, movers)
            size += len(record.item) + len(record.part)
            if (fresh and size > MAX_HANDOVER) or (learned and record.code == Code.UNKNOWN_ROSTER):
                break
            if movers.lacks and number > request.first:
                break  # they came with a number that is applied here already: who goes on from here brings them again
            fresh.append(record)
            learned |= record.what in (records.HANDIN_ROSTER, records.HANDIN_NOBODY)
        return fresh, movers

    def _answer(self, key: tuple[str, bytes], first: int, last: int) -> linkwire.HandOverAnswer:
        state = self._delivery.room.state
        origin = state.origins.get(key, Origin())
        outcomes = tuple(
            records.HandedAnswer(number, *origin.outcomes[number])
            for number in range(first, min(last, origin.vector) + 1)
            if number in origin.outcomes
        )
        return linkwire.HandOverAnswer(state.log_id, origin.vector, outcomes)

    async def _append(
        self, peer: Peer, moves: list[records.Move], fresh: list[records.HandIn], applied: Callable[[], bool]
    ) -> ResidencyError | None:
        """Have the records written, and wait until they are applied; or what the disk writer has against one."""
        refusals: list[ResidencyError] = []
        self._offer(peer, fresh, [*moves, *fresh], refusals.append)
        await self._delivery.wait_for(lambda: bool(refusals) or applied())
        return refusals[0] if refusals else None

    def _record(self, peer: Peer, request: linkwire.HandOver, number: int, movers: Batch) -> records.HandIn:
        """The receiving node's own residency check (section 5, rule 2): bytes that are for nobody at home here, or that
        a policy does not let in, are refused by number, and never reach the journal."""
        item = request.items[number - request.first]
        confirmed = request.confirmed
        record = records.HandIn(peer.cell, request.origin_log, number, confirmed, item.what, item.item, item.part)
        if item.what in (records.HANDIN_REFUSED, records.HANDIN_NOBODY):
            raise PeerError(f"{peer.cell} hands over number {number} as {item.what}, which only we may say")
        if item.what in MAIL and self._policies.forbidden(peer.cell, self._delivery.room.state.cell):
            return _refused(record, Code.NOT_PERMITTED)
        if item.what > records.HANDIN_NOBODY:
            return movers.record(record)
        if item.what == records.HANDIN_ROSTER and self._lists_nobody(item):
            return msgspec.structs.replace(record, what=records.HANDIN_NOBODY, part=b"")
        code = self._refusal(item.item) if item.what == records.HANDIN_ENVELOPE else None
        return record if code is None else _refused(record, code)

    def _refusal(self, envelope: bytes) -> Code | None:
        """Why an envelope must not rest here; None if it may."""
        state = self._delivery.room.state
        try:
            header = read_header(envelope)
        except ProtocolError:
            return Code.BAD_ENVELOPE
        if self._policies.rests_too_long(header, state.cell):
            return Code.LIFETIME
        if header.kind is To.ROSTER:
            return rosters.refusal(state, header.to, header.to_version)
        return None if header.to in state.users or header.to in state.moved else Code.UNKNOWN_USER

    def _lists_nobody(self, item: linkwire.HandItem) -> bool:
        """Does a roster version, well signed, list nobody who is at home here?"""
        state = self._delivery.room.state
        try:
            head = verify_roster(item.item)
            part = verify_part(item.part, head, state.cell) if state.cell in head.cell_names else None
        except (TrustError, ProtocolError):
            return False  # not well signed: the disk writer refuses it
        here = (state.users, state.moved)
        return part is None or not any(member.user in home for member in part.members for home in here)


def _denies(record: records.HandIn) -> bool:
    """Does it say that somebody is not at home here? Then this node must not be behind the others of its cell."""
    return record.what == records.HANDIN_NOBODY or record.code == Code.UNKNOWN_USER


def _overruled(record: records.HandIn, refused: ResidencyError) -> Code:
    """What to answer where the disk writer refuses what we let pass. It may know a roster version that is written and
    not applied yet: an envelope for a group comes again. Or a newer policy."""
    if isinstance(refused, NotPermitted):
        return Code.NOT_PERMITTED
    if record.what == records.HANDIN_FORWARD:
        return Code.UNKNOWN_USER
    if record.what != records.HANDIN_ENVELOPE or record.part:
        return Code.BAD_RECORD
    return Code.UNKNOWN_ROSTER if read_header(record.item).kind is To.ROSTER else Code.UNKNOWN_USER


class LinksAbroad:
    """relay.ports.Abroad over the links: at once, or not at all."""

    def __init__(self, links: Links, own_cell: str) -> None:
        self._links = links
        self._own = own_cell

    async def ephemeral(self, cell: str, user: bytes, from_user: bytes, from_device: bytes, payload: bytes) -> None:
        """See relay.ports.Abroad."""
        if cell == self._own:
            async with trio.open_nursery() as nursery:
                for node in self._links.peers():
                    message = linkwire.CellEphemeral(user, from_user, from_device, payload)
                    nursery.start_soon(self._try, self._links.ask, node, message)
        elif self._links.connected(cell):
            await self._try(self._links.request, cell, linkwire.EphemeralTo(user, from_user, from_device, payload))

    async def pass_on(self, cell: str, envelopes: Sequence[bytes]) -> Sequence[ReceiptItem]:
        """See relay.ports.Abroad."""
        return await pass_on(self._links, cell, envelopes)

    async def read_channel(self, cell: str, question: Question) -> Reply:
        """See relay.ports.Abroad."""
        answer = await self._links.request(cell, linkwire.ReadThere(question), FAR_ASK_S)
        if not isinstance(answer, linkwire.PageThere):
            raise PeerError(f"{cell} answered ReadThere with {type(answer).__name__}")
        return answer.reply

    @staticmethod
    async def _try(ask: Callable[..., Awaitable[object]], where: str, message: linkwire.Request) -> None:
        with suppress(Refused, PeerError):
            await ask(where, message, _EPHEMERAL_S)
