"""A shelf outside memory: leaves of packed maps (relay.core.packing) in a scratch file, sealed.

What lies there was computed from the log and its checkpoint, and is computed again by the next life of the node: the
file has no name, is never synced, and ends with the process. Each leaf is sealed with a key that only this process ever
had (section 5, rule 7), under the number of its write, which is never used again: what the disk gives back is the
newest that was written there, or the node stops (rules 6 and 7).

Leaves that were used lately are kept in memory, and written when they make room for others: a small node writes none.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from relay.errors import DiskFailed
from relay.limits import SHELF_BYTES

_log = structlog.get_logger("relay.journal")
PAGE: Final = 4_096  # bytes: whole pages are written, so that the kernel need not read the rest of one
_TAG: Final = 16  # bytes that sealing adds
_KEPT: Final = 256  # bytes counted for a leaf in memory beside its own: what Python keeps of it
_REMEDY: Final = "Check the disk and its free space, then start the node again: nothing is lost"


class Scratch(Protocol):
    """Bytes by their offset, for as long as the process lives. Methods raise OSError."""

    @property
    def name(self) -> str:
        """For whoever reads an error."""

    def read(self, offset: int, size: int) -> bytes:
        """As many, or fewer where they were never written."""

    def write(self, offset: int, data: bytes) -> None: ...


class SealedShelf:
    """relay.core.packing.Shelf on a scratch file. `key`: 32 random bytes, used for nothing else.

    A leaf takes whole pages, an eighth more than it needs at most. Extents that become free are used again for leaves
    that take as many; the file is as long as, of each such size, as many as there ever were at one time.

    Methods raise DiskFailed from the first error on; `on_failure` is told of it, once."""

    def __init__(self, scratch: Scratch, key: bytes, keep: int = SHELF_BYTES) -> None:
        self._scratch, self._seal, self._keep = scratch, AESGCM(key), keep
        self._pages = array("I")  # by number: the first page of the extent,
        self._sizes = array("I")  # bytes of the leaf as it was written,
        self._writes = array("Q")  # and the number of the write, which is the nonce: 0 where it was not written
        self._written = 0
        self._unused: list[int] = []  # numbers
        self._free: defaultdict[int, array[int]] = defaultdict(lambda: array("I"))  # pages of an extent → first pages
        self._end = 0  # pages of the file
        self._kept: OrderedDict[int, bytes] = OrderedDict()  # leaves in memory, the longest unused first
        self._kept_bytes = 0
        self._dirty: set[int] = set()  # those of them that are newer than what the file has
        self._failure: DiskFailed | None = None
        self.on_failure: Callable[[DiskFailed], None] = lambda error: None

    @property
    def file_bytes(self) -> int:
        """How long the file is, at most."""
        return self._end * PAGE

    # --- relay.core.packing.Shelf ------------------------------------------------------------------
    def add(self, leaf: bytes) -> int:
        if self._unused:
            number = self._unused.pop()
        else:
            number = len(self._sizes)
            self._pages.append(0)
            self._sizes.append(0)
            self._writes.append(0)
        self.put(number, leaf)
        return number

    def get(self, number: int) -> bytes:
        if self._failure is not None:
            self._check()
        leaf = self._kept.get(number)
        if leaf is not None:
            self._kept.move_to_end(number)
            return leaf
        leaf = self._read(number)
        self._take(number, leaf)
        return leaf

    def put(self, number: int, leaf: bytes) -> None:
        self._forget(number)
        self._dirty.add(number)
        self._take(number, leaf)

    def drop(self, number: int) -> None:
        self._forget(number)
        self._dirty.discard(number)
        self._release(number)
        self._unused.append(number)

    # --- in memory -------------------------------------------------------------------------------
    def _take(self, number: int, leaf: bytes) -> None:
        """Keep a leaf that is not kept, and let others go for it."""
        self._check()
        self._kept[number] = leaf
        self._kept_bytes += len(leaf) + _KEPT
        while self._kept_bytes > self._keep:
            oldest, leaf = self._kept.popitem(last=False)
            self._kept_bytes -= len(leaf) + _KEPT
            if oldest in self._dirty:
                self._write(oldest, leaf)
                self._dirty.discard(oldest)

    def _forget(self, number: int) -> None:
        leaf = self._kept.pop(number, None)
        if leaf is not None:
            self._kept_bytes -= len(leaf) + _KEPT

    # --- in the file -----------------------------------------------------------------------------
    def _read(self, number: int) -> bytes:
        size = self._sizes[number]
        pages = _pages(size)
        try:
            sealed = self._scratch.read(self._pages[number] * PAGE, pages * PAGE)
            return self._seal.decrypt(_nonce(self._writes[number]), sealed, None)[:size]
        except OSError as error:
            raise self._fail(f"it cannot be read: {error.strerror}") from error
        except InvalidTag:
            raise self._fail("it gave back other bytes than were written there") from None

    def _write(self, number: int, leaf: bytes) -> None:
        pages = _pages(len(leaf))
        if not self._writes[number] or _pages(self._sizes[number]) != pages:
            self._release(number)
            self._pages[number] = self._extent(pages)
        self._written += 1
        self._sizes[number], self._writes[number] = len(leaf), self._written
        sealed = self._seal.encrypt(_nonce(self._written), leaf + bytes(pages * PAGE - _TAG - len(leaf)), None)
        try:
            self._scratch.write(self._pages[number] * PAGE, sealed)
        except OSError as error:
            raise self._fail(f"it cannot be written: {error.strerror}") from error

    def _extent(self, pages: int) -> int:
        if free := self._free[pages]:
            return free.pop()
        self._end += pages
        return self._end - pages

    def _release(self, number: int) -> None:
        if self._writes[number]:
            self._free[_pages(self._sizes[number])].append(self._pages[number])
            self._writes[number] = 0

    # --- failing ---------------------------------------------------------------------------------
    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)

    def _fail(self, text: str) -> DiskFailed:
        self._failure = DiskFailed(f"{self._scratch.name}: {text}", _REMEDY)
        _log.critical("disk_failed", text=self._failure.text)
        self.on_failure(self._failure)
        return self._failure


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _pages(size: int) -> int:
    """Pages of the extent that a leaf of so many bytes takes: at most an eighth more than it needs."""
    pages = -(-(size + _TAG) // PAGE)
    step = 1 << max(0, pages.bit_length() - 4)
    return -(-pages // step) * step
