"""The files of a store, seen from outside: what they are called, whether they are there, how they are moved away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from relay.errors import DiskFailed, OperatorError

STORE_FILE = "log.sqlite"  # in a node's data directory
_MARK, _WAL, _SHM = ".mark", "-wal", "-shm"  # added to it
_BOOTSTRAP = "bootstrap"
REMOVED = "removed"
_QUARANTINE = "quarantine"
REPAIRED = "repaired"  # in it a repair leaves the new store, whole, until that is in its place


def mark_file(file: Path) -> Path:
    """Where the mark of the database `file` is."""
    return file.with_name(file.name + _MARK)


def wal_file(file: Path) -> Path:
    """Where the write-ahead log of the database `file` is."""
    return file.with_name(file.name + _WAL)


def store_exists(directory: Path) -> bool:
    """Was a store ever made here? Its mark is made last, and taken away first."""
    return mark_file(directory / STORE_FILE).exists()


def check_repaired(directory: Path) -> None:
    """Raises OperatorError where a repair was cut short: what lies in the directory is an old store, half of one, or
    none, and must not be used, nor begun anew."""
    if (directory / REPAIRED).exists():
        remedy = "Run `posthouse journal repair` again: it finishes that"
        raise OperatorError(f"{directory}: a repair of its store was cut short", remedy)


def put_in_place(directory: Path, store: bytes, now_ms: int) -> None:
    """Set aside the closed store `store`, and put the one that a repair made in its place; or finish that after a
    crash. The mark comes last: a store without one nobody trusts. Raises DiskFailed."""
    made = directory / REPAIRED
    if (made / STORE_FILE).exists() and any(directory.glob(f"{STORE_FILE}*")):
        set_aside(directory, store, now_ms)
    with _errors(made):
        for path in sorted(made.iterdir(), key=lambda path: (path.name == STORE_FILE + _MARK, path.name != STORE_FILE)):
            path.rename(directory / path.name)
            sync_directory(directory)
        made.rmdir()
        sync_directory(directory)


def set_aside(directory: Path, store: bytes, now_ms: int) -> Path:
    """Move the files of a closed store to quarantine/<UTC time>-<store>/, and say where that is. The mark goes first:
    what a crash leaves behind has none, and is known for it. Raises DiskFailed."""
    aside = directory / _QUARANTINE
    where = aside / f"{datetime.fromtimestamp(now_ms / 1000, UTC):%Y%m%dT%H%M%SZ}-{store.hex()}"
    with _errors(where):
        aside.mkdir(mode=0o700, exist_ok=True)
        where.mkdir(mode=0o700, exist_ok=True)
        for added in (_MARK, _WAL, _SHM, ""):
            with suppress(FileNotFoundError):
                (directory / (STORE_FILE + added)).rename(where / (STORE_FILE + added))
            if added == _MARK:
                sync_directory(directory)
        for changed in (where, aside, directory):
            sync_directory(changed)
    return where


def bootstrap(directory: Path) -> bool:
    """Is there the file by which provisioning names the node that starts its cell's log?"""
    return (directory / _BOOTSTRAP).exists()


def bootstrapped(directory: Path) -> None:
    """Take that file away, for good. Raises DiskFailed."""
    flag = directory / _BOOTSTRAP
    with _errors(flag):
        flag.unlink(missing_ok=True)
        sync_directory(directory)


def was_removed(directory: Path) -> bool:
    """Is there the file that keeps a node out of its cell?"""
    return (directory / REMOVED).exists()


def keep_out(directory: Path) -> None:
    """The cell removed this node: it does not come back by itself. Raises DiskFailed."""
    with _errors(directory / REMOVED):
        (directory / REMOVED).touch(mode=0o600)
        sync_directory(directory)


@contextmanager
def _errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskFailed(f"{path}: {error.strerror}", "Check the directory and its permissions") from error


def sync_directory(directory: Path) -> None:
    """Make what was made, renamed or removed in a directory durable. Raises OSError."""
    sync_file(directory, os.O_RDONLY | os.O_DIRECTORY)


def sync_names(directory: Path) -> None:
    """Make the names in `directory` durable, and its own: POSIX promises neither by an fsync of a file. At every start,
    since who made them may have been killed before he could; SQLite does it for files that it makes itself. Raises
    OSError."""
    for place in (directory, directory.absolute().parent):
        with suppress(PermissionError):  # a parent that this user may not look into has been there before
            sync_directory(place)


def sync_file(path: Path, flags: int = os.O_RDWR) -> None:
    """Make the bytes of a file durable, whoever wrote them. Raises OSError."""
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
