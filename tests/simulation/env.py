"""What one process of one simulated node sees of the world: relay.ports.Env, until it crashes."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from pathlib import Path
from random import Random
from typing import Any


from relay.errors import DiskFailed, OperatorError
from relay.journal.api import LogStore, Meta
from relay.journal.shelf import SealedShelf
from relay.limits import KIB
from tests.scratch import MemoryScratch
from tests.simulation.clock import SimClock
from tests.simulation.network import Host, Network
from tests.simulation.stream import SimListener, SimStream
from tests.simulation.world import Violation


class SimEnv:
    """One life of a node. After `dead` nothing that it does reaches the network or a disk."""

    def __init__(self, net: Network, host: Host, clock: SimClock, disk: Any, random: Random) -> None:
        self._net, self._host, self._clock, self._disk, self._random = net, host, clock, disk, random
        self.dead = False

    # --- clock and randomness ----------------------------------------------------------------------
    @property
    def clock(self) -> SimClock:
        return self._clock

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def random_float(self) -> float:
        return self._random.random()

    # --- the network -------------------------------------------------------------------------------
    async def dial(self, host: str, port: int) -> SimStream:
        """Raises OSError."""
        self._check_network()
        stream = await self._net.dial(self._host, host, port)
        if self.dead:
            stream.break_off()
        self._check_network()
        return stream

    async def listen(self, host: str, port: int) -> Sequence[SimListener]:
        """Raises OperatorError."""
        try:
            self._check_network()
            return [await self._net.listen(self._host, port)]
        except OSError as error:
            raise OperatorError(f"cannot listen on {host}:{port}: {error.strerror}", "Simulated") from error

    async def listen_unix(self, path: Path) -> Sequence[SimListener]:
        """Nobody connects there."""
        return await self.listen("unix", 0)

    def _check_network(self) -> None:
        if self.dead:
            raise OSError(errno.ENETDOWN, "This process is dead")

    # --- the disk ----------------------------------------------------------------------------------
    def _check_disk(self) -> None:
        if self.dead:
            raise DiskFailed("this process is dead", "It is simulated")

    def data_dir(self, path: Path) -> Path:
        return path

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        """See relay.journal.api.StoreEnv."""
        store: LogStore = await self._disk.open(self, directory, fresh)
        return store

    def open_seen(self, file: Path) -> AbstractAsyncContextManager[Any]:
        """What the directory has seen (cluster.directory.seen.Seen)."""
        seen: AbstractAsyncContextManager[Any] = self._disk.open_seen(self)
        return seen

    def open_shelf(self, directory: Path) -> AbstractContextManager[SealedShelf]:
        """In memory. So little is kept outside its file that everybody goes through that."""
        return nullcontext(SealedShelf(MemoryScratch(), bytes(32), keep=4 * KIB))

    def store_exists(self, directory: Path) -> bool:
        there: bool = self._disk.store_exists()
        return there

    def set_aside(self, directory: Path, store: bytes) -> None:
        self._check_disk()
        if not self._disk.lossy:
            raise Violation(f"{self._host.name}: a store is set aside whose disk has kept everything")
        self._disk.set_aside()

    def bootstrap(self, directory: Path) -> bool:
        flag: bool = self._disk.flag
        return flag

    def was_removed(self, directory: Path) -> bool:
        return bool(getattr(self._disk, "removed", False))

    def keep_out(self, directory: Path) -> None:
        self.check_disk()
        self._disk.removed = True

    def bootstrapped(self, directory: Path) -> None:
        self._check_disk()
        self._disk.flag = False
