"""Home records in the store: verified by ourselves, highest version kept, rollback and fork refused.

Functions of an open transaction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from relay.client.shapes import Own
from relay.client.store import Db
from relay.core.trust import HomeRecord, read_home, verify_chain

_read = lru_cache(maxsize=1_024)(read_home)  # at most 16 KiB each; only bytes that were verified before


def newest(db: Db, own: Own, user: bytes) -> HomeRecord | None:
    """The newest verified record of `user`, our own included; it may have run out."""
    if user == own.user:
        row = db.execute("SELECT signed FROM chain ORDER BY version DESC LIMIT 1").fetchone()
    else:
        row = db.execute("SELECT signed FROM records WHERE user=?", (user,)).fetchone()
    return _read(bytes(row[0])) if row else None


def own_chain(db: Db) -> list[bytes]:
    """Our own signed records, oldest first."""
    return [bytes(row[0]) for row in db.execute("SELECT signed FROM chain ORDER BY version")]


def usable(record: HomeRecord | None, now_ms: int) -> bool:
    """There is a record and it is valid now."""
    return record is not None and record.payload.not_before <= now_ms < record.payload.expires


def learn(db: Db, own: Own, user: bytes, chain: Sequence[bytes], now_ms: int) -> HomeRecord:
    """Verify an answer to LOOKUP against what is known and the pinned root, keep it, return the newest.

    Raises TrustError and its kinds; then nothing was kept."""
    known = newest(db, own, user)
    record = verify_chain(chain, own.root, now_ms, user, known)
    if user == own.user:
        for signed in chain:
            version = read_home(signed).version
            db.execute("INSERT OR IGNORE INTO chain VALUES (?,?)", (version, signed))
    elif known is None or record.version > known.version:
        db.execute("INSERT OR REPLACE INTO records VALUES (?,?,?)", (user, record.version, record.signed))
    return record


def hints(db: Db, own: Own, user: bytes) -> list[str]:
    """The regions to ask for a newer record of `user`: the one that the record we have names; else those of address
    cards, and then of envelopes that came in that name: anybody can write these, so that none decides alone."""
    record = newest(db, own, user)
    if record is not None:
        return [record.payload.region]
    rows = db.execute(
        "SELECT hint FROM (SELECT 0 AS source, pid AS place, hint FROM parcels"
        " WHERE what=0 AND address=? AND state=0 AND id IS NULL"
        " UNION ALL SELECT 1, wid, hint FROM waiting WHERE cause=?)"
        " GROUP BY hint ORDER BY min(source), min(place)",
        (user, b"u" + user),
    ).fetchall()
    return [row[0] for row in rows]
