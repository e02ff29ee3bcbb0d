"""From parcels to envelopes: what is submitted next, sealed at the last moment and kept before it is sent (rule 15).

Functions of an open transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from relay.client.outgoing import (
    MAILBOX, PUBLISH, QUEUED, RETRY_MAX_MS, SENT, STORED, first_expected, refuse, whole_part,
)  # fmt: skip
from relay.client import groups
from relay.client.people import newest, usable
from relay.client.shapes import KEY_NEWS, Effects, Own
from relay.client.store import Db, process_gone
from relay.core.envelope import To, envelope_id
from relay.core.policy import Policies
from relay.core.sealing import Inner, make_header, seal_mailbox, seal_roster
from relay.core.wire import Code
from relay.limits import MAX_LIFETIME

_COLUMNS = (
    "p.pid, p.mid, p.what, p.own, p.address, p.hint, p.version, p.only, p.id, p.envelope,"
    " l.conversation, l.counter, l.kind, l.sent_ms, l.expires, l.first, l.content, l.news"
)
# What was turned away goes first: until it is taken, what was queued later for the same address waits behind it, or a
# sender would overtake itself. A retry that lies farther ahead than any does was set before a clock was put back.
_WAITING = (
    "WITH heads AS (SELECT address, min(pid) AS pid FROM parcels WHERE state<=? AND retry_at>0 GROUP BY address)"
    f" SELECT {_COLUMNS} FROM parcels p LEFT JOIN letters l USING (mid) LEFT JOIN heads h ON h.address=p.address"
    " WHERE p.state=? AND (h.pid IS NULL OR p.pid<=h.pid) AND NOT p.retry_at BETWEEN ? AND ?"
)


@dataclass(frozen=True, slots=True)
class Ready:
    """An envelope to submit (`publish`: an encoded wire.Roster; `sealed`: just now, not submitted before)."""

    id: bytes
    hint: str
    data: bytes
    publish: bool
    sealed: bool


@dataclass(slots=True)
class Prepared:
    """What to submit now, in order; `next_at`: when a retry is due (local Unix ms), 0 for none."""

    ready: list[Ready] = field(default_factory=list)
    next_at: int = 0
    effects: Effects = field(default_factory=Effects)


@dataclass(frozen=True, slots=True)
class _Parcel:
    pid: int
    mid: int
    what: int
    own: int
    address: bytes
    hint: str
    version: int
    only: bytes
    id: bytes | None
    envelope: bytes | None
    conversation: bytes
    counter: int
    kind: int
    sent_ms: int
    expires: int
    first: int
    content: bytes
    news: int


class Sealer:
    """Prepares batches. `offset` is the server's time less ours, ms; `longest` the lifetime that the server takes, ms;
    `carrier` this process."""

    def __init__(self, own: Own, random_bytes: Callable[[int], bytes], carrier: int) -> None:
        self.own = own
        self._random = random_bytes
        self.carrier = carrier
        self.offset = 0
        self.longest = MAX_LIFETIME
        self._policies = Policies(own.root)
        self.unknown: set[bytes] = set()  # users that are being looked up: without a record, their parcels wait

    def prepare(self, db: Db, now: int, room: int, room_bytes: int) -> Prepared:
        """At most `room` envelopes of about `room_bytes` bytes, marked as sent."""
        out = Prepared()
        skip = {user for user in self.unknown if not usable(newest(db, self.own, user), now + self.offset)}
        while room > 0 and room_bytes > 0:
            marks = ",".join("?" * len(skip))
            rows = db.execute(
                f"{_WAITING} AND (p.id IS NOT NULL OR p.address NOT IN ({marks})) ORDER BY p.pid LIMIT ?",
                (SENT, QUEUED, now + 1, now + RETRY_MAX_MS, *skip, room),
            ).fetchall()
            before = len(skip)
            for row in rows:
                if room_bytes <= 0:
                    break
                size = self._one(db, _Parcel(*row), now, skip, out)
                room -= size > 0
                room_bytes -= size
            if not rows or len(skip) == before:
                break
        due = db.execute(
            "SELECT min(retry_at) FROM parcels WHERE state=? AND retry_at BETWEEN ? AND ?",
            (QUEUED, now + 1, now + RETRY_MAX_MS),
        ).fetchone()[0]
        out.next_at = due or 0
        return out

    def _one(self, db: Db, parcel: _Parcel, now: int, skip: set[bytes], out: Prepared) -> int:
        """Bytes that were made ready."""
        if parcel.envelope is not None and parcel.id is not None:
            found, data = parcel.id, parcel.envelope
            db.execute("UPDATE parcels SET state=?, carrier=? WHERE pid=?", (SENT, self.carrier, parcel.pid))
        elif parcel.address in skip:
            return 0
        elif parcel.expires <= now:
            refuse(db, parcel.pid, Code.EXPIRED, out.effects)
            return 0
        else:
            sealed = self._seal(db, parcel, now, skip, out)
            if sealed is None:
                return 0
            found, data = envelope_id(sealed), sealed
            db.execute(
                "UPDATE parcels SET state=?, carrier=?, id=?, envelope=? WHERE pid=?",
                (SENT, self.carrier, found, data, parcel.pid),
            )
        hint = parcel.hint if parcel.what == MAILBOX else ""
        out.ready.append(Ready(found, hint, data, parcel.what == PUBLISH, parcel.envelope is None))
        return len(data) + len(hint) + 16

    def _seal(self, db: Db, parcel: _Parcel, now: int, skip: set[bytes], out: Prepared) -> bytes | None:
        own, created = self.own, now + self.offset
        expires = min(parcel.expires + self.offset, created + self._limit(db, parcel))
        inner = Inner(
            1, own.user, own.device, own.region, parcel.conversation, parcel.counter, parcel.kind, parcel.sent_ms,
            whole_part(db, parcel.content, parcel.news) if parcel.news else parcel.content,
        )  # fmt: skip
        if parcel.what != MAILBOX:
            key = self._sender_key(db, parcel, now)
            if key is None:  # an epoch so old that its key is gone
                refuse(db, parcel.pid, Code.UNKNOWN_ROSTER, out.effects)
                return None
            header = make_header(To.ROSTER, parcel.address, parcel.version, created, expires)
            return seal_roster(header, inner, own.signing, key, self._random(32))
        record = newest(db, own, parcel.address)
        if record is None or not usable(record, created):
            skip.add(parcel.address)
            out.effects.wanted[parcel.address] = parcel.hint
            return None
        devices = [
            device for device in record.devices
            if not (parcel.own and device.id == own.device) and (not parcel.only or device.id in _ids(parcel.only))
        ]  # fmt: skip
        if not devices:  # the device has gone meanwhile: nobody is left to seal for
            db.execute("UPDATE parcels SET state=? WHERE pid=?", (STORED, parcel.pid))
            out.effects.touched.add(self._sid(db, parcel.pid))
            return None
        expecting = [(device, self._first(db, parcel, device.id)) for device in devices]
        db.execute(
            "UPDATE parcels SET version=?, devices=?, newest=0 WHERE pid=?",
            (record.version, b"".join(device.id for device in devices), parcel.pid),
        )
        header = make_header(To.MAILBOX, parcel.address, record.version, created, expires)
        return seal_mailbox(header, inner, own.signing, expecting, self._random(32))

    def _limit(self, db: Db, parcel: _Parcel) -> int:
        """The longest lifetime, ms, that will do wherever it rests, as far as our root document tells."""
        if parcel.what == MAILBOX:
            record = newest(db, self.own, parcel.address)
            cells = [record.cell] if record else []
        else:
            rows = db.execute("SELECT DISTINCT cell FROM members WHERE grp=?", (parcel.address,))
            cells = [cell for (cell,) in rows.fetchall()]
        return min(self.longest, self._policies.longest(self.own.cell, *cells))

    def _sender_key(self, db: Db, parcel: _Parcel, now: int) -> bytes | None:
        """Drawn now, where our own keys were rotated since the message was written, or a member's device has gone that
        was told the one of then. None: of too old an epoch."""
        place = (parcel.address, parcel.version, self.own.device)
        query = "SELECT key FROM sender_keys WHERE grp=? AND version=? AND device=? AND stale=0 ORDER BY rowid DESC"
        row = db.execute(query, place).fetchone()
        if row is None:
            groups.ensure_key(db, self.own, parcel.address, parcel.version, now, self._random)
            row = db.execute(query, place).fetchone()
        return bytes(row[0]) if row else None

    def _first(self, db: Db, parcel: _Parcel, device: bytes) -> int:
        if parcel.kind == KEY_NEWS:  # for who joined in between nobody knows: the stream starts with what comes first
            return 0 if parcel.only else parcel.first
        return first_expected(db, parcel.conversation, parcel.address, device, parcel.kind, parcel.counter)

    @staticmethod
    def _sid(db: Db, pid: int) -> int:
        return int(db.execute("SELECT sid FROM parcels WHERE pid=?", (pid,)).fetchone()[0])


def requeue(db: Db, carriers: set[int]) -> None:
    """Submit again what `carriers` sent and nobody answered: the same bytes, the same id."""
    marks = ",".join("?" * len(carriers))
    db.execute(f"UPDATE parcels SET state=? WHERE state=? AND carrier IN ({marks})", (QUEUED, SENT, *carriers))


def rescue(db: Db, carrier: int, before: set[int]) -> tuple[set[int], bool]:
    """Submit again what other processes than `carrier` sent and nobody answered: they are gone, or it was so at the
    last look (`before`) already, for a process that only has the id of one that is gone looks alive.

    (parcels for the next look, whether there is anything to submit)."""
    rows = db.execute("SELECT pid, carrier FROM parcels WHERE state=? AND carrier<>?", (SENT, carrier)).fetchall()
    lost = {pid for pid, other in rows if pid in before or process_gone(other)}
    db.executemany("UPDATE parcels SET state=? WHERE pid=?", [(QUEUED, pid) for pid in lost])
    return {pid for pid, _ in rows} - lost, bool(lost)


def carriers(db: Db) -> set[int]:
    """The processes that have unanswered envelopes."""
    return {int(row[0]) for row in db.execute("SELECT DISTINCT carrier FROM parcels WHERE state=?", (SENT,))}


def _ids(joined: bytes) -> set[bytes]:
    return {joined[i : i + 32] for i in range(0, len(joined), 32)}
