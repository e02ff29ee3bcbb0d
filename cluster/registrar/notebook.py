"""An auditor's own directory: every checkpoint that it ever saw, and the log as far as it has replayed it.

It keeps its own tiles and its own map, made from the entries alone, and the records of each user. So the next
audit goes on where the last one stopped, and what the log once showed is held against what it shows now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from cluster.core.epochmap import BITS, Crown
from relay.core.tlog import Frontier, Tile, frontier
from cluster.enrolment import Asked, read_request
from cluster.registrar import tables
from relay.core.trust import HomeRecord, read_home
from relay.errors import StoreDamaged, StoreForeign
from relay.journal.database import DAMAGED, Connection, Database, Kind, fetch, open_database
from relay.journal.portal import Portal

_KIND: Final = Kind("audit of a log", 0x50686175, 3)  # "Phau"
_TABLES: Final = (
    *tables.TREES,
    "CREATE TABLE users (user BLOB, version INTEGER, signed BLOB NOT NULL, PRIMARY KEY (user, version)) WITHOUT ROWID",
    "CREATE TABLE releases (user BLOB PRIMARY KEY, released BLOB NOT NULL) WITHOUT ROWID",  # the newest of each
    "CREATE TABLE checkpoints (note BLOB PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE replayed (one INTEGER PRIMARY KEY CHECK (one = 1), log TEXT NOT NULL, size INTEGER NOT NULL,
       epoch INTEGER NOT NULL, users INTEGER NOT NULL, time INTEGER NOT NULL)""",
)
_CHECKPOINT: Final = "INSERT OR IGNORE INTO checkpoints VALUES (?, ?, ?)"


@dataclass(frozen=True)
class Replayed:
    """How far: entries, the number of the last epoch (-1: none yet), users, and that epoch's time."""

    size: int = 0
    epoch: int = -1
    users: int = 0
    time: int = 0


class Notebook:
    """An open directory. Made by `open_notebook`."""

    def __init__(self, db: Database, replayed: Replayed, tree: Frontier, crown: Crown) -> None:
        self.replayed, self.tree, self.crown = replayed, tree, crown
        self._db = db

    async def saw(self, note: bytes, size: int, root: bytes) -> None:
        """Keep a checkpoint that the log signed; durable on return."""
        await self._db.commit(len(note), (_CHECKPOINT, [(note, size, root)]))

    async def checkpoints(self) -> list[tuple[int, bytes]]:
        """Size and root of every checkpoint that was ever seen."""
        return await self._db.run(fetch, "SELECT DISTINCT size, root FROM checkpoints ORDER BY size")

    async def newest(self, user: bytes) -> HomeRecord | None:
        """The newest record of a user that was replayed."""
        newest: HomeRecord | None = None
        for (signed,) in await self._db.run(fetch, "SELECT signed FROM users WHERE user = ? ORDER BY version", (user,)):
            newest = read_home(signed, newest)  # with the devices that there were: none of them comes back
        return newest

    async def put_in_map(self, records: Sequence[HomeRecord]) -> None:
        """These records are the newest of their users now. Not durable before `advance`."""
        await self._db.run(self._put, records)

    async def released(self, user: bytes) -> Asked | None:
        """The newest request of a user's whose release was replayed."""
        rows = await self._db.run(fetch, "SELECT released FROM releases WHERE user = ?", (user,))
        return read_request(rows[0][0]) if rows else None

    async def let_go(self, released: Asked) -> None:
        """The newest release of a user is this now. Not durable before `advance`."""
        await self._db.run(self._let_go, released)

    def _let_go(self, connection: Connection, released: Asked) -> None:
        _begin(connection)
        connection.execute("REPLACE INTO releases VALUES (?, ?)", (released.user, released.request))

    def _put(self, connection: Connection, records: Sequence[HomeRecord]) -> None:
        _begin(connection)
        tables.put_in_map(connection, self.crown, [(0, record) for record in records])
        connection.executemany("REPLACE INTO users VALUES (?, ?, ?)", [(r.user, r.version, r.signed) for r in records])

    async def edge(self) -> dict[Tile, bytes]:
        """The tiles that what comes next goes into."""
        return await self._db.run(tables.edge_tiles, self.replayed.size)

    async def advance(self, to: Replayed, tiles: Mapping[Tile, bytes], leaves: Sequence[bytes]) -> None:
        """So far everything was looked at; durable on return."""
        await self._db.write(len(leaves) * 32, self._advance, to, tiles)
        await self._db.fold_wal()
        self.tree = self.tree.extend(leaves)
        self.replayed = replace(to)

    def _advance(self, connection: Connection, to: Replayed, tiles: Mapping[Tile, bytes]) -> None:
        _begin(connection)
        tables.put_tiles(connection, tiles)
        connection.execute(
            "UPDATE replayed SET size = ?, epoch = ?, users = ?, time = ?", (to.size, to.epoch, to.users, to.time)
        )
        connection.execute("COMMIT")

    async def tile(self, tile: Tile) -> bytes | None:
        """A tile that the entries made."""
        return await self._db.run(tables.tile, tile)

    async def root_at(self, size: int) -> bytes:
        """The root of the log's first `size` entries, which were replayed."""
        return frontier(size, await self._db.run(tables.edge_tiles, size)).root()


def _begin(connection: Connection) -> None:
    """What is looked at before `advance` is one transaction with it."""
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")


@asynccontextmanager
async def open_notebook(directory: Path, portal: Portal, log: str) -> AsyncIterator[Notebook]:
    """Open an auditor's directory, or make it. `log`: the log's verifier key.

    Raises StoreLocked, StoreForeign (another log's), StoreDamaged, DiskFailed."""
    file = directory / "audit.sqlite"
    first = [("INSERT INTO replayed VALUES (1, ?, 0, -1, 0, 0)", [(log,)])]
    whose = "SELECT log, size, epoch, users, time FROM replayed"
    db, rows = await open_database(portal, file, _KIND, tables=_TABLES, first=first, whose=whose)
    try:
        if len(rows) != 1:
            raise StoreDamaged(f"{file}: it does not say how far it came", DAMAGED)
        if rows[0][0] != log:
            raise StoreForeign(f"{file}: the audit of another log, or of one with another key", "Choose another --dir")
        replayed = Replayed(*rows[0][1:])
        tiles = await db.run(tables.edge_tiles, replayed.size)
        crown = await db.run(lambda connection: Crown.load(tables.summaries(connection), BITS))
        yield Notebook(db, replayed, frontier(replayed.size, tiles), crown)
    finally:
        await db.close()
