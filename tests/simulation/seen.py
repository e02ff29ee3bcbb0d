"""What the directory remembers, on a simulated disk."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from cluster.directory.seen import Sighting
from relay.core.codec import digest
from relay.errors import DiskFailed
from tests.simulation.image import File, Process, Step

_NAME = Path("directory.sqlite")


@dataclass(eq=False)
class SeenImage(File):
    """The file."""

    versions: dict[bytes, Sighting] = field(default_factory=dict)


class SimSeen:
    """cluster.directory.seen.Seen."""

    def __init__(self, disk: Any, process: Process, file: SeenImage) -> None:
        self._disk, self._process, self._file = disk, process, file
        self._failure: DiskFailed | None = None
        self._broken = trio.Event()
        self._writing = trio.Lock()

    async def read(self, *steps: Step) -> None:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        try:
            await self._disk.access(self._process, _NAME, self._file, steps)
        except DiskFailed as error:
            self._failure = error
            self._broken.set()
            raise

    async def highest(self, user: bytes) -> Sighting | None:
        await self.read()
        return self._file.versions.get(user)

    def sighting(self, record: Any) -> Sighting:
        return Sighting(record.version, digest(record.digest))

    async def raise_to(self, user: bytes, sighting: Sighting) -> Sighting:
        def put() -> None:
            known = self._file.versions.get(user)
            if known is None or known.version < sighting.version:
                self._file.versions[user] = sighting

        async with self._writing:  # users are looked up at the same time; a database does one thing after the other
            await self.read(put)
        return self._file.versions[user]

    async def failed(self) -> None:
        await self._broken.wait()
        assert self._failure is not None
        raise self._failure.with_traceback(None)
