"""A site: one cell under load, with its history and its judge. Rounds strike it (kinds.py)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec
import trio

from bench.enrol import Home
from tests.crash.cell import REGION, Cell, Hang, Patience, variables_of_a_checkout
from tests.crash.checker import Checker
from tests.crash.history import Reader
from tests.crash.lines import Lines
from tests.crash.people import Orders, populate

USERS = 12
RATE = 800.0  # messages a second that the load offers
BACK_S = 90.0  # for a cell to be whole again, and for everything to arrive after that
_LOOK_S = 0.05
_STOOD_S = 1.0  # later than that is no load, but a machine, or somebody, that stopped us


class Site:
    """`checker` has always read the whole history."""

    def __init__(self, cell: Cell, checker: Checker, process: trio.Process, rng: Random) -> None:
        self.cell, self.checker, self.rng = cell, checker, rng
        self.back_s = BACK_S
        self.stood_s = 0.0  # seconds for which this very process stood still
        self._process = process
        self.devices = sum(map(len, checker.devices))

    async def follow(self, history: Path) -> None:
        """Feed the checker."""
        reader = Reader(history)
        while True:
            self.checker.take(reader.read())
            if self._process.poll() is not None:
                raise Hang(f"the load ended with status {self._process.returncode}: see load.log")
            due = time.monotonic() + _LOOK_S
            await trio.sleep(_LOOK_S)
            late = time.monotonic() - due
            self.stood_s += late if late > _STOOD_S else 0.0

    async def order(self, line: str) -> None:
        """Tell the load."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(f"{line}\n".encode())

    async def connected(self, count: int) -> None:
        """Wait until so many devices are connected. Raises Hang."""
        await self._until(lambda: self.checker.connected >= count, f"{count} devices to connect")

    async def answered_since(self, at: int) -> None:
        """Wait for an acknowledgement after `at`, ms. Raises Hang."""
        acked = self.checker.acked_at
        await self._until(lambda: bool(acked) and acked[-1] > at, "an acknowledgement")

    async def drain(self) -> None:
        """Nothing new; everybody is here, everything is answered, and comes. Raises Hang where it does not."""
        await self.order("pause")
        await self.order("home")
        await self.connected(self.devices)
        checker = self.checker
        await self._until(lambda: not checker.unanswered(), "every envelope to be answered")
        await self._until(lambda: not checker.missing(), "every acknowledged envelope to come")

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        patience = Patience()
        while not holds():  # the history has no bell
            if patience.waited() > self.back_s:
                raise Hang(f"waited {self.back_s:.0f} s for {what}")
            await trio.sleep(_LOOK_S)

    async def whole(self) -> float:
        """Wait until the cell is whole; s. Raises Hang."""
        return await self.cell.whole(self.back_s)


def now_ms() -> int:
    """The history's clock."""
    return time.monotonic_ns() // 1_000_000


@asynccontextmanager
async def open_site(
    directory: Path, lines: Lines | None, seed: int, synced: str = "all", rate: float = RATE, often: int = 0
) -> AsyncIterator[Site]:
    """A new cell in `directory`, whole, with all devices connected and the load ready to send. Raises Hang."""
    cell = Cell(directory / "cell", lines, synced=synced, often=often)
    home = Home(REGION, f"{REGION}/1", cell.layout.registrar(REGION))
    people = populate(home, USERS, seed, time.time_ns() // 1_000_000)
    history, orders = directory / "history", directory / "orders"
    orders.write_bytes(msgspec.msgpack.encode(Orders(people, cell.sockets, history, rate, seed), enc_hook=str))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cell.run)
        cell.start()
        with (directory / "load.log").open("wb") as log:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "tests.crash.load", str(orders)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables_of_a_checkout(),
            )  # fmt: skip
        try:
            site = Site(cell, Checker(people.devices_of()), process, Random(seed))
            nursery.start_soon(site.follow, history)
            await site.whole()
            await site.connected(site.devices)
            yield site
        finally:
            nursery.cancel_scope.cancel()
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
