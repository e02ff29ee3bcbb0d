"""What goes out, in the store: a send has letters (one counter each), a letter has parcels (one envelope each).

    queued ──SUBMIT──▶ sent ──▶ accepted ──▶ stored            the plaintext stays until every parcel of the send has
       ▲ STALE, retryable │        └────────▶ refused          its final outcome: it may have to be sealed anew (rules
       └──────────────────┘                                    15 and 17), under the same counter

Functions of an open transaction. Times are Unix ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from relay.client.errors import send_refused
from relay.client.people import newest
from relay.client.shapes import (
    MAX_CONTENT, MESSAGE, Effects, Failure, Own, Part, Sent, message_id, pair, read_part,
)  # fmt: skip
from relay.client.store import Db
from relay.core.codec import encode
from relay.core.trust import HomeRecord
from relay.core.wire import Code
from relay.errors import PosthouseError
from relay.limits import CHUNK, DEFAULT_LIFETIME

MAILBOX, ROSTER, PUBLISH = 0, 1, 2  # what a parcel is
QUEUED, SENT, ACCEPTED, STORED, REFUSED = range(5)
MAX_STALES = 10  # STALE answers before a send is given up: the clocks cannot be brought together
MAX_FAILURES = 1_000  # rows kept
RETRY_MS, RETRY_MAX_MS = 100, 10_000  # backoff after a retryable refusal: doubling


def split_parts(to: bytes, group: bytes, name: str, data: bytes, *, hollow: bool = False) -> list[bytes]:
    """The contents of the inner messages that carry `data`, at least one; `hollow`: without it, for `whole_part`."""
    assert len(data) <= MAX_CONTENT
    pieces = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)] or [b""]
    return [encode(Part(to, group, name, i, len(pieces), b"" if hollow else piece)) for i, piece in enumerate(pieces)]


def keep_news(db: Db, data: bytes) -> int:
    """Keep once what many letters tell; it goes with the last of them."""
    return int(db.execute("INSERT INTO news (data) VALUES (?)", (data,)).lastrowid or 0)


def whole_part(db: Db, hollow: bytes, news: int) -> bytes:
    """A letter's content, with its part of the news."""
    part = read_part(hollow)
    piece = db.execute("SELECT substr(data,?,?) FROM news WHERE nid=?", (part.part * CHUNK + 1, CHUNK, news))
    return encode(replace(part, data=bytes(piece.fetchone()[0])))


def new_send(db: Db, *, control: bool) -> int:
    return int(db.execute("INSERT INTO sends (control) VALUES (?)", (int(control),)).lastrowid or 0)


def take_counters(db: Db, conversation: bytes, count: int) -> int:
    """Take `count` successive counters of our stream in `conversation`; the first of them."""
    first = next_counter(db, conversation)
    db.execute("INSERT OR REPLACE INTO counters VALUES (?,?)", (conversation, first + count))
    return first


def next_counter(db: Db, conversation: bytes) -> int:
    row = db.execute("SELECT next FROM counters WHERE conversation=?", (conversation,)).fetchone()
    return int(row[0]) if row else 1


def write_letters(
    db: Db, sid: int, conversation: bytes, kind: int, contents: Sequence[bytes], now: int, first: int = 0,
    news: int = 0,
) -> tuple[int, list[int]]:  # fmt: skip
    """(first counter, letters' ids). `first` only for a sender key: where the group stream begins."""
    counter = take_counters(db, conversation, len(contents))
    expires = now + DEFAULT_LIFETIME
    mids = [
        int(db.execute(
            "INSERT INTO letters (sid, conversation, counter, kind, sent_ms, expires, first, content, news)"
            " VALUES (?,?,?,?,?,?,?,?,?)",
            (sid, conversation, counter + i, kind, now, expires, first, content, news),
        ).lastrowid or 0)
        for i, content in enumerate(contents)
    ]  # fmt: skip
    return counter, mids


def add_parcel(
    db: Db, sid: int, mid: int, what: int, address: bytes, hint: str, *, own: bool = False, version: int = 0,
    only: bytes = b"",
) -> None:  # fmt: skip
    db.execute(
        "INSERT INTO parcels (sid, mid, what, own, address, hint, version, only) VALUES (?,?,?,?,?,?,?,?)",
        (sid, mid, what, int(own), address, hint, version, only),
    )


def has_other_devices(db: Db, own: Own) -> bool:
    record = newest(db, own, own.user)
    return record is not None and any(device.id != own.device for device in record.devices)


def post_to_user(db: Db, own: Own, sid: int, mids: Sequence[int], user: bytes, hint: str) -> None:
    """A parcel of each letter for `user`, and one for our own other devices."""
    copy = user != own.user and has_other_devices(db, own)
    for mid in mids:
        add_parcel(db, sid, mid, MAILBOX, user, hint)
        if copy:
            add_parcel(db, sid, mid, MAILBOX, own.user, own.region, own=True)


def queue_message(db: Db, own: Own, user: bytes, hint: str, content: bytes, name: str, now: int) -> Sent:
    """A message to one user."""
    sid, conversation = new_send(db, control=False), pair(own.user, user)
    counter, mids = write_letters(db, sid, conversation, MESSAGE, split_parts(user, b"", name, content), now)
    post_to_user(db, own, sid, mids, user, hint)
    return Sent(message_id(own.author, conversation, counter), conversation, counter, sid)


# --- outcomes ------------------------------------------------------------------------------------
def outcome(db: Db, own: Own, found: bytes, code: int, newest_version: int, now: int, effects: Effects) -> int | None:
    """A receipt or notice for envelope id `found`; idempotent. The parcel's id if it was published and taken just now,
    so that the caller tells the members; else None."""
    row = db.execute(
        "SELECT pid, sid, what, state, version, newest, tries, stales, address, hint, retry_at FROM parcels WHERE id=?",
        (found,),
    ).fetchone()
    if row is None:
        return None
    pid, sid, what, state, version, known_newest, tries, stales, address, hint, retry_at = row
    if newest_version <= _known(db, own, what, address):
        newest_version = 0  # who is missing was seen to when that version came
    effects.touched.add(sid)
    if code in (Code.ACCEPTED, Code.STORED):
        now_state = STORED if code == Code.STORED or what == PUBLISH else ACCEPTED
        db.execute(
            "UPDATE parcels SET state=max(state,?), envelope=NULL, newest=?, tries=0 WHERE pid=? AND state<?",
            (now_state, max(known_newest, newest_version), pid, REFUSED),
        )
        if retry_at and state < ACCEPTED:  # the way is free again, for what waited behind it too
            db.execute("UPDATE parcels SET retry_at=0, tries=0 WHERE address=? AND state=?", (address, QUEUED))
            effects.post = True
        if newest_version > version and what == MAILBOX:
            effects.wanted[bytes(address)] = hint
        effects.counts["accepted"] += state < ACCEPTED
        effects.counts["stored"] += now_state == STORED and state < STORED
        return pid if what == PUBLISH and state < ACCEPTED else None
    if state >= STORED:
        return None
    if code == Code.LIFETIME and newest_version and stales < MAX_STALES:  # it is the longest that is taken, in ms
        shorter = "UPDATE letters SET expires=min(expires,?) WHERE mid=(SELECT mid FROM parcels WHERE pid=?)"
        db.execute(shorter, (now + newest_version, pid))
        code = Code.STALE
    if code == Code.STALE and stales < MAX_STALES:
        db.execute(
            "UPDATE parcels SET state=0, id=NULL, envelope=NULL, stales=stales+1, retry_at=? WHERE pid=?",
            (now + _backoff(stales) if stales else 0, pid),
        )
        effects.counts["resealed"] += 1
        effects.post = True
    elif code >= 64:
        db.execute(
            "UPDATE parcels SET state=0, tries=tries+1, retry_at=? WHERE pid=?", (now + _backoff(tries), pid)
        )
        effects.post = True
    else:
        refuse(db, pid, code, effects)
    return None


def _known(db: Db, own: Own, what: int, address: bytes) -> int:
    """The newest version of a user's home record, or of a group's roster, that is known here."""
    if what == MAILBOX:
        record = newest(db, own, bytes(address))
        return record.version if record else 0
    row = db.execute("SELECT version FROM groups WHERE id=?", (address,)).fetchone()
    return int(row[0]) if row else 0


def _backoff(tries: int) -> int:
    return min(RETRY_MAX_MS, RETRY_MS << min(tries, 10))


def refuse(db: Db, pid: int, code: int, effects: Effects) -> None:
    """The parcel's final outcome is a refusal."""
    db.execute("UPDATE parcels SET state=?, code=? WHERE pid=?", (REFUSED, code, pid))
    sid = db.execute("SELECT sid FROM parcels WHERE pid=?", (pid,)).fetchone()[0]
    effects.touched.add(sid)
    effects.counts["refused"] += 1


def refuse_all(db: Db, user: bytes, hint: str, error: PosthouseError, effects: Effects) -> None:
    """Nothing can be sealed for `user` of region `hint`: the final outcome of everything that is not sealed yet."""
    code = getattr(error, "code", Code.BAD_RECORD)
    unsealed = "SELECT pid FROM parcels WHERE address=? AND hint=? AND state=0 AND id IS NULL"
    for (pid,) in db.execute(unsealed, (user, hint)).fetchall():
        refuse(db, pid, code, effects)


def forget_newer(db: Db, user: bytes, effects: Effects) -> None:
    """Nobody has the version of `user` that a receipt spoke of: do not wait for it."""
    db.execute("UPDATE parcels SET newest=version WHERE what=? AND address=? AND newest>version", (MAILBOX, user))
    rows = db.execute("SELECT DISTINCT sid FROM parcels WHERE address=?", (user,)).fetchall()
    effects.touched.update(row[0] for row in rows)


def progress(db: Db, sid: int) -> tuple[int, int]:
    """(state, code) of a send as its caller sees it: the slowest parcel, or REFUSED. Our own copies do not count."""
    rows = db.execute(
        "SELECT min(CASE WHEN newest>version THEN min(state,?) ELSE state END), max(CASE state WHEN ? THEN code END)"
        " FROM parcels WHERE sid=? AND own=0",
        (ACCEPTED, REFUSED, sid),
    ).fetchone()
    if rows[0] is not None:
        return (REFUSED, int(rows[1])) if rows[1] is not None else (int(rows[0]), 0)
    failed = db.execute("SELECT code FROM failures WHERE sid=?", (sid,)).fetchone()
    return (REFUSED, int(failed[0])) if failed else (STORED, 0)


def settle(db: Db, sids: set[int], now: int, effects: Effects) -> None:
    """Forget the sends of which every parcel has its final outcome; keep what was refused as a failure."""
    for sid in sids:
        counted = db.execute(
            "SELECT count(*), sum(state<? OR newest>version) FROM parcels WHERE sid=?", (STORED, sid)
        ).fetchone()
        refused = db.execute(
            "SELECT max(code) FROM parcels WHERE sid=? AND state=? AND own=0", (sid, REFUSED)
        ).fetchone()[0]
        if refused is not None:
            _record_failure(db, sid, int(refused), now, effects)
        effects.outcomes[sid] = progress(db, sid)
        if counted[0] and not counted[1]:
            told = db.execute("SELECT DISTINCT news FROM letters WHERE sid=? AND news>0", (sid,)).fetchall()
            for table in ("parcels", "letters", "sends", "proving"):
                db.execute(f"DELETE FROM {table} WHERE sid=?", (sid,))
            last = "DELETE FROM news WHERE nid=? AND NOT EXISTS (SELECT 1 FROM letters WHERE news=nid AND news>0)"
            db.executemany(last, told)


def _record_failure(db: Db, sid: int, code: int, now: int, effects: Effects) -> None:
    error = send_refused(code, f"message {sid}")
    known = db.execute("INSERT OR IGNORE INTO failures VALUES (?,?,?,?)", (sid, code, str(error), now)).rowcount
    if known:
        effects.failures.append(Failure(sid, error))
        db.execute("DELETE FROM failures WHERE sid<=?", (sid - MAX_FAILURES,))


def unfinished(db: Db) -> int:
    """How many sends still wait for their final outcome."""
    return int(db.execute("SELECT count(*) FROM sends").fetchone()[0])


def newest_spoken(db: Db, user: bytes) -> int:
    """The newest version of `user` that receipts for what is on its way spoke of, 0 for none."""
    row = db.execute("SELECT max(newest) FROM parcels WHERE what=? AND address=?", (MAILBOX, user)).fetchone()
    return int(row[0] or 0)


# --- who is missing ------------------------------------------------------------------------------
def extend(db: Db, own: Own, record: HomeRecord, effects: Effects) -> None:
    """A newer home record: seal what is still on its way also for the devices that it did not know (rule 17)."""
    rows = db.execute(
        "SELECT p.mid, p.own, p.hint, p.only, p.devices, p.id, l.sid, l.conversation, l.counter, l.kind"
        " FROM parcels p JOIN letters l USING (mid) WHERE p.what=? AND p.address=? ORDER BY l.counter",
        (MAILBOX, record.user),
    ).fetchall()
    letters: dict[tuple[int, int], list[tuple[Any, ...]]] = {}
    for row in rows:
        letters.setdefault((row[0], row[1]), []).append(row)
    for (mid, copy), parcels in letters.items():
        _, _, hint, _, _, _, sid, conversation, counter, kind = parcels[0]
        if any(row[5] is None and not row[3] for row in parcels):
            continue  # not sealed yet: it will be, for everybody
        covered = b"".join(row[3] + row[4] for row in parcels)
        known = {covered[i : i + 32] for i in range(0, len(covered), 32)}
        missing = [d.id for d in record.devices if d.id not in known and not (copy and d.id == own.device)]
        if not missing:
            continue
        for device in missing:
            if kind == MESSAGE:
                db.execute("INSERT OR IGNORE INTO firsts VALUES (?,?,?)", (conversation, device, counter))
        add_parcel(db, sid, mid, MAILBOX, record.user, hint, own=bool(copy), only=b"".join(missing))
        effects.post = True
    db.execute("UPDATE parcels SET newest=version WHERE what=? AND address=? AND newest>version AND newest<=?",
               (MAILBOX, record.user, record.version))  # fmt: skip
    effects.touched.update(row[6] for row in rows)


def copy_to_added(db: Db, group: bytes, version: int, added: Sequence[tuple[bytes, str]], effects: Effects) -> None:
    """A newer roster: who was added since gets what is still on its way to the group as one-to-one copies."""
    rows = db.execute(
        "SELECT p.mid, p.sid FROM parcels p JOIN letters l USING (mid) WHERE p.what=? AND p.address=? AND p.version<?"
        " ORDER BY l.counter",
        (ROSTER, group, version),
    ).fetchall()
    for mid, sid in rows:
        effects.touched.add(sid)
        for user, hint in added:
            there = "SELECT 1 FROM parcels WHERE mid=? AND what=? AND address=?"
            if db.execute(there, (mid, MAILBOX, user)).fetchone() is None:
                add_parcel(db, sid, mid, MAILBOX, user, hint)
                effects.post = True
    db.execute("UPDATE parcels SET newest=version WHERE what=? AND address=? AND newest>version AND newest<=?",
               (ROSTER, group, version))  # fmt: skip


def first_expected(db: Db, conversation: bytes, address: bytes, device: bytes, kind: int, counter: int) -> int:
    """The first counter that `device` should expect of our stream in `conversation`; settled at the first time."""
    if kind != MESSAGE:
        return 0
    row = db.execute("SELECT first FROM firsts WHERE conversation=? AND device=?", (conversation, device)).fetchone()
    if row is None:
        lowest = db.execute(
            "SELECT min(l.counter) FROM letters l JOIN parcels p USING (mid) WHERE l.conversation=? AND p.address=?",
            (conversation, address),
        ).fetchone()[0]
        first = counter if lowest is None else min(int(lowest), counter)
        db.execute("INSERT INTO firsts VALUES (?,?,?)", (conversation, device, first))
        return first
    return int(row[0])
