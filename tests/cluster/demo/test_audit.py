"""The audit against real stores: what is clean is called clean, and each planted thing is found."""

from __future__ import annotations

import shutil
import sqlite3
from base64 import b64encode
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cluster.audit.look import Kind, Secret
from cluster.audit.shelf import Role, Shelf
from cluster.demo.audit import CANARY_RANGE, Book, audit
from cluster.env import RealEnv
from relay.core import records
from relay.core.envelope import Header, To, envelope_id, join
from relay.core.codec import encode
from relay.core.mailroom import Mailroom
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from tests.relay.core.mailroom.conftest import Log, User
from tests.residency import AnythingGoes

ANNA, BEN, CHIARA, GROUP = (bytes([number]) * 32 for number in range(1, 5))
DEVICE, LOG = bytes(range(32)), bytes(16)
PLAINTEXT = b"a sentence that no relay may ever see"


def envelope(to: bytes, seed: int, kind: To = To.MAILBOX) -> bytes:
    header = encode(Header(1, kind, to, 1, 1_000, 2_000, 1))
    return join(header, b"".join(envelope_id(bytes([seed, part])) for part in range(20)))


def book() -> Book:
    own = Book(users={ANNA: "here", BEN: "there", CHIARA: "elsewhere"}, groups={GROUP: frozenset({"here", "there"})})
    own.names[ANNA] = "anna"
    own.plaintexts.append(PLAINTEXT)
    return own


def submit(letter: bytes, dest: str = "here/1") -> bytes:
    return records.encode_record(records.Submit(DEVICE, dest, letter))


def hand_in(letter: bytes) -> bytes:
    return records.encode_record(records.HandIn("there/1", LOG, 1, 0, records.HANDIN_ENVELOPE, letter, b""))


async def keep(
    node: Path, *batches: list[bytes], rows: Sequence[bytes] = (), ring: StorageRing | None = None
) -> StorageRing:
    """A stopped node's store with one block a batch."""
    node.mkdir()
    ring = ring or StorageRing.generate(node.parent / "storage.key")
    async with open_portal() as portal, open_solo(
        node / "data", env=RealEnv(portal), ring=ring, residency=AnythingGoes(), cell="here/1", federation=bytes(32),
    ) as journal:  # fmt: skip
        for batch in batches:
            await journal.append(batch)
        if rows:
            await journal.save_checkpoint(len(batches), rows)
    return ring


def look(own: Book, node: Path, ring: StorageRing, *keys: bytes) -> Shelf:
    return audit("here", node, node / "data", ring, own, own.scanner(keys))


async def test_everything_in_its_place(tmp_path: Path) -> None:
    own = book()
    mine, received, abroad = envelope(ANNA, 1), envelope(ANNA, 2), envelope(BEN, 3)
    group = envelope(GROUP, 4, To.ROSTER)
    for letter in (mine, abroad, group):
        own.post(letter, "here", 7)
    own.post(received, "there", CANARY_RANGE - 1)
    carried = records.encode_record(records.Carry((records.Carried(1, 0, submit(mine)),)))
    ring = await keep(
        tmp_path / "node", [submit(mine), submit(abroad, "there/1")], [hand_in(received), submit(group)], [carried],
        rows=list(Mailroom("here/1", LOG).checkpoint()),
    )  # fmt: skip
    shelf = look(own, tmp_path / "node", ring)
    assert shelf.clean, shelf.findings
    assert (shelf.blocks, shelf.records) == (3, 5)
    assert shelf.home == {"anna": 3, GROUP.hex()[:8]: 1}
    assert shelf.transit == {"there": 1} and shelf.files >= 1


async def test_a_planted_foreign_envelope_is_found(tmp_path: Path) -> None:
    own = book()
    foreign = envelope(CHIARA, 1)
    own.post(foreign, "there", 0)
    assert own.role(envelope_id(foreign), "here") is Role.FOREIGN
    shelf = look(own, tmp_path / "node", await keep(tmp_path / "node", [hand_in(foreign)]))
    assert shelf.foreign_bytes >= len(foreign) and "foreign envelope" in shelf.findings[0]
    assert shelf.in_the_open == 0  # it is sealed at rest, like all others


async def test_a_store_that_was_set_aside_is_looked_into(tmp_path: Path) -> None:
    own = book()
    mine, foreign = envelope(ANNA, 1), envelope(CHIARA, 2)
    own.post(mine, "here", 0)
    own.post(foreign, "there", 0)
    ring = await keep(tmp_path / "old", [hand_in(foreign)])
    node = tmp_path / "node"
    await keep(node, [submit(mine)], ring=ring)
    (node / "data/quarantine").mkdir()
    assert look(own, node, ring).clean
    (tmp_path / "old/data").rename(node / "data/quarantine/20261122T000000Z-00")
    shelf = audit("here", node, node / "data", ring, own, own.scanner([]), "n2")
    assert shelf.node == "n2" and shelf.home == {"anna": 1} and shelf.foreign_bytes >= len(foreign)


async def test_an_envelope_that_nobody_sent_is_found(tmp_path: Path) -> None:
    shelf = look(book(), tmp_path / "node", await keep(tmp_path / "node", [hand_in(envelope(ANNA, 9))]))
    assert not shelf.clean and "stray" in shelf.findings[0]


async def test_foreign_bytes_in_a_checkpoint_are_found(tmp_path: Path) -> None:
    own = book()
    foreign = envelope(CHIARA, 1)
    own.post(foreign, "there", 0)
    tick = records.encode_record(records.Tick())
    shelf = look(own, tmp_path / "node", await keep(tmp_path / "node", [tick], rows=[b"row", foreign]))
    assert shelf.foreign_bytes == 16 and "checkpoint" in shelf.findings[0]


def change(node: Path, *statements: str) -> None:
    with closing(sqlite3.connect(node / "data/log.sqlite")) as database, database:
        for statement in statements:
            database.execute(statement)


async def test_a_snapshot_that_was_being_fetched_is_looked_into(tmp_path: Path) -> None:
    own = book()
    foreign = envelope(CHIARA, 1)
    own.post(foreign, "there", 0)
    ring = await keep(tmp_path / "node", [records.encode_record(records.Tick())], [hand_in(foreign)])
    change(tmp_path / "node", "INSERT INTO staged_block SELECT * FROM block", "DELETE FROM staged_block WHERE idx = 1")
    change(tmp_path / "node", "DELETE FROM block WHERE idx = 2")
    shelf = look(own, tmp_path / "node", ring)
    assert shelf.blocks == 2 and shelf.foreign == 2  # the envelope, and its bytes in the record
    assert "staged block 2, record 0" in shelf.findings[0]


async def test_a_checkpoint_that_is_not_the_current_one_is_looked_into(tmp_path: Path) -> None:
    own = book()
    foreign = envelope(CHIARA, 1)
    own.post(foreign, "there", 0)
    tick = records.encode_record(records.Tick())
    rows = [*Mailroom("here/1", LOG).checkpoint(), foreign]
    ring = await keep(tmp_path / "node", [tick], [tick], rows=rows)
    change(tmp_path / "node", "DELETE FROM checkpoint")
    shelf = look(own, tmp_path / "node", ring)
    assert shelf.rows == 2 and shelf.foreign_bytes == 16
    assert "unfinished or older checkpoint 1" in shelf.findings[0]
    assert "cannot be read" in shelf.findings[1]  # an envelope is no row of a checkpoint

    change(tmp_path / "node", "UPDATE checkpoint_row SET ordinal = ordinal + 9")
    shelf = look(own, tmp_path / "node", ring)
    assert not shelf.foreign and "checkpoint row 0 of generation 1: no sealed value" in shelf.findings[0]


async def test_what_a_kill_left_of_an_older_checkpoint_can_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes in steps, from its end: its beginning says what the rest is. What newer ones have of it, too, stays."""
    monkeypatch.setattr("relay.core.mailroom.checkpoint.ROW_BYTES", 100)
    monkeypatch.setattr("relay.journal.store._DELETE_STEP", 1)
    log, tick, path = Log("here/1"), records.encode_record(records.Tick()), tmp_path / "node/data"
    for name in ("anna", "ben", "chiara"):
        log.enrol(User(name, "here/1"), name)
    states = [list(log.room.checkpoint())]
    for name in ("dora", "emil"):
        log.enrol(User(name, "here/1"), name)
        states.append(list(log.room.checkpoint()))
    states.append(list(Log("here/1").room.checkpoint()))  # of the second, what lies with the first goes only now
    ring, left = StorageRing.generate(tmp_path / "storage.key"), list[Path]()
    (tmp_path / "node").mkdir()
    async with open_portal() as portal, open_solo(
        path, env=RealEnv(portal), ring=ring, residency=AnythingGoes(), cell="here/1", federation=bytes(32),
    ) as journal:  # fmt: skip
        store = journal.disk.store
        clear = store.clear_unfinished

        async def watched(generation: int, lent: int | None = None) -> bool:
            more = await clear(generation, lent)
            if more:
                left.append(shutil.copytree(path, tmp_path / f"copy{len(left)}/data"))
            return more

        monkeypatch.setattr(store, "clear_unfinished", watched)
        for index, rows in enumerate(states, 1):
            await journal.append([tick])
            await journal.save_checkpoint(index, rows)
    assert len(left) > 5
    for copy in left:
        shelf = audit("here", copy.parent, copy, ring, book(), book().scanner([]))
        assert shelf.clean, (copy, shelf.findings)
    assert shelf.rows == len(rows)


async def test_what_follows_a_damaged_block_is_looked_into(tmp_path: Path) -> None:
    own = book()
    foreign = envelope(CHIARA, 1)
    own.post(foreign, "there", 0)
    tick = records.encode_record(records.Tick())
    ring = await keep(tmp_path / "node", [tick], [tick], [hand_in(foreign)])
    change(tmp_path / "node", "UPDATE block SET sealed = x'00' WHERE idx = 2")
    shelf = look(own, tmp_path / "node", ring)
    assert shelf.blocks == 2 and "block 2" in shelf.findings[0] and "foreign envelope" in shelf.findings[1]


@pytest.mark.parametrize("spell", [bytes, lambda data: data.hex().encode(), b64encode])
@pytest.mark.parametrize("kind", Kind)
async def test_what_lies_in_the_open_is_found(tmp_path: Path, kind: Kind, spell: type[bytes]) -> None:
    own, key = book(), bytes(range(100, 132))
    letter = envelope(ANNA, 1)
    own.post(letter, "here", 100)
    ring = await keep(tmp_path / "node", [submit(letter)])
    secret = {Kind.ENVELOPE: letter, Kind.PLAINTEXT: PLAINTEXT, Kind.STORAGE_KEY: key}[kind]
    (tmp_path / "node" / "log").write_bytes(b'{"event": "' + spell(secret) + b'"}\n')
    shelf = look(own, tmp_path / "node", ring, key)
    assert shelf.in_the_open == 1 and shelf.foreign_bytes == 0
    assert kind.value in shelf.findings[0] and "log at byte" in shelf.findings[0]


async def test_a_plaintext_inside_a_record_is_found(tmp_path: Path) -> None:
    own = book()
    letter = join(encode(Header(1, To.MAILBOX, ANNA, 1, 1_000, 2_000, 1)), bytes(600) + PLAINTEXT + bytes(600))
    own.post(letter, "here", 600 - 8)
    shelf = look(own, tmp_path / "node", await keep(tmp_path / "node", [submit(letter)]))
    assert shelf.in_the_open == 1 and shelf.findings == ["plaintext (raw) in data/log.sqlite, block 1, record 0"]


def test_the_scanner_carries_what_it_found() -> None:
    own = book()
    (hit,) = own.scanner([]).scan_bytes(PLAINTEXT)
    assert hit.secret == Secret(Kind.PLAINTEXT)
