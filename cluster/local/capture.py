"""What crosses the borders of a federation on one machine, kept for those who look for what must not cross.

    <directory>/<source>/<target>/<node>.<number>.out       what a node of `source` said to `node` of `target`
    <directory>/<source>/<target>/<node>.<number>.in        what it heard: two files for each connection
    <directory>/full                                        there was no more room: what followed was not kept
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from relay.errors import DiskFailed
from relay.limits import MIB

ROOM: Final = 256 * MIB  # bytes that one run of a federation keeps at most: what crosses without a load for days
FULL: Final = "full"
_OUT, _IN = "out", "in"

Tape = Callable[[bytes | bytearray], None]


class Stream(NamedTuple):
    """One direction of a captured connection, from region `source` to region `target`."""

    source: str
    target: str
    path: Path


class Capture:
    """A directory that takes at most `room` bytes. What other runs left there stays."""

    def __init__(self, directory: Path, room: int = ROOM) -> None:
        self.directory = directory
        self._room = room

    def reel(self, source: str, target: str, node: str) -> Reel:
        """For the connections that `source` makes to a node of `target`. Raises OSError."""
        place = self.directory / source / target
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Reel(self, place, node)

    def keep(self, path: Path, data: bytes | bytearray) -> None:
        """Append to a file, as far as there is room. Raises DiskFailed."""
        taken = data[: self._room]
        self._room -= len(taken)
        try:
            with path.open("ab") as file:
                file.write(taken)
            if len(taken) < len(data):
                (self.directory / FULL).touch()
        except OSError as error:
            raise DiskFailed(f"{path}: {error.strerror}", "Nothing crosses the border unseen: make room") from error


class Reel:
    """The connections of one crossing. Made by `Capture.reel`."""

    def __init__(self, capture: Capture, place: Path, node: str) -> None:
        self._capture = capture
        self._place = place
        self._node = node
        self._number = len(list(place.glob(f"{node}.*.{_OUT}")))

    def tapes(self) -> tuple[Tape, Tape]:
        """Where the two directions of a new connection go: out, and back."""
        self._number += 1
        ways = [self._place / f"{self._node}.{self._number}.{way}" for way in (_OUT, _IN)]
        for path in ways:
            path.touch()
        out, back = ways
        return lambda data: self._capture.keep(out, data), lambda data: self._capture.keep(back, data)


def captured(directory: Path) -> Iterator[Stream]:
    """Everything that was captured in a directory, in a settled order."""
    for path in sorted(directory.glob(f"*/*/*.{_OUT}")):
        yield Stream(path.parent.parent.name, path.parent.name, path)
    for path in sorted(directory.glob(f"*/*/*.{_IN}")):
        yield Stream(path.parent.name, path.parent.parent.name, path)
