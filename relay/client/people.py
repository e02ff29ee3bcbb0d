"""Home records in the store: verified by ourselves, highest version kept, rollback and fork refused.

Functions of an open transaction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from msgspec import structs

from relay.client.shapes import Own
from relay.client.store import Db
from relay.core.codec import Decoder, pack
from relay.core.trust import REVOKED_GRACE, Former, HomeRecord, check_current, read_home, verify_chain
from relay.errors import NotValidNow
from relay.limits import KIB, MAX_LIFETIME

_former: Decoder[tuple[Former, ...]] = Decoder(tuple[Former, ...], "former devices", 64 * KIB)


@lru_cache(maxsize=1_024)
def _read(signed: bytes, former: bytes) -> HomeRecord:  # at most 16 KiB each; only bytes that were verified before
    return structs.replace(read_home(signed), former=_former(former))


def newest(db: Db, own: Own, user: bytes) -> HomeRecord | None:
    """The newest verified record of `user`, our own included; it may have run out."""
    row = db.execute("SELECT signed, former FROM records WHERE user=?", (user,)).fetchone()
    return _read(bytes(row[0]), bytes(row[1])) if row else None


def remember(db: Db, record: HomeRecord) -> None:
    """The newest verified record of a user, from now on."""
    former = pack([[one.id, one.stem, one.until] for one in record.former])
    db.execute("INSERT OR REPLACE INTO records VALUES (?,?,?,?)", (record.user, record.version, record.signed, former))


def keep(db: Db, own: Own, record: HomeRecord) -> None:
    """A verified record: the newest one of its user from now on; our own are all kept. Keys of ours that it does not
    list any more open what may still come, and nothing after that."""
    remember(db, record)
    if record.user == own.user:
        db.execute("INSERT OR REPLACE INTO chain VALUES (?,?)", (record.version, record.signed))
        listed = {device.id for device in record.devices}
        for one in record.former:
            if one.id not in listed:
                until = one.until + REVOKED_GRACE + MAX_LIFETIME
                db.execute("UPDATE device_keys SET until=? WHERE id=?", (until, one.id))


def own_chain(db: Db) -> list[bytes]:
    """Our own signed records, oldest first."""
    return [bytes(row[0]) for row in db.execute("SELECT signed FROM chain ORDER BY version")]


def stem(db: Db, own: Own, user: bytes, device: bytes, at_ms: int = 0) -> bytes | None:
    """relay.core.trust.HomeRecord.stem, by the newest record that is known here."""
    record = newest(db, own, user)
    return record.stem(device, at_ms) if record else None


def usable(record: HomeRecord | None, now_ms: int) -> bool:
    """There is a record and it is valid now."""
    try:
        if record is not None:
            check_current(record, now_ms)
    except NotValidNow:
        return False
    return record is not None


def learn(db: Db, own: Own, user: bytes, chain: Sequence[bytes], now_ms: int) -> HomeRecord:
    """Verify an answer to LOOKUP against what is known and the pinned root, keep it, return the newest.

    Raises TrustError and its kinds; then nothing was kept."""
    known = newest(db, own, user)
    record = verify_chain(chain, own.root, now_ms, user, known)
    if known is None or record.version > known.version:
        if user == own.user:
            for signed in chain:
                version = read_home(signed).version
                if known is None or known.version < version <= record.version:  # those that were verified, no others
                    db.execute("INSERT OR IGNORE INTO chain VALUES (?,?)", (version, signed))
        keep(db, own, record)
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
