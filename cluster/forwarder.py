"""Forwarders: one per other cell. A reader of the outbox with a cursor, over a link, by rule 16.

A batch goes out under its numbers; the answer says up to where the other cell has applied them and with which
outcomes; that is recorded in our log (HANDED), and only then does the next batch go. Overlapping forwarders, repeats
and lost answers are harmless: the other cell applies exactly its vector + 1.
"""

from __future__ import annotations

import structlog
import trio

from cluster.core import linkwire
from cluster.links import Links
from relay.core import records
from relay.core.mailroom import reading
from relay.core.mailroom.state import Outbox, OutItem
from relay.delivery import Delivery
from relay.errors import Overloaded, PeerError, ProtocolError, Refused
from relay.intake import Intake
from relay.limits import LINK_DEADLINE_S, MAX_BATCH, MAX_HANDOVER
from relay.observe.metrics import Metrics
from relay.ports import Env, Journal

_log = structlog.get_logger("cluster.forwarder")
_RETRY_S = 0.5  # seconds, jittered up to twice that, before a batch that was not answered goes out again
_TROUBLE_S = 30.0  # the same after the peer misbehaved


class Forwarders:
    """Starts a forwarder for every cell that has an outbox, in the nursery it runs in."""

    def __init__(
        self, journal: Journal, delivery: Delivery, intake: Intake, links: Links, metrics: Metrics, env: Env
    ) -> None:
        self._journal = journal
        self._delivery = delivery
        self._intake = intake
        self._links = links
        self._metrics = metrics
        self._env = env
        self._grew: dict[str, trio.Event] = {}
        self._new = trio.Event()
        delivery.outbox_grew = self._outbox_grew

    def _outbox_grew(self, cell: str) -> None:
        if cell in self._grew:
            self._grew[cell].set()
        self._new.set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                self._new = trio.Event()
                for cell in list(self._delivery.room.state.outboxes):
                    if cell not in self._grew:
                        self._grew[cell] = trio.Event()
                        nursery.start_soon(self._forward, cell)
                await self._new.wait()

    async def _forward(self, cell: str) -> None:
        outbox = self._delivery.room.state.outboxes[cell]
        while True:
            self._grew[cell] = trio.Event()
            if outbox.done == outbox.last:
                await self._grew[cell].wait()
                continue
            try:
                await self._hand_over(cell, outbox)
            except (Refused, Overloaded, LookupError):
                await trio.sleep(_RETRY_S * (1 + self._env.random_float()))
            except (PeerError, ProtocolError) as error:
                _log.error("peer_refused", cell=cell, text=error.text)
                await trio.sleep(_TROUBLE_S * (1 + self._env.random_float()))

    async def _hand_over(self, cell: str, outbox: Outbox) -> None:
        batch = reading.outbox_batch(outbox, outbox.done, MAX_BATCH, MAX_HANDOVER)
        items = tuple([await self._item(cell, item) for _, item in batch])
        request = linkwire.HandOver(self._journal.log_id, outbox.done, outbox.done + 1, items)
        answer = await self._links.request(cell, request, LINK_DEADLINE_S)
        if not isinstance(answer, linkwire.HandOverAnswer):
            raise PeerError(f"{cell} answered a hand-over with {type(answer).__name__}")
        if answer.vector < outbox.done:
            # Rule 13: what it has confirmed before is missing there now.
            raise PeerError(
                f"{cell} has applied {answer.vector} of the {outbox.done} that it confirmed: an older copy of its log",
                "Tell its operator; nothing is handed over until its log id is renewed",
            )
        upto = min(answer.vector, outbox.last)
        if upto == outbox.done:
            raise Overloaded(f"{cell} took nothing of the batch")
        outcomes = tuple(outcome for outcome in answer.outcomes if outbox.done < outcome.number <= upto)
        count = upto - outbox.done
        self._intake.offer([records.encode_record(records.Handed(cell, upto, outcomes))])
        with trio.move_on_after(LINK_DEADLINE_S) as scope:
            await self._delivery.wait_for(lambda: outbox.done >= upto)
        if scope.cancelled_caught:
            raise Overloaded("the journal did not take the answer in time")
        self._metrics.forwarded.labels(cell).inc(count)

    async def _item(self, cell: str, item: OutItem) -> linkwire.HandItem:
        """What goes over the border: the envelope, or the roster head with the part of that cell. Raises LookupError
        where the record moved while we read: look again."""
        source = item.source
        if source is None:
            return linkwire.HandItem(records.HANDIN_VOID, b"", b"")
        block = await self._journal.read(source.index)
        if block.index != source.index:
            raise LookupError("carried meanwhile")
        record = reading.record_of(block, source)
        if isinstance(record, records.Roster):
            return linkwire.HandItem(records.HANDIN_ROSTER, record.head, dict(record.parts).get(cell, b""))
        return linkwire.HandItem(records.HANDIN_ENVELOPE, reading.envelope_of(record), b"")
