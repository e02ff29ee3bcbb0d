"""A log's store in one database file, and the mark beside it: relay.journal.api.LogStore on a real disk.

What the rows mean is rows.py's. Each method is one call of the connection's thread; a write's mark is part of its call.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from itertools import count, repeat
from pathlib import Path
from typing import Any

from relay.errors import DiskFailed, StoreDamaged, StoreForeign
from relay.journal import queries as sql
from relay.journal.api import BlockRow, CheckpointHead, CheckpointRow, FactRow, Hard, Meta, Place, Write
from relay.journal.database import DAMAGED, Connection, Database, Statement, execute, fetch, open_database, transact
from relay.journal.files import mark_file, sync_file, wal_file
from relay.journal.mark import Mark, Marked, behind
from relay.journal.portal import Portal
from relay.journal.queries import State
from relay.journal.rows import check_kinds, checkpoint_rows, within
from relay.limits import KIB, MIB, READ_BATCH

# What one transaction deletes, so that appends get in between: SQLite overwrites every page of it, twice (7 ms a MiB).
_RELEASE_STEP = 256  # blocks, or as many as
_DELETE_STEP = 1 * MIB  # bytes; one row at least
_DELETED = 8 * KIB  # bytes of write-ahead log that deleting a row takes beside its own
_FACTS = 1_000  # facts fetched at a time
_TERMS = 4_096  # blocks whose terms are fetched at a time
_NO_END = 2**63 - 1


class Store:
    """An open store. Made by `open_store`. Methods raise as LogStore says."""

    def __init__(self, db: Database, mark: Mark, meta: Meta, state: State, lost: str | None) -> None:
        self.file = db.file
        self.meta = meta
        self.hard, self.commit, self.known = state.hard, state.commit, dict(state.known)
        self.behind = lost
        self._db = db
        self._mark = mark
        self._seq = state.seq

    @property
    def on_failure(self) -> Callable[[DiskFailed], None]:
        return self._db.on_failure

    @on_failure.setter
    def on_failure(self, told: Callable[[DiskFailed], None]) -> None:
        self._db.on_failure = told

    def check(self) -> None:
        self._db.check()

    # --- the log ---------------------------------------------------------------------------------
    async def write(self, write: Write) -> None:
        hard = self.hard if write.hard is None else write.hard
        commit = self.commit if write.commit is None else write.commit
        known = self.known if write.known is None else dict(write.known)
        blocks = [(row.index, row.term, row.prev, row.time, row.hash, row.sealed) for row in write.rows]
        statements: list[Statement] = [(sql.ADD_BLOCK, blocks), (sql.ADD_FACT, write.facts)]
        if write.truncate_from is not None:
            cut = [(write.truncate_from,)]
            statements = [(sql.CUT_BLOCKS, cut), (sql.CUT_FACTS, cut), *statements]
        size = sum(len(row.sealed) for row in write.rows)
        await self._change(size, statements, State(self._seq + 1, hard, commit, known), self.meta)

    async def stage_blocks(self, rows: Sequence[BlockRow]) -> None:
        values = [(row.index, row.term, row.prev, row.time, row.hash, row.sealed) for row in rows]
        await self._db.commit(sum(len(row.sealed) for row in rows), (sql.STAGE_BLOCK, values))

    async def install(
        self, meta: Meta, head: CheckpointHead, facts: Sequence[FactRow], known: Mapping[bytes, int], commit: int
    ) -> None:
        statements: list[Statement] = [
            *sql.DROP_LOG, (sql.TAKE_STAGED, [()]), (sql.DROP_STAGED, [()]), (sql.ADD_FACT, facts), _finish(head),
            (sql.DROP_CHECKPOINT_ROWS, [_kept(head.generation)]),
        ]  # fmt: skip
        statements.append((sql.SET_META, [sql.meta_values(meta)]))
        size = sum(len(sealed) for _, _, sealed in facts)
        await self._change(size, statements, State(self._seq + 1, self.hard, commit, dict(known)), meta)

    async def _change(self, size: int, statements: Sequence[Statement], state: State, meta: Meta) -> None:
        if self.behind is not None:
            raise StoreDamaged(f"{self.file}: {self.behind}", DAMAGED)
        await self._db.write(size, _change, statements, state, meta, self._mark)
        self.meta, self._seq = meta, state.seq
        self.hard, self.commit, self.known = state.hard, state.commit, dict(state.known)

    async def ends(self) -> tuple[int, int] | None:
        rows = await self._db.run(fetch, sql.ENDS)
        return None if rows[0][0] is None else (rows[0][0], rows[0][1])

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        return await self._db.run(_blocks, first, last)

    async def terms(self, first: int, last: int) -> list[tuple[int, int, bytes]]:
        rows = await self._db.run(fetch, sql.TERMS, (first, last, _TERMS))
        return self._of_kinds(rows, (int, int, bytes), "a block")

    async def repair(self, row: BlockRow) -> None:
        values = (row.index, row.term, row.prev, row.time, row.hash, row.sealed)
        await self._db.commit(len(row.sealed), (sql.REPAIR_BLOCK, [values]))

    async def release(self, first: int, below: int, members: bytes | None = None) -> int:
        upto = min(below, first + _RELEASE_STEP)
        meta = self.meta if members is None else replace(self.meta, members=members)
        self.meta = await self._db.write(_DELETE_STEP + _DELETED * (upto - first), _release, meta, first, upto)
        return self.meta.first

    # --- checkpoint ------------------------------------------------------------------------------
    async def checkpoint(self) -> CheckpointHead | None:
        rows = self._of_kinds(await self._db.run(fetch, sql.CHECKPOINT), (int, int, int, bytes), "the checkpoint")
        return CheckpointHead(*rows[0]) if rows else None

    async def checkpoint_rows(self, generation: int, first: int) -> list[CheckpointRow]:
        return await self._db.run(_checkpoint_rows, generation, first)

    async def clear_unfinished(self, generation: int, lent: int | None = None) -> bool:
        return await self._db.write(_DELETE_STEP, _clear, _kept(generation, lent))

    async def add_checkpoint_rows(self, generation: int, ordinal: int, rows: Sequence[bytes | Place]) -> None:
        size, values = 0, []
        for place, row in zip(map(Place, repeat(generation), count(ordinal)), rows, strict=False):
            lies, sealed = (row, b"") if isinstance(row, Place) else (place, row)
            values.append((*place, *lies, sealed))
            size += len(sealed)
        await self._db.commit(size, (sql.ADD_CHECKPOINT_ROW, values))

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        await self._db.commit(0, _finish(head))

    # --- the rest --------------------------------------------------------------------------------
    async def facts(self, after: bytes, upto: int | None = None) -> list[FactRow]:
        rows = await self._db.run(fetch, sql.FACTS, (after, _NO_END if upto is None else upto, _FACTS))
        return self._of_kinds(rows, (bytes, int, bytes), "a residency fact")

    def _of_kinds(self, rows: list[Any], kinds: Sequence[type], what: str) -> list[Any]:
        for row in rows:
            check_kinds(row, kinds, f"{self.file}: {what}")
        return rows

    async def fold_wal(self) -> None:
        await self._db.fold_wal()

    async def clear_wal(self) -> None:
        await self._db.clear_wal()

    async def close(self) -> None:
        await self._db.close()
        self._mark.close()


# --- in the connection's thread ------------------------------------------------------------------
def _change(
    connection: Connection, statements: Sequence[Statement], state: State, meta: Meta, mark: Mark
) -> None:
    connection.execute("BEGIN IMMEDIATE")
    execute(connection, statements)
    connection.execute(sql.SET_STATE, sql.state_values(state))
    marked = _marked(connection, state, meta)
    connection.execute("COMMIT")
    mark.write(marked)


def _marked(connection: Connection, state: State, meta: Meta) -> Marked:
    """What the mark should say about what the connection sees. Raises StoreDamaged."""
    rows = fetch(connection, sql.LAST)
    index, last = rows[0] if rows else (meta.first - 1, meta.prev)
    if not isinstance(last, bytes) or len(last) != len(meta.prev):
        raise StoreDamaged(f"block {index}: its hash is none")
    return Marked(state.seq, meta.store, state.hard.term, state.hard.vote, index, last)


def _blocks(connection: Connection, first: int, last: int) -> list[BlockRow]:
    sizes = fetch(connection, sql.SIZES, (first, last))
    return [BlockRow(*row) for row in fetch(connection, sql.BLOCKS, (first, within(sizes, first, READ_BATCH)))]


def _release(connection: Connection, meta: Meta, first: int, upto: int) -> Meta:
    upto = within(fetch(connection, sql.SIZES, (first, upto - 1)), first, _DELETE_STEP) + 1
    ends = fetch(connection, sql.END_OF, (upto - 1,))
    if not ends:
        raise StoreDamaged(f"block {upto - 1} is missing")
    prev, term, time = ends[0]
    meta = replace(meta, first=upto, prev=prev, prev_term=term, time=time)
    prune: Statement = (sql.PRUNE_FACTS, [(first, upto, upto)])
    transact(connection, (sql.SET_META, [sql.meta_values(meta)]), prune, (sql.DROP_BLOCKS, [(upto,)]))
    return meta


def _checkpoint_rows(connection: Connection, generation: int, first: int) -> list[CheckpointRow]:
    sizes = fetch(connection, sql.CHECKPOINT_SIZES, (generation, first))
    rows = fetch(connection, sql.CHECKPOINT_ROWS, (generation, first, within(sizes, first, READ_BATCH)))
    return checkpoint_rows(rows)


def _clear(connection: Connection, keep: tuple[int, int]) -> bool:
    """Rows go from the end: what a crash leaves of a checkpoint begins as it did, so that auditors can read it."""
    if rows := fetch(connection, sql.OTHER_SIZES, keep):
        transact(connection, (sql.DROP_OTHER_ROWS, [(*keep, within(rows, rows[0][0], _DELETE_STEP))]))
    elif blocks := fetch(connection, sql.STAGED_SIZES):
        transact(connection, (sql.UNSTAGE_BLOCKS, [(within(blocks, blocks[0][0], _DELETE_STEP),)]))
    else:
        return False
    return True


def _finish(head: CheckpointHead) -> Statement:
    return sql.SET_CHECKPOINT, [(head.generation, head.index, head.count, head.checksum)]


def _kept(generation: int, lent: int | None = None) -> tuple[int, int]:
    """Generations whose rows stay."""
    return generation, generation if lent is None else lent


# --- opening -------------------------------------------------------------------------------------
async def open_store(portal: Portal, file: Path, fresh: Meta) -> Store:
    """Open the store in `file`, or make it, with mode 0600 and `fresh` as its meta row. Raises as
    relay.journal.api.StoreEnv.open_store says."""
    schema = files("relay.journal").joinpath("schema.sql").read_text(encoding="utf-8").split(";\n")
    first: list[Statement] = [
        (sql.SET_META, [sql.meta_values(fresh)]), (sql.SET_STATE, [sql.state_values(State(0, Hard(), 0, {}))]),
    ]  # fmt: skip
    db, rows = await open_database(portal, file, sql.KIND, tables=schema, first=first, whose=sql.META)
    try:
        meta = _whose(sql.read_meta(rows, file), fresh, file)
        mark, state, lost = await db.run(_look, file, meta)
        return Store(db, mark, meta, state, lost)
    except BaseException:
        await db.close()
        raise


def _whose(meta: Meta, fresh: Meta, file: Path) -> Meta:
    if meta.federation != fresh.federation:
        raise StoreForeign(f"{file}: the store of another federation", "Check the root document and [paths] data")
    if meta.cell != fresh.cell:
        raise StoreForeign(f"{file}: the store of cell {meta.cell}, not of {fresh.cell}", "Check cell and [paths] data")
    return meta


def _look(connection: Connection, file: Path, meta: Meta) -> tuple[Mark, State, str | None]:
    """Hold the database against its mark. Unless it is behind, all that it shows is durable on return, and marked: what
    a killed process wrote last may be seen before it is on the disk, and must not be confirmed before."""
    state = sql.read_state(fetch(connection, sql.STATE), file)
    mark = Mark(mark_file(file))
    try:
        has = _marked(connection, state, meta)
        lost = behind(mark.newest, has)
        if lost is None:
            wal = wal_file(file)
            if wal.exists():
                sync_file(wal)
            if mark.newest != has:
                mark.write(has)
        return mark, state, lost
    except BaseException:
        mark.close()
        raise
