"""Regions whose log forked: this node has nothing to do with them any more, and says so aloud (ADR 27).

What registrars found by gossip every node hears from them within moments, each node for itself, from all of them at
once: a proof of a fork is verified offline by the key that the root names, so it does not matter who shows it. It is on
the disk before it counts.
It counts as long as the root names that key: a region that has begun a new log, under another key, is back.

Mail for such a region waits where it is, its mail and its questions are refused, and nobody there is looked up. The own
region's log is only told of: the others halt.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
import trio

from cluster.kept import write_kept
from cluster.registrar.endpoints import caller
from cluster.registrar.gossip import HttpDoor
from cluster.registrar.hearing import Ask, listen
from relay.core.policy import region_of
from relay.core.tlog import VerifierKey, origin_of_fork, verify_fork
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import OperatorError, RegionHalted, TrustError

_log = structlog.get_logger("cluster.halts")
_FOLDER: Final = "forks"  # in the data directory
_SUFFIX: Final = ".fork"
_IN_DOUBT: Final = "Put it back from another node, or delete it where the region has a new log or none forked; restart"
_REMEDY: Final = "Show both checkpoints to the other regions; it is over when the root names a new log of that region"


class HaltMetrics(Protocol):
    """What is counted (relay.observe.metrics.Metrics)."""

    region_halted: Any  # gauge with label region: 1 while nothing goes there


class Halts:
    """Of one node of `region`, by its root document."""

    def __init__(self, root: Root, region: str, data: Path, metrics: HaltMetrics) -> None:
        """Takes up what was proven before. What is damaged of that halts its region, too: what was proven once is not
        forgotten because of a disk. Raises OperatorError where it cannot be read, or is no evidence of this node's."""
        self._own, self._folder, self._metrics = region, data / _FOLDER, metrics
        self._proofs: list[bytes] = []  # of all forks, also in logs that the root names no more
        self._damaged: dict[str, list[Path]] = {}  # by region
        self._logs: dict[str, tuple[str, VerifierKey]] = {}  # region and key, by origin
        self._halted: dict[str, str] = {}  # region → why
        self._followed = trio.Event()
        self._read()
        self.follow(root)

    def _read(self) -> None:
        try:
            names = sorted(name for name in os.listdir(self._folder) if name.endswith(_SUFFIX))
            kept = {name: (self._folder / name).read_bytes() for name in names}
        except FileNotFoundError:
            return
        except OSError as error:
            raise OperatorError(f"{error.filename}: {error.strerror}", "Let this user read it") from None
        for name, proof in kept.items():
            region = name.rpartition("-")[0]
            if not region:
                what = f"{self._folder / name} is no evidence that this node kept"
                raise OperatorError(what, "Which region it is of cannot be said: look at it, and move it away")
            if name == _name(region, proof):
                self._proofs.append(proof)
            else:
                self._damaged.setdefault(region, []).append(self._folder / name)

    def follow(self, root: Root) -> None:
        """Go by this root document from now on: a region for which it names another log is back, one that it names
        again is halted again."""
        self._root, before, self._logs, self._halted = root, self._halted, {}, {}
        for one in root.payload.regions:
            with suppress(TrustError):  # what is no key is nobody's log
                key = VerifierKey.parse(one.log_key) if one.log_key else None
                if key is not None:
                    self._logs.setdefault(key.name, (one.name, key))
        for proof in self._proofs:
            with suppress(TrustError):  # of a log that the root names no more
                halted, log = self._log_of(proof)
                self._halt(halted, verify_fork(proof, log).text, known=halted in before)
        for one in root.payload.regions:
            if one.name in self._damaged and one.name not in self._halted:
                self._halt_in_doubt(one.name, known=one.name in before)
        for name in before:
            self._metrics.region_halted.labels(name).set(0)  # also of one that went
        for one in root.payload.regions:
            self._metrics.region_halted.labels(one.name).set(int(one.name in self._halted))
            if one.name in before and one.name not in self._halted:
                _log.warning("region_back", region=one.name, text=f"the root names a new log of {one.name}")
        self._followed.set()
        self._followed = trio.Event()

    @property
    def warning(self) -> str:
        """What /readyz adds; empty where there is nothing to say."""
        return "; ".join(self._halted.values())

    def why(self, cell: str) -> str:
        """Why nothing goes to, or comes from, that cell; empty where it does."""
        return self._halted.get(region_of(cell), "") if self._halted and region_of(cell) != self._own else ""

    def check(self, cell: str) -> None:
        """Raises RegionHalted."""
        if why := self.why(cell):
            raise RegionHalted(Code.UNREACHABLE, why, cell)

    async def watch_all(self) -> None:
        """Listen to the registrars that the root document of now names, until cancelled. Raises as `watch`."""
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watch, registrars_of(self._root))
                await self._followed.wait()
                nursery.cancel_scope.cancel()

    async def watch(self, registrars: Mapping[str, Ask]) -> None:
        """Listen to all who may know of forks, until cancelled. `registrars`: by region. Raises nothing that they
        say or do not say; OperatorError where a proof cannot be kept."""
        async with trio.open_nursery() as nursery:
            for region, ask in registrars.items():
                nursery.start_soon(listen, region, ask, self._hear_of)

    async def _hear_of(self, proof: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.take(proof)

    def take(self, proof: bytes) -> None:
        """Verify a proof completely, keep it, and halt. Raises TrustError where it proves nothing of a log that the
        root names; OperatorError where it cannot be kept."""
        region, key = self._log_of(proof)
        if region not in self._halted or region in self._damaged:
            found = verify_fork(proof, key)
            write_kept(self._folder / _name(region, proof), proof)
            self._proofs.append(proof)
            self._put_aside(region, proof)
            self._halt(region, found.text, known=region in self._halted)

    def _put_aside(self, region: str, proof: bytes) -> None:
        """Good evidence is there: the damaged one does not count any more. Raises OperatorError."""
        for damaged in self._damaged.pop(region, ()):
            if damaged.name == _name(region, proof):
                continue  # written over
            try:
                damaged.replace(damaged.with_suffix(".damaged"))
            except OSError as error:
                raise OperatorError(f"{damaged}: {error.strerror}", "Let this user write there") from None

    def _log_of(self, proof: bytes) -> tuple[str, VerifierKey]:
        origin = origin_of_fork(proof)
        if origin not in self._logs:
            raise TrustError(f"a fork of {origin[:80]!r}, which is no region's log", "Nothing is halted by it")
        return self._logs[origin]

    def _halt_in_doubt(self, region: str, *, known: bool) -> None:
        file = self._damaged[region][0]
        self._halted[region] = f"federation with {region} is halted: evidence that its log forked is damaged: {file}"
        if not known:
            text = f"{file} was kept as evidence of a fork, and is damaged: {region} stays halted as if it were not"
            _log.critical("fork_evidence_damaged", region=region, text=text, remedy=_IN_DOUBT)

    def _halt(self, region: str, text: str, *, known: bool) -> None:
        self._metrics.region_halted.labels(region).set(1)
        evidence = str(self._folder)
        if region == self._own:
            self._halted[region] = f"the log of this region, {region}, forked: the others halt federation with it"
        else:
            self._halted[region] = f"federation with {region} is halted: its log forked"
        if not known:
            _log.critical("region_halted", region=region, text=text, remedy=_REMEDY, evidence=evidence)


def _name(region: str, proof: bytes) -> str:
    """Of the file: what is in it tells whether it is damaged."""
    return f"{region}-{sha256(proof).hexdigest()[:16]}{_SUFFIX}"


def registrars_of(root: Root) -> dict[str, Ask]:
    """How to ask each registrar that the root names. One whose URL is none is left out: its region's mistake."""
    found: dict[str, Ask] = {}
    for region in root.payload.regions:
        if region.registrar_url:
            with suppress(OperatorError, TrustError, ValueError):
                found[region.name] = HttpDoor(caller(region.name, region.registrar_url, root, region.name)).news
    return found
