"""The mark: a file beside a store's database that says how far the database had come (rule 5).

After each write of the log is committed, and before anybody is told, its number goes here with term, vote and the end
of the log, fdatasynced: two slots of 512 bytes are written in turn, so that one torn by a power cut leaves the other. A
database with a lower number has lost what it confirmed: an old copy, or a write-ahead log that lost its tail.
"""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct

from relay.core.codec import digest
from relay.journal.files import sync_directory

_SLOT = 512  # bytes: what a disk writes whole
_BODY = Struct(">Q16sQB16sQ32s")  # seq, store, term, bytes of the vote, the vote padded, index, hash; then a digest


@dataclass(frozen=True, slots=True)
class Marked:
    """A store after its write number `seq`: `index` and `hash` are those of the newest block, kept or released."""

    seq: int
    store: bytes
    term: int
    vote: bytes
    index: int
    hash: bytes

    def __str__(self) -> str:
        return f"write {self.seq} with term {self.term} and blocks to {self.index}"


def behind(mark: Marked | None, has: Marked) -> str | None:
    """What the mark knows and a database that `has` this does not, in words; None where nothing is missing. A database
    may be ahead of its mark: what came between was never acknowledged."""
    if mark is None:
        return "its mark is missing or cannot be read, and nobody can tell whether it is whole" if has.seq else None
    if mark.store != has.store:
        return f"its mark is that of another store ({mark.store.hex()}), which came to {mark}: its database is gone"
    if mark.seq > has.seq:
        return f"it came to {mark}, and has only {has}: confirmed history is missing"
    if mark.seq == has.seq and mark != has:
        if mark == replace(has, hash=mark.hash):
            return f"block {has.index} is not the one that its mark knows"
        return f"its mark says {mark}, and it has {has}: it is not the database that the mark was written for"
    return None


def _packed(marked: Marked) -> bytes:
    vote = marked.vote
    body = _BODY.pack(marked.seq, marked.store, marked.term, len(vote), vote, marked.index, marked.hash)
    return (body + digest(body, b"posthouse.mark")).ljust(_SLOT, b"\0")


def _unpacked(slot: bytes) -> Marked | None:
    """What a slot says; None unless it was written whole."""
    body = slot[: _BODY.size]
    if slot[_BODY.size : _BODY.size + 32] != digest(body, b"posthouse.mark"):
        return None
    seq, store, term, length, vote, index, last = _BODY.unpack(body)
    return Marked(seq, store, term, vote[:length], index, last)


class Mark:
    """The open file. Methods raise OSError, with the file's name; after one the store must be given up (rule 7)."""

    def __init__(self, path: Path) -> None:
        """Open the file, which may not be there: `newest` is None then, and where no slot is whole."""
        self.newest: Marked | None = None
        self._path = path
        self._handle: int | None = None
        self._next = 0  # the slot that is not the newest
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        slots = [_unpacked(os.pread(self._handle, _SLOT, number * _SLOT)) for number in (0, 1)]
        whole = [marked for marked in slots if marked is not None]
        if whole:
            self.newest = max(whole, key=lambda marked: marked.seq)
            self._next = 1 - slots.index(self.newest)

    def write(self, marked: Marked) -> None:
        """Durable on return. Makes the file, with mode 0600, where there is none."""
        try:
            if self._handle is None:
                self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                _put(self._handle, bytes(2 * _SLOT), 0)  # its full size from the start: a write changes bytes only
                sync_directory(self._path.parent)
            _put(self._handle, _packed(marked), self._next * _SLOT)
            sync_handle(self._handle)
        except OSError as error:
            error.filename = str(self._path)
            raise
        self.newest, self._next = marked, 1 - self._next

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _put(handle: int, data: bytes, offset: int) -> None:
    if os.pwrite(handle, data, offset) != len(data):
        raise OSError(errno.ENOSPC, "not all of it was written")


def sync_handle(handle: int) -> None:
    """Make what was written to an open file durable, on the disk itself. Raises OSError."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: there a plain fsync stops at the drive's cache
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fdatasync(handle)
