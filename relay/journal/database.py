"""One database file of a node, through aiosqlite in the portal: made, opened, used, failed and let go.

One connection, WAL, synchronous=FULL, locking_mode=EXCLUSIVE, no mmap (rule 9). The first I/O error fails it for good
(rule 7). What is in it is its owner's: the log's store, and the directory's memory. What its owner does with it are
functions that take the connection; each is one call of the connection's thread, however many statements it executes.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import aiosqlite
import structlog
import trio

from relay.errors import DiskFailed, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.files import sync_names
from relay.journal.portal import Portal
from relay.limits import WAL_BYTES

_log = structlog.get_logger("relay.journal")
Connection = sqlite3.Connection
T = TypeVar("T")
P = ParamSpec("P")
Statement = tuple[str, Sequence[tuple[Any, ...]]]  # and the rows that it is executed for

DAMAGED = "Keep the directory, look at the disk, and restore nothing old over it"  # what to do about StoreDamaged
_PAGES = 8 * 1024  # bytes that a small commit adds to the write-ahead log beside its rows: the pages they are on
_PRAGMAS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA fullfsync = ON",  # macOS only: there a plain fsync stops at the drive's cache
    "PRAGMA mmap_size = 0",
    "PRAGMA secure_delete = ON",  # what is let go is overwritten: 7 ms a MiB let go, nothing measurable for a commit
    "PRAGMA wal_autocheckpoint = 0",  # fold_wal does it: SQLite's own hides the errors of its fsyncs
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
)
_THRICE = 0x10101
_LOCKED = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CONSTRAINT}  # rows that we never wrote


@dataclass(frozen=True, slots=True)
class Kind:
    """What tells our files of one kind from others: two numbers in the header (`format`: of tables and contents)."""

    name: str
    application_id: int
    format: int

    @property
    def version(self) -> int:
        """The format as it is written: two formats differ in three bits or more, so that no bit that flips makes
        damage look like another release's file."""
        return self.format * _THRICE

    def check(self, application_id: int, version: int, file: Path) -> None:
        """Raises StoreForeign for a database of another kind, or one of another format; StoreDamaged where all that
        stands between it and one of ours is a bit."""
        if 1 in ((application_id ^ self.application_id).bit_count(), (version ^ self.version).bit_count()):
            raise StoreDamaged(f"{file}: a bit of the header has flipped", DAMAGED)
        if application_id != self.application_id:
            raise StoreForeign(f"{file}: a database, but not a Posthouse {self.name}", "Check [paths] data")
        if version != self.version:
            other = version if version % _THRICE else version // _THRICE
            raise StoreForeign(
                f"{file}: format {other}; this release reads format {self.format}", "Run the release that wrote it"
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


def fetch(connection: Connection, query: str, values: Sequence[Any] = ()) -> list[Any]:
    """All rows of a query."""
    return connection.execute(query, values).fetchall()


def execute(connection: Connection, statements: Sequence[Statement]) -> None:
    """Execute statements, in order."""
    for statement, rows in statements:
        connection.executemany(statement, rows)


def transact(connection: Connection, *statements: Statement) -> None:
    """Execute statements in one transaction."""
    connection.execute("BEGIN IMMEDIATE")
    execute(connection, statements)
    connection.execute("COMMIT")


class _Connection(aiosqlite.Connection):
    """One whose thread takes whole functions, as it takes aiosqlite's own."""

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Call `function` in the connection's thread."""
        execute: Callable[..., Awaitable[T]] = self._execute  # what all of aiosqlite's own methods are made of
        return await execute(function, self._conn)

    def submit(self, function: Callable[[], None]) -> None:
        """Have the thread call `function`, which raises nothing, after what it was given before. Nobody is told."""
        self._tx.put_nowait((None, function))  # aiosqlite's own queue

    @property
    def handle(self) -> Connection:
        return self._conn


class Database:
    """An open file. Methods raise StoreDamaged where SQLite finds damage, DiskFailed from the first I/O error on, and
    trio.ClosedResourceError after `close`."""

    def __init__(self, portal: Portal, connection: _Connection, file: Path) -> None:
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

    async def run(self, function: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs) -> T:
        """Call `function(connection, …)` in the connection's thread."""
        self.check()
        try:
            return await self._portal.hand(
                self._connection.submit, lambda: function(self._connection.handle, *args, **named)
            )
        except sqlite3.Error as error:
            ours = translate(error, self.file)
            if isinstance(ours, DiskFailed):
                self._fail(ours)
            raise ours from error
        except OSError as error:
            failed = DiskFailed(f"{error.filename or self.file}: {error.strerror}", "Check the disk and its free space")
            self._fail(failed)
            raise failed from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            hung = DiskFailed(f"{self.file}: {error}", "Check the disk, then start the node again")
            self._fail(hung)
            raise hung from error

    async def write(
        self, size: int, function: Callable[Concatenate[Connection, P], T], *args: P.args, **named: P.kwargs
    ) -> T:
        """`run` for what writes about `size` bytes. A write that fails in any way leaves the connection in doubt:
        nothing is acknowledged after it. (A transaction left open would swallow the commits of all later ones.)"""
        self._wal += size + _PAGES
        try:
            return await self.run(function, *args, **named)
        except (StoreDamaged, StoreLocked) as error:
            failed = DiskFailed(error.text, error.remedy)
            failed.__cause__ = error  # it is not the disk that fails: who hears of it must be able to tell
            self._fail(failed)
            raise
        except (DiskFailed, trio.ClosedResourceError):
            raise
        except Exception as error:  # memory that ran out, say
            failed = DiskFailed(f"{self.file}: a write failed ({type(error).__name__})", "Start the node again")
            self._fail(failed)
            raise failed from error

    async def commit(self, size: int, *statements: Statement) -> None:
        """Execute statements in one transaction."""
        await self.write(size, transact, *statements)

    async def fold_wal(self) -> None:
        """Copy the write-ahead log into the database file when it has grown to WAL_BYTES; the next write then starts it
        anew. Its I/O errors count (rule 7)."""
        if self._wal >= WAL_BYTES:
            await self.write(0, fetch, "PRAGMA wal_checkpoint(PASSIVE)")
            self._wal = 0

    async def clear_wal(self) -> None:
        """The same, whatever its size, and cut it to nothing."""
        await self.write(0, fetch, "PRAGMA wal_checkpoint(TRUNCATE)")
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
    portal: Portal, file: Path, kind: Kind, *, tables: Sequence[str], first: Sequence[Statement], whose: str
) -> tuple[Database, list[Any]]:
    """Open a file of `kind`, or make it: mode 0600, `tables`, and the rows that the statements `first` insert. With it,
    the rows of the query `whose`, looked at in the same transaction.

    Raises StoreLocked, StoreForeign (another kind or format), StoreDamaged, DiskFailed."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite gives its other files the same mode
    except FileExistsError:
        pass
    except OSError as error:
        raise DiskFailed(f"{file}: {error.strerror}", "Check the directory and its permissions") from error
    prepare = partial(_prepare, file=file, kind=kind, tables=tables, first=first, whose=whose)
    try:
        await trio.to_thread.run_sync(sync_names, file.parent)
    except OSError as error:
        raise DiskFailed(f"{file.parent}: {error.strerror}", "Check the disk, then start the node again") from error
    try:
        connection, rows = await portal.run(_connect, file, prepare)
    except (sqlite3.Error, StoreForeign, StoreDamaged) as error:
        ours = translate(error, file) if isinstance(error, sqlite3.Error) else error
        if not isinstance(ours, StoreLocked):
            await trio.to_thread.run_sync(_check_header, file)
        raise ours from error
    except trio.BrokenResourceError as error:
        raise DiskFailed(f"{file}: {error}", "Check the disk, then start the node again") from error
    return Database(portal, connection, file), rows


async def _connect(file: Path, prepare: Callable[[Connection], T]) -> tuple[_Connection, T]:
    connection = _Connection(partial(sqlite3.connect, file, isolation_level=None, timeout=0), iter_chunk_size=64)
    await connection
    try:
        return connection, await connection.call(prepare)
    except BaseException:
        await connection.close()
        raise


def _prepare(
    connection: Connection, file: Path, kind: Kind, tables: Sequence[str], first: Sequence[Statement],
    whose: str,
) -> list[Any]:  # fmt: skip
    """Take the lock, look what it is before anything is changed, make the tables of a new one."""

    def value(query: str) -> Any:
        return connection.execute(query).fetchone()[0]

    value("PRAGMA locking_mode = EXCLUSIVE")
    is_new = not value("SELECT count(*) FROM sqlite_master") and not value("PRAGMA application_id")
    if not is_new:
        kind.check(value("PRAGMA application_id"), value("PRAGMA user_version"), file)
    if value("PRAGMA journal_mode = WAL") != "wal":
        raise StoreForeign(f"{file}: this file system cannot hold a write-ahead log", "Use a local disk")
    for pragma in _PRAGMAS:
        connection.execute(pragma)
    if not is_new:  # can it be written to? SQLite says so at the first write only
        for statement in ("BEGIN IMMEDIATE", f"PRAGMA user_version = {kind.version}", "ROLLBACK"):
            connection.execute(statement)
    connection.execute("BEGIN IMMEDIATE")  # from here on the lock is held until the file is closed
    if is_new:
        numbers = (f"PRAGMA application_id = {kind.application_id}", f"PRAGMA user_version = {kind.version}")
        for statement in (*tables, *numbers):
            connection.execute(statement)
        execute(connection, first)
    rows = fetch(connection, whose)
    connection.execute("COMMIT")
    return rows


def _check_header(file: Path) -> None:
    """Of a file that could not be opened. Raises StoreDamaged where the header (https://sqlite.org/fileformat2.html,
    1.3) has what SQLite refuses as if the file were read-only, or a newer SQLite's: a write version beyond 2, a schema
    format beyond 4. Not of a file that is held: to close it would drop this process's locks on it (fcntl(2))."""
    try:
        with file.open("rb") as opened:
            header = opened.read(100)
    except OSError:
        return  # what SQLite said stands
    if len(header) < 100 or not header.startswith(b"SQLite format 3\0"):
        return  # new, cut short or no database: SQLite says which
    if header[18] > 2 or int.from_bytes(header[44:48]) > 4:
        raise StoreDamaged(f"{file}: the header of the database is damaged", DAMAGED)
