"""Reading the store of a stopped node: for auditors and the demo's scanner. Nothing is written, nothing repaired."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from relay.core.block import Block
from relay.errors import OperatorError
from relay.journal.api import BlockRow, CheckpointHead, Meta
from relay.journal.database import found_in, translate
from relay.journal.files import STORE_FILE
from relay.journal.queries import BLOCKS, CHECKPOINT, CHECKPOINT_ROWS, KIND, META, TERM, read_meta
from relay.journal.rows import Sealer, check_link, check_rows, verify_checkpoint
from relay.journal.seal import StorageRing


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

    def blocks(self) -> Iterator[Block]:
        """All blocks that are kept, in order, each verified and chained to the one before.

        Raises StoreDamaged naming the block; StoreForeign where its storage key is not in the ring."""
        meta = self._meta
        last = Block(meta.log_id, meta.first - 1, b"", meta.time, (), meta.prev)  # what is left of the released ones
        (tip,) = _rows(self._connection, "SELECT max(idx) FROM block", self._file)[0]
        while last.index < (tip or 0):
            index = last.index + 1
            rows = [BlockRow(*row) for row in _rows(self._connection, BLOCKS, self._file, (index, index))]
            with found_in(self._file):
                check_rows(rows, index)
                block = self._sealer.block(rows[0])
                check_link(block, last)
            yield block
            last = block

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


def _rows(connection: sqlite3.Connection, query: str, file: Path, values: tuple[int, ...] = ()) -> list[Any]:
    try:
        return connection.execute(query, values).fetchall()
    except sqlite3.Error as error:
        raise translate(error, file) from error


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
