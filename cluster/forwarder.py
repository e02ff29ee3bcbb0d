"""Forwarders: one per other cell. A reader of the outbox with a cursor, over a link, by rule 16.

A batch goes out under its numbers; the answer says up to where the other cell has applied them and with which
outcomes; that is recorded in our log (HANDED). The first batch goes alone: it finds out where the other cell stands.
From then on several are under way (ADR 37), in order, and their answers are recorded in order; whatever goes wrong, all
that is under way is forgotten, and what the fold still has goes out again. Overlapping forwarders, repeats and lost
answers are harmless: the other cell applies exactly its vector + 1.

What may not go there (any more), by the policies of the root, goes out void, and NOT_PERMITTED is recorded for it; an
outcome that the other cell already has for the number counts, since then it went before (ADR 25).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from cluster.core import linkwire
from cluster.core.flights import Flight, Flights
from cluster.links import Links
from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import Header, read_header
from relay.core.mailroom import reading
from relay.core.mailroom.state import Outbox, OutItem
from relay.core.policy import MAIL, Policies
from relay.core.trust import Root
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import Overloaded, PeerError, PosthouseError, ProtocolError, Refused, StoreDamaged
from relay.intake import Intake
from relay.limits import KIB, LINK_DEADLINE_S, MAX_BATCH, MAX_HANDOVER
from relay.observe.metrics import Metrics
from relay.ports import Env, Journal

_log = structlog.get_logger("cluster.forwarder")
_RETRY_S = 0.5  # seconds, jittered up to twice that, before a batch that was not answered goes out again
_TROUBLE_S = 30.0  # the same after the peer misbehaved
VOID = linkwire.HandItem(records.HANDIN_VOID, b"", b"")
_SMALL = 16 * KIB  # bytes of envelopes that are tried together whatever happened, and more if the first one is larger


class _Elsewhere(Overloaded):
    """The other cell does not stand where it was thought to: it is asked at once, by a batch that goes alone."""


class _Line:
    """`size`: bytes that the line to a cell is tried with, all that is under way together."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.landing = trio.Event()  # a batch has come to an end

    def carried(self) -> None:
        """That went well."""
        self.size = min(2 * self.size, MAX_HANDOVER)


class Forwarders:
    """Starts a forwarder for every cell that has an outbox, in the nursery it runs in."""

    def __init__(
        self, root: Root, journal: Journal, delivery: Delivery, intake: Intake, links: Links, metrics: Metrics, env: Env
    ) -> None:
        self._root = root
        self._policies = Policies(root)
        self._journal = journal
        self._delivery = delivery
        self._intake = intake
        self._links = links
        self._metrics = metrics
        self._env = env
        self._grew: dict[str, trio.Event] = {}
        self._rounds: dict[str, trio.CancelScope] = {}  # what each forwarder does now
        self._new = trio.Event()
        self.taken_over: Callable[[Header], None] = lambda header: None  # the recipient of an envelope has moved
        delivery.outbox_grew = self._outbox_grew

    def follow(self, root: Root) -> None:
        """What goes out from now on is judged by this root document, also what is being read, or waits for a link: all
        that is under way is forgotten, and begins again with what the fold says."""
        self._root = root
        self._policies.follow(root)
        for one in self._rounds.values():
            one.cancel()

    def _outbox_grew(self, cell: str) -> None:
        if cell in self._grew:
            self._grew[cell].set()
        self._new.set()

    async def run(self) -> None:
        """Until cancelled; forwards while this node speaks for its cell."""
        while True:
            await self._journal.leadership(True)
            self._grew.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward_all, nursery)
                await self._journal.leadership(False)
                nursery.cancel_scope.cancel()

    async def _forward_all(self, nursery: trio.Nursery) -> None:
        while True:
            self._new = trio.Event()
            for cell in list(self._delivery.room.state.outboxes):
                if cell not in self._grew:
                    self._grew[cell] = trio.Event()
                    nursery.start_soon(self._forward, cell)
            await self._new.wait()

    async def _forward(self, cell: str) -> None:
        outbox = self._delivery.room.state.outboxes[cell]
        line = _Line(MAX_HANDOVER)
        while True:
            self._grew[cell] = trio.Event()
            if outbox.done == outbox.last:
                await self._grew[cell].wait()
                continue
            with trio.CancelScope() as self._rounds[cell]:
                await self._round(cell, outbox, line)

    async def _round(self, cell: str, outbox: Outbox, line: _Line) -> None:
        """Hand over until something goes wrong, and the pause after it."""
        try:
            await self._hand_over(cell, outbox, line.size)
            line.carried()
            await self._hand_over_on(cell, outbox, line)
        except (Refused, Overloaded):
            line.size = max(line.size // 2, _SMALL)  # a slow line carries in parts what it does not carry at once
            await trio.sleep(_RETRY_S * (1 + self._env.random_float()))
        except (PeerError, ProtocolError, StoreDamaged) as error:
            # Loud, and for this cell alone: everybody else is served on.
            _log.error("hand_over_stopped", cell=cell, text=error.text, remedy=error.remedy)
            await trio.sleep(_TROUBLE_S * (1 + self._env.random_float()))

    async def _hand_over(self, cell: str, outbox: Outbox, size: int) -> None:
        """One batch, alone, from where the fold stands."""
        flight = await self._flight(cell, outbox, outbox.done, size)
        answer = await self._ask(cell, self._request(flight))
        self._check(cell, answer, flight.done, outbox)
        if answer.vector < flight.done:
            await self._skip_lost(cell, answer, flight.done)
            return
        if answer.vector == flight.done:
            raise Overloaded(f"{cell} took nothing of the batch")
        flight.came = answer
        await self._record(cell, outbox, [flight])

    async def _hand_over_on(self, cell: str, outbox: Outbox, line: _Line) -> None:
        """Several batches under way, for as long as nothing goes wrong, also while there is nothing to send. Returns
        where the other cell stands elsewhere than was thought: asked anew, it says where. Raises what a batch met,
        once those before it are recorded. Nothing is under way any more then."""
        flights = Flights(outbox.done)
        met: list[PosthouseError] = []
        async with trio.open_nursery() as nursery:

            async def until_it_fails(part: Callable[[], Awaitable[None]]) -> None:
                try:
                    await part()
                except PosthouseError as error:
                    met.append(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(until_it_fails, partial(self._settle, cell, outbox, line, flights))
            await until_it_fails(partial(self._send, cell, outbox, line, flights, nursery))
        if met and not isinstance(met[0], _Elsewhere):
            raise met[0]

    async def _send(self, cell: str, outbox: Outbox, line: _Line, flights: Flights, nursery: trio.Nursery) -> None:
        """Send whatever there is room for."""
        while True:
            grew = self._grew[cell] = trio.Event()
            after = max(flights.last, outbox.done)
            if after < outbox.last and (room := flights.room(line.size)):
                flight = await self._flight(cell, outbox, after, room)
                flights.leave(flight)
                nursery.start_soon(self._fly, cell, flight, line, flights)
                await trio.lowlevel.checkpoint()  # it leaves before the next one does
            else:
                await grew.wait()

    async def _fly(self, cell: str, flight: Flight, line: _Line, flights: Flights) -> None:
        try:
            flight.came = await self._ask(cell, self._request(flight))
        except PosthouseError as error:
            flight.came = error
        line.landing.set()
        self._grew[cell].set()
        if flights.record_waits and not flights.may_wait(line.size):
            self._intake.hurry()

    async def _settle(self, cell: str, outbox: Outbox, line: _Line, flights: Flights) -> None:
        """Record what came, in order. Raises what a batch met."""
        while True:
            line.landing = trio.Event()
            while not (landed := flights.landed()):
                await line.landing.wait()
                line.landing = trio.Event()
            good, failed = self._judge(cell, outbox, landed)
            if good:
                flights.record_waits = failed is None and flights.may_wait(line.size)
                await self._record(cell, outbox, good, flights.record_waits)
                flights.record_waits = False
                flights.settled(len(good))
                line.carried()
                self._grew[cell].set()
            if failed is not None:
                raise failed

    def _judge(self, cell: str, outbox: Outbox, landed: list[Flight]) -> tuple[list[Flight], PosthouseError | None]:
        """Those that say something that can be recorded; and what ends it."""
        good = list[Flight]()
        for flight in landed:
            if isinstance(flight.came, PosthouseError):
                return good, flight.came
            assert flight.came is not None
            try:
                self._check(cell, flight.came, flight.done, outbox)
            except PeerError as error:
                return good, error
            if flight.came.vector < flight.first or flight.came.log != flight.log:
                return good, _Elsewhere(f"{cell} took nothing of the batch")
            good.append(flight)
            if flight.came.vector < flight.last:
                return good, _Elsewhere(f"{cell} took a part of the batch")
        return good, None

    async def _flight(self, cell: str, outbox: Outbox, after: int, size: int) -> Flight:
        """The next batch past number `after`, of about `size` bytes."""
        done, log = outbox.done, outbox.log
        batch = reading.outbox_batch(outbox, after, MAX_BATCH, size)
        withheld = self._withheld(cell, batch)
        return Flight(after + 1, await self._items(cell, batch, withheld), done, log, withheld)

    def _request(self, flight: Flight) -> linkwire.HandOver:
        return linkwire.HandOver(self._journal.log_id, flight.done, flight.first, flight.items)

    async def _record(self, cell: str, outbox: Outbox, flights: list[Flight], may_wait: bool = False) -> None:
        """Have our log say what became of these, which follow each other. One such record is under way at a time: it
        tells of every number past the fold's, since what it does not tell of counts as void."""
        done, upto, log = outbox.done, 0, b""
        found = dict[int, records.HandedAnswer]()
        for flight in flights:
            answer = flight.came
            assert isinstance(answer, linkwire.HandOverAnswer)
            upto, log = min(answer.vector, flight.last), answer.log
            outcomes = {one.number: _known(one) for one in answer.outcomes if flight.first <= one.number <= upto}
            for number in sorted(flight.withheld - outcomes.keys()):
                if number <= upto:
                    outcomes[number] = records.HandedAnswer(number, Code.NOT_PERMITTED, 0)
            for outcome in outcomes.values():
                if outcome.code == Code.ACCEPTED:  # by the outbox of a cell that the recipient has left
                    self.taken_over(read_header(flight.items[outcome.number - flight.first].item))
            found |= outcomes
        handed = records.Handed(cell, upto, tuple(found.values()), log, flights[0].log)
        lazily = may_wait and all(one.code == Code.STORED for one in found.values())
        self._intake.offer([records.encode_record(handed)], lazily=lazily)
        with trio.move_on_after(LINK_DEADLINE_S) as scope:
            await self._delivery.wait_for(lambda: outbox.done >= upto)
        if scope.cancelled_caught:
            raise Overloaded("the journal did not take the answer in time")
        self._metrics.forwarded.labels(cell).inc(max(upto - done, 0))

    def _withheld(self, cell: str, batch: list[tuple[int, OutItem]]) -> set[int]:
        """The numbers that may not go to `cell`. A cell that the root does not list (any more) is not asked about: it
        cannot be reached, and may come back."""
        own = self._delivery.room.state.cell
        if self._root.cell(cell) is None or not (why := self._policies.forbidden(own, cell)):
            return set()
        withheld = {number for number, item in batch if item.what in MAIL}
        if withheld:
            _log.warning("withheld", cell=cell, numbers=len(withheld), text=why)
        return withheld

    async def _ask(self, cell: str, request: linkwire.HandOver) -> linkwire.HandOverAnswer:
        answer = await self._links.request(cell, request, LINK_DEADLINE_S)
        if not isinstance(answer, linkwire.HandOverAnswer):
            raise PeerError(f"{cell} answered a hand-over with {type(answer).__name__}")
        return answer

    @staticmethod
    def _check(cell: str, answer: linkwire.HandOverAnswer, done: int, outbox: Outbox) -> None:
        """Rule 13. Stops handing over to the cell, loudly; the rest of the node goes on, since a cell that only claims
        such a thing must not be able to stop it. Only a renewed log may have lost what was confirmed."""
        if answer.log in outbox.logs[:-1]:
            raise PeerError(
                f"{cell} answers under log {answer.log.hex()[:8]}, which it had renewed: an older copy of its log",
                "Tell its operator; nothing is handed over until the store of the newest log serves again",
            )
        if answer.vector < done and answer.log == outbox.log:
            raise PeerError(
                f"{cell} has applied {answer.vector} of the {done} that it confirmed: an older copy of its log",
                "Tell its operator; nothing is handed over until its log id is renewed",
            )
        if answer.vector > outbox.last:
            raise PeerError(
                f"{cell} has applied {answer.vector} from here, and this log knows only {outbox.last}: an older copy "
                "of this log",
                "Stop this node and restore the newest store; nothing is handed over meanwhile",
            )

    async def _skip_lost(self, cell: str, answer: linkwire.HandOverAnswer, done: int) -> None:
        """The renewed log of the other cell has lost numbers that it had confirmed. They are settled here, so that
        nobody has them any more: they go out void, and it stands again where we do. What we still have comes next."""
        _log.warning("hand_over_lost", cell=cell, log=answer.log.hex(), numbers=done - answer.vector)
        while (vector := answer.vector) < done:
            items = (VOID,) * min(done - vector, MAX_BATCH)
            log, answer = answer.log, await self._ask(
                cell, linkwire.HandOver(self._journal.log_id, done, vector + 1, items)
            )
            if answer.log != log or answer.vector <= vector:
                raise Overloaded(f"{cell} took nothing of the batch")

    async def _items(
        self, cell: str, batch: list[tuple[int, OutItem]], withheld: set[int]
    ) -> tuple[linkwire.HandItem, ...]:
        """What goes over the border, at most about twice MAX_HANDOVER of it. The records of a user whom something is
        sent on for come with the first of it."""
        items, size, came = list[linkwire.HandItem](), 0, set[bytes]()
        for number, item in batch:
            one = VOID if number in withheld else await self._item(cell, item)
            if item.what == records.HANDIN_FORWARD and number not in withheld:
                chain = self._chain(item.user)
                part = records.Forward(item.user, len(chain), () if item.user in came else chain)
                came.add(item.user)
                one = linkwire.HandItem(item.what, one.item, encode(part))
            size += len(one.item) + len(one.part)
            if items and size > 2 * MAX_HANDOVER:
                break
            items.append(one)
        return tuple(items)

    def _chain(self, user: bytes) -> tuple[bytes, ...]:
        """The records of a user who has moved; none where they have run out meanwhile."""
        state = self._delivery.room.state
        known = state.moved.get(user) or state.users.peek(user)
        return tuple(known.chain) if known else ()

    async def _item(self, cell: str, item: OutItem) -> linkwire.HandItem:
        """What goes over the border: the envelope, or the roster head with the part of that cell. Raises Overloaded
        where the record moved while we read: look again."""
        if item.what == records.HANDIN_MOVE and (chain := self._chain(item.user)):
            return linkwire.HandItem(item.what, encode(records.Chain(chain)), b"")
        if item.beside:
            return linkwire.HandItem(item.what, item.beside, b"")
        if item.source is None:
            return VOID
        sources = self._delivery.room.state.sources
        source = sources.find(item.source)
        try:
            block = await self._journal.read(source.index) if source else None
        except LookupError:
            block = None
        if block is None or source is None or sources.find(item.source) != source:
            raise Overloaded("a record was carried while it was read")
        record = reading.record_of(block, source)
        if isinstance(record, records.Roster):
            return linkwire.HandItem(records.HANDIN_ROSTER, record.head, dict(record.parts).get(cell, b""))
        return linkwire.HandItem(records.HANDIN_ENVELOPE, reading.envelope_of(record), b"")


def _known(outcome: records.HandedAnswer) -> records.HandedAnswer:
    """A code that this release does not know (the other cell may run a newer one) is recorded as what it must mean."""
    if outcome.code in Code.__members__.values():
        return outcome
    return records.HandedAnswer(outcome.number, Code.NOT_PERMITTED, outcome.newest)
