"""The scratch file of a process: it has no name, and goes with the process, however that ends."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relay.errors import OperatorError
from relay.journal.shelf import SealedShelf

_CLOSED = -1  # no file has that number: one that was closed may be another one's by now


class ScratchFile:
    """relay.journal.shelf.Scratch in an open file."""

    def __init__(self, handle: int, directory: Path) -> None:
        self._handle = handle
        self.name = f"the scratch file in {directory}"

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self._handle, size, offset)

    def write(self, offset: int, data: bytes) -> None:
        if os.pwrite(self._handle, data, offset) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self) -> None:
        """What lies there is gone. Whoever comes later gets an OSError."""
        handle, self._handle = self._handle, _CLOSED
        os.close(handle)


def open_scratch(directory: Path) -> ScratchFile:
    """A new one on the disk of `directory`, mode 0600: at no time has it a name there, where the file system can do so
    (O_TMPFILE); else it loses it at once. Raises OperatorError."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return ScratchFile(os.dup(file.fileno()), directory)
    except OSError as error:
        raise OperatorError(f"cannot make a file in {directory}: {error.strerror}", "Check its permissions") from error


@contextmanager
def open_shelf(directory: Path, key: bytes) -> Iterator[SealedShelf]:
    """A shelf on a scratch file on the disk of `directory`, until the end of the block. `key`: 32 random bytes that
    nobody keeps. Raises OperatorError."""
    scratch = open_scratch(directory)
    try:
        yield SealedShelf(scratch, key)
    finally:
        scratch.close()
