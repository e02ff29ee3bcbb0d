"""What honest nodes notice of a liar, by the name of the error: counted, so that a run can tell that it was noticed. In
a world where nobody lies, nobody may be called a liar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from cluster import movers
from cluster.directory.federation import FederationDirectory
from cluster.directory.seen import Sighting
from cluster.forwarder import Forwarders
from cluster.handover import Reception
from relay.core.trust import read_home
from relay.errors import NotValidNow, PeerError, PosthouseError, ProtocolError, TrustError
from tests.simulation.world import Trace, Violation


def _check_rises(before: Sighting | None, known: Any, directory: FederationDirectory) -> None:
    """Rule 5 of section 5: what was seen is not fallen behind, and stays what it was."""
    if before is None:
        return
    newest = known.record.version
    same = newest >= before.version and directory._seen.sighting(read_home(known.chain[before.version - 1]))
    if same != before:
        raise Violation(f"a home record of version {newest} is used, and another, {before.version}, was seen before")


@contextmanager
def noticing(trace: Trace, liar: str) -> Iterator[None]:
    """The real classes tell what they have found out. `liar`: the region that lies; empty: nobody does."""
    accept, fetch, verify = FederationDirectory._accept, FederationDirectory._fetch, movers.Batch._verify
    check, record = Forwarders._check, Reception._record

    def noticed(what: str, error: PosthouseError) -> None:
        if not liar:
            raise Violation(f"{what}: {type(error).__name__}, and nobody lies: {error.text}")
        trace(f"noticed {what}: {type(error).__name__}")

    async def seen_accept(self: FederationDirectory, user: bytes, *rest: Any) -> Any:
        before = self._seen._file.versions.get(user)  # type: ignore[attr-defined]
        known = await accept(self, user, *rest)
        _check_rises(before, known, self)
        return known

    async def seen_fetch(self: FederationDirectory, *given: Any) -> Any:
        """What an old home says of who left is behind where the new one cannot be asked, and nobody's lie."""
        try:
            return await fetch(self, *given)
        except NotValidNow:
            raise
        except TrustError as error:
            noticed("home record", error)
            raise

    def seen_verify(self: movers.Batch, chain: tuple[bytes, ...]) -> Any:
        try:
            return verify(self, chain)
        except (TrustError, ProtocolError) as error:
            noticed("move", error)
            raise

    def seen_check(*given: Any) -> None:
        try:
            check(*given)
        except PeerError as error:
            noticed("answer to a hand-over", error)
            raise

    def seen_record(self: Reception, *given: Any) -> Any:
        try:
            return record(self, *given)
        except PeerError as error:
            noticed("hand-over", error)
            raise

    patched: Sequence[tuple[Any, str, Any, Any]] = (
        (FederationDirectory, "_accept", seen_accept, accept), (FederationDirectory, "_fetch", seen_fetch, fetch),
        (movers.Batch, "_verify", seen_verify, verify),
        (Forwarders, "_check", staticmethod(seen_check), staticmethod(check)),
        (Reception, "_record", seen_record, record),
    )  # fmt: skip
    for place, name, seen, _ in patched:
        setattr(place, name, seen)
    try:
        yield
    finally:
        for place, name, _, honest in patched:
            setattr(place, name, honest)
