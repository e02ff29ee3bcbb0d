"""Signed receipts, for sends that want them: what to ask for is in the store, and so is what came.

An envelope's outcome puts it on the list, in the transaction that takes the outcome in; the line asks until it has a
receipt that verifies by the root, or the node says that there is none. What was asked for survives restarts.

Functions of an open transaction. Times are Unix ms.
"""

from __future__ import annotations

from collections.abc import Sequence

from relay.client.outgoing import MAILBOX, ROSTER
from relay.client.shapes import Effects, Own
from relay.client.store import Db
from relay.core.proven import Missing, Wanted, question, told
from relay.core.wire import Code
from relay.limits import MAX_WANTED, SLOT_BITS

LEVELS = {"": 0, "accepted": int(Code.ACCEPTED), "stored": int(Code.STORED)}
KEPT = 10_000  # receipts in the store; past it the oldest go
TRIES = 20  # times that one is asked for: some 15 minutes in which no majority of the cell's nodes signs
RETRY_MS, RETRY_MAX_MS = 250, 60_000  # doubling


def want_receipts(db: Db, sid: int, level: int) -> None:
    """This send wants a signed receipt of each of its envelopes."""
    if level:
        db.execute("INSERT OR REPLACE INTO proving VALUES (?,?)", (sid, level))


def receipt_level(db: Db, sid: int) -> int:
    """The outcome that receipts of this send are wanted of, as long as it is on its way; 0: none."""
    row = db.execute("SELECT level FROM proving WHERE sid=?", (sid,)).fetchone()
    return int(row[0]) if row else 0


def want_receipt(db: Db, own: Own, id_: bytes, code: int, cell: str, position: int, effects: Effects) -> None:
    """Envelope `id_` has an outcome: if its send wants a receipt of it, put it on the list. Called before the outcome
    is taken in, which may be the end of the send. STORED at once is more than ACCEPTED, and taken for it."""
    if code not in (Code.ACCEPTED, Code.STORED):
        return
    row = db.execute(
        "SELECT p.sid, w.level FROM parcels p JOIN proving w USING (sid) WHERE p.id=? AND p.own=0 AND p.what IN (?,?)",
        (id_, MAILBOX, ROSTER),
    ).fetchone()
    if row is None or code < row[1]:
        return
    there = position if cell == own.cell else 0
    effects.proofs |= bool(
        db.execute(
            "INSERT OR IGNORE INTO receipts (id, sid, cell, position, level) VALUES (?,?,?,?,?)",
            (id_, row[0], cell, there, code),
        ).rowcount
    )
    db.execute("DELETE FROM receipts WHERE rowid <= (SELECT max(rowid) FROM receipts) - ?", (KEPT,))


def open_wants(db: Db, now: int) -> tuple[str, tuple[Wanted, ...], int]:
    """(cell, what to ask it for now, when there is more to ask for: 0 for never). What is asked for counts as tried, so
    that a node that cannot answer is not asked for ever."""
    row = db.execute(
        "SELECT cell, retry_at FROM receipts WHERE receipt IS NULL AND code=0 ORDER BY retry_at LIMIT 1"
    ).fetchone()
    if row is None or row[1] > now:
        return "", (), row[1] if row else 0
    rows = db.execute(
        "SELECT id, level, position, tries FROM receipts"
        " WHERE receipt IS NULL AND code=0 AND cell=? AND retry_at<=? ORDER BY retry_at LIMIT ?",
        (row[0], now, MAX_WANTED),
    ).fetchall()
    for id_, _, _, tries in rows:
        wait = min(RETRY_MAX_MS, RETRY_MS << min(tries, 10))
        db.execute("UPDATE receipts SET tries=tries+1, retry_at=? WHERE id=?", (now + wait, id_))
    return row[0], question((at >> SLOT_BITS, told(bytes(id_), level)) for id_, level, at, _ in rows), now


def take_receipts(db: Db, found: Sequence[tuple[bytes, bytes]], missing: Sequence[Missing]) -> None:
    """(envelope id, receipt) that were verified; and those that there are none of, now or for ever."""
    db.executemany("UPDATE receipts SET receipt=? WHERE id=? AND receipt IS NULL", [(data, id_) for id_, data in found])
    for one in missing:
        final = Code.STALE <= one.code < Code.UNREACHABLE
        db.execute("UPDATE receipts SET code=? WHERE id=? AND receipt IS NULL AND (? OR tries>=?)",
                   (one.code, one.id, final, TRIES))  # fmt: skip


def receipts_of(db: Db, sid: int) -> tuple[list[bytes], list[int], bool]:
    """(receipts, codes of those that there are none of, whether some are still asked for) of a send."""
    rows = db.execute("SELECT receipt, code FROM receipts WHERE sid=? ORDER BY rowid", (sid,)).fetchall()
    receipts = [bytes(row[0]) for row in rows if row[0] is not None]
    codes = [int(row[1]) for row in rows if row[0] is None and row[1]]
    return receipts, codes, len(receipts) + len(codes) < len(rows)
