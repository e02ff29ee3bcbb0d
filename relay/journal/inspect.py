"""Reading the store of a stopped node: for auditors and the demo's scanner. Nothing is written, nothing repaired."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from relay.core.block import Block
from relay.errors import OperatorError, PosthouseError, StoreDamaged, StoreForeign
from relay.journal.api import BlockRow, CheckpointHead, Meta
from relay.journal.database import DAMAGED, found_in, translate
from relay.journal.files import STORE_FILE
from relay.journal.queries import (
    ALL_FACTS, CHECKPOINT, CHECKPOINT_ROWS, GENERATION, GENERATIONS, KIND, META, NEXT_BLOCK, NEXT_STAGED, TERM, TIPS,
    read_meta,
)
from relay.journal.rows import Sealer, check_link, check_rows, verify_checkpoint
from relay.journal.seal import StorageRing


Told = Callable[[PosthouseError], None]
SEARCHED = 250_000  # blocks beyond a store's own that a checkpoint may be of which it was fetching; some seconds


@dataclass(frozen=True, slots=True)
class Saved:
    """The rows of one generation of a checkpoint, taken after block `index`; an unfinished one, and one that was being
    let go, lacks its last."""

    generation: int
    index: int
    current: bool
    rows: list[bytes]


class StoppedStore:
    """A store that no node serves, as it is: what the write-ahead log has is part of it. Made by `open_stopped`."""

    def __init__(self, connection: sqlite3.Connection, file: Path, meta: Meta, sealer: Sealer) -> None:
        self.cell = meta.cell
        self.federation = meta.federation
        self.log_id = meta.log_id
        self.first = meta.first
        self._connection = connection
        self._file = file
        self._meta = meta
        self._sealer = sealer

    def blocks(self, told: Told | None = None) -> Iterator[Block]:
        """All blocks that are kept, in order, each verified and chained to the one before.

        Raises StoreDamaged naming the block; StoreForeign where its storage key is not in the ring. `told` hears of
        these instead, and gets what follows as far as it can be read, too."""
        meta = self._meta
        return self._each(NEXT_BLOCK, Block(meta.log_id, meta.first - 1, b"", meta.time, (), meta.prev), told)

    def staged(self, told: Told | None = None) -> Iterator[Block]:
        """The blocks of a snapshot that was being fetched, verified in the same way."""
        return self._each(NEXT_STAGED, None, told)

    def _each(self, query: str, before: Block | None, told: Told | None) -> Iterator[Block]:
        """Every block that `query` finds. `before`: the one that they have to follow, or what is left of it."""
        at = before.index + 1 if before else 0
        while rows := _rows(self._connection, query, self._file, (at,)):
            row, block = BlockRow(*rows[0]), None
            at = row.index + 1
            with self._telling(told):
                block = self._sealer.block(row)
            if block is not None and before is not None:
                with self._telling(told):
                    check_rows([row], before.index + 1)
                    check_link(block, before)
            if block is not None:
                yield block
            before = block

    @contextmanager
    def _telling(self, told: Told | None) -> Iterator[None]:
        try:
            with found_in(self._file):
                yield
        except (StoreDamaged, StoreForeign) as error:
            if told is None:
                raise
            told(error)

    def term(self, index: int) -> int:
        """The term of block `index`, or of the one before the oldest that is kept; 0 in a cell of one. What `blocks`
        verified has this term."""
        if index < self.first:
            return self._meta.prev_term
        return int(_rows(self._connection, TERM, self._file, (index,))[0][0])

    def checkpoint(self) -> tuple[int, list[bytes]] | None:
        """(the block after which it was taken, its rows), verified. Raises StoreDamaged, StoreForeign."""
        heads = _rows(self._connection, CHECKPOINT, self._file)
        if not heads:
            return None
        head = CheckpointHead(*heads[0])
        sealed = _rows(self._connection, CHECKPOINT_ROWS, self._file, (head.generation, 0, head.count))
        with found_in(self._file):
            rows = [self._sealer.open_checkpoint_row(head.index, n, row) for n, (row,) in enumerate(sealed)]
            verify_checkpoint(head, self.log_id, rows)
        return head.index, rows


    def checkpoints(self, told: Told) -> Iterator[Saved]:
        """Every generation of a checkpoint that has rows here: the current one, verified, and what else there is.
        `told` hears of what cannot be opened."""
        heads = [CheckpointHead(*row) for row in _rows(self._connection, CHECKPOINT, self._file)]
        known = {head.generation: head for head in heads}
        here: set[int] = {row[0] for row in _rows(self._connection, GENERATIONS, self._file)}
        for generation in sorted(here | known.keys()):
            sealed, head = _rows(self._connection, GENERATION, self._file, (generation,)), known.get(generation)
            index = head.index if head else self._index_of(*sealed[0])
            if index is None:
                what = f"{self._file}: {len(sealed)} rows of an unfinished checkpoint cannot be unsealed"
                told(StoreForeign(what, "Start the node, which clears them, stop it, and look again"))
                continue
            rows: list[bytes] = []
            with self._telling(told):
                rows += (self._sealer.open_checkpoint_row(index, ordinal, row) for ordinal, row in sealed)
                if head is not None:
                    verify_checkpoint(head, self.log_id, rows)
            yield Saved(generation, index, head is not None, rows)

    def _index_of(self, ordinal: int, sealed: bytes) -> int | None:
        """The block after which a checkpoint was taken whose head is not written: no other opens its rows. None where
        it is far beyond everything that this store has."""
        tips: list[int] = [row[0] or 0 for row in _rows(self._connection, TIPS, self._file)]
        tip = max(tips)
        for index in chain(tips[:1], range(tip, -1, -1), range(tip + 1, tip + SEARCHED)):
            try:
                self._sealer.open_checkpoint_row(index, ordinal, sealed)
            except StoreDamaged:
                continue
            except StoreForeign:
                return None
            return index
        return None

    def facts(self, told: Told) -> Iterator[tuple[bytes, bytes]]:
        """Every fact of the residency check: key and value. `told` hears of what cannot be opened."""
        for key, sealed in _rows(self._connection, ALL_FACTS, self._file):
            value = None
            with self._telling(told):
                value = self._sealer.open_fact(key, sealed)
            if value is not None:
                yield key, value


def _rows(connection: sqlite3.Connection, query: str, file: Path, values: tuple[int, ...] = ()) -> list[Any]:
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise translate(error, file) from error
    except UnicodeDecodeError as error:  # sqlite3's, for text that is none
        raise StoreDamaged(f"{file}: {error}", DAMAGED) from error


@contextmanager
def open_stopped(path: Path, ring: StorageRing) -> Iterator[StoppedStore]:
    """Open the store in the directory `path` for reading; no node can start on it meanwhile. The directory must be
    writable, because SQLite makes its index of the write-ahead log there (and takes it away again).

    Raises StoreLocked where a node holds it, StoreForeign, StoreDamaged, OperatorError where there is none."""
    file = path / STORE_FILE
    if not file.is_file():
        raise OperatorError(f"{path}: no store here ({STORE_FILE} is missing)", "Name a node's data directory")
    wal, index = file.with_name(STORE_FILE + "-wal"), file.with_name(STORE_FILE + "-shm")
    ours = [extra for extra in (wal, index) if not extra.exists()]
    connection = sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=0)
    try:
        (application_id,) = _rows(connection, "PRAGMA application_id", file)[0]
        (version,) = _rows(connection, "PRAGMA user_version", file)[0]
        KIND.check(application_id, version, file)
        _rows(connection, "BEGIN", file)  # one view, and a shared lock that keeps a node out
        meta = read_meta(_rows(connection, META, file), file)
        sealer = Sealer(ring, meta.log_id, _no_randomness)
        sealer.check_key(meta.key_check, file)
        yield StoppedStore(connection, file, meta, sealer)
        for extra in ours:  # while the shared lock is held, so that no node's file is taken away
            extra.unlink(missing_ok=True)
    finally:
        connection.close()


def _no_randomness(count: int) -> bytes:
    raise AssertionError("a reader seals nothing")
