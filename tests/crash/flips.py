"""Bits that flip on a disk. Each must be noticed by a node that takes up the store, or touch nothing that it holds.

A flip is judged on a copy, by what a node does when it starts and when it reads: the store is opened, what follows the
checkpoint is verified, then everything. What nobody noticed must leave every row, and SQLite's own structure, alone, or
be noticed before the page that it is on is changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

from cluster.env import RealEnv
from cluster.journal.disk import RaftDisk
from cluster.local import Layout
from relay.core.block import GENESIS
from cluster.core.linkwire import federation_id
from relay.errors import PosthouseError, StoreDamaged
from relay.journal.api import Meta
from relay.journal.files import STORE_FILE
from relay.journal.portal import Portal, open_portal
from relay.journal.rows import Sealer
from relay.journal.seal import StorageRing
from relay.journal.store import Store, open_store
from relay.journal.tail import Tail
from tests.crash.cell import REGION
from tests.residency import AnythingGoes

_FILES = {STORE_FILE: 0.45, f"{STORE_FILE}-wal": 0.45, f"{STORE_FILE}.mark": 0.1}  # and how often each is hit
Fact = tuple[bytes, bytes]
UNNOTICED = "unnoticed"
_PAGE = 4096
# What SQLite says where nothing is wrong, or before a list. A page that is "never used" is free and not listed so: the
# end of a write-ahead log is gone that had been folded, and held no more than a release or a checkpoint's rows.
_FINE = ("ok", "*** in database main ***")
_TABLES = ("meta", "state", "block", "checkpoint", "fact")
# Those of another generation are of a checkpoint that a crash left, unfinished or half let go: the next one drops them.
_CHECKPOINT_ROWS = """SELECT one.*, there.sealed FROM checkpoint_row AS one LEFT JOIN checkpoint_row AS there
    ON there.generation = one.lies AND there.ordinal = one.lies_at
    WHERE one.generation = (SELECT generation FROM checkpoint) ORDER BY one.ordinal"""


@dataclass(frozen=True, slots=True)
class Flip:
    file: str
    offset: int
    bit: int

    def apply(self, directory: Path) -> None:
        with (directory / self.file).open("r+b", buffering=0) as file:
            byte = os.pread(file.fileno(), 1, self.offset)[0]
            os.pwrite(file.fileno(), bytes([byte ^ 1 << self.bit]), self.offset)

    def __str__(self) -> str:
        return f"bit {self.bit} of byte {self.offset} of {self.file}"


def choose(data: Path, rng: Random) -> Flip:
    """Any bit of the files of a store; of a file's first page more often than chance has it, since so much hangs on
    it."""
    sizes = {name: (data / name).stat().st_size for name in _FILES if (data / name).exists()}
    names = [name for name, size in sizes.items() if size]
    (name,) = rng.choices(names, [_FILES[name] for name in names])
    size = min(sizes[name], _PAGE) if rng.random() < 0.1 else sizes[name]
    return Flip(name, rng.randrange(size), rng.randrange(8))


async def judge(data: Path, layout: Layout, flips: Sequence[Flip]) -> Counter[str]:
    """What becomes of each flip, counted. UNNOTICED must not be among it: those are printed, and kept."""
    tally: Counter[str] = Counter()
    ring = StorageRing.load(layout.home.secrets / f"{REGION}.storage.key")
    root = layout.home.root(RealEnv().clock.wall_ms())
    fresh = Meta(federation_id(root), f"{REGION}/1", bytes(16), bytes(16), b"", 1, GENESIS, 0, 0, b"")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as place:
        async with open_portal() as portal:
            copy = Path(place) / "copy"
            before = await _look(portal, _copied(data, copy), fresh, ring)
            if isinstance(before, str):
                raise AssertionError(f"damaged before any bit was flipped: {before}")
            for flip in flips:
                flip.apply(_copied(data, copy))
                after = await _look(portal, copy, fresh, ring)
                fate = after if isinstance(after, str) else "on no live page" if after == before else _emptied(copy)
                tally[fate] += 1
                if fate == UNNOTICED:
                    flip.apply(_copied(data, copy))
                    kept = shutil.copytree(copy, tempfile.mkdtemp(prefix="unnoticed-"), dirs_exist_ok=True)
                    print(f"unnoticed: {flip}; the store as it was then is in {kept}", flush=True)
    return tally


def _copied(data: Path, copy: Path) -> Path:
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in _FILES:
        if (data / name).exists():
            shutil.copyfile(data / name, copy / name)
    return copy


async def _look(portal: Portal, directory: Path, fresh: Meta, ring: StorageRing) -> bytes | str:
    """The digest of everything that the store holds; or when a node notices the damage."""
    file = directory / STORE_FILE
    noticed = "noticed at start"
    try:
        store = await open_store(portal, file, fresh)
        try:
            if store.behind is not None:
                return noticed
            Sealer(ring, store.meta.log_id, os.urandom).check_key(store.meta.key_check, file)
            disk = await _take_up(store, ring)
            noticed = "noticed when read"
            await _verify(disk, disk.tail.first, disk.tail.tip)
        finally:
            await store.close()
        return _content(file)
    except (PosthouseError, LookupError):
        return noticed


async def _take_up(store: Store, ring: StorageRing) -> RaftDisk:
    """What a node looks at when it starts (cluster.journal.opening). Raises PosthouseError."""
    meta, tail = store.meta, Tail(store.meta.log_id, RealEnv().clock, keep=0)
    disk = RaftDisk(store, Sealer(ring, meta.log_id, os.urandom), AnythingGoes(), tail)
    disk.head = await store.checkpoint()
    first, last = await store.ends() or (meta.first, meta.first - 1)
    if first != meta.first:
        raise StoreDamaged("the oldest block is missing")
    tail.start_at(first, meta.prev, meta.time)
    tail.tip = last
    await disk.load_checkpoint(lambda row: None)
    await disk.learn_facts()
    await _verify(disk, max(first, disk.checkpoint_index), last)
    return disk


async def _verify(disk: RaftDisk, first: int, last: int) -> None:
    """Read blocks, from index `first` to `last`. Raises PosthouseError."""
    while first <= last:
        first = (await disk.load(first, last))[-1].index + 1


def _content(file: Path) -> bytes:
    """Of every live row; or of what SQLite says about its pages, which is never the same. Raises StoreDamaged."""
    with closing(sqlite3.connect(file)) as db:
        try:
            rows = [db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall() for table in _TABLES]
            rows.append(db.execute(_CHECKPOINT_ROWS).fetchall())
            return hashlib.sha256(repr((rows, _wrong(db))).encode()).digest()
        except sqlite3.Error as error:
            return repr(error).encode()


def _wrong(db: sqlite3.Connection) -> list[str]:
    """What SQLite says is wrong with the structure of a database, but for pages that are lost to it."""
    found = [line for (text,) in db.execute("PRAGMA integrity_check") for line in text.split("\n")]
    return [line for line in found if line not in _FINE and not line.endswith("is never used")]


def _emptied(directory: Path) -> str:
    """What comes of a flip in SQLite's own book-keeping of a page when a node lets go of the rows on it, as it does
    with all in time. (SQLite looks at a page's free space before it changes the page, not when it reads it; a node
    whose SQLite says then that the file is malformed sets the store aside. The pointer at the end of a chain of
    overflow pages is never looked at, since the length says where it ends.)"""
    with closing(sqlite3.connect(directory / STORE_FILE)) as db:
        try:
            for table in ("block", "checkpoint_row", "fact"):
                db.execute(f"DELETE FROM {table} WHERE rowid >= 0")  # without a condition it would drop whole pages
            db.commit()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_CORRUPT:
                return "noticed when changed"
            raise
        return "in a field that is never read" if not _wrong(db) else UNNOTICED
