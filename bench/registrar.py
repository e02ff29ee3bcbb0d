"""How many users a registrar enrols a second, and what a proof costs who makes it and who verifies it.

A real registry on disk, two witnesses whose memories are on disk, too, in this process: what is measured is checking,
signing, logging, cosigning and proving, without HTTP (bench.registrars has that). Requests are made before the clock
starts.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio
from nacl.signing import SigningKey

from bench.lookups import cached_us
from bench.users import request_of
from cluster.core.homelog import Freshness, read_entry, verify_newest
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey, Trust
from cluster.federation.keys import new_signer
from cluster.federation.making import Keyring, make_federation_root
from cluster.registrar.choir import Choir
from cluster.registrar.log import RegionLog
from cluster.registrar.store import open_registry
from cluster.registrar.witness import Witness, open_witness
from relay.core.codec import digest, encode
from relay.core.trust import (
    Policy, Root, RootCell, RootRegion, read_home, staple_home, trust_of, verify_chain, verify_root,
)  # fmt: skip
from relay.journal.portal import open_portal

_REGION: Final = "norden"
_WITNESSES: Final = ("sauda", "vika")
_OTHER: Final = "sauda"  # where its users are looked up
_SAMPLES: Final = 200  # proofs that are made and verified


@dataclass(frozen=True)
class Figures:
    """What came of it, in the units of the names. `cpu_us` and the costs of verifying are CPU time: a machine that does
    nothing else takes no longer."""

    users: int
    per_second: float
    cpu_us: float  # of the whole process: registrar and both witnesses
    p50_ms: float
    p99_ms: float
    batches: int
    staple_bytes: int
    latest_bytes: int  # epoch, its staple and the map proof
    prove_us: float
    verify_staple_us: float  # an uncached stapled record: both its signatures, log, two cosignatures, inclusion
    verify_latest_us: float
    cached_lookup_us: float  # of a record that another region's node has verified and kept
    start_s: float  # to open the registry again


class _Door:
    """A witness in this process."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness

    async def add_checkpoint(self, request: bytes) -> tuple[int, bytes]:
        verdict = await self._witness.add_checkpoint(request)
        return int(verdict.status), verdict.body

    async def seen(self, origin: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._witness.seen(origin)

    async def forks(self) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._witness.forks()


def _key(name: str, kind: int) -> SignerKey:
    return SignerKey(name, kind, digest(name.encode()))


def make_root(
    registrar: SigningKey, now_ms: int, log: SignerKey | None = None, witnesses: Sequence[SignerKey] = ()
) -> Root:
    """It names the log of the region, if there is one, and the other regions as its witnesses."""
    public, policy, named = bytes(registrar.verify_key), Policy(quorum=len(witnesses)), str(log.verifier) if log else ""
    regions = [
        RootRegion(_REGION, b"", public, (RootCell(f"{_REGION}/1", ()),), named, policy=policy),
        *(
            RootRegion(name, b"", public, (), witness_key=str(key.verifier))
            for name, key in zip(_WITNESSES, witnesses, strict=False)
        ),
    ]
    one, two, three = (new_signer(digest(name)) for name in (b"root", b"keeper", b"online"))
    keys = Keyring((one,), (two,), three, {region.name: new_signer(digest(region.name.encode())) for region in regions})
    return verify_root(make_federation_root("bench", regions, keys, now_ms), now_ms)


@asynccontextmanager
async def _open(directory: Path, now_ms: int) -> AsyncIterator[tuple[RegionLog, Root, Trust]]:
    log, registrar = _key("bench/log", ED25519), SigningKey(bytes(32))
    keys = [_key(f"{name}/witness", COSIGNATURE) for name in _WITNESSES]
    root = make_root(registrar, now_ms, log, keys)
    trust = trust_of(root, _REGION)
    async with AsyncExitStack() as stack:
        portal = await stack.enter_async_context(open_portal())
        doors = []
        for name, key in zip(_WITNESSES, keys, strict=True):
            file, evidence = directory / f"{name}.sqlite", directory / "evidence"
            opened = open_witness(file, portal, key, {log.name: log.verifier}, evidence, lambda: int(time.time()))
            doors.append((key.verifier, _Door(await stack.enter_async_context(opened))))
        opened_log = open_registry(directory / "registry.sqlite", portal, log.name, lambda c: c.sign(log), now_ms)
        registry = await stack.enter_async_context(opened_log)
        choir = Choir(trust, doors, registry.consistency)
        nursery = await stack.enter_async_context(trio.open_nursery())
        one = RegionLog(_REGION, registry, choir, root, registrar, lambda: time.time_ns() // 1_000_000)
        nursery.start_soon(one.run)
        nursery.start_soon(choir.run)
        yield one, root, trust
        nursery.cancel_scope.cancel()


async def _enrol_all(log: RegionLog, requests: Sequence[bytes], at_once: int) -> tuple[list[float], list[bytes]]:
    """Seconds that each took; signed records and staples of the last ones, alternating."""
    took: list[float] = []
    last: list[bytes] = []
    rest = iter(requests)

    async def enrol() -> None:
        for request in rest:
            begun = trio.current_time()
            answer = await log.enrol(request)
            took.append(trio.current_time() - begun)
            last[:0] = [answer.signed, answer.staple]
            del last[2 * _SAMPLES :]

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(enrol)
    return sorted(took), last


async def measure(directory: Path, users: int, at_once: int) -> Figures:
    """Enrol so many users, `at_once` of them waiting at any time, into a new registry in `directory`."""
    now_ms = time.time_ns() // 1_000_000
    requests = [request_of(_REGION, number, now_ms) for number in range(users)]
    async with _open(directory, now_ms) as (log, root, trust):
        await log.standing(bytes(32))  # the witnesses have confirmed the end
        cpu, begun = time.process_time(), time.perf_counter()
        took, last = await _enrol_all(log, requests, at_once)
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
        batches = log.registry.head.epoch
        pairs = [*zip(last[::2], last[1::2], strict=True)]
        stapled = [(read_home(signed).user, staple_home(signed, staple)) for signed, staple in pairs]
        begun = time.thread_time()
        for user, data in stapled:  # what a relay or a client does with the answer to a lookup
            verify_chain([data], root, now_ms, user)
        verify_staple_us = (time.thread_time() - begun) / len(pairs) * 1e6
        records = [read_home(data) for _, data in stapled]
        begun = time.perf_counter()
        proofs = [(await log.standing(record.user)).evidence for record in records]
        prove_us = (time.perf_counter() - begun) / len(pairs) * 1e6
        fresh = Freshness(int(time.time()), 600)
        begun = time.thread_time()
        for record, proof in zip(records, proofs, strict=True):
            verify_newest(record, proof, trust, fresh)
        verify_latest_us = (time.thread_time() - begun) / len(pairs) * 1e6
        assert all(read_entry(proof.epoch) for proof in proofs)
    lookup_us = await cached_us(directory / "directory.sqlite", root, _REGION, f"{_OTHER}/1", records)
    begun = time.perf_counter()
    async with _open(directory, now_ms):
        start_s = time.perf_counter() - begun
    return Figures(
        users, users / seconds, cpu / users * 1e6, took[len(took) // 2] * 1e3, took[len(took) * 99 // 100] * 1e3,
        batches, max(len(staple) for _, staple in pairs), max(len(encode(proof)) for proof in proofs), prove_us,
        verify_staple_us, verify_latest_us, lookup_us, start_s,
    )  # fmt: skip
