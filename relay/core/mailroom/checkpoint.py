"""The mailroom's state as rows of bytes and back (rule 11). Canonical: the same state gives the same rows.

A row is the msgpack of [section, items…]; derived tables (expiries, sources, memberships) are rebuilt while loading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Any

import msgpack

from relay.core.codec import pack
from relay.core.mailroom.expiry import rebuild
from relay.core.mailroom.state import (
    BlockUse, DeviceState, Entry, Interval, Notice, Origin, Outbox, OutItem, Parked, Pending, RosterState, Source,
    State, UserState, Waiting,
)
from relay.core.trust import read_home, verify_roster
from relay.core.wire import ReceiptItem
from relay.errors import StoreDamaged

ROW_BYTES = 256 * 1024  # a row is closed when it passes this; far below the journal's 1 MiB


def dump(state: State) -> list[bytes]:
    """All of the state, as rows."""
    rows: list[bytes] = []
    for section, items in _sections(state):
        chunk: list[bytes] = []
        size = 0
        for item in items:
            packed = pack(item)
            chunk.append(packed)
            size += len(packed)
            if size > ROW_BYTES:
                rows.append(pack([section, chunk]))
                chunk, size = [], 0
        if chunk:
            rows.append(pack([section, chunk]))
    return rows


def state_digest(state: State) -> bytes:
    """A digest of the state, to be compared between nodes (rule 10)."""
    total = blake2b(digest_size=32, person=b"posthouse.state")
    for row in dump(state):
        total.update(row)
    return total.digest()


def _sections(state: State) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "meta", [[state.cell, state.log_id, state.index, state.time, state.fold_version]]
    yield "blocks", ([index, use.size] for index, use in state.blocks.items())
    yield "sources", ([s.key, s.index, s.ordinal, s.size] for _, s in sorted(state.sources.items()))
    yield "homes", (signed for _, user in sorted(state.users.items()) for signed in user.chain)
    yield "mail", (_entry(key, e) for key, user in sorted(state.users.items()) for e in user.box.after(-1))
    yield "devices", ([d.id, d.user, d.since, d.cursor, d.session] for _, d in sorted(state.devices.items()))
    yield "notices", (
        [key, n.position, n.id, n.code, n.newest, n.cell, n.expires]
        for key, device in sorted(state.devices.items())
        for n in device.notices.values()
    )
    yield "rosters", (
        [key, roster.head.signed if roster.head else b"", roster.resident, roster.dirty]
        for key, roster in sorted(state.rosters.items())
    )
    yield "members", (
        [key, user, s.since, s.since_position, s.until, s.until_position]
        for key, roster in sorted(state.rosters.items())
        for user, stays in sorted(roster.members.items())
        for s in stays
    )
    yield "group mail", (_entry(key, e) for key, roster in sorted(state.rosters.items()) for e in roster.box.after(-1))
    yield "waiting", (
        [key, w.source.key, w.id, w.device, w.version, w.expires, w.position]
        for key, roster in sorted(state.rosters.items())
        for w in roster.waiting
    )
    yield "pending", ([key, p.device, p.remaining, p.newest, p.refused] for key, p in sorted(state.pending.items()))
    yield "outboxes", ([cell, box.done, box.last] for cell, box in sorted(state.outboxes.items()))
    yield "outbound", (
        [cell, number, item.what, item.source.key if item.source else 0, item.id, item.expires, item.group, item.waits]
        for cell, box in sorted(state.outboxes.items())
        for number, item in sorted(box.items.items())
    )
    yield "origins", ([cell, log, o.vector, o.confirmed] for (cell, log), o in state.origins.items())
    yield "outcomes of origins", (
        [cell, log, number, *outcome]
        for (cell, log), origin in state.origins.items()
        for number, outcome in sorted(origin.outcomes.items())
    )
    yield "parked", (
        [cell, group, parked.due, parked.tries]
        for cell, box in sorted(state.outboxes.items())
        for group, parked in sorted(box.parked.items())
    )
    yield "parked items", (
        [cell, group, item.what, key, item.id, item.expires]
        for cell, box in sorted(state.outboxes.items())
        for group, parked in sorted(box.parked.items())
        for key, item in sorted(parked.items.items())
    )
    yield "outcomes", (
        [minute, r.id, r.code, r.position, r.newest, r.cell]
        for minute, ids in sorted(state.outcome_minutes.items())
        for r in (state.outcomes[own] for own in ids)
    )


def _entry(address: bytes, e: Entry) -> list[Any]:
    return [address, e.position, e.source.key, e.id, e.version, e.expires]


def load(rows: Sequence[bytes]) -> State:
    """The state that `dump` made rows of. Raises StoreDamaged where they are not such rows."""
    loader = _Loader()
    try:
        for row in rows:
            section, chunk = msgpack.unpackb(row)
            take = _TAKE[section]
            for packed in chunk:
                item = msgpack.unpackb(packed)
                take(loader, *(item if isinstance(item, list) else (item,)))
        rebuild(loader.state)
        return loader.state
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise StoreDamaged(f"the checkpoint cannot be read: {type(error).__name__}: {error}") from None


class _Loader:
    """Takes the items of each section in the order in which `dump` writes them."""

    state: State

    def meta(self, cell: str, log_id: bytes, index: int, time: int, fold_version: int) -> None:
        self.state = State(cell, log_id, index, time, fold_version)

    def block(self, index: int, size: int) -> None:
        self.state.blocks[index] = BlockUse(size)

    def source(self, key: int, index: int, ordinal: int, size: int) -> None:
        self.state.sources[key] = Source(key, index, ordinal, size)
        use = self.state.blocks[index]
        use.live += 1
        use.live_bytes += size

    def _hold(self, key: int) -> Source:
        source = self.state.sources[key]
        source.refs += 1
        return source

    def home(self, signed: bytes) -> None:
        record = read_home(signed)
        user = self.state.users.setdefault(record.user, UserState(record, []))
        user.record = record
        user.chain.append(signed)

    def mail(self, address: bytes, pos: int, key: int, *rest: Any) -> None:
        self.state.users[address].box.add(Entry(pos, self._hold(key), *rest))

    def device(self, key: bytes, *rest: Any) -> None:
        self.state.devices[key] = DeviceState(key, *rest)

    def notice(self, key: bytes, *rest: Any) -> None:
        notice = Notice(*rest)
        self.state.devices[key].notices[notice.position] = notice

    def roster(self, group: bytes, signed: bytes, resident: bool, dirty: bool) -> None:
        self.state.rosters[group] = RosterState(verify_roster(signed) if signed else None, resident, dirty=dirty)

    def member(self, group: bytes, user: bytes, *stay: int) -> None:
        self.state.rosters[group].members.setdefault(user, []).append(Interval(*stay))
        self.state.memberships.setdefault(user, set()).add(group)

    def group_mail(self, group: bytes, pos: int, key: int, *rest: Any) -> None:
        self.state.rosters[group].box.add(Entry(pos, self._hold(key), *rest))

    def waiting(self, group: bytes, key: int, *rest: Any) -> None:
        entry = Waiting(self._hold(key), *rest)
        self.state.rosters[group].waiting.append(entry)
        self.state.waits(entry.source, entry.device, 1)

    def outbox(self, cell: str, done: int, last: int) -> None:
        self.state.outboxes[cell] = Outbox(done, last)

    def outbound(self, cell: str, number: int, what: int, key: int, *rest: Any) -> None:
        box = self.state.outboxes[cell]
        item = box.items[number] = OutItem(what, self._hold(key) if key else None, *rest)
        box.bytes += item.size
        self._wait(item)

    def _wait(self, item: OutItem) -> None:
        if item.waits and item.source:
            self.state.waits(item.source, self.state.pending[item.id].device, 1)

    def parked(self, cell: str, group: bytes, due: int, tries: int) -> None:
        self.state.outboxes[cell].parked[group] = Parked(due, tries)

    def parked_item(self, cell: str, group: bytes, what: int, key: int, own: bytes, expires: int) -> None:
        box = self.state.outboxes[cell]
        item = box.parked[group].items[key] = OutItem(what, self._hold(key), own, expires, group, True)
        box.bytes += item.size
        self._wait(item)

    def origin(self, cell: str, log: bytes, vector: int, confirmed: int) -> None:
        self.state.origins[cell, log] = Origin(vector, confirmed)

    def origin_outcome(self, cell: str, log: bytes, number: int, code: int, newest: int) -> None:
        self.state.origins[cell, log].outcomes[number] = (code, newest)

    def pending(self, key: bytes, *rest: Any) -> None:
        self.state.pending[key] = Pending(*rest)

    def outcome(self, minute: int, *rest: Any) -> None:
        item = ReceiptItem(*rest)
        self.state.outcomes[item.id] = item
        self.state.outcome_minutes.setdefault(minute, []).append(item.id)


_TAKE: dict[str, Callable[..., None]] = {
    "meta": _Loader.meta,
    "blocks": _Loader.block,
    "sources": _Loader.source,
    "homes": _Loader.home,
    "mail": _Loader.mail,
    "devices": _Loader.device,
    "notices": _Loader.notice,
    "rosters": _Loader.roster,
    "members": _Loader.member,
    "group mail": _Loader.group_mail,
    "waiting": _Loader.waiting,
    "outboxes": _Loader.outbox,
    "outbound": _Loader.outbound,
    "origins": _Loader.origin,
    "outcomes of origins": _Loader.origin_outcome,
    "pending": _Loader.pending,
    "parked": _Loader.parked,
    "parked items": _Loader.parked_item,
    "outcomes": _Loader.outcome,
}
