"""What the SDK asks receipts for, how long, and what of the answers it keeps."""

from __future__ import annotations

import sqlite3
from importlib.resources import files
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from relay.client.outgoing import MAILBOX, PUBLISH
from relay.client.proving import Proving
from relay.client.receipts import (
    KEPT, TRIES, open_wants, receipt_level, receipts_of, take_receipts, want_receipt, want_receipts,
)  # fmt: skip
from relay.client.shapes import Effects
from relay.core import wire
from relay.core.codec import digest
from relay.core.proven import Missing, all_told, question, told
from relay.core.receipts import verify_receipt
from relay.core.trust import Root
from relay.core.wire import Code
from relay.certificates import certify
from tests.relay.core.test_receipts import N1, N2, PAGE, ROOT

OWN: Any = SimpleNamespace(cell="norden/1", root=ROOT)


@pytest.fixture
def db() -> sqlite3.Connection:
    made = sqlite3.connect(":memory:", isolation_level=None)
    made.executescript(files("relay.client").joinpath("schema.sql").read_text("utf-8"))
    return made


def parcel(db: sqlite3.Connection, sid: int, own_copy: int = 0, what: int = MAILBOX) -> bytes:
    count = db.execute("SELECT count(*) FROM parcels").fetchone()[0]
    id_ = digest(b"%d" % count)
    db.execute(
        "INSERT INTO parcels (sid, mid, what, own, address, hint, version, only, id) VALUES (?,1,?,?,x'',?,1,x'',?)",
        (sid, what, own_copy, "", id_),
    )
    return id_


def outcome(db: sqlite3.Connection, id_: bytes, code: int, cell: str = "norden/1", position: int = 9) -> bool:
    effects = Effects()
    want_receipt(db, OWN, id_, code, cell, position, effects)
    return effects.proofs


def test_what_is_asked_for(db: sqlite3.Connection) -> None:
    want_receipts(db, 1, Code.ACCEPTED)
    want_receipts(db, 2, Code.STORED)
    want_receipts(db, 3, 0)
    assert [receipt_level(db, sid) for sid in (1, 2, 3)] == [1, 2, 0]
    one, two, three = (parcel(db, sid) for sid in (1, 2, 3))
    assert not outcome(db, parcel(db, 1, own_copy=1), Code.STORED) and not outcome(db, digest(b"?"), Code.STORED)
    assert not outcome(db, parcel(db, 1, what=PUBLISH), Code.STORED)
    assert not outcome(db, three, Code.STORED) and not outcome(db, one, Code.STALE)
    assert outcome(db, one, Code.ACCEPTED, position=7 << 20)
    assert not outcome(db, one, Code.STORED, "sueden/1"), "once, of the first"
    assert not outcome(db, two, Code.ACCEPTED) and outcome(db, two, Code.STORED, "sueden/1")
    assert open_wants(db, 1_000) == ("norden/1", question([(7, told(one, 1))]), 1_000)
    assert open_wants(db, 1_000) == ("sueden/1", question([(0, told(two, 2))]), 1_000), "a position is the own cell's"
    cell, wanted, due = open_wants(db, 1_000)
    assert not cell and not wanted and due > 1_000


def test_how_long_it_is_asked_for(db: sqlite3.Connection) -> None:
    want_receipts(db, 1, Code.STORED)
    one, two = parcel(db, 1), parcel(db, 1)
    outcome(db, one, Code.STORED)
    outcome(db, two, Code.STORED)
    now = times = 0
    while True:
        _, wanted, due = open_wants(db, now)
        if not wanted and not due:
            break
        if wanted:
            times += 1
            take_receipts(db, [], [Missing(one[:32], Code.UNREACHABLE) for one in all_told(wanted)])
        now = max(now + 1, due)
    assert times == TRIES and receipts_of(db, 1) == ([], [64, 64], False)
    assert 5 * 60_000 < now < 60 * 60_000


def test_what_comes_is_kept_and_a_final_no_ends_it(db: sqlite3.Connection) -> None:
    want_receipts(db, 1, Code.STORED)
    one, two = parcel(db, 1), parcel(db, 1)
    assert receipts_of(db, 1) == ([], [], False)
    for id_ in (one, two):
        outcome(db, id_, Code.STORED)
    assert receipts_of(db, 1) == ([], [], True)
    take_receipts(db, [(one, b"receipt")], [Missing(one, Code.UNPROVEN), Missing(two, Code.UNPROVEN)])
    assert receipts_of(db, 1) == ([b"receipt"], [27], False)
    want_receipts(db, 2, Code.STORED)
    for _ in range(3):
        outcome(db, parcel(db, 2), Code.STORED)
    db.execute("UPDATE receipts SET rowid=rowid+? WHERE sid=2", (KEPT,))
    outcome(db, parcel(db, 2), Code.STORED)
    assert receipts_of(db, 1) == ([], [], False), "the oldest went"


def test_what_a_node_says_is_kept_if_it_holds_and_was_asked_for() -> None:
    async def say(message: wire.ClientMessage) -> None: ...

    async def newer(than: Root) -> bool: ...

    desk: Any = SimpleNamespace(own=OWN)
    proving = Proving(desk, say, newer)
    block = PAGE.block(0, 2, 3)
    wanted = question((0, told(PAGE.ids[number], Code.STORED)) for number in (0, 2, 3))  # 3 was only accepted
    found, held = proving._verified("norden/1", wanted, wire.Proof(1, (block,), ()))
    assert [id_ for id_, _ in found] == [PAGE.ids[0], PAGE.ids[2]] and held
    for id_, data in found:
        assert verify_receipt(data, ROOT, certify, envelope_id=id_)
    assert proving._verified("sueden/1", wanted, wire.Proof(1, (block,), ())) == ([], True)
    few = msgspec.structs.replace(block, attestations=(N1.attestation(PAGE.statement),))
    twice = msgspec.structs.replace(block, attestations=(N1.attestation(PAGE.statement),) * 2)
    other = msgspec.structs.replace(block, attestations=(N1.attestation(PAGE.statement), N2.attestation(b"other")))
    assert proving._verified("norden/1", wanted, wire.Proof(1, (few, twice, other), ())) == ([], False)
