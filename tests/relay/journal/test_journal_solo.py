"""The solo journal's store: restart, keys, whose it is, damage, and what can be read in its files."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from relay.errors import DiskFailed, OperatorError, StoreDamaged, StoreError, StoreForeign
from relay.journal.inspect import open_stopped
from relay.journal.files import STORE_FILE
from relay.journal.seal import StorageRing
from tests.relay.journal.checkpoints import load_checkpoint
from tests.flipping import flipped

OLD, NEW, OTHER = b"k" * 32, b"n" * 32, b"o" * 32
RING = StorageRing([OLD])


class Facts:
    """Teaches each record once."""

    def __init__(self) -> None:
        self.known: dict[bytes, bytes] = {}

    def check(self, records, above=(), *, made=False):
        return [(record.ljust(32, b"."), record) for record in records if record.startswith(b"fact")]

    def learn(self, facts) -> None:
        self.known.update(facts)


async def fill(solo, path: Path, count: int = 5, **more) -> None:
    async with solo(path, **more) as journal:
        for _ in range(count):
            await journal.append([b"record %d" % (journal.tip + 1), b"canary-canary-canary"])


def change(path: Path, statement: str, *values: object) -> None:
    with sqlite3.connect(path / STORE_FILE, isolation_level=None) as database:
        database.execute(statement, values)
    database.close()


def flip(path: Path, needle: bytes) -> None:
    """Flip a bit in the middle of `needle` in the database file."""
    data = bytearray((path / STORE_FILE).read_bytes())
    at = data.index(needle) + len(needle) // 2
    data[at] ^= 0x10
    (path / STORE_FILE).write_bytes(data)


# --- restart -------------------------------------------------------------------------------------
async def test_a_restart_keeps_everything(tmp_path: Path, solo, env) -> None:
    async with solo(tmp_path, env=env) as journal:
        log_id = journal.log_id
        for number in range(30):
            env.clock.pass_ms(5)
            await journal.append([b"%d" % number])
        await journal.save_checkpoint(20, [b"a", b"b"])
        await journal.release(10)
        blocks = [await journal.read(index) for index in range(10, 31)]
    for _ in range(2):
        async with solo(tmp_path) as journal:
            assert (journal.log_id, journal.first, journal.tip) == (log_id, 10, 30)
            assert [await journal.read(index) for index in range(10, 31)] == blocks
            follower = journal.follow(9)
            assert [await anext(follower) for _ in blocks] == blocks
            assert await load_checkpoint(journal) == (20, [b"a", b"b"])


async def test_a_restart_after_everything_was_released(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    async with solo(tmp_path) as journal:
        last = await journal.read(5)
        await journal.save_checkpoint(5, [b"s"])
        await journal.release(6)
    async with solo(tmp_path) as journal:
        assert (journal.first, journal.tip) == (6, 5)
        await journal.append([b"next"])
        block = await journal.read(6)
        assert (block.prev, block.time >= last.time) == (last.hash, True)


async def test_time_does_not_go_back_over_a_restart(tmp_path: Path, solo, env) -> None:
    env.clock.wall += 10**9
    await fill(solo, tmp_path, env=env)
    env.clock.wall -= 10**9
    async with solo(tmp_path, env=env) as journal:
        await journal.append([b"x"])
        assert (await journal.read(6)).time == (await journal.read(5)).time


async def test_facts_are_kept_with_their_block_and_beyond_it(tmp_path: Path, solo) -> None:
    async with solo(tmp_path, residency=Facts()) as journal:
        for number in range(2_100):
            await journal.append([b"fact %d" % (number // 2)])
        await journal.save_checkpoint(2_100, [])
        await journal.release(2_101)
    again = Facts()
    async with solo(tmp_path, residency=again):
        assert sorted(again.known.values()) == sorted(b"fact %d" % number for number in range(1_050))


async def test_a_slow_reader_gets_blocks_from_the_disk(tmp_path: Path, solo, monkeypatch) -> None:
    monkeypatch.setattr("relay.journal.solo.RECENT_BLOCKS", 10_000)
    async with solo(tmp_path) as journal:
        follower = journal.follow(0)
        for number in range(300):
            await journal.append([b"%d" % number, b"x" * 8_000])
        assert [(await anext(follower)).records[0] for _ in range(300)] == [b"%d" % n for n in range(300)]


async def test_an_unfinished_checkpoint_is_forgotten(tmp_path: Path, solo) -> None:
    async with solo(tmp_path) as journal:
        await journal.append([b"x"])
        await journal.save_checkpoint(1, [b"whole"])
    change(tmp_path, "INSERT INTO checkpoint_row VALUES (2, 0, 2, 0, x'00')")
    async with solo(tmp_path) as journal:
        assert await load_checkpoint(journal) == (1, [b"whole"])
        await journal.save_checkpoint(1, [b"next"])
        assert await load_checkpoint(journal) == (1, [b"next"])


async def test_a_closed_journal_serves_nobody(tmp_path: Path, solo) -> None:
    async with solo(tmp_path) as journal:
        await journal.append([b"x"])
        follower = journal.follow(1)
    for call in (lambda: journal.append([b"y"]), lambda: journal.read(1), lambda: anext(follower)):
        with pytest.raises(trio.ClosedResourceError):
            await call()


async def test_cancellation_in_mid_append_leaves_a_store_that_goes_on(tmp_path: Path, solo) -> None:
    async with solo(tmp_path) as journal:
        for number in range(30):
            with trio.move_on_after(number / 10_000):
                await journal.append([b"perhaps"])
        tip = journal.tip
        await journal.append([b"surely"])
        assert journal.tip == tip + 1
    with open_stopped(tmp_path, RING) as store:
        assert [block.records[0] for block in store.blocks()] == [b"perhaps"] * tip + [b"surely"]


# --- whose store ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"cell": "sud/1"}, "cell norden/1, not of sud/1"),
        ({"federation": bytes(32)}, "another federation"),
        ({"ring": StorageRing([OTHER])}, "not in the key file"),
    ],
)
async def test_a_foreign_store_is_refused_and_left_alone(tmp_path: Path, solo, other, text: str) -> None:
    await fill(solo, tmp_path)
    before = (tmp_path / STORE_FILE).read_bytes()
    with pytest.raises(StoreForeign, match=text):
        async with solo(tmp_path, **other):
            pass
    assert (tmp_path / STORE_FILE).read_bytes() == before
    await fill(solo, tmp_path)


async def test_a_newer_format_is_refused(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    change(tmp_path, f"PRAGMA user_version = {0x060606}")
    for opened in (solo(tmp_path), _stopped(tmp_path)):
        with pytest.raises(StoreForeign, match=r"format 6; this release reads format 5\. Run"):
            async with opened:
                pass


async def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path, solo) -> None:
    with sqlite3.connect(tmp_path / STORE_FILE) as database:
        database.execute("CREATE TABLE notes (text)")
    database.close()
    before = (tmp_path / STORE_FILE).read_bytes()
    for opened in (solo(tmp_path), _stopped(tmp_path)):
        with pytest.raises(StoreForeign, match="not a Posthouse store"):
            async with opened:
                pass
    assert (tmp_path / STORE_FILE).read_bytes() == before


async def test_an_empty_file_becomes_a_store(tmp_path: Path, solo) -> None:
    (tmp_path / STORE_FILE).touch()  # as a crash in the first moment leaves it
    await fill(solo, tmp_path)


class _stopped:
    """open_stopped as an async context manager, so that one test can loop over both ways to open."""

    def __init__(self, path: Path, ring: StorageRing = RING) -> None:
        self._opened = open_stopped(path, ring)

    async def __aenter__(self):
        return self._opened.__enter__()

    async def __aexit__(self, *error):
        return self._opened.__exit__(*error)


# --- keys ----------------------------------------------------------------------------------------
async def test_keys_rotate_without_touching_what_is_there(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    both = StorageRing([NEW, OLD])
    await fill(solo, tmp_path, ring=both)
    async with solo(tmp_path, ring=both) as journal:
        assert [(await journal.read(i)).records[0] for i in range(1, 11)] == [b"record %d" % i for i in range(1, 11)]
    with pytest.raises(StoreForeign, match="storage key"):
        await fill(solo, tmp_path, ring=StorageRing([NEW]))


async def test_nothing_can_be_read_in_the_files(tmp_path: Path, solo) -> None:
    async with solo(tmp_path, residency=Facts()) as journal:
        await journal.append([b"canary-record", b"fact-canary"])
        await journal.save_checkpoint(1, [b"canary-row"])
        await journal.append([b"canary-record"])
        files = sorted(tmp_path.iterdir())
        assert [file.name for file in files] == [STORE_FILE, STORE_FILE + "-wal", STORE_FILE + ".mark"]
        for file in files:
            data = file.read_bytes()
            assert b"canary" not in data.replace(b"fact-canary".ljust(32, b"."), b"")  # the key is the check's own
            assert OLD not in data
            assert file.stat().st_mode & 0o777 == 0o600


# --- damage --------------------------------------------------------------------------------------
@contextmanager
def damage(path: Path, match: str) -> Iterator[None]:
    """Damage is found, and its error names the file once and says what to do."""
    with pytest.raises(StoreDamaged, match=match) as caught:
        yield
    assert caught.value.text.count(str(path / STORE_FILE)) == 1 and "restore nothing old" in caught.value.remedy


@pytest.mark.parametrize("column", ["sealed", "hash", "prev"])
@pytest.mark.parametrize("index", [1, 3, 5])
async def test_a_flipped_bit_is_found_at_the_start(tmp_path: Path, solo, column: str, index: int) -> None:
    await fill(solo, tmp_path)
    database = sqlite3.connect(tmp_path / STORE_FILE)
    (value,) = database.execute(f"SELECT {column} FROM block WHERE idx = ?", (index,)).fetchone()
    database.close()
    if column == "prev":
        change(tmp_path, "UPDATE block SET prev = zeroblob(32) || x'01' WHERE idx = ?", index)
    elif column == "hash":
        change(tmp_path, "UPDATE block SET hash = ? WHERE idx = ?", flipped(value), index)
    else:
        flip(tmp_path, value)
    for opened in (solo(tmp_path), _stopped(tmp_path)):
        with damage(tmp_path, f"block {index}"):
            async with opened as store:
                list(store.blocks())


async def test_damage_below_the_checkpoint_is_found_when_it_is_read(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path, 10)
    async with solo(tmp_path) as journal:
        await journal.save_checkpoint(8, [b"s"])
    change(tmp_path, "UPDATE block SET time = time + 1 WHERE idx = 3")
    async with solo(tmp_path) as journal:
        with damage(tmp_path, "block 3"):
            await journal.read(3)
        assert (await journal.read(2)).index == 2
        follower = journal.follow(0)
        with damage(tmp_path, "block 3"):
            for _ in range(10):
                await anext(follower)
        await journal.append([b"the others are served on"])


@pytest.mark.parametrize("index", [1, 3, 4])
async def test_a_missing_block_is_found(tmp_path: Path, solo, index: int) -> None:
    await fill(solo, tmp_path)
    change(tmp_path, "DELETE FROM block WHERE idx = ?", index)
    for opened in (solo(tmp_path), _stopped(tmp_path)):
        with damage(tmp_path, f"block {index} is missing"):
            async with opened as store:
                list(store.blocks())


async def test_a_lost_end_below_the_checkpoint_is_found(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    async with solo(tmp_path) as journal:
        await journal.save_checkpoint(4, [b"s"])
    change(tmp_path, "DELETE FROM block WHERE idx > 3")
    with damage(tmp_path, "its mark says write 5 with term 0 and blocks to 5, and it has .* blocks to 3"):
        await fill(solo, tmp_path)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM checkpoint_row WHERE ordinal = 1",
        "DELETE FROM checkpoint_row WHERE ordinal = 2",
        "UPDATE checkpoint_row SET sealed = (SELECT sealed FROM checkpoint_row WHERE ordinal = 0)",
        "UPDATE checkpoint_row SET sealed = x'00'",
        "UPDATE checkpoint SET idx = 2",
        "UPDATE checkpoint SET checksum = zeroblob(32)",
        "UPDATE checkpoint SET count = 2",
    ],
)
async def test_a_changed_checkpoint_is_found(tmp_path: Path, solo, statement: str) -> None:
    await fill(solo, tmp_path)
    async with solo(tmp_path) as journal:
        await journal.save_checkpoint(3, [b"1", b"2", b"3"])
    change(tmp_path, statement)
    async with solo(tmp_path) as journal:
        with damage(tmp_path, "checkpoint"):
            await load_checkpoint(journal)
    with open_stopped(tmp_path, RING) as store, damage(tmp_path, "checkpoint"):
        store.checkpoint()


async def test_a_row_of_a_key_that_has_gone_names_the_file(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    async with solo(tmp_path, ring=StorageRing([NEW, OLD])) as journal:
        await journal.save_checkpoint(3, [b"1"])
    async with solo(tmp_path) as journal:
        with pytest.raises(StoreForeign) as caught:
            await load_checkpoint(journal)
    assert str(tmp_path / STORE_FILE) in caught.value.text and "Put that key's line back" in caught.value.remedy


async def test_garbage_is_damage_not_a_traceback(tmp_path: Path, solo) -> None:
    (tmp_path / STORE_FILE).write_bytes(b"not a database " * 1_000)
    for opened in (solo(tmp_path), _stopped(tmp_path)):
        with damage(tmp_path, "not a database"):
            async with opened:
                pass


async def test_random_flips_are_found_or_harmless(tmp_path: Path, solo) -> None:
    """A flipped bit anywhere in the file either changes nothing that is read, or raises one of our errors."""
    await fill(solo, tmp_path, 20)
    with open_stopped(tmp_path, RING) as store:
        good = list(store.blocks())
    whole = (tmp_path / STORE_FILE).read_bytes()
    for at in range(18, len(whole), 611):
        (tmp_path / STORE_FILE).write_bytes(whole[:at] + bytes([whole[at] ^ 0x04]) + whole[at + 1 :])
        try:
            with open_stopped(tmp_path, RING) as store:
                found = list(store.blocks())
        except (StoreError, DiskFailed):
            continue
        assert found == good[: len(found)], at


# --- the inspector -------------------------------------------------------------------------------
async def test_a_stopped_store_can_be_read(tmp_path: Path, solo) -> None:
    await fill(solo, tmp_path)
    async with solo(tmp_path) as journal:
        log_id = journal.log_id
        await journal.save_checkpoint(4, [b"1", b"2"])
        await journal.release(3)
        blocks = [await journal.read(index) for index in (3, 4, 5)]
    before = sorted((file.name, file.read_bytes()) for file in tmp_path.iterdir())
    with open_stopped(tmp_path, RING) as store:
        assert (store.cell, store.federation, store.log_id, store.first) == ("norden/1", bytes(range(32)), log_id, 3)
        assert list(store.blocks()) == blocks
        assert store.checkpoint() == (4, [b"1", b"2"])
    assert sorted((file.name, file.read_bytes()) for file in tmp_path.iterdir()) == before


async def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="no store here"), open_stopped(tmp_path, RING):
        pass
    assert not list(tmp_path.iterdir())
