"""The registry: a region's log, its map and its home records, in one SQLite file and a mark beside it.

One transaction a batch: entries, tiles, map, versions and the signed head. Nothing of it is answered, or shown to a
witness, before that is committed and marked (DESIGN section 4, rules 1 and 5): a checkpoint that went out is never
contradicted by what comes after a crash. In memory are the tree's frontier and the map's crown, 4 MiB.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Final

from cluster.core.epochmap import BITS, Crown
from cluster.core.homelog import EpochEntry, Evidence
from relay.core.tlog import Note, Tile, frontier, parse_checkpoint, parse_note
from cluster.registrar import tables
from cluster.registrar.tables import Book, Found, Head, Item, Sign
from relay.core.codec import encode
from relay.core.trust import HomeRecord
from relay.errors import RolledBack, StoreDamaged, StoreForeign
from relay.journal.database import DAMAGED, Connection, Database, Kind, open_database
from relay.journal.mark import Mark, Marked, behind
from relay.journal.portal import Portal

_KIND: Final = Kind("registry", 0x50687267, 3)  # "Phrg"


class Registry:
    """An open registry. Made by `open_registry`. One task appends; anybody reads.

    Methods raise StoreDamaged, and DiskFailed from the first I/O error on (rule 7)."""

    def __init__(self, db: Database, book: Book, mark: Mark, sign: Sign) -> None:
        self.db = db
        self._book, self._mark, self._sign = book, mark, sign
        self._epoch: tuple[Note, bytes, bytes] | None = None  # the head, cosigned; the epoch's entry and its staple

    @property
    def head(self) -> Head:
        """The newest batch that is durable."""
        return self._book.head

    async def append(self, items: Sequence[Item], time_ms: int) -> Head:
        """Log these records and released requests, which were verified in this order, and an epoch: durable on
        return."""
        size = sum(len(item.signed if isinstance(item, HomeRecord) else item.request) for item in items)
        head = await self.db.write(4 * size, self._append, items, time_ms)
        await self.db.fold_wal()
        return head

    def _append(self, connection: Connection, items: Sequence[Item], time_ms: int) -> Head:
        head = tables.append(connection, self._book, items, time_ms, self._sign)
        self._mark.write(_marked(head))
        self._book.head = head
        return head

    async def look(self, users: Sequence[tuple[bytes, int]]) -> list[Found]:
        """For each (user, version): the newest record of the user, the one of that version, and the newest release,
        where there are any."""
        return await self.db.run(tables.look, self._book.crown, users)

    async def records(self, user: bytes, after: int, note: Note) -> list[bytes]:
        """The records of a user from version `after` + 1 on, each with its staple. `note`: the head, cosigned."""
        return await self.db.run(tables.records, self._book.crown, user, after, note)

    async def staples(self, indexes: Sequence[int], note: Note) -> list[bytes]:
        """The staples of these entries, with this (cosigned) checkpoint of the log."""
        return await self.db.run(tables.staples, indexes, parse_checkpoint(note.text).size, note)

    async def evidence(self, user: bytes, note: Note) -> Evidence:
        """What the map of the head says of a user. `note`: the head, cosigned."""
        if self._epoch is None or self._epoch[0] != note:
            self._epoch = note, *await self.db.run(tables.last_epoch, self.head.size, note)
        return Evidence(*self._epoch[1:], await self.db.run(tables.map_proof, self._book.crown, user))

    async def consistency(self, old: int, new: int) -> tuple[bytes, ...]:
        """The proof from one size to another, neither beyond the head."""
        return await self.db.run(tables.consistency, old, new)

    async def tile(self, tile: Tile) -> bytes | None:
        """A tile of hashes, cut to the width that is asked for; None where there is none so wide."""
        return await self.db.run(tables.tile, tile)

    async def bundle(self, number: int, width: int) -> bytes | None:
        """An entry bundle; None where there is none so wide."""
        return await self.db.run(tables.bundle, number, width)


@asynccontextmanager
async def open_registry(file: Path, portal: Portal, origin: str, sign: Sign, now_ms: int) -> AsyncIterator[Registry]:
    """Open the registry of the log `origin`, or make it: with an empty map as its first epoch.

    Raises StoreLocked, StoreForeign (another log's), StoreDamaged, DiskFailed; RolledBack where it is older than its
    mark says: then nothing may be signed with the log's key any more until the newer copy is back."""
    first = [("INSERT INTO head VALUES (1, ?, 0, x'', 0, 0, 0)", [(origin,)])]
    db, rows = await open_database(
        portal, file, _KIND, tables=tables.TABLES, first=first,
        whose="SELECT origin, size, note, epoch, users, time FROM head",
    )  # fmt: skip
    try:
        if len(rows) != 1:
            raise StoreDamaged(f"{file}: its head is missing", DAMAGED)
        if rows[0][0] != origin:
            raise StoreForeign(f"{file}: the registry of the log {rows[0][0]}, not {origin}", "Check [paths] data")
        book = await db.run(_load, file, rows[0])
        mark = Mark(file.with_name(file.name + ".mark"))
        try:
            _check_mark(mark, book.head, file)
            registry = Registry(db, book, mark, sign)
            if book.head.size == 0:
                await registry.append((), now_ms)
            yield registry
        finally:
            mark.close()
    finally:
        await db.close()


def _load(connection: Connection, file: Path, row: tuple[str, int, bytes, int, int, int]) -> Book:
    """Head, frontier and crown; they have to be those of the signed checkpoint."""
    origin, size, note, epoch, users, time = row
    connection.execute(tables.BROUGHT)
    tree = frontier(size, tables.edge_tiles(connection, size))
    crown = Crown.load(tables.summaries(connection), BITS)
    book = Book(origin, Head(size, tree.root(), note, epoch, users, time), tree, crown)
    if size:
        checkpoint = parse_checkpoint(parse_note(note).text)
        last = encode(EpochEntry(epoch, crown.root, users, time))
        same = (checkpoint.origin, checkpoint.size, checkpoint.root) == (origin, size, book.head.root)
        if not same or tables.entry(connection, size - 1) != last:
            raise StoreDamaged(f"{file}: tiles, map and the signed checkpoint at {size} do not agree", DAMAGED)
    return book


def _marked(head: Head) -> Marked:
    return Marked(head.size, sha256(b"registry").digest()[:16], 0, b"", head.size, head.root)


def _check_mark(mark: Mark, head: Head, file: Path) -> None:
    if mark.newest is None and head.size <= 1:
        return  # made, and stopped before its first mark
    if (what := behind(mark.newest, _marked(head))) is not None:
        raise RolledBack(
            f"{file}: {what}",
            "Nothing is signed: a second history of the log would be a fork, and end the region's trust. Put back the "
            "newest copy of this directory",
        )
