"""Regions with their registrars in one process: real registries and witnesses on disk, doors in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio
from msgspec import structs
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from relay.core.tlog import Note, SignerKey, Trust
from cluster.registrar.choir import Choir
from cluster.registrar.log import RegionLog
from cluster.registrar.store import Registry, open_registry
from cluster.registrar.witness import Verdict, Witness, open_witness
from relay.core.codec import encode, pack
from relay.core.trust import Device, HomePayload, HomeRecord, Root, RootCell, RootRegion, prove_devices
from relay.errors import PeerError
from relay.journal.portal import Portal, open_portal
from relay.limits import DAY
from tests.proofs import proven
from tests.relay.core.tlog.logbook import key
from tests.roots import verified_root

NOW = 1_800_000_000_000
REGIONS = ("norden", "sauda", "vika")


def registrar_key(region: str) -> SigningKey:
    return SigningKey(region.encode().ljust(32, b"."))


def log_key(region: str) -> SignerKey:
    return key(f"{region}.example/log")


def witness_key(region: str) -> SignerKey:
    return key(f"{region}.example/witness", 4)


def make_root() -> Root:
    regions = tuple(
        RootRegion(name, b"", bytes(registrar_key(name).verify_key), (RootCell(f"{name}/1", ()),)) for name in REGIONS
    )
    return verified_root(regions, NOW + 900 * DAY)


ROOT = make_root()


_DEVICES: dict[bytes, SigningKey] = {}


def device(seed: bytes, since: int = 1) -> Device:
    _DEVICES[seed] = SigningKey(seed)
    return Device(bytes(SigningKey(seed).verify_key), bytes(PrivateKey(seed).public_key), since, b"", b"")


def user_key(number: int) -> SigningKey:
    return SigningKey(number.to_bytes(32))


def first(number: int, **more: Any) -> HomePayload:
    payload = HomePayload(
        1, b"", 1, b"", "norden", "norden/1", bytes(user_key(number).verify_key), (device(number.to_bytes(31) + b"d"),),
        0, NOW - 60_000, NOW + 365 * DAY, b"",
    )  # fmt: skip
    return prove_devices(structs.replace(payload, **more), _DEVICES.values())


def following(record: HomeRecord, **more: Any) -> HomePayload:
    chained = {"user": record.user, "version": record.version + 1, "prev": record.digest}
    return proven(structs.replace(record.payload, **{**chained, **more}), _DEVICES.values(), record.devices)


def ask(payload: HomePayload, signer: SigningKey) -> bytes:
    data = encode(payload)
    return pack([data, signer.sign(b"posthouse.home\x00" + data).signature])


def request(number: int, **more: Any) -> bytes:
    """A new user's request."""
    return ask(first(number, **more), user_key(number))


@dataclass
class MemoryDoor:
    """A way to a witness, that can be shut, slow, or lie."""

    witness: Callable[[], Witness]
    shut: bool = False
    delay_s: float = 0.0
    lie: Callable[[bytes], Awaitable[tuple[int, bytes]]] | None = None
    asked: list[bytes] = field(default_factory=list)

    async def add_checkpoint(self, body: bytes) -> tuple[int, bytes]:
        await trio.lowlevel.checkpoint()
        if self.shut:
            raise PeerError("the door is shut")
        await trio.sleep(self.delay_s)
        self.asked.append(body)
        if self.lie is not None:
            return await self.lie(body)
        verdict: Verdict = await self.witness().add_checkpoint(body)
        return int(verdict.status), verdict.body

    async def seen(self, origin: str) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.shut:
            raise PeerError("the door is shut")
        return self.witness().seen(origin)

    async def forks(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.shut:
            raise PeerError("the door is shut")
        return self.witness().forks()


@dataclass
class Region:
    """One region's registrar while it runs."""

    name: str
    registry: Registry
    log: RegionLog
    choir: Choir
    doors: dict[str, MemoryDoor]


@dataclass
class World:
    """Witnesses of all regions, and what is needed to run a log."""

    directory: Path
    portal: Portal
    witnesses: dict[str, Witness]
    now_ms: int = NOW

    def trust(self, name: str, k: int) -> Trust:
        others = tuple(witness_key(other).verifier for other in REGIONS if other != name)
        return Trust(log_key(name).verifier, others, k)

    @asynccontextmanager
    async def region(
        self, name: str = "norden", k: int = 2, wait_s: float = 60.0, file: str = "registry.sqlite",
        root: Root = ROOT, registrar: SigningKey | None = None,
    ) -> AsyncIterator[Region]:  # fmt: skip
        """The registrar of a region, serving, by its key or another."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        signer = log_key(name)
        doors = {other: self.door(other) for other in REGIONS if other != name}
        async with open_registry(
            directory / file, self.portal, signer.name, lambda point: point.sign(signer), self.now_ms
        ) as registry:
            choir = Choir(
                self.trust(name, k), [(witness_key(other).verifier, door) for other, door in doors.items()],
                registry.consistency, wait_s=wait_s,
            )  # fmt: skip
            log = RegionLog(name, registry, choir, root, registrar or registrar_key(name), lambda: self.now_ms)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(log.run)
                nursery.start_soon(choir.run)
                yield Region(name, registry, log, choir, doors)
                nursery.cancel_scope.cancel()

    def door(self, name: str) -> MemoryDoor:
        return MemoryDoor(lambda: self.witnesses[name])

    def clock(self) -> int:
        return self.now_ms // 1000


@asynccontextmanager
async def open_world(directory: Path) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        portal = await stack.enter_async_context(open_portal())
        world = World(directory, portal, {})
        for name in REGIONS:
            (directory / name).mkdir(exist_ok=True)
            logs = {log_key(other).name: log_key(other).verifier for other in REGIONS if other != name}
            world.witnesses[name] = await stack.enter_async_context(
                open_witness(
                    directory / name / "witness.sqlite", portal, witness_key(name), logs, directory / name / "evidence",
                    world.clock,
                )
            )
        yield world


def size_of(note: Note) -> int:
    return int(note.text.split(b"\n")[1])
