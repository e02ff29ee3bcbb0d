"""Bits that flip in the header of a store's database. None of them makes damage look like something else: a node of a
cell sets aside what is damaged and comes back by itself; a store of another release, or a failed disk, it must not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import trio

from relay.core.block import GENESIS
from relay.errors import StoreDamaged, StoreForeign, StoreLocked
from relay.journal.api import BlockRow, Meta, Write
from relay.journal.database import Kind
from relay.journal.portal import open_portal
from relay.journal.store import open_store

FRESH = Meta(b"f" * 16, "x/1", b"l" * 16, b"s" * 16, b"key", 1, GENESIS, 0, 0, b"")
# What SQLite says of itself and we of our files: write and read version, schema format, text encoding, user version,
# application id. The other bytes are sizes, counters and pages: SQLite finds them by itself, or makes them anew.
FIELDS = (18, 19, *range(44, 48), *range(56, 64), *range(68, 72))
BITS = [(byte, bit) for byte in range(100) for bit in (range(8) if byte in FIELDS else (byte % 8,))]


def row(index: int) -> BlockRow:
    return BlockRow(index, 1, bytes(32), 5, bytes([index]) * 32, b"sealed" * 800)


async def test_each_bit_that_flips_is_damage_or_of_no_consequence(tmp_path: Path) -> None:
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    whole.mkdir()
    damaged = set()
    async with open_portal() as portal:
        store = await open_store(portal, whole / "log.sqlite", FRESH)
        await store.write(Write([row(1), row(2)]))
        await store.close()
        for byte, bit in BITS:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(whole, copy)
            content = bytearray((copy / "log.sqlite").read_bytes())
            content[byte] ^= 1 << bit
            (copy / "log.sqlite").write_bytes(content)
            try:
                store = await open_store(portal, copy / "log.sqlite", FRESH)
                try:
                    assert await store.blocks(1, 2) == [row(1), row(2)]
                    await store.write(Write([row(3)]))
                finally:
                    await store.close()
            except StoreDamaged as error:
                damaged.add(byte)
                assert str(copy / "log.sqlite") in error.text  # by which a node knows that it is its own
    assert {18, 47, *range(60, 64), *range(68, 72)} <= damaged


async def test_who_opens_a_store_twice_in_one_process_does_not_let_others_in(tmp_path: Path) -> None:
    """Closing any descriptor of a file drops all locks of the process on it (fcntl(2)): nobody looks at the header with
    one of his own while the store is held."""
    file = tmp_path / "log.sqlite"
    other = f"import sqlite3; sqlite3.connect({str(file)!r}, timeout=0).execute('SELECT count(*) FROM sqlite_master')"
    async with open_portal() as portal:
        store = await open_store(portal, file, FRESH)
        with pytest.raises(StoreLocked):
            await open_store(portal, file, FRESH)
        asked = await trio.run_process([sys.executable, "-c", other], check=False, capture_stderr=True)
        assert b"database is locked" in asked.stderr
        await store.write(Write([row(1)]))
        await store.close()


@pytest.mark.parametrize("other", [number for number in range(1, 256) if number != 4])
def test_another_format_is_no_damage(other: int) -> None:
    ours, theirs = Kind("store", 0x506F7374, 4), Kind("store", 0x506F7374, other)
    with pytest.raises(StoreForeign, match=f"format {other}; this release reads format 4"):
        ours.check(theirs.application_id, theirs.version, Path("log.sqlite"))


@pytest.mark.parametrize("earlier", [1, 2, 3])
def test_a_store_of_before_says_its_format(earlier: int) -> None:
    """Until format 3 the number was written once."""
    with pytest.raises(StoreForeign, match=f"format {earlier}; this release reads format 4"):
        Kind("store", 0x506F7374, 4).check(0x506F7374, earlier, Path("log.sqlite"))


def test_another_program_s_file_is_no_damage() -> None:
    for number in (0, 1, 0x0F055111, 0x50687365):
        with pytest.raises(StoreForeign, match="not a Posthouse store"):
            Kind("store", 0x506F7374, 4).check(number, 0, Path("log.sqlite"))
