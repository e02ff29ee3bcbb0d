"""Reading the store of a stopped node: for auditors and the demo's scanner. Nothing is written, nothing repaired."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relay.core.block import Block
from relay.errors import OperatorError, PosthouseError, StoreDamaged, StoreForeign
from relay.journal.api import BlockRow, CheckpointHead, CheckpointRow, Meta
from relay.journal.database import DAMAGED, found_in, translate
from relay.journal.files import STORE_FILE
from relay.journal.queries import (
    ALL_FACTS, CHECKPOINT, CHECKPOINT_ORDINALS, CHECKPOINT_ROWS, KIND, META, NEXT_BLOCK, NEXT_STAGED, OTHER_GENERATIONS,
    TERM, read_meta,
)
from relay.journal.rows import Sealer, check_link, check_rows, checkpoint_rows, verify_checkpoint
from relay.journal.seal import StorageRing

Told = Callable[[PosthouseError], None]
_ALL = 2**62  # beyond every row's ordinal


@dataclass(frozen=True, slots=True)
class Saved:
    """The rows of one generation of a checkpoint, from the first on; an unfinished one, and one that was being let go,
    lacks its last. `rest`: others of it that lie there still. `name` for who reads about it."""

    generation: int
    name: str
    current: bool
    rows: list[bytes]
    rest: list[bytes]


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
        with found_in(self._file):
            rows = list(map(self._sealer.open_checkpoint_row, self._generation(head.generation)))
            verify_checkpoint(head, self.log_id, rows)
        return head.index, rows

    def checkpoints(self, told: Told) -> Iterator[Saved]:
        """Every generation of a checkpoint that has rows here: the current one, verified, and others that have what
        that has not. `told` hears of what cannot be opened."""
        heads = {row[0]: CheckpointHead(*row) for row in _rows(self._connection, CHECKPOINT, self._file)}
        current = max(heads, default=0)
        others = {row[0] for row in _rows(self._connection, OTHER_GENERATIONS, self._file, (current, current))}
        for generation in sorted(others | heads.keys()):
            head, rows = heads.get(generation), list[bytes]()
            with self._telling(told):
                rows += map(self._sealer.open_checkpoint_row, self._generation(generation))
                if head is not None:
                    verify_checkpoint(head, self.log_id, rows)
            name = f"checkpoint after block {head.index}" if head else f"unfinished or older checkpoint {generation}"
            ordinals = _rows(self._connection, CHECKPOINT_ORDINALS, self._file, (generation,))
            gap = next((n for n, (ordinal,) in enumerate(ordinals) if ordinal != n), len(ordinals))
            yield Saved(generation, name, head is not None, rows[:gap], rows[gap:])

    def _generation(self, generation: int) -> list[CheckpointRow]:
        return checkpoint_rows(_rows(self._connection, CHECKPOINT_ROWS, self._file, (generation, 0, _ALL)))

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
