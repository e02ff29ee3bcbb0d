"""Forwarders: one per other cell. A reader of the outbox with a cursor, over a link, by rule 16.

A batch goes out under its numbers; the answer says up to where the other cell has applied them and with which
outcomes; that is recorded in our log (HANDED), and only then does the next batch go. Overlapping forwarders, repeats
and lost answers are harmless: the other cell applies exactly its vector + 1.

What may not go there (any more), by the policies of the root, goes out void, and NOT_PERMITTED is recorded for it; an
outcome that the other cell already has for the number counts, since then it went before (ADR 25).
"""

from __future__ import annotations

from collections.abc import Callable

import structlog
import trio

from cluster.core import linkwire
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
from relay.errors import Overloaded, PeerError, ProtocolError, Refused, StoreDamaged
from relay.intake import Intake
from relay.limits import KIB, LINK_DEADLINE_S, MAX_BATCH, MAX_HANDOVER
from relay.observe.metrics import Metrics
from relay.ports import Env, Journal

_log = structlog.get_logger("cluster.forwarder")
_RETRY_S = 0.5  # seconds, jittered up to twice that, before a batch that was not answered goes out again
_TROUBLE_S = 30.0  # the same after the peer misbehaved
VOID = linkwire.HandItem(records.HANDIN_VOID, b"", b"")
_SMALL = 16 * KIB  # bytes of envelopes that are tried together whatever happened, and more if the first one is larger


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
        self._new = trio.Event()
        self.taken_over: Callable[[Header], None] = lambda header: None  # the recipient of an envelope has moved
        delivery.outbox_grew = self._outbox_grew

    def follow(self, root: Root) -> None:
        """What goes out from now on is judged by this root document."""
        self._root = root
        self._policies.follow(root)

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
        size = MAX_HANDOVER
        while True:
            self._grew[cell] = trio.Event()
            if outbox.done == outbox.last:
                await self._grew[cell].wait()
                continue
            try:
                await self._hand_over(cell, outbox, size)
                size = min(2 * size, MAX_HANDOVER)
            except (Refused, Overloaded):
                size = max(size // 2, _SMALL)  # a slow line carries in parts what it does not carry at once
                await trio.sleep(_RETRY_S * (1 + self._env.random_float()))
            except (PeerError, ProtocolError, StoreDamaged) as error:
                # Loud, and for this cell alone: everybody else is served on.
                _log.error("hand_over_stopped", cell=cell, text=error.text, remedy=error.remedy)
                await trio.sleep(_TROUBLE_S * (1 + self._env.random_float()))

    async def _hand_over(self, cell: str, outbox: Outbox, size: int) -> None:
        done = outbox.done  # once: an answer that comes late may be recorded while we read
        batch = reading.outbox_batch(outbox, done, MAX_BATCH, size)
        withheld = self._withheld(cell, batch)
        items = await self._items(cell, batch, withheld)
        known = outbox.log
        answer = await self._ask(cell, linkwire.HandOver(self._journal.log_id, done, done + 1, items))
        self._check(cell, answer, done, outbox)
        if answer.vector < done:
            await self._skip_lost(cell, answer, done)
            return
        upto = min(answer.vector, done + len(items))
        if upto == done:
            raise Overloaded(f"{cell} took nothing of the batch")
        outcomes = {outcome.number: _known(outcome) for outcome in answer.outcomes if done < outcome.number <= upto}
        for number in sorted(withheld - outcomes.keys()):
            if number <= upto:
                outcomes[number] = records.HandedAnswer(number, Code.NOT_PERMITTED, 0)
        handed = records.Handed(cell, upto, tuple(outcomes.values()), answer.log, known)
        self._intake.offer([records.encode_record(handed)])
        for outcome in outcomes.values():
            if outcome.code == Code.ACCEPTED:  # by the outbox of a cell that the recipient has left
                self.taken_over(read_header(items[outcome.number - done - 1].item))
        with trio.move_on_after(LINK_DEADLINE_S) as scope:
            await self._delivery.wait_for(lambda: outbox.done >= upto)
        if scope.cancelled_caught:
            raise Overloaded("the journal did not take the answer in time")
        self._metrics.forwarded.labels(cell).inc(upto - done)

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
