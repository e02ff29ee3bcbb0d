"""One log in one SQLite database, through aiosqlite in the portal: rows in, rows out. What they mean is rows.py's.

One connection, WAL, synchronous=FULL, locking_mode=EXCLUSIVE, no mmap (rule 9). The first I/O error fails the store
for good (rule 7). Writers come one at a time: the journal above holds the lock.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import aiosqlite
import structlog
import trio

from relay.errors import DiskFailed, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.portal import Portal
from relay.journal.rows import (
    APPLICATION_ID, BLOCKS, CHECKPOINT, CHECKPOINT_ROWS, CHECKPOINT_SIZES, DAMAGED, FORMAT, META, SIZES,
    BlockRow, CheckpointHead, Meta, check_identity, within,
)
from relay.limits import READ_BATCH, WAL_BYTES

_log = structlog.get_logger("relay.journal")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Statement = tuple[str, Sequence[tuple[Any, ...]]]
_PAGES = 8 * 1024  # bytes that a small commit adds to the write-ahead log beside its rows: the pages they are on
_RELEASE_STEP = 256  # blocks that one transaction deletes, so that appends get in between
_FACTS = 1_000  # facts fetched at a time

_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS only: there a plain fsync stops at the drive's cache
    "PRAGMA mmap_size = 0",
    "PRAGMA wal_autocheckpoint = 0",  # fold_wal does it: SQLite's own hides the errors of its fsyncs
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}  # rows that we never wrote


def translate(error: sqlite3.Error, file: Path) -> DiskFailed | StoreLocked | StoreDamaged:
    """A SQLite error as ours, by its primary result code (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _LOCKED:
        return StoreLocked(f"{file}: another process holds this store", "Stop it first, or use another directory")
    if code in _DAMAGED:
        return StoreDamaged(f"{file}: {error}", DAMAGED)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return DiskFailed(f"{file}: {error} ({name})", "Check the disk and its free space, then start the node again")


class Store:
    """An open store. Methods raise StoreDamaged where SQLite finds damage, DiskFailed from the first I/O error on, and
    trio.ClosedResourceError after `close`."""

    def __init__(self, portal: Portal, connection: aiosqlite.Connection, file: Path, meta: Meta) -> None:
        self.meta = meta
        self._ended: Exception | None = None
        self.on_failure: Callable[[DiskFailed], None] = lambda error: None
        self._portal = portal
        self._connection = connection
        self.file = file
        self._wal = WAL_BYTES  # unknown after opening: fold at the first occasion

    def check(self) -> None:
        """Raises DiskFailed if the store has failed, trio.ClosedResourceError if it was closed."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    async def _run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        self.check()
        try:
            return await self._portal.run(function, *args)
        except sqlite3.Error as error:
            ours = translate(error, self.file)
            if isinstance(ours, DiskFailed):
                self._fail(ours)
            raise ours from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            hung = DiskFailed(f"{self.file}: {error}", "Check the disk, then start the node again")
            self._fail(hung)
            raise hung from error

    def _fail(self, error: DiskFailed) -> None:
        if self._ended is None:
            self._ended = error
            _log.critical("disk_failed", text=error.text)
            self.on_failure(error)

    async def _write(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """A write that fails in any way leaves the connection in doubt: nothing is acknowledged after it. (A
        transaction that was left open would swallow the commits of all later blocks.)"""
        try:
            return await self._run(function, *args)
        except (StoreDamaged, StoreLocked) as error:
            self._fail(DiskFailed(error.text, error.remedy))
            raise
        except (DiskFailed, trio.ClosedResourceError):
            raise
        except Exception as error:  # memory that ran out, say
            failed = DiskFailed(f"{self.file}: a write failed ({type(error).__name__})", "Start the node again")
            self._fail(failed)
            raise failed from error

    # --- blocks ----------------------------------------------------------------------------------
    async def add_block(self, row: BlockRow, facts: Sequence[tuple[bytes, bytes]]) -> None:
        """Commit one block, and with it (key, sealed) facts."""
        insert = "INSERT INTO block (idx, prev, time, hash, sealed) VALUES (?, ?, ?, ?, ?)"
        values = (row.index, row.prev, row.time, row.hash, row.sealed)
        self._wal += len(row.sealed) + _PAGES
        if not facts:  # autocommit: one statement, one transaction
            await self._write(self._connection.execute_insert, insert, values)
            return
        await self._commit((insert, [values]), ("REPLACE INTO fact (key, sealed) VALUES (?, ?)", facts))

    async def _commit(self, *statements: _Statement) -> None:
        await self._write(self._transaction, statements)

    async def _transaction(self, statements: tuple[_Statement, ...]) -> None:
        await self._connection.execute_fetchall("BEGIN IMMEDIATE")
        for statement, values in statements:
            await self._connection.executemany(statement, values)
        await self._connection.execute_fetchall("COMMIT")

    async def ends(self) -> tuple[int, int] | None:
        """Indexes of the oldest and the newest block that are kept."""
        rows = await self._run(self._fetch, "SELECT min(idx), max(idx) FROM block")
        return None if rows[0][0] is None else (rows[0][0], rows[0][1])

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        """Rows of blocks `first` … `last`, as many as fit into READ_BATCH, but at least one where there is one."""
        return await self._run(self._blocks, first, last)

    async def _blocks(self, first: int, last: int) -> list[BlockRow]:
        sizes = await self._fetch(SIZES, (first, last))
        rows = await self._fetch(BLOCKS, (first, within(sizes, first, READ_BATCH)))
        return [BlockRow(*row) for row in rows]

    async def release(self, first: int, below: int) -> int:
        """Delete some blocks from the oldest, `first`, on, but none from `below` on. Returns the new oldest."""
        upto = min(below, first + _RELEASE_STEP)
        self._wal += _PAGES * (upto - first)
        floor = "UPDATE meta SET (first, prev, time) = (SELECT idx + 1, hash, time FROM block WHERE idx = ?)"
        delete = "DELETE FROM block WHERE idx < ?"
        await self._commit((floor, [(upto - 1,)]), (delete, [(upto,)]))
        return upto

    # --- checkpoint ------------------------------------------------------------------------------
    async def checkpoint(self) -> CheckpointHead | None:
        """The current checkpoint's head."""
        rows = await self._run(self._fetch, CHECKPOINT)
        return CheckpointHead(*rows[0]) if rows else None

    async def checkpoint_rows(self, generation: int, first: int) -> list[bytes]:
        """Sealed rows from ordinal `first` on, as many as one read should bring; none at the end."""
        return await self._run(self._checkpoint_rows, generation, first)

    async def _checkpoint_rows(self, generation: int, first: int) -> list[bytes]:
        sizes = await self._fetch(CHECKPOINT_SIZES, (generation, first))
        rows = await self._fetch(CHECKPOINT_ROWS, (generation, first, within(sizes, first, READ_BATCH)))
        return [row[0] for row in rows]

    async def clear_unfinished(self, generation: int) -> None:
        """Delete checkpoint rows of every generation but this one."""
        await self._write(self._fetch, "DELETE FROM checkpoint_row WHERE generation <> ?", (generation,))

    async def add_checkpoint_rows(self, generation: int, ordinal: int, sealed: Sequence[bytes]) -> None:
        """Write rows of a checkpoint that `finish_checkpoint` will make the current one."""
        self._wal += sum(map(len, sealed)) + _PAGES
        rows = [(generation, ordinal + count, row) for count, row in enumerate(sealed)]
        insert = "INSERT INTO checkpoint_row (generation, ordinal, sealed) VALUES (?, ?, ?)"
        await self._commit((insert, rows))

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        """Make `head` the current checkpoint and forget the one before, in one transaction."""
        self._wal += _PAGES
        replace = "REPLACE INTO checkpoint (only, generation, idx, count, checksum) VALUES (1, ?, ?, ?, ?)"
        delete = "DELETE FROM checkpoint_row WHERE generation <> ?"
        values = (head.generation, head.index, head.count, head.checksum)
        await self._commit((replace, [values]), (delete, [(head.generation,)]))

    # --- the rest --------------------------------------------------------------------------------
    async def facts(self, after: bytes) -> list[tuple[bytes, bytes]]:
        """Some (key, sealed) facts with keys above `after`, in order; none at the end."""
        query = "SELECT key, sealed FROM fact WHERE key > ? ORDER BY key LIMIT ?"
        return [(row[0], row[1]) for row in await self._run(self._fetch, query, (after, _FACTS))]

    async def fold_wal(self) -> None:
        """Copy the write-ahead log into the database file when it has grown to WAL_BYTES; the next write then starts it
        anew. Its I/O errors count (rule 7)."""
        if self._wal >= WAL_BYTES:
            await self._write(self._fetch, "PRAGMA wal_checkpoint(PASSIVE)")
            self._wal = 0

    async def close(self) -> None:
        """Let go of the store, whatever state it is in. SQLite folds the write-ahead log, of which it counts only what
        was committed, so that closing after an error adds no risk."""
        self._ended = self._ended or trio.ClosedResourceError("the journal is closed")
        await let_go(self._portal, self._connection)

    async def _fetch(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        return list(await self._connection.execute_fetchall(query, values))


async def let_go(portal: Portal, connection: aiosqlite.Connection) -> None:
    """Close a connection, whatever state it and the portal are in; also when cancelled. Raises nothing, so that what
    ended the node is what its operator reads."""
    with trio.CancelScope(shield=True):  # bounded by the portal's deadline
        try:
            await portal.run(connection.close)
        except trio.BrokenResourceError:
            portal.post(connection.close)  # if the disk ever comes back, its thread ends
        except (sqlite3.Error, trio.ClosedResourceError) as error:
            _log.error("store_close_failed", text=str(error))


async def open_store(portal: Portal, file: Path, fresh: Meta) -> Store:
    """Open the store of the federation and cell that `fresh` names, or make it, with mode 0600 and `fresh` as meta row.

    Raises StoreLocked, StoreForeign (another federation's or cell's, a newer format, no store of ours), StoreDamaged,
    DiskFailed."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives its other files the same mode
    except FileExistsError:
        pass
    except OSError as error:
        raise DiskFailed(f"{file}: {error.strerror}", "Check the directory and its permissions") from error
    try:
        connection, meta = await portal.run(_connect, file, fresh)
    except sqlite3.Error as error:
        raise translate(error, file) from error
    except trio.BrokenResourceError as error:
        raise DiskFailed(f"{file}: {error}", "Check the disk, then start the node again") from error
    return Store(portal, connection, file, meta)


async def _connect(file: Path, fresh: Meta) -> tuple[aiosqlite.Connection, Meta]:
    connection = await aiosqlite.connect(file, isolation_level=None, timeout=0)
    try:
        return connection, await _prepare(connection, file, fresh)
    except BaseException:
        await connection.close()
        raise


async def _prepare(connection: aiosqlite.Connection, file: Path, fresh: Meta) -> Meta:
    """Take the lock, look whose store it is before anything is changed, make the tables of a new one."""

    async def value(query: str) -> Any:
        (row,) = await connection.execute_fetchall(query)
        return row[0]

    await value("PRAGMA locking_mode = EXCLUSIVE")
    is_new = not await value("SELECT count(*) FROM sqlite_master") and not await value("PRAGMA application_id")
    if not is_new:
        check_identity(await value("PRAGMA application_id"), await value("PRAGMA user_version"), file)
    if await value("PRAGMA journal_mode = WAL") != "wal":
        raise StoreForeign(f"{file}: this file system cannot hold a write-ahead log", "Use a local disk")
    for pragma in _PRAGMAS:
        await connection.execute_fetchall(pragma)
    await connection.execute_fetchall("BEGIN IMMEDIATE")  # from here on the lock is held until the store is closed
    if is_new:
        schema = files("relay.journal").joinpath("schema.sql").read_text(encoding="utf-8")
        for statement in schema.split(";\n"):
            await connection.execute_fetchall(statement)
        await connection.execute_fetchall(f"PRAGMA application_id = {APPLICATION_ID}")
        await connection.execute_fetchall(f"PRAGMA user_version = {FORMAT}")
        await connection.execute_fetchall("INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?, ?)", astuple(fresh))
    rows = list(await connection.execute_fetchall(META))
    await connection.execute_fetchall("COMMIT")
    if not rows:
        raise StoreDamaged(f"{file}: its meta row is missing", DAMAGED)
    meta = Meta(*rows[0])
    if meta.federation != fresh.federation:
        raise StoreForeign(f"{file}: the store of another federation", "Check the root document and [paths] data")
    if meta.cell != fresh.cell:
        raise StoreForeign(f"{file}: the store of cell {meta.cell}, not of {fresh.cell}", "Check cell and [paths] data")
    return meta
