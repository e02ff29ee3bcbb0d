"""One log in one database file: rows in, rows out. What they mean is rows.py's.

Writers come one at a time: the journal above holds the lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from importlib.resources import files
from pathlib import Path
from typing import Any

from relay.errors import StoreDamaged, StoreForeign
from relay.journal.database import DAMAGED, Database, open_database
from relay.journal.portal import Portal
from relay.journal.rows import (
    BLOCKS, CHECKPOINT, CHECKPOINT_ROWS, CHECKPOINT_SIZES, KIND, META, SIZES, BlockRow, CheckpointHead, Meta, within,
)
from relay.limits import KIB, READ_BATCH

_RELEASE_STEP = 256  # blocks that one transaction deletes, so that appends get in between
_RELEASED = 8 * KIB  # bytes of write-ahead log that deleting a block takes
_FACTS = 1_000  # facts fetched at a time


class Store:
    """An open store. Methods raise like those of `db`."""

    def __init__(self, db: Database, meta: Meta) -> None:
        self.db = db
        self.meta = meta

    # --- blocks ----------------------------------------------------------------------------------
    async def add_block(self, row: BlockRow, facts: Sequence[tuple[bytes, bytes]]) -> None:
        """Commit one block, and with it (key, sealed) facts."""
        insert = "INSERT INTO block (idx, prev, time, hash, sealed) VALUES (?, ?, ?, ?, ?)"
        values = (row.index, row.prev, row.time, row.hash, row.sealed)
        if not facts:
            await self.db.insert(len(row.sealed), insert, values)
            return
        replace = "REPLACE INTO fact (key, sealed) VALUES (?, ?)"
        await self.db.commit(len(row.sealed), (insert, [values]), (replace, facts))

    async def ends(self) -> tuple[int, int] | None:
        """Indexes of the oldest and the newest block that are kept."""
        rows = await self.db.run(self.db.fetch, "SELECT min(idx), max(idx) FROM block")
        return None if rows[0][0] is None else (rows[0][0], rows[0][1])

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        """Rows of blocks `first` … `last`, as many as fit into READ_BATCH, but at least one where there is one."""
        return await self.db.run(self._blocks, first, last)

    async def _blocks(self, first: int, last: int) -> list[BlockRow]:
        sizes = await self.db.fetch(SIZES, (first, last))
        rows = await self.db.fetch(BLOCKS, (first, within(sizes, first, READ_BATCH)))
        return [BlockRow(*row) for row in rows]

    async def release(self, first: int, below: int) -> int:
        """Delete some blocks from the oldest, `first`, on, but none from `below` on. Returns the new oldest."""
        upto = min(below, first + _RELEASE_STEP)
        floor = "UPDATE meta SET (first, prev, time) = (SELECT idx + 1, hash, time FROM block WHERE idx = ?)"
        delete = "DELETE FROM block WHERE idx < ?"
        await self.db.commit(_RELEASED * (upto - first), (floor, [(upto - 1,)]), (delete, [(upto,)]))
        return upto

    # --- checkpoint ------------------------------------------------------------------------------
    async def checkpoint(self) -> CheckpointHead | None:
        """The current checkpoint's head."""
        rows = await self.db.run(self.db.fetch, CHECKPOINT)
        return CheckpointHead(*rows[0]) if rows else None

    async def checkpoint_rows(self, generation: int, first: int) -> list[bytes]:
        """Sealed rows from ordinal `first` on, as many as one read should bring; none at the end."""
        return await self.db.run(self._checkpoint_rows, generation, first)

    async def _checkpoint_rows(self, generation: int, first: int) -> list[bytes]:
        sizes = await self.db.fetch(CHECKPOINT_SIZES, (generation, first))
        rows = await self.db.fetch(CHECKPOINT_ROWS, (generation, first, within(sizes, first, READ_BATCH)))
        return [row[0] for row in rows]

    async def clear_unfinished(self, generation: int) -> None:
        """Delete checkpoint rows of every generation but this one."""
        await self.db.write(0, self.db.fetch, "DELETE FROM checkpoint_row WHERE generation <> ?", (generation,))

    async def add_checkpoint_rows(self, generation: int, ordinal: int, sealed: Sequence[bytes]) -> None:
        """Write rows of a checkpoint that `finish_checkpoint` will make the current one."""
        rows = [(generation, ordinal + count, row) for count, row in enumerate(sealed)]
        insert = "INSERT INTO checkpoint_row (generation, ordinal, sealed) VALUES (?, ?, ?)"
        await self.db.commit(sum(map(len, sealed)), (insert, rows))

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        """Make `head` the current checkpoint and forget the one before, in one transaction."""
        replace = "REPLACE INTO checkpoint (only, generation, idx, count, checksum) VALUES (1, ?, ?, ?, ?)"
        delete = "DELETE FROM checkpoint_row WHERE generation <> ?"
        values = (head.generation, head.index, head.count, head.checksum)
        await self.db.commit(0, (replace, [values]), (delete, [(head.generation,)]))

    # --- the rest --------------------------------------------------------------------------------
    async def facts(self, after: bytes) -> list[tuple[bytes, bytes]]:
        """Some (key, sealed) facts with keys above `after`, in order; none at the end."""
        query = "SELECT key, sealed FROM fact WHERE key > ? ORDER BY key LIMIT ?"
        return [(row[0], row[1]) for row in await self.db.run(self.db.fetch, query, (after, _FACTS))]


async def open_store(portal: Portal, file: Path, fresh: Meta) -> Store:
    """Open the store of the federation and cell that `fresh` names, or make it, with mode 0600 and `fresh` as meta row.

    Raises StoreLocked, StoreForeign (another federation's or cell's, a newer format, no store of ours), StoreDamaged,
    DiskFailed."""
    schema = files("relay.journal").joinpath("schema.sql").read_text(encoding="utf-8").split(";\n")
    first = ("INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?, ?)", astuple(fresh))
    db, rows = await open_database(portal, file, KIND, tables=schema, first=first, whose=META)
    try:
        return Store(db, _whose(rows, fresh, file))
    except BaseException:
        await db.close()
        raise


def _whose(rows: Sequence[tuple[Any, ...]], fresh: Meta, file: Path) -> Meta:
    if not rows:
        raise StoreDamaged(f"{file}: its meta row is missing", DAMAGED)
    meta = Meta(*rows[0])
    if meta.federation != fresh.federation:
        raise StoreForeign(f"{file}: the store of another federation", "Check the root document and [paths] data")
    if meta.cell != fresh.cell:
        raise StoreForeign(f"{file}: the store of cell {meta.cell}, not of {fresh.cell}", "Check cell and [paths] data")
    return meta
