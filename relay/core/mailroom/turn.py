"""One block's turn of the fold: its place and time, the slots it hands out, and the effects it collects."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import heappush

from relay.core import records
from relay.core.book import Taken
from relay.core.codec import encode
from relay.core.mailroom.effects import Answered, Effect, Noticed, OutboxGrew
from relay.core.mailroom.people import Box, Entry, Notice
from relay.core.mailroom.state import Outbox, OutItem, Source, State
from relay.core.wire import Code, ReceiptItem
from relay.limits import ADMISSION_WINDOW, MAX_LIFETIME, MINUTE, SLOT_BITS

# What an expiry entry refers to. Of what is due at one time the sweeps come first: what they find counts as well.
(
    SWEEP_MAILBOX, SWEEP_ROSTER, EXPIRE_MAILBOX, EXPIRE_ROSTER, EXPIRE_OUTBOX, EXPIRE_WAITING, EXPIRE_NOTICE,
    EXPIRE_PARKED, TRY_PARKED, EXPIRE_MOVED, EXPIRE_TAKEN_OVER,
) = range(11)  # fmt: skip


@dataclass(slots=True)
class Turn:
    """`ordinal` is the place in the block of the record being applied, `slot` the next free slot of the block.

    Slots are virtual: an entry that takes its place late (it waited for a roster) gets a slot of the block that let it
    in, so that positions rise in the order in which things become deliverable."""

    state: State
    index: int
    time: int
    ordinal: int = 0
    slot: int = 0
    effects: list[Effect] = field(default_factory=list)
    admitted: int = 0
    taken: list[Taken] = field(default_factory=list)  # envelopes, for receipts

    def next_position(self) -> int:
        pos = self.index << SLOT_BITS | self.slot
        self.slot += 1
        assert self.slot < 1 << SLOT_BITS, "a block's slots ran out: MAX_BLOCK_RECORDS and MAX_EXPIRIES bound them"
        return pos

    def source(self, size: int) -> Source:
        """The source of the record being applied."""
        return Source(self.index << SLOT_BITS | self.ordinal, self.index, self.ordinal, size)

    def expire_later(self, expires: int, kind: int, address: bytes, number: int) -> None:
        heappush(self.state.expiries, (expires, kind, address, number))

    def expire_in_box(self, box: Box, roster: bool, address: bytes, entry: Entry) -> None:
        """A box has one entry in the heap, for what expires in it first; those of a minute that has begun have their
        own (relay.core.mailroom.expiry)."""
        if entry.expires < box.swept:
            self.expire_later(entry.expires, EXPIRE_ROSTER if roster else EXPIRE_MAILBOX, address, entry.position)
        elif not box.due or entry.expires < box.due:
            box.due = entry.expires
            self.expire_later(entry.expires, SWEEP_ROSTER if roster else SWEEP_MAILBOX, address, box.due)

    def answer(self, device: bytes, item: ReceiptItem, created: int | None) -> None:
        """Tell `device` and, with `created`, remember the outcome for as long as the id may come again (rule 15)."""
        if created is not None:
            self.remember(item, created)
        if device:
            self.effects.append(Answered(device, item))

    def take(self, id_: bytes, code: int, newest: int, pos: int, sealed_for: int, expires: int) -> None:
        """An envelope was decided on: if it was taken, and has a place in the log, it can have a receipt."""
        if code < Code.STALE and pos:
            self.taken.append(Taken(id_, code, pos, sealed_for, newest, expires))

    def remember(self, item: ReceiptItem, created: int) -> None:
        self.admitted += item.code < Code.STALE
        if created + ADMISSION_WINDOW >= self.time:
            self.state.outcomes.add(created // MINUTE, item)

    def receipt(self, envelope_id: bytes, code: Code, newest: int = 0, pos: int = 0) -> ReceiptItem:
        return ReceiptItem(envelope_id, int(code), pos, newest, self.state.cell)

    def notice(self, device: bytes, envelope_id: bytes, code: int, newest: int, cell: str) -> None:
        """A durable outcome for the sender (rule 16), in its own stream."""
        code = int(code)
        self.state.outcomes.replace(ReceiptItem(envelope_id, code, 0, newest, cell))
        owner = self.state.heir(device)
        if owner is None:
            self._notice_elsewhere(records.ForDevice(device, envelope_id, code, newest, cell))
            return
        device = owner.id
        notice = Notice(self.next_position(), envelope_id, code, newest, cell, self.time + MAX_LIFETIME)
        owner.notices[notice.position] = notice
        self.expire_later(notice.expires, EXPIRE_NOTICE, device, notice.position)
        self.effects.append(Noticed(device, notice))

    def _notice_elsewhere(self, notice: records.ForDevice) -> None:
        """The same for a device that has moved; nobody is left to be told where it has not."""
        user = self.state.user_of(notice.device)
        if user in self.state.moved:
            self.say(self.state.moved[user].record.cell, records.HANDIN_NOTICE, encode(notice), user)

    # --- outboxes --------------------------------------------------------------------------------
    def say(self, cell: str, what: int, beside: bytes, user: bytes = b"") -> None:
        """Give something that is no record the next number of the outbox of `cell`."""
        expires = self.time + MAX_LIFETIME
        self.number(cell, OutItem(what, None, len(beside), b"", expires, user=user, beside=beside))

    def number(self, cell: str, item: OutItem) -> None:
        """Give an item, whose source (if it has one) is held, the next number."""
        outbox = self.state.outboxes.setdefault(cell, Outbox())
        outbox.last += 1
        outbox.items[outbox.last] = item
        moved = self.state.moved.get(item.user)
        if moved is not None:
            moved.items, moved.bytes = moved.items + 1, moved.bytes + item.size
        if item.expires:
            self.expire_later(item.expires, EXPIRE_OUTBOX, cell.encode(), outbox.last)
        self.effects.append(OutboxGrew(cell))
