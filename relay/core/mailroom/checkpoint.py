"""The mailroom's state as rows of bytes and back (rule 11). Canonical: the same state gives the same rows.

A row is the msgpack of [section, items…]; derived tables (expiries, memberships) are rebuilt while loading. What there
may be a million of is packed in the state, and goes into the rows as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from struct import error as StructError
from typing import Any, Final, TypeVar
from zlib import crc32

import msgpack

from relay.core.codec import digest, pack
from relay.core.mailroom import channels
from relay.core.mailroom.expiry import rebuild
from relay.core.mailroom.people import Box, DeviceState, Notice, UserState, no_devices, no_users
from relay.core.mailroom.resting import Resting
from relay.core.mailroom.state import (
    Interval, MovedUser, Origin, Outbox, OutItem, Parked, Pending, RosterState, State, Waiting, check_fold_version,
)
from relay.core.packing import Shelf
from relay.core.trust import read_chain, read_home, verify_roster
from relay.errors import StoreDamaged, StoreForeign
from relay.limits import CHECKPOINT_BYTES, CHECKPOINT_SHARE

_T = TypeVar("_T")
FORMAT: Final = 7  # of the rows; nodes compare digests of one format only
ROW_BYTES: Final = 256 * 1024  # a row is closed when it passes this; far below the journal's 1 MiB
_PART: Final = 256 * 1024  # bytes of packed rows in one item at most,
_BOX: Final = 64 * 1024  # and of those of a box or channel: all of them grow, and with each the last part changes
_OWN: Final = 16 * 1024  # an item of so many bytes is a row by itself
_CUT: Final = 32 * 1024  # a row of so many bytes may be closed by what stands in it,
_RARELY: Final = 63  # by one item of 64


def plan(state: State) -> None:
    """When the next checkpoint is taken: a checkpoint costs what it is large, so the log grows by a share of that."""
    size = 24 * len(state.blocks) + 64 * (len(state.sources) + len(state.outcomes)) + 1024 * len(state.users)
    size += 128 * (len(state.devices) + len(state.pending) + sum(len(box.items) for box in state.outboxes.values()))
    size += 512 * len(state.rosters) + 96 * len(state.memberships) + 1024 * len(state.moved)
    size += channels.weight(state)
    state.checkpoint_due = state.log_bytes + max(CHECKPOINT_BYTES, size // CHECKPOINT_SHARE)


def dump(state: State) -> Iterator[bytes]:
    """All of the state, as rows; each takes some ms at most. The state must not change meanwhile.

    Where a row ends is decided by what stands in it, not by what was before, as far as that goes: what did not change
    since the last checkpoint gives mostly the same rows again, and a journal writes only others."""
    for section, items in _sections(state):
        chunk: list[bytes] = []
        size = 0
        for item in items:
            packed = pack(item)
            own = len(packed) >= _OWN
            if own and chunk:
                yield pack([section, chunk])
                chunk, size = [], 0
            chunk.append(packed)
            size += len(packed)
            if own or size > ROW_BYTES or (size > _CUT and not crc32(packed) & _RARELY):
                yield pack([section, chunk])
                chunk, size = [], 0
        if chunk:
            yield pack([section, chunk])


def _box(key: bytes, box: Box) -> Iterator[list[Any]]:
    """What waits in a box, in parts. How much that is stands with the last one, since it changes with every entry."""
    before: bytes | None = None
    for part in box.dump(_BOX):
        if before is not None:
            yield [key, 0, before]
        before = part
    if before is not None:
        yield [key, box.bytes, before]


def rows_digest(digests: Iterable[bytes]) -> bytes:
    """What is compared between nodes (rule 10), by `codec.digest` of each row: who writes rows has those already."""
    return digest(b"".join(digests), b"posthouse.state")


def state_digest(state: State) -> bytes:
    """The digest of the state's rows."""
    return rows_digest(map(digest, dump(state)))


def _sections(state: State) -> Iterator[tuple[str, Iterable[Any]]]:
    place = [state.index, state.time, state.fold_version, state.log_bytes, state.checkpoint_due]
    yield "meta", [[FORMAT, state.cell, state.log_id, *place]]
    yield "blocks", state.blocks.dump(_PART)
    yield "sources", state.sources.dump(_PART)
    yield "homes", (signed for key in state.users for signed in _peek(state.users, key).chain)
    yield "moved", (
        [key, list(moved.chain), list(moved.devices), moved.last, moved.confirmed]
        for key, moved in sorted(state.moved.items())
    )
    yield "mail", (item for key, user in state.users.awake() for item in _box(key, user.box))
    devices = (_peek(state.devices, key) for key in state.devices)
    yield "devices", ([d.id, d.user, d.since, d.cursor, d.session] for d in devices)
    yield "notices", (
        [key, n.position, n.id, n.code, n.newest, n.cell, n.expires]
        for key, device in state.devices.awake()
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
    yield "group mail", (item for key, roster in sorted(state.rosters.items()) for item in _box(key, roster.box))
    yield "waiting", (
        [key, w.source, w.size, w.id, w.device, w.version, w.expires, w.position]
        for key, roster in sorted(state.rosters.items())
        for w in roster.waiting
    )
    yield from channels.sections(state, _BOX)
    yield from _between_cells(state)
    yield "outcomes", state.outcomes.dump(_PART)


def _peek(some: Resting[_T], key: bytes) -> _T:
    value = some.peek(key)
    assert value is not None, "nothing changes while rows are made"
    return value


def _between_cells(state: State) -> Iterator[tuple[str, Iterable[Any]]]:
    yield "pending", (
        [key, p.device, p.remaining, p.newest, p.refused, list(p.origin or ())] for key, p in state.pending.items()
    )
    yield "outboxes", ([cell, box.done, box.last, list(box.logs)] for cell, box in sorted(state.outboxes.items()))
    yield "outbound", (
        [
            cell, number, item.what, item.source, item.size, item.id, item.expires, item.group, item.waits, item.user,
            item.beside, list(item.told or ()),
        ]
        for cell, box in sorted(state.outboxes.items())
        for number, item in box.items.items()
    )
    yield "taken over", (
        [cell, log, number, *waiting]
        for cell, box in sorted(state.outboxes.items())
        for (log, number), waiting in box.taken_over.items()
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
        [cell, group, item.what, key, item.size, item.id, item.expires]
        for cell, box in sorted(state.outboxes.items())
        for group, parked in sorted(box.parked.items())
        for key, item in sorted(parked.items.items())
    )


class Loading:
    """The state that `dump` made rows of, from one row after the other. Methods raise StoreDamaged where they are not
    such rows."""

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._loader = _Loader(shelf)

    def take(self, row: bytes) -> None:
        """The next row."""
        with _errors():
            section, chunk = msgpack.unpackb(row)
            take = _TAKE[section]
            for packed in chunk:
                item = msgpack.unpackb(packed)
                take(self._loader, *(item if isinstance(item, list) else (item,)))

    def done(self) -> State:
        """That was all."""
        with _errors():
            rebuild(self._loader.state)
            return self._loader.state


@contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, StructError, msgpack.UnpackException) as error:
        raise StoreDamaged(f"the checkpoint cannot be read: {type(error).__name__}: {error}") from None


class _Loader:
    """Takes the items of each section in the order in which `dump` writes them."""

    state: State

    def __init__(self, shelf: Shelf | None) -> None:
        self._shelf = shelf
        self._user = b""
        self._known: UserState | None = None  # of the last home record: a user's come one after the other

    def meta(self, form: int, cell: str, log_id: bytes, *place: int) -> None:
        if form != FORMAT:
            what = f"the checkpoint's rows are of format {form}, this release knows {FORMAT}"
            raise StoreForeign(what, "Run the release that wrote it, or a newer one")
        index, time, fold_version, log_bytes, due = place
        check_fold_version(fold_version)
        users, devices = no_users(self._shelf), no_devices(self._shelf)
        self.state = State(
            cell, log_id, index, time, fold_version, users, devices, log_bytes=log_bytes, checkpoint_due=due
        )

    def block(self, first: int, part: bytes) -> None:
        self.state.blocks.load(first, part)

    def source(self, part: bytes) -> None:
        self.state.sources.load(part)

    def home(self, signed: bytes) -> None:
        record = read_home(signed)
        if self._known is None or record.user > self._user:
            self._user, self._known = record.user, UserState([signed], record)
        elif record.user < self._user:
            raise ValueError("home records that are in no order")
        else:
            self._known.follow([*self._known.chain, signed], read_home(signed, self._known.record))
            self.state.learn_former(self._known.record)
        self.state.users.lay(self._user, self._known)

    def moved(self, key: bytes, chain: list[bytes], devices: list[bytes], last: int, confirmed: bool) -> None:
        self.state.moved[key] = MovedUser(read_chain(chain)[-1], chain, tuple(devices), last, confirmed)
        self.state.moved_devices.update(dict.fromkeys(devices, key))
        self.state.learn_former(self.state.moved[key].record)

    def mail(self, address: bytes, size: int, part: bytes) -> None:
        box = self.state.users[address].box
        box.load(part)
        box.bytes += size

    def device(self, key: bytes, *rest: Any) -> None:
        self.state.devices.lay(key, DeviceState(key, *rest))

    def notice(self, key: bytes, *rest: Any) -> None:
        notice = Notice(*rest)
        self.state.devices[key].notices[notice.position] = notice

    def roster(self, group: bytes, signed: bytes, resident: bool, dirty: bool) -> None:
        self.state.rosters[group] = RosterState(verify_roster(signed) if signed else None, resident, dirty=dirty)

    def member(self, group: bytes, user: bytes, *stay: int) -> None:
        roster, interval = self.state.rosters[group], Interval(*stay)
        roster.members.setdefault(user, []).append(interval)
        roster.left = roster.left or bool(interval.until)
        self.state.memberships.setdefault(user, set()).add(group)

    def group_mail(self, group: bytes, size: int, part: bytes) -> None:
        box = self.state.rosters[group].box
        box.load(part)
        box.bytes += size

    def waiting(self, group: bytes, *rest: Any) -> None:
        entry = Waiting(*rest)
        self.state.rosters[group].waiting.append(entry)
        self.state.waits(entry.size, entry.device, 1)

    def channel(self, *rest: Any) -> None:
        channels.load_channel(self.state, *rest)

    def posts(self, channel: bytes, part: bytes) -> None:
        self.state.channels[channel].window.load(part)

    def outbox(self, cell: str, done: int, last: int, logs: list[bytes]) -> None:
        self.state.outboxes[cell] = Outbox(done, last, tuple(logs))

    def outbound(self, cell: str, number: int, *rest: Any) -> None:
        box = self.state.outboxes[cell]
        item = box.items[number] = OutItem(*rest)
        item.told = tuple(rest[-1]) if rest[-1] else None
        box.bytes += item.size if item.source is not None else 0
        moved = self.state.moved.get(item.user)
        if moved is not None:
            moved.items, moved.bytes = moved.items + 1, moved.bytes + item.size
        self._wait(item)

    def taken_over(self, cell: str, log: bytes, number: int, key: bytes, until: int) -> None:
        self.state.outboxes[cell].taken_over[log, number] = (key, until)

    def _wait(self, item: OutItem) -> None:
        if item.waits:
            self.state.waits(item.size, self.state.pending[item.id].device, 1)

    def parked(self, cell: str, group: bytes, due: int, tries: int) -> None:
        self.state.outboxes[cell].parked[group] = Parked(due, tries)

    def parked_item(self, cell: str, group: bytes, what: int, key: int, size: int, own: bytes, expires: int) -> None:
        box = self.state.outboxes[cell]
        item = box.parked[group].items[key] = OutItem(what, key, size, own, expires, group, True)
        box.bytes += size
        self._wait(item)

    def origin(self, cell: str, log: bytes, vector: int, confirmed: int) -> None:
        self.state.origins[cell, log] = Origin(vector, confirmed)

    def origin_outcome(self, cell: str, log: bytes, number: int, code: int, newest: int) -> None:
        self.state.origins[cell, log].outcomes[number] = (code, newest)

    def pending(self, key: bytes, *rest: Any) -> None:
        pending = self.state.pending[key] = Pending(*rest)
        pending.origin = tuple(rest[-1]) if rest[-1] else None

    def outcomes(self, minute: int, cells: list[str], part: bytes) -> None:
        self.state.outcomes.load(minute, cells, part)


_TAKE: dict[str, Callable[..., None]] = {
    "meta": _Loader.meta,
    "blocks": _Loader.block,
    "sources": _Loader.source,
    "homes": _Loader.home,
    "moved": _Loader.moved,
    "mail": _Loader.mail,
    "devices": _Loader.device,
    "notices": _Loader.notice,
    "rosters": _Loader.roster,
    "members": _Loader.member,
    "group mail": _Loader.group_mail,
    "waiting": _Loader.waiting,
    "channels": _Loader.channel,
    "posts": _Loader.posts,
    "outboxes": _Loader.outbox,
    "outbound": _Loader.outbound,
    "origins": _Loader.origin,
    "outcomes of origins": _Loader.origin_outcome,
    "taken over": _Loader.taken_over,
    "pending": _Loader.pending,
    "parked": _Loader.parked,
    "parked items": _Loader.parked_item,
    "outcomes": _Loader.outcomes,
}
