"""The highest home record that was seen of each foreign user: kept before it is used (DESIGN section 5, rule 5).

One row a user: version, and keyed hashes of the user id and of the record's digest (in version 1 they are the same).
The key is made with the file and rests in it: who has the file can test an id that he knows, and cannot list anybody.
A version only ever rises.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, Protocol

import trio

from relay.core.trust import HomeRecord
from relay.errors import DiskFailed, StoreDamaged
from relay.journal.database import DAMAGED, Connection, Database, Kind, fetch, open_database
from relay.journal.portal import Portal

_KIND: Final = Kind("directory", 0x50687365, 2)  # "Phse"
_TABLES: Final = (
    "CREATE TABLE meta (one INTEGER PRIMARY KEY CHECK (one = 1), key BLOB NOT NULL)",
    "CREATE TABLE seen (user BLOB PRIMARY KEY, version INTEGER NOT NULL, mark BLOB NOT NULL) WITHOUT ROWID",
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


class Seen(Protocol):
    """What the directory remembers. After the first I/O error every call raises DiskFailed (rule 7)."""

    async def highest(self, user: bytes) -> Sighting | None:
        """The highest version that was seen of `user`. Raises DiskFailed, StoreDamaged."""

    def sighting(self, record: HomeRecord) -> Sighting:
        """What is kept of a verified record."""

    async def raise_to(self, user: bytes, sighting: Sighting) -> Sighting:
        """Keep `sighting` if it is higher; durable on return. What is the highest now: the same, unless somebody else
        was faster. Raises DiskFailed, StoreDamaged."""

    async def failed(self) -> None:
        """Wait until the disk fails, and raise DiskFailed: whoever runs the node stops it (rule 7)."""


class SeenFile:
    """Seen in an open file. Made by `open_seen`."""

    def __init__(self, db: Database, key: bytes) -> None:
        self._db, self._key = db, key
        self._broken = trio.Event()
        self._failure: DiskFailed | None = None
        db.on_failure = self._fail

    async def highest(self, user: bytes) -> Sighting | None:
        return await self._db.run(_highest, self._hash(user, b"posthouse.seen"))

    def sighting(self, record: HomeRecord) -> Sighting:
        return Sighting(record.version, self._hash(record.digest, b"posthouse.mark"))

    async def raise_to(self, user: bytes, sighting: Sighting) -> Sighting:
        highest = await self._db.write(0, _raise, self._hash(user, b"posthouse.seen"), sighting)
        await self._db.fold_wal()
        return highest

    def _hash(self, data: bytes, person: bytes) -> bytes:
        return blake2b(data, digest_size=32, key=self._key, person=person).digest()

    async def failed(self) -> None:
        await self._broken.wait()
        assert self._failure is not None
        raise self._failure.with_traceback(None)

    def _fail(self, error: DiskFailed) -> None:
        self._failure = error
        self._broken.set()


def _highest(connection: Connection, name: bytes) -> Sighting | None:
    rows = fetch(connection, "SELECT version, mark FROM seen WHERE user = ?", (name,))
    return next((Sighting(*row) for row in rows), None)


def _raise(connection: Connection, name: bytes, sighting: Sighting) -> Sighting:
    connection.execute(_RAISE, (name, sighting.version, sighting.mark))
    return _highest(connection, name) or sighting


@asynccontextmanager
async def open_seen(file: Path, portal: Portal, fresh_key: bytes) -> AsyncIterator[SeenFile]:
    """Open the file, or make it with mode 0600 and `fresh_key` (32 random bytes) as its hash key.

    Raises StoreLocked, StoreForeign (no such file of ours, or another format), StoreDamaged, DiskFailed."""
    first = [("INSERT INTO meta VALUES (1, ?)", [(fresh_key,)])]
    db, keys = await open_database(portal, file, _KIND, tables=_TABLES, first=first, whose="SELECT key FROM meta")
    try:
        if len(keys) != 1 or len(keys[0][0]) != 32:
            raise StoreDamaged(f"{file}: its key is missing", DAMAGED)
        yield SeenFile(db, keys[0][0])
    finally:
        await db.close()
