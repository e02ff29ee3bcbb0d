"""How often everything happens, so that a run can tell that it was no quiet one. What the fold does is counted when the
first node of a cell does it; the others, and later lives, do the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster.core.raft.leading import Leading
from relay.core import records
from relay.core.block import Block
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom, expiry
from relay.core.mailroom.effects import Answered, Effect, Noticed, PassedOn
from relay.core.mailroom.state import State
from relay.core.mailroom.turn import EXPIRE_NOTICE, TRY_PARKED, Turn
from relay.core.wire import Code
from tests.simulation.world import Trace

MUST = (
    # what nodes do
    "election", "snapshot installed", "membership change", "store set aside", "checkpoint",
    "carry", "repeat", "expiry", "refusal", "outbox full", "hand-over", "hand-over repeated", "hand-over void",
    "sealed anew", "submitted again", "delivered again", "delivered", "drain", "window full",
    # what happens to nodes and disks
    "crash", "power cut", "process killed", "all down", "asked to stop", "disk error", "disk stall", "disk wiped",
    "old copy restored", "bit flipped", "tail lost", "clock jump", "clock drifts",
    # and to the network, to devices and groups
    "connection cut", "half-open", "partition", "flap", "storm", "segment lost", "went away", "reads nothing",
    "forgot its cursor", "enrolled", "revoked", "told that it was revoked", "keys rotated", "roster", "looked up",
    "moves", "follows", "sent on", "told later", "erasure receipt", "erasure receipt of a node that was away",
    "owner moves",
    "not_permitted", "lifetime", "passed on",
    # and in broadcast channels
    "channel founded", "channel closed", "card", "other secret", "other window", "post taken", "page", "posted",
    "post read", "post read abroad", "post missed", "subscription ended", "intrusion",
    # and what a region that lies does, and others notice
    "lie", "noticed home record: BrokenChain", "noticed home record: BadSignature",
    "noticed answer to a hand-over: PeerError",
    # and logs that fork, witnesses that lie, and who hears of it
    "checkpoint cosigned", "registrar killed", "fork found", "federation halted", "lie: witness cosigns anything",
)  # fmt: skip
SHARE = 10  # in a run of n seeds each of them happens n / SHARE times at least
FEW = 100  # seeds: fewer say nothing about it


def too_quiet(counts: Counter[str], seeds: int) -> list[str]:
    """What did not happen often enough in that many seeds, in words."""
    least = int(seeds / SHARE) if seeds >= FEW else 0
    return [f"{kind}: {counts[kind]} times, not {least}" for kind in MUST if counts[kind] < least]


class Tally:
    """Counts into a world's trace."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.fresh = False  # the block that is being applied was applied by nobody before
        self._applied: set[tuple[bytes, int]] = set()
        self._refused: set[bytes] = set()

    def starts(self, block: Block) -> None:
        self.fresh = (block.log_id, block.index) not in self._applied

    def ended(self, block: Block, effects: Sequence[Effect]) -> None:
        if self.fresh:
            self._applied.add((block.log_id, block.index))
            for effect in effects:
                if isinstance(effect, Answered):
                    self._answered(effect.item.id, effect.item.code)
                elif isinstance(effect, PassedOn):
                    self.trace.counts["passed on"] += effect.item.code == Code.STORED
                elif isinstance(effect, Noticed):
                    self._answered(effect.notice.id, effect.notice.code)

    def _answered(self, id_: bytes, code: int) -> None:
        if code == Code.OUTBOX_FULL:
            self.trace.counts["outbox full"] += 1
        elif code > Code.EXPIRED and Code(code).final and id_ not in self._refused:
            self._refused.add(id_)
            self.trace.counts["refusal"] += 1
            self.trace.counts[f"refusal: {Code(code).name.lower().replace('_', ' ')}"] += 1

    def record(self, state: State, record: records.Record) -> None:
        """A record is about to be applied."""
        counts = self.trace.counts
        match record:
            case records.Submit():
                counts["repeat"] += envelope_id(record.envelope) in state.outcomes
            case records.HandIn():
                origin = state.origins.get((record.origin, record.origin_log))
                new = record.number == (origin.vector if origin else 0) + 1
                void = record.what == records.HANDIN_VOID
                counts["hand-over repeated" if not new else "hand-over void" if void else "hand-over"] += 1
                counts["sent on"] += new and record.what == records.HANDIN_FORWARD
                counts["told later"] += new and record.what == records.HANDIN_TOLD
            case records.Carry():
                counts["carry"] += 1
            case records.Members():
                counts["membership change"] += 1

    def expired(self, kind: int) -> None:
        if self.fresh and kind not in (EXPIRE_NOTICE, TRY_PARKED):
            self.trace.counts["expiry"] += 1


@contextmanager
def counting(trace: Trace) -> Iterator[None]:
    """The real classes and functions say what they do."""
    tally = Tally(trace)
    apply, fold, expire, lead = Mailroom.apply, Mailroom._apply_record, expiry._expire, Leading.__init__

    def seen_apply(room: Mailroom, block: Block) -> list[Effect]:
        tally.starts(block)
        effects = apply(room, block)
        tally.ended(block, effects)
        return effects

    def seen_record(room: Mailroom, turn: Turn, record: records.Record, size: int) -> None:
        if tally.fresh:
            tally.record(room.state, record)
        fold(room, turn, record, size)

    def seen_expire(turn: Turn, kind: int, address: bytes, number: int) -> bool:
        dropped = expire(turn, kind, address, number)
        if dropped:
            tally.expired(kind)
        return dropped

    def seen_lead(self: Leading, me: bytes, term: int, *rest: Any) -> None:
        lead(self, me, term, *rest)
        trace("election", me, term)

    Mailroom.apply, Mailroom._apply_record = seen_apply, seen_record  # type: ignore[method-assign]
    expiry._expire, Leading.__init__ = seen_expire, seen_lead  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Mailroom.apply, Mailroom._apply_record = apply, fold  # type: ignore[method-assign]
        expiry._expire, Leading.__init__ = expire, lead  # type: ignore[method-assign, assignment]
