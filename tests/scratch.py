"""A scratch file in memory (relay.journal.shelf.Scratch), whose disk may fail."""

from __future__ import annotations

import errno
import os

from relay.journal.shelf import PAGE


class MemoryScratch:
    """`error` (an errno) is what every later call fails with, `room` how many pages the disk has, if it is given."""

    name = "the scratch file in memory"

    def __init__(self, room: int | None = None) -> None:
        self.bytes = bytearray()
        self.room = room
        self.error = 0
        self.reads = self.writes = 0

    def read(self, offset: int, size: int) -> bytes:
        self._check(self.error)
        self.reads += 1
        return bytes(self.bytes[offset : offset + size])

    def write(self, offset: int, data: bytes) -> None:
        assert offset % PAGE == 0 and len(data) % PAGE == 0 and offset <= len(self.bytes)
        full = self.room is not None and offset + len(data) > self.room * PAGE
        self._check(self.error or (errno.ENOSPC if full else 0))
        self.writes += 1
        self.bytes[offset : offset + len(data)] = data

    def _check(self, error: int) -> None:
        if error:
            raise OSError(error, os.strerror(error))
