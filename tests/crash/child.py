"""A process that writes until it is killed; run by test_powercut.py. Imports little, so that it starts quickly.

    python child.py rows FILE PRAGMA…     rows in SQLite, one or more a commit
    python child.py mark FILE             two slots in turn, each with fdatasync; beside them a counter without

Prints `acked N` after N is durable, as far as this process knows.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from random import Random
from zlib import crc32

SLOT = 4096


def body(number: int) -> bytes:
    """What row `number` holds: now and then more than a page."""
    rng = Random(number)
    return rng.randbytes(rng.choice((10, 300, 3_000, 20_000)))


def rows(file: str, *pragmas: str) -> None:
    db = sqlite3.connect(file, isolation_level=None)
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    db.execute("PRAGMA journal_mode = WAL")
    for pragma in pragmas:
        db.execute(pragma)
    db.execute("CREATE TABLE IF NOT EXISTS row (number INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    (last,) = db.execute("SELECT max(number) FROM row").fetchone()
    number = last or 0
    while True:
        batch = range(number + 1, number + 2 + number % 3)
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO row VALUES (?, ?)", [(n, body(n)) for n in batch])
        db.execute("COMMIT")
        number = batch[-1]
        print("acked", number, flush=True)
        if number % 20 < len(batch):
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")  # the log starts anew, over its old frames


def slot(number: int) -> bytes:
    head = number.to_bytes(8)
    return head + crc32(head).to_bytes(4) + Random(number).randbytes(600)


def mark(file: str) -> None:
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    number = int.from_bytes(os.pread(handle, 8, 2 * SLOT))
    while True:
        number += 1
        os.pwrite(handle, slot(number), number % 2 * SLOT)
        os.fdatasync(handle)
        print("acked", number, flush=True)
        os.pwrite(handle, number.to_bytes(8), 2 * SLOT)


if __name__ == "__main__":
    {"rows": rows, "mark": mark}[sys.argv[1]](*sys.argv[2:])
