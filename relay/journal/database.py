"""One database file of a node, through aiosqlite in the portal: made, opened, used, failed and let go.

One connection, WAL, synchronous=FULL, locking_mode=EXCLUSIVE, no mmap (rule 9). The first I/O error fails it for good
(rule 7). What is in it is its owner's: the log's store, and the directory's memory.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple

import aiosqlite
import structlog
import trio

from relay.errors import DiskFailed, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.portal import Portal
from relay.limits import WAL_BYTES

_log = structlog.get_logger("relay.journal")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")
Statement = tuple[str, Sequence[tuple[Any, ...]]]  # and the rows that it is executed for

DAMAGED = "Keep the directory, look at the disk, and restore nothing old over it"  # what to do about StoreDamaged
_PAGES = 8 * 1024  # bytes that a small commit adds to the write-ahead log beside its rows: the pages they are on
_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS only: there a plain fsync stops at the drive's cache
    "PRAGMA mmap_size = 0",
    "PRAGMA wal_autocheckpoint = 0",  # fold_wal does it: SQLite's own hides the errors of its fsyncs
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}  # rows that we never wrote


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells our files of one kind from others: two numbers in the header (`format`: of tables and contents)."""

    name: str
    application_id: int
    format: int

    def check(self, application_id: int, version: int, file: Path) -> None:
        """Raises StoreForeign for a database of another kind, or one of another format."""
        if application_id != self.application_id:
            raise StoreForeign(f"{file}: a database, but not a Posthouse {self.name}", "Check [paths] data")
        if version != self.format:
            raise StoreForeign(
                f"{file}: format {version}; this release reads format {self.format}", "Run the release that wrote it"
            )


def translate(error: sqlite3.Error, file: Path) -> DiskFailed | StoreLocked | StoreDamaged:
    """A SQLite error as ours, by its primary result code (https://sqlite.org/rescode.html)."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _LOCKED:
        return StoreLocked(f"{file}: another process holds this store", "Stop it first, or use another directory")
    if code in _CORRUPT:
        return StoreDamaged(f"{file}: {error}", DAMAGED)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return DiskFailed(f"{file}: {error} ({name})", "Check the disk and its free space, then start the node again")


@contextmanager
def found_in(file: Path) -> Iterator[None]:
    """Whatever is wrong with what `file` keeps: the error that comes out names the file, and says what to do."""
    try:
        yield
    except (StoreDamaged, StoreForeign) as error:
        if str(file) in error.text:
            raise
        raise type(error)(f"{file}: {error.text}", error.remedy or DAMAGED) from error


class Database:
    """An open file. Methods raise StoreDamaged where SQLite finds damage, DiskFailed from the first I/O error on, and
    trio.ClosedResourceError after `close`."""

    def __init__(self, portal: Portal, connection: aiosqlite.Connection, file: Path) -> None:
        self.file = file
        self.on_failure: Callable[[DiskFailed], None] = lambda error: None
        self._portal = portal
        self._connection = connection
        self._ended: Exception | None = None
        self._wal = WAL_BYTES  # unknown after opening: fold at the first occasion

    def check(self) -> None:
        """Raises DiskFailed if the disk has failed, trio.ClosedResourceError if the file was closed."""
        if self._ended is not None:
            raise self._ended.with_traceback(None)

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await `function(*args)`, which may `fetch`, in the portal."""
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

    async def write(self, size: int, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """`run` for what writes about `size` bytes. A write that fails in any way leaves the connection in doubt:
        nothing is acknowledged after it. (A transaction left open would swallow the commits of all later ones.)"""
        self._wal += size + _PAGES
        try:
            return await self.run(function, *args)
        except (StoreDamaged, StoreLocked) as error:
            self._fail(DiskFailed(error.text, error.remedy))
            raise
        except (DiskFailed, trio.ClosedResourceError):
            raise
        except Exception as error:  # memory that ran out, say
            failed = DiskFailed(f"{self.file}: a write failed ({type(error).__name__})", "Start the node again")
            self._fail(failed)
            raise failed from error

    async def insert(self, size: int, statement: str, values: Sequence[Any]) -> None:
        """Execute one statement: it is a transaction of its own."""
        await self.write(size, self._connection.execute_insert, statement, values)

    async def commit(self, size: int, *statements: Statement) -> None:
        """Execute statements in one transaction."""
        await self.write(size, self._transaction, statements)

    async def _transaction(self, statements: tuple[Statement, ...]) -> None:
        await self._connection.execute_fetchall("BEGIN IMMEDIATE")
        for statement, values in statements:
            await self._connection.executemany(statement, values)
        await self._connection.execute_fetchall("COMMIT")

    async def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows. In the portal only, within `run` or `write`."""
        return list(await self._connection.execute_fetchall(query, values))

    async def fold_wal(self) -> None:
        """Copy the write-ahead log into the database file when it has grown to WAL_BYTES; the next write then starts it
        anew. Its I/O errors count (rule 7)."""
        if self._wal >= WAL_BYTES:
            await self.write(0, self.fetch, "PRAGMA wal_checkpoint(PASSIVE)")
            self._wal = 0

    async def close(self) -> None:
        """Let go of the file, whatever state it and the portal are in; also when cancelled. Raises nothing, so that
        what ended the node is what its operator reads. SQLite folds the write-ahead log, of which it counts only what
        was committed: closing after an error adds no risk."""
        self._ended = self._ended or trio.ClosedResourceError(f"{self.file} is closed")
        with trio.CancelScope(shield=True):  # bounded by the portal's deadline
            try:
                await self._portal.run(self._connection.close)
            except trio.BrokenResourceError:
                self._portal.post(self._connection.close)  # if the disk ever comes back, its thread ends
            except (sqlite3.Error, trio.ClosedResourceError) as error:
                _log.error("store_close_failed", text=str(error))

    def _fail(self, error: DiskFailed) -> None:
        if self._ended is None:
            self._ended = error
            _log.critical("disk_failed", text=error.text)
            self.on_failure(error)


async def open_database(
    portal: Portal, file: Path, kind: Kind, *, tables: Sequence[str], first: tuple[str, Sequence[Any]], whose: str
) -> tuple[Database, list[Any]]:
    """Open a file of `kind`, or make it: mode 0600, `tables`, and the row that the statement `first` inserts. With it,
    the rows of the query `whose`, looked at in the same transaction.

    Raises StoreLocked, StoreForeign (another kind or format), StoreDamaged, DiskFailed."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives its other files the same mode
    except FileExistsError:
        pass
    except OSError as error:
        raise DiskFailed(f"{file}: {error.strerror}", "Check the directory and its permissions") from error
    try:
        await trio.to_thread.run_sync(_sync_names, file.parent)
    except OSError as error:
        raise DiskFailed(f"{file.parent}: {error.strerror}", "Check the disk, then start the node again") from error
    try:
        connection, rows = await portal.run(_connect, file, kind, tables, first, whose)
    except sqlite3.Error as error:
        raise translate(error, file) from error
    except trio.BrokenResourceError as error:
        raise DiskFailed(f"{file}: {error}", "Check the disk, then start the node again") from error
    return Database(portal, connection, file), rows


def _sync_names(directory: Path) -> None:
    """Make the names in `directory` durable, and its own: POSIX promises neither by an fsync of a file. At every start,
    since who made them may have been killed before he could; SQLite does it for files that it makes itself."""
    for place in (directory, directory.absolute().parent):
        try:
            handle = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:
            continue  # a parent that this user may not look into has been there before
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


async def _connect(
    file: Path, kind: Kind, tables: Sequence[str], first: tuple[str, Sequence[Any]], whose: str
) -> tuple[aiosqlite.Connection, list[Any]]:
    connection = await aiosqlite.connect(file, isolation_level=None, timeout=0)
    try:
        return connection, await _prepare(connection, file, kind, tables, first, whose)
    except BaseException:
        await connection.close()
        raise


async def _prepare(
    connection: aiosqlite.Connection, file: Path, kind: Kind, tables: Sequence[str], first: tuple[str, Sequence[Any]],
    whose: str,
) -> list[Any]:  # fmt: skip
    """Take the lock, look what it is before anything is changed, make the tables of a new one."""

    async def value(query: str) -> Any:
        (row,) = await connection.execute_fetchall(query)
        return row[0]

    await value("PRAGMA locking_mode = EXCLUSIVE")
    is_new = not await value("SELECT count(*) FROM sqlite_master") and not await value("PRAGMA application_id")
    if not is_new:
        kind.check(await value("PRAGMA application_id"), await value("PRAGMA user_version"), file)
    if await value("PRAGMA journal_mode = WAL") != "wal":
        raise StoreForeign(f"{file}: this file system cannot hold a write-ahead log", "Use a local disk")
    for pragma in _PRAGMAS:
        await connection.execute_fetchall(pragma)
    await connection.execute_fetchall("BEGIN IMMEDIATE")  # from here on the lock is held until the file is closed
    if is_new:
        numbers = (f"PRAGMA application_id = {kind.application_id}", f"PRAGMA user_version = {kind.format}")
        for statement in (*tables, *numbers):
            await connection.execute_fetchall(statement)
        await connection.execute_fetchall(*first)
    rows = list(await connection.execute_fetchall(whose))
    await connection.execute_fetchall("COMMIT")
    return rows
