"""What lies on the disk when a node of a cell starts: a store that is not whole is set aside, once the cell goes on
without it; one that is not ours is refused; nothing else is touched."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import suppress
from functools import partial

import pytest
import trio

from cluster.core import linkwire
from cluster.env import RealEnv
from cluster.journal import StoreSetAside, open_raft, opening
from cluster.journal.shapes import Standing
from relay.core.codec import encode
from relay.core.wire import Code
from relay.errors import Refused, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.files import STORE_FILE
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.conftest import CELL, RING, Anything
from tests.patience import PATIENCE_S

FEDERATION = bytes(range(32))


class Others:
    """Links to the other nodes of the cell, as far as a start needs them. `leads`: n2 says that it does."""

    def __init__(self, leads=True, log=bytes(16)):
        self.leads, self.log = leads, log

    def peers(self):
        return ("n2", "n3")

    def note(self, node, note):
        return True

    async def ask(self, node, message, deadline_s):
        await trio.lowlevel.checkpoint()
        if not isinstance(message, linkwire.CellStatus):
            raise Refused(Code.UNREACHABLE, "no answer")
        return linkwire.Status(encode(Standing(self.log, "n2" if self.leads else "")))


@pytest.fixture
async def portal():
    async with open_portal() as opened:
        yield opened


@pytest.fixture
def opened(portal, tmp_path):
    """An opener of the log of n1 in tmp_path."""
    defaults = {
        "env": RealEnv(portal), "ring": RING, "residency": Anything(), "cell": CELL, "federation": FEDERATION,
        "node": "n1", "nodes": ("n1", "n2", "n3"), "links": Others(),
    }  # fmt: skip
    return lambda **changes: open_raft(tmp_path, **(defaults | changes))


@pytest.fixture
async def made(opened, tmp_path):
    """A store of ten blocks or more, a checkpoint in their midst, and facts; closed. Its id."""
    (tmp_path / "bootstrap").touch()
    async with opened() as cell, trio.open_nursery() as nursery:
        nursery.start_soon(cell.journal.run)
        for number in range(10):
            await cell.journal.append([b"fact %d" % number])
        await cell.journal.save_checkpoint(6, [b"row %d" % number for number in range(5)])
        nursery.cancel_scope.cancel()
    return cell.journal.own.store


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(opening, "_LEFT_S", 0.01)
    monkeypatch.setattr(opening, "_ASK_S", 0.01)


def change(path, statement, *values):
    database = sqlite3.connect(path / STORE_FILE)
    assert database.execute(statement, values).rowcount == 1
    database.commit()
    database.close()


def overwrite(path, name, data):
    (path / name).write_bytes(data)


def sql(statement):
    return partial(change, statement=statement)


def aside(path):
    """What is in quarantine: the ids of the stores."""
    quarantine = path / "quarantine"
    return [one.name.split("-")[1] for one in quarantine.iterdir()] if quarantine.exists() else []


def cut_wal(path):
    """What a filesystem that lost its end leaves: a write-ahead log without its second half."""
    wal = path / (STORE_FILE + "-wal")
    with wal.open("r+b") as file:
        file.truncate(wal.stat().st_size // 2)


DAMAGES = {
    "meta": sql("UPDATE meta SET time = time + 1"),
    "meta is gone": sql("DELETE FROM meta"),
    "state": sql("UPDATE state SET term = term + 1"),
    "state is gone": sql("DELETE FROM state"),
    "no database": partial(overwrite, name=STORE_FILE, data=b"not a database " * 1_000),
    "empty database": partial(overwrite, name=STORE_FILE, data=b""),
    "database is gone": lambda path: (path / STORE_FILE).unlink(),
    "mark is empty": partial(overwrite, name=STORE_FILE + ".mark", data=b""),
    "mark is garbage": partial(overwrite, name=STORE_FILE + ".mark", data=b"x" * 1024),
    "block": sql("UPDATE block SET sealed = zeroblob(60) WHERE idx = 8"),
    "hash": sql("UPDATE block SET hash = zeroblob(32) WHERE idx = 8"),
    "newest hash": sql("UPDATE block SET hash = zeroblob(32) WHERE idx = (SELECT max(idx) FROM block)"),
    "prev": sql("UPDATE block SET prev = zeroblob(32) WHERE idx = 8"),
    "time": sql("UPDATE block SET time = time + 1 WHERE idx = 8"),
    "term": sql("UPDATE block SET term = term + 1 WHERE idx = 8"),
    "no term": sql("UPDATE block SET term = 'x' WHERE idx = 8"),
    "no time": sql("UPDATE block SET time = 'x' WHERE idx = 8"),
    "time is real": sql("UPDATE block SET time = 1.5 WHERE idx = 8"),
    "huge term": sql("UPDATE block SET term = 9223372036854775807 WHERE idx = 8"),
    "negative term": sql("UPDATE block SET term = -1 WHERE idx = 8"),
    "hash is text": sql("UPDATE block SET hash = 'x' WHERE idx = 8"),
    "prev is a number": sql("UPDATE block SET prev = 5 WHERE idx = 8"),
    "sealed is a number": sql("UPDATE block SET sealed = 5 WHERE idx = 8"),
    "block at the checkpoint": sql("UPDATE block SET sealed = zeroblob(60) WHERE idx = 6"),
    "a block is gone": sql("DELETE FROM block WHERE idx = 8"),
    "the first block is gone": sql("DELETE FROM block WHERE idx = 1"),
    "the last block is gone": sql("DELETE FROM block WHERE idx = (SELECT max(idx) FROM block)"),
    "head of the checkpoint": sql("UPDATE checkpoint_row SET sealed = zeroblob(60) WHERE ordinal = 0"),
    "head is text": sql("UPDATE checkpoint_row SET sealed = 'x' WHERE ordinal = 0"),
    "no head": sql("DELETE FROM checkpoint_row WHERE ordinal = 0"),
    "another head": sql(
        "UPDATE checkpoint_row SET sealed = (SELECT sealed FROM checkpoint_row WHERE ordinal = 1) WHERE ordinal = 0"
    ),
    "checkpoint": sql("UPDATE checkpoint SET idx = 3"),
    "checkpoint beyond the log": sql("UPDATE checkpoint SET idx = 300"),
    "checkpoint of text": sql("UPDATE checkpoint SET idx = 'x'"),
    "checkpoint of another generation": sql("UPDATE checkpoint SET generation = 7"),
    "fact": sql("UPDATE fact SET sealed = zeroblob(60) WHERE idx = 3"),
    "fact is text": sql("UPDATE fact SET sealed = 'x' WHERE idx = 3"),
    "key of a fact": sql("UPDATE fact SET key = zeroblob(32) WHERE idx = 3"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
async def test_what_is_damaged_at_the_start_is_set_aside(opened, made, tmp_path, damage):
    damage(tmp_path)
    with pytest.raises(StoreSetAside), trio.fail_after(PATIENCE_S):
        async with opened():
            pytest.fail("opened")
    assert len(aside(tmp_path)) == 1
    assert not (tmp_path / STORE_FILE).exists() and not (tmp_path / (STORE_FILE + ".mark")).exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoint_row SET sealed = zeroblob(60) WHERE ordinal = 3",
        "UPDATE checkpoint_row SET sealed = 5 WHERE ordinal = 3",
        "DELETE FROM checkpoint_row WHERE ordinal = 3",
        "UPDATE checkpoint SET count = 'x'",
        "UPDATE checkpoint SET checksum = zeroblob(32)",
    ],
)
async def test_what_the_fold_is_loaded_from_is_part_of_it(opened, made, tmp_path, statement):
    change(tmp_path, statement)
    with pytest.raises(StoreSetAside), trio.fail_after(PATIENCE_S):
        async with opened() as cell:
            await load_checkpoint(cell.journal)
    assert aside(tmp_path) == [made.hex()]


async def test_a_write_ahead_log_that_lost_its_end_is_found(opened, made, tmp_path):
    copy = tmp_path / "copy"
    async with opened() as cell, trio.open_nursery() as nursery:
        nursery.start_soon(cell.journal.run)
        for number in range(50):
            await cell.journal.append([b"more %d" % number])
        copy.mkdir()
        for file in tmp_path.glob(STORE_FILE + "*"):  # as a power cut leaves it
            shutil.copy(file, copy)
        nursery.cancel_scope.cancel()
    for file in copy.iterdir():
        shutil.copy(file, tmp_path)
    cut_wal(tmp_path)
    with pytest.raises(StoreSetAside, match="confirmed history is missing"):
        async with opened():
            pytest.fail("opened")
    assert aside(tmp_path) == [made.hex()]


async def test_a_missing_mark_is_found(opened, made, tmp_path):
    (tmp_path / (STORE_FILE + ".mark")).unlink()
    with pytest.raises(StoreSetAside, match="its mark is missing"):
        async with opened():
            pytest.fail("opened")
    assert aside(tmp_path) == [made.hex()]


async def test_nothing_is_asked_for_before_the_store_is_there(opened, tmp_path):
    """Found by the simulator (seed 301): a store that was asked for and never came kept the one that was there out."""
    asked = []

    class Asked(Others):
        async def ask(self, node, message, deadline_s):
            asked.append((type(message), (tmp_path / STORE_FILE).exists()))
            return await super().ask(node, message, deadline_s)

    async with opened(links=Asked()) as cell, trio.open_nursery() as nursery:
        nursery.start_soon(cell.run)
        with trio.fail_after(PATIENCE_S):
            while (linkwire.Join, True) not in asked:  # noqa: ASYNC110 - a fake has no bell
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert (linkwire.CellStatus, False) in asked and (linkwire.Join, False) not in asked


async def test_a_damaged_store_stays_until_the_rest_of_the_cell_has_a_leader(opened, made, tmp_path):
    """Rule 8. A mistake that makes all stores look damaged must not empty all of them."""
    change(tmp_path, "UPDATE meta SET time = time + 1")
    others = Others(leads=False)
    with trio.move_on_after(0.3):
        async with opened(links=others):
            pytest.fail("opened")
    assert aside(tmp_path) == []
    others.leads = True
    with pytest.raises(StoreSetAside):
        async with opened(links=others):
            pytest.fail("opened")
    assert len(aside(tmp_path)) == 1


@pytest.mark.parametrize(
    "error", [StoreDamaged("directory.sqlite: damaged"), StoreDamaged("block 5 is not the one after 3 of this log")]
)
async def test_damage_elsewhere_costs_no_store(opened, made, tmp_path, error):
    """The directory's file, or a fold that cannot go on: another store would not help, and be the next one to go."""
    with pytest.raises(StoreDamaged) as caught:
        async with opened():
            raise error
    assert caught.value is error and aside(tmp_path) == []


async def test_damage_in_a_group_is_found(opened, made, tmp_path):
    with pytest.raises(StoreSetAside):
        async with opened(), trio.open_nursery():
            raise StoreDamaged(f"{tmp_path / STORE_FILE}: block 3 does not open")
    assert aside(tmp_path) == [made.hex()]


async def test_a_database_that_turns_out_to_be_broken_while_it_is_written(opened, made, tmp_path, monkeypatch):
    """SQLITE_CORRUPT on a write: the store fails, and is no good any more."""

    def corrupt(*_):
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise error

    with pytest.raises(StoreSetAside, match="malformed"), trio.fail_after(PATIENCE_S):
        async with opened() as cell, trio.open_nursery() as nursery:
            monkeypatch.setattr("relay.journal.store._change", corrupt)
            nursery.start_soon(cell.run)
            await trio.sleep_forever()
    assert aside(tmp_path) == [made.hex()]


async def test_a_broken_database_is_found_whoever_wrote_to_it(opened, made, tmp_path, monkeypatch):
    """Who takes a snapshot blames the other node for what does not verify; the store has failed all the same, and says
    why: the node must not take that for a disk that may come back."""

    def corrupt(*_):
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_CORRUPT, "SQLITE_CORRUPT"
        raise error

    with pytest.raises(StoreSetAside, match="malformed"), trio.fail_after(PATIENCE_S):
        async with opened() as cell, trio.open_nursery() as nursery:
            nursery.start_soon(cell.run)
            monkeypatch.setattr("relay.journal.store.fetch", corrupt)
            with suppress(StoreDamaged):
                await cell.journal.disk.store.clear_unfinished(0)
            await trio.sleep_forever()
    assert aside(tmp_path) == [made.hex()]


# --- not ours ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"cell": "sauda/1"}, "the store of cell norden/1"),
        ({"federation": bytes(32)}, "the store of another federation"),
        ({"ring": StorageRing([b"x" * 32])}, "which is not in the key file"),
    ],
)
async def test_a_foreign_store_is_refused_and_left_alone(opened, made, tmp_path, changes, text):
    with pytest.raises(StoreForeign, match=text) as caught:
        async with opened(**changes):
            pytest.fail("opened")
    assert caught.value.remedy and str(tmp_path / STORE_FILE) in caught.value.text and aside(tmp_path) == []
    async with opened() as cell:
        assert cell.journal.own.store == made


async def test_a_newer_format_is_refused_and_left_alone(opened, made, tmp_path):
    database = sqlite3.connect(tmp_path / STORE_FILE)
    database.execute(f"PRAGMA user_version = {0x060606}")
    database.close()
    with pytest.raises(StoreForeign, match="format 6; this release reads format 5"):
        async with opened():
            pytest.fail("opened")
    assert aside(tmp_path) == []


async def test_two_processes_on_one_store(opened, made, tmp_path):
    async with opened() as cell:
        with pytest.raises(StoreLocked, match="another process holds this store"):
            async with opened():
                pytest.fail("opened")
        assert cell.journal.own.store == made and aside(tmp_path) == []


async def test_what_was_made_under_another_policy_does_not_keep_a_node_from_starting(opened, tmp_path):
    """The end of the log that is not committed yet is checked again at the start, as blocks that were made already."""

    asked = []

    class Stricter(Anything):
        def check(self, records, above=(), *, made=False):
            asked.append(made)
            return super().check(records, above, made=made)

    (tmp_path / "bootstrap").touch()
    async with opened() as cell, trio.open_nursery() as nursery:
        nursery.start_soon(cell.journal.run)
        await cell.journal.append([b"an older root's"])
        nursery.cancel_scope.cancel()
    async with opened(residency=Stricter()):
        assert asked and all(asked)
