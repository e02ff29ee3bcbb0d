"""Users with signed home records, in a federation of two regions whose cells answer look-ups as they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey

from cluster.core.linkwire import Answer, LookUp, Peer, Records, Request
from cluster.directory.federation import FederationDirectory
from cluster.directory.seen import open_seen
from cluster.env import RealEnv
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, RootCell, RootRegion, prove_devices, read_home, sign_home,
)
from relay.core.wire import Code
from relay.errors import Overloaded, Refused
from relay.journal.portal import open_portal
from tests.roots import verified_root

NOW = 1_800_000_000_000  # Unix ms
DAY = 86_400_000
REGISTRARS = {"norden": SigningKey(b"n" * 32), "sueden": SigningKey(b"s" * 32)}


def make_root() -> Root:
    regions = tuple(
        RootRegion(name, b"", bytes(registrar.verify_key), (RootCell(f"{name}/1", ()), RootCell(f"{name}/2", ())))
        for name, registrar in REGISTRARS.items()
    )
    return verified_root(regions, NOW + 400 * DAY)


class User:
    """A user whose chain can be grown, and forked."""

    def __init__(self, number: int, cell: str = "sueden/1", expires: int = NOW + 30 * DAY) -> None:
        self.key = SigningKey(number.to_bytes(32, "big"))
        self.cell, self.expires = cell, expires
        self.chain = [self.sign(None)]
        self.id = self.newest.user

    @property
    def newest(self) -> HomeRecord:
        return read_home(self.chain[-1])

    def sign(self, prev: HomeRecord | None, *, mark: int = 0, registrar: SigningKey | None = None) -> bytes:
        """The version after `prev`; another `mark`, another record."""
        region = self.cell.partition("/")[0]
        version = prev.version + 1 if prev else 1
        devices = prev.devices if prev else (Device(bytes(self.key.verify_key), bytes(32), 1, b"", b""),)
        moves = prev is not None and prev.cell != self.cell
        epoch = prev.payload.move_epoch + moves if prev else 0
        payload = HomePayload(
            1, prev.user if prev else b"", version, prev.digest if prev else b"", region, self.cell,
            bytes(self.key.verify_key), devices, epoch, NOW - DAY + mark, self.expires, b"",
        )  # fmt: skip
        payload = prove_devices(payload, [self.key])
        release = REGISTRARS[prev.payload.region] if prev is not None and moves else None
        return sign_home(payload, self.key, registrar or REGISTRARS[region], release)

    def grow(self, cell: str = "", **more: int) -> None:
        self.cell = cell or self.cell
        self.chain.append(self.sign(self.newest, **more))


class SettableClock:
    def __init__(self) -> None:
        self.now = NOW

    def wall_ms(self) -> int:
        return self.now

    def monotonic_ms(self) -> int:
        return self.now - NOW


class ClockEnv(RealEnv):
    def __init__(self) -> None:
        super().__init__()
        self.settable = SettableClock()

    @property
    def clock(self) -> SettableClock:
        return self.settable


class Cells:
    """Links, as the directory sees them. `answers` has what each cell says; a missing one cannot be reached."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[LookUp], Answer]] = {}
        self.asked: list[tuple[str, LookUp]] = []
        self.gate: trio.Event | None = None

    def serve(self, *users: User) -> None:
        """Every cell answers for those at home there, as an honest one would."""
        for cell in ("norden/2", "sueden/1", "sueden/2"):
            at_home = {user.id: user for user in users if user.cell == cell}
            self.answers[cell] = lambda ask, at_home=at_home: (
                Records(Code.STORED, tuple(at_home[ask.user].chain[ask.after :]))
                if ask.user in at_home
                else Records(Code.UNKNOWN_USER, ())
            )

    def say(self, *chain: bytes) -> None:
        """sueden/1 answers everything with these records."""
        self.answers["sueden/1"] = lambda ask: Records(Code.STORED, chain)

    async def request(self, cell: str, message: Request, deadline_s: float = 30.0) -> Answer:
        assert isinstance(message, LookUp)
        self.asked.append((cell, message))
        await trio.lowlevel.checkpoint()
        if self.gate is not None:
            await self.gate.wait()
        if cell not in self.answers:
            raise Refused(Code.UNREACHABLE, f"{cell} gave no answer")
        return self.answers[cell](message)

    def connected(self, cell: str) -> bool:
        return cell in self.answers


class Own:
    def __init__(self) -> None:
        self.users: dict[bytes, User] = {}
        self.left: dict[bytes, tuple[list[bytes], bool]] = {}
        self.coming: list[User] = []  # at home by the log, and not applied here yet
        self.alone = False  # without a majority
        self.asked_for: list[str] = []  # cells that wanted to know

    async def settled(self, asker: str = "") -> None:
        self.asked_for.append(asker)
        await trio.lowlevel.checkpoint()
        if self.alone:
            raise Overloaded("the cell did not confirm")
        self.users |= {user.id: user for user in self.coming}

    def moved(self, user: bytes) -> tuple[list[bytes], bool]:
        return self.left.get(user, ([], False))

    def home(self, user: bytes) -> HomeRecord | None:
        return self.users[user].newest if user in self.users else None

    def chain(self, user: bytes, after: int) -> list[bytes]:
        return self.users[user].chain[after:]


class World:
    """A directory of norden/1, its file, and what it hears."""

    user = User
    peer = Peer("sueden", "sueden/1", "n1")
    now = NOW
    day = DAY

    def __init__(self, folder: Path) -> None:
        self.env, self.cells, self.own, self.root = ClockEnv(), Cells(), Own(), make_root()
        self.file = folder / "directory.sqlite"

    @asynccontextmanager
    async def open(self) -> AsyncIterator[FederationDirectory]:
        """The process starts, and ends."""
        async with open_portal() as portal, open_seen(self.file, portal, self.env.random_bytes(32)) as seen:
            yield FederationDirectory(self.root, "norden/1", self.own, self.cells, self.env, seen)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)
