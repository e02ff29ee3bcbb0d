"""The highest home record that was seen of each foreign user: kept before it is used (DESIGN section 5, rule 5).

One row a user: version, and keyed hashes of the user id and of the record's digest (in version 1 they are the same).
The key is made with the file and rests in it: who has the file can test an id that he knows, and cannot list anybody.
SQLite in WAL mode, synchronous=FULL, through the portal; a version only ever rises.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

import aiosqlite
import trio

from relay.core.trust import HomeRecord
from relay.errors import DiskFailed, StoreDamaged, StoreForeign
from relay.journal.portal import Portal
from relay.journal.store import let_go, translate

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_APPLICATION_ID: Final = 0x50687365  # "Phse", in the header of the database file
_FORMAT: Final = 1
_SETUP: Final = (
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL)",
    "CREATE TABLE seen (user BLOB PRIMARY KEY, version INTEGER NOT NULL, mark BLOB NOT NULL) WITHOUT ROWID",
    f"PRAGMA application_id = {_APPLICATION_ID}",
    f"PRAGMA user_version = {_FORMAT}",
)
_RAISE: Final = """
    INSERT INTO seen (user, version, mark) VALUES (?, ?, ?)
    ON CONFLICT (user) DO UPDATE SET version = excluded.version, mark = excluded.mark
    WHERE excluded.version > seen.version
"""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A version of some user's home record, and the keyed hash of its digest."""

    version: int
    mark: bytes


class Seen:
    """The open file. Made by `open_seen`. After the first I/O error every call raises DiskFailed (rule 7)."""

    def __init__(self, portal: Portal, connection: aiosqlite.Connection, file: Path, key: bytes) -> None:
        self._portal, self._connection, self._file, self._key = portal, connection, file, key
        self._failed: DiskFailed | None = None
        self._broken = trio.Event()

    async def highest(self, user: bytes) -> Sighting | None:
        """The highest version that was seen of `user`. Raises DiskFailed, StoreDamaged."""
        return await self._run(self._highest, self._hash(user, b"posthouse.seen"))

    def sighting(self, record: HomeRecord) -> Sighting:
        """What is kept of a verified record."""
        return Sighting(record.version, self._hash(record.digest, b"posthouse.mark"))

    async def raise_to(self, user: bytes, sighting: Sighting) -> Sighting:
        """Keep `sighting` if it is higher; durable on return. What is the highest now: the same, unless somebody else
        was faster. Raises DiskFailed, StoreDamaged."""
        return await self._run(self._raise, self._hash(user, b"posthouse.seen"), sighting)

    def _hash(self, data: bytes, person: bytes) -> bytes:
        return blake2b(data, digest_size=32, key=self._key, person=person).digest()

    async def _highest(self, name: bytes) -> Sighting | None:
        rows = await self._connection.execute_fetchall("SELECT version, mark FROM seen WHERE user = ?", (name,))
        return next((Sighting(*row) for row in rows), None)

    async def _raise(self, name: bytes, sighting: Sighting) -> Sighting:
        await self._connection.execute_fetchall(_RAISE, (name, sighting.version, sighting.mark))
        return await self._highest(name) or sighting

    async def failed(self) -> None:
        """Wait until the disk fails, and raise DiskFailed: whoever runs the node stops it (rule 7)."""
        await self._broken.wait()
        assert self._failed is not None
        raise self._failed.with_traceback(None)

    def _fail(self, error: DiskFailed) -> None:
        self._failed = error
        self._broken.set()

    async def _run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        if self._failed is not None:
            raise self._failed.with_traceback(None)
        try:
            return await self._portal.run(function, *args)
        except sqlite3.Error as error:
            ours = translate(error, self._file)
            if isinstance(ours, DiskFailed):
                self._fail(ours)
            raise ours from error
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            failed = DiskFailed(f"{self._file}: {error}", "Check the disk, then start the node again")
            self._fail(failed)
            raise failed from error


@asynccontextmanager
async def open_seen(file: Path, portal: Portal, fresh_key: bytes) -> AsyncIterator[Seen]:
    """Open the file, or make it with mode 0600 and `fresh_key` (32 random bytes) as its hash key.

    Raises StoreLocked, StoreForeign (no such file of ours, or a newer format), StoreDamaged, DiskFailed."""
    try:
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
        connection, key = await portal.run(_connect, file, fresh_key)
    except OSError as error:
        raise DiskFailed(f"{file}: {error.strerror}", "Check the directory and its permissions") from error
    except sqlite3.Error as error:
        raise translate(error, file) from error
    try:
        yield Seen(portal, connection, file, key)
    finally:
        await let_go(portal, connection)


async def _connect(file: Path, fresh_key: bytes) -> tuple[aiosqlite.Connection, bytes]:
    connection = await aiosqlite.connect(file, isolation_level=None, timeout=0)
    try:
        return connection, await _prepare(connection, file, fresh_key)
    except BaseException:
        await connection.close()
        raise


async def _prepare(connection: aiosqlite.Connection, file: Path, fresh_key: bytes) -> bytes:
    async def value(query: str) -> Any:
        (row,) = await connection.execute_fetchall(query)
        return row[0]

    await value("PRAGMA locking_mode = EXCLUSIVE")
    application, version = await value("PRAGMA application_id"), await value("PRAGMA user_version")
    is_new = not application and not await value("SELECT count(*) FROM sqlite_master")
    if not is_new and (application, version) != (_APPLICATION_ID, _FORMAT):
        raise StoreForeign(f"{file}: not what this version keeps there", "Check [paths] data, or upgrade posthouse")
    await value("PRAGMA journal_mode = WAL")
    await connection.execute_fetchall("PRAGMA synchronous = FULL")
    await connection.execute_fetchall("BEGIN IMMEDIATE")  # takes the lock, which is held until the file is closed
    if is_new:
        for statement in _SETUP:
            await connection.execute_fetchall(statement)
        await connection.execute_fetchall("INSERT INTO meta VALUES (1, ?)", (fresh_key,))
    keys = list(await connection.execute_fetchall("SELECT key FROM meta"))
    await connection.execute_fetchall("COMMIT")
    if len(keys) != 1 or len(keys[0][0]) != 32:
        raise StoreDamaged(f"{file}: its key is missing", "Keep the file; restore it from a backup")
    found: bytes = keys[0][0]
    return found
