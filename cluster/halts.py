"""Regions whose log forked: this node has nothing to do with them any more, and says so aloud (ADR 27).

What registrars found by gossip every node hears from them within moments, each node for itself, from all of them at
once: a proof of a fork is verified offline by the key that the root names, so it does not matter who shows it. It is on
the disk before it counts.
It counts as long as the root names that key: a region that has begun a new log, under another key, is back.

Mail for such a region waits where it is, its mail and its questions are refused, and nobody there is looked up. The own
region's log is only told of: the others halt.
"""

from __future__ import annotations

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
from relay.core.tlog import Fork, VerifierKey, origin_of_fork, verify_fork
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import OperatorError, RegionHalted, TrustError

_log = structlog.get_logger("cluster.halts")
_FOLDER: Final = "forks"  # in the data directory
_REMEDY: Final = "Show both checkpoints to the other regions; it is over when the root names a new log of that region"


class HaltMetrics(Protocol):
    """What is counted (relay.observe.metrics.Metrics)."""

    region_halted: Any  # gauge with label region: 1 while nothing goes there


class Halts:
    """Of one node of `region`, by its root document."""

    def __init__(self, root: Root, region: str, data: Path, metrics: HaltMetrics) -> None:
        """Takes up what was proven before. Raises OperatorError where that cannot be read."""
        self._own, self._folder, self._metrics = region, data / _FOLDER, metrics
        self._logs: dict[str, tuple[str, VerifierKey]] = {}  # region and key, by origin
        for one in root.payload.regions:
            with suppress(TrustError):  # what is no key is nobody's log
                key = VerifierKey.parse(one.log_key) if one.log_key else None
                if key is not None:
                    self._logs.setdefault(key.name, (one.name, key))
        self._halted: dict[str, str] = {}  # region → why
        for one in root.payload.regions:
            metrics.region_halted.labels(one.name).set(0)
        try:
            proofs = [path.read_bytes() for path in sorted(self._folder.glob("*.fork"))]
        except OSError as error:
            raise OperatorError(f"{self._folder}: {error.strerror}", "Let this user read it") from None
        for proof in proofs:
            with suppress(TrustError):  # of a log that the root names no more
                halted, log = self._log_of(proof)
                self._halt(halted, verify_fork(proof, log))

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
        if region not in self._halted:
            found = verify_fork(proof, key)
            write_kept(self._folder / f"{region}-{sha256(proof).hexdigest()[:16]}.fork", proof)
            self._halt(region, found)

    def _log_of(self, proof: bytes) -> tuple[str, VerifierKey]:
        origin = origin_of_fork(proof)
        if origin not in self._logs:
            raise TrustError(f"a fork of {origin[:80]!r}, which is no region's log", "Nothing is halted by it")
        return self._logs[origin]

    def _halt(self, region: str, found: Fork) -> None:
        self._metrics.region_halted.labels(region).set(1)
        evidence = str(self._folder)
        if region == self._own:
            self._halted[region] = f"the log of this region, {region}, forked: the others halt federation with it"
        else:
            self._halted[region] = f"federation with {region} is halted: its log forked"
        _log.critical("region_halted", region=region, text=found.text, remedy=_REMEDY, evidence=evidence)


def registrars_of(root: Root) -> dict[str, Ask]:
    """How to ask each registrar that the root names. One whose URL is none is left out: its region's mistake."""
    found: dict[str, Ask] = {}
    for region in root.payload.regions:
        if region.registrar_url:
            with suppress(OperatorError, TrustError, ValueError):
                found[region.name] = HttpDoor(caller(region.name, region.registrar_url, root, region.name)).news
    return found
