"""The mark on a real disk: its slots, what it says of a database, and when it is written."""

from __future__ import annotations

import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.errors import DiskFailed, StoreDamaged
from relay.journal import store as store_module
from relay.journal.api import Hard, Write
from relay.journal.files import STORE_FILE, mark_file, wal_file
from relay.journal.mark import Mark, Marked, behind
from relay.journal.portal import open_portal
from relay.journal.store import open_store
from tests.relay.journal.rigs import FRESH, another, row, rows

FIRST = Marked(1, b"S" * 16, 0, b"", 1, b"h" * 32)


def marks(count: int) -> list[Marked]:
    return [replace(FIRST, seq=number, index=number, vote=b"V" * 16 if number % 2 else b"") for number in range(count)]


def written(path: Path, count: int) -> list[Marked]:
    mark = Mark(path)
    for marked in marks(count):
        mark.write(marked)
        assert mark.newest == marked
    mark.close()
    return marks(count)


def read(path: Path) -> Marked | None:
    mark = Mark(path)
    mark.close()
    return mark.newest


# --- the file ------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_torn_slot_leaves_the_one_before(tmp_path: Path, count: int) -> None:
    path = tmp_path / "mark"
    assert read(path) is None and not path.exists()
    whole = written(path, count)
    assert read(path) == whole[-1]
    assert (path.stat().st_size, path.stat().st_mode & 0o777) == (1024, 0o600)
    before = path.read_bytes()
    slot = (count - 1) % 2 * 512
    for torn in (bytes(512), before[slot : slot + 60] + os.urandom(452)):
        path.write_bytes(before[:slot] + torn + before[slot + 512 :])
        assert read(path) == (whole[-2] if count > 1 else None)
        mark = Mark(path)
        mark.write(replace(FIRST, seq=99))  # into the torn one, not over the one that is left
        mark.close()
        assert read(path) == replace(FIRST, seq=99)
        data = path.read_bytes()
        path.write_bytes(data[:slot] + bytes(512) + data[slot + 512 :])
        assert read(path) == (whole[-2] if count > 1 else None)


def test_no_flipped_bit_passes(tmp_path: Path) -> None:
    path = tmp_path / "mark"
    whole = written(path, 2)
    data = path.read_bytes()
    for at in range(512 * 8):
        changed = bytearray(data)
        changed[512 + at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        assert read(path) in whole  # in the padding nothing is lost
    path.write_bytes(data[:600])
    assert read(path) == whole[0]
    path.write_bytes(b"")
    assert read(path) is None


def test_what_is_behind() -> None:
    assert behind(None, replace(FIRST, seq=0)) is None  # made a moment ago
    assert behind(FIRST, FIRST) is None
    assert behind(FIRST, replace(FIRST, seq=2, term=9, index=0)) is None  # ahead: never acknowledged
    for mark, has, text in (
        (None, FIRST, "missing or cannot be read"),
        (replace(FIRST, store=b"T" * 16), replace(FIRST, seq=0), "another store .* its database is gone"),
        (replace(FIRST, seq=3, index=7), FIRST, "it came to write 3 with term 0 and blocks to 7, and has only write 1"),
        (FIRST, replace(FIRST, hash=b"x" * 32), "block 1 is not the one"),
        (FIRST, replace(FIRST, vote=b"V" * 16), "it is not the database"),
        (FIRST, replace(FIRST, index=0), "it is not the database"),
    ):
        with pytest.raises(StoreDamaged, match=text):
            raise StoreDamaged(behind(mark, has) or "nothing")


# --- with a database -----------------------------------------------------------------------------
async def test_the_mark_follows_every_write_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / STORE_FILE
    async with open_portal() as portal:
        store = await open_store(portal, file, FRESH)
        assert read(mark_file(file)) == Marked(0, FRESH.store, 0, b"", 0, FRESH.prev)
        await store.write(Write(rows(1, 3), hard=Hard(2, b"V" * 16)))
        expected = Marked(1, FRESH.store, 2, b"V" * 16, 3, row(3).hash)
        assert read(mark_file(file)) == expected
        await store.add_checkpoint_rows(1, 0, [b"x"])
        await store.release(1, 4)
        await store.fold_wal()
        assert read(mark_file(file)) == expected
        await store.close()
        store = await open_store(portal, file, FRESH)
        assert store.behind is None and read(mark_file(file)) == expected
        await store.close()


async def test_a_database_that_is_gone_is_known_by_its_mark(tmp_path: Path) -> None:
    file = tmp_path / STORE_FILE
    async with open_portal() as portal:
        store = await open_store(portal, file, FRESH)
        await store.close()
        file.unlink()
        for fresh in (another(store=b"T" * 16), another(store=b"U" * 16)):
            store = await open_store(portal, file, fresh)
            assert store.behind is not None and "another store (53535353" in store.behind
            await store.close()


async def test_what_a_killed_process_wrote_last_is_durable_before_it_counts(tmp_path: Path, monkeypatch: Any) -> None:
    """It may lie in the page cache only, committed and not synced: a power cut now would take it."""
    file = tmp_path / STORE_FILE
    synced: list[Path] = []
    monkeypatch.setattr(store_module, "sync_file", synced.append)
    async with open_portal() as portal:
        store = await open_store(portal, file, FRESH)
        await store.write(Write(rows(1, 3)))
        (tmp_path / "b").mkdir()
        there = tmp_path / "b" / STORE_FILE
        for one in (file, wal_file(file), mark_file(file)):
            (tmp_path / "b" / one.name).write_bytes(one.read_bytes())
        Mark(mark_file(there)).write(Marked(0, FRESH.store, 0, b"", 0, FRESH.prev))  # it died before that
        await store.close()
        synced.clear()
        store = await open_store(portal, there, FRESH)
        assert store.behind is None and await store.ends() == (1, 3)
        assert synced == [wal_file(there)]
        assert read(mark_file(there)) == Marked(1, FRESH.store, 0, b"", 3, row(3).hash)
        await store.close()


async def test_a_mark_that_hangs_has_failed(tmp_path: Path, monkeypatch: Any) -> None:
    goes_on = threading.Event()
    async with open_portal(deadline_s=2.0) as portal:
        store = await open_store(portal, tmp_path / STORE_FILE, FRESH)
        with monkeypatch.context() as patch:
            patch.setattr("relay.journal.mark.sync_handle", lambda handle: goes_on.wait(20))
            with pytest.raises(DiskFailed, match="did not end within"):
                await store.write(Write([row(1)]))
            with pytest.raises(DiskFailed, match="did not end within"):
                store.check()
            goes_on.set()
        await store.close()


async def test_a_full_disk_names_the_mark(tmp_path: Path, monkeypatch: Any) -> None:
    async with open_portal() as portal:
        store = await open_store(portal, tmp_path / STORE_FILE, FRESH)
        monkeypatch.setattr("os.pwrite", lambda handle, data, offset: 0)
        with pytest.raises(DiskFailed, match=r"log\.sqlite\.mark: not all of it was written"):
            await store.write(Write([row(1)]))
        await store.close()
    with pytest.raises(OSError, match="there"):
        Mark(tmp_path / "there").write(FIRST)


async def test_a_changed_row_of_state_is_damage(tmp_path: Path) -> None:
    file = tmp_path / STORE_FILE
    async with open_portal() as portal:
        for statement in ("UPDATE state SET committed = 9", "UPDATE meta SET prev_term = 9", "DELETE FROM state"):
            file.unlink(missing_ok=True)
            mark_file(file).unlink(missing_ok=True)
            store = await open_store(portal, file, FRESH)
            await store.close()
            with sqlite3.connect(file) as database:
                database.execute(statement)
            database.close()
            with pytest.raises(StoreDamaged, match=r"its (state|meta) row (is missing|does not match its checksum)"):
                await open_store(portal, file, FRESH)
