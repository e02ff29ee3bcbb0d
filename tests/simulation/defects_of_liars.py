"""Planted defects in what honest regions do about one that lies."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import halts, movers
from cluster.directory.federation import FederationDirectory
from cluster.forwarder import Forwarders
from cluster.registrar import gossip, witness
from relay.core.tlog import Fork, Signature, SignerKey, VerifierKey, parse_checkpoint
from relay.core.tlog.witness import AddCheckpoint, Seen
from relay.core.trust import homes
from relay.errors import OperatorError, PeerError
from relay.limits import KIB, SECOND

Patch = pytest.MonkeyPatch


def lets_anybody_send_on(patch: Patch) -> None:
    """A region where the user never was at home sends on mail and notices."""
    patch.setattr(movers.Batch, "_check_left", lambda *_: None)


def falls_behind_what_it_saw(patch: Patch) -> None:
    """What a directory has seen of a user is not held against what it is told."""
    patch.setattr(FederationDirectory, "_check_seen", lambda *_: None)


def believes_the_registrar_alone(patch: Patch) -> None:
    """The user's signature under a home record is not looked at, nor the release."""
    patch.setattr(homes, "_signed_by_recovery", lambda *_: False)
    patch.setattr(homes, "_check_release", lambda *_: None)


def a_liar_ends_the_node(patch: Patch) -> None:
    """An answer that cannot be true ends the node that hears it, not the hand-over."""
    honest = Forwarders._check

    def check(*given: Any) -> None:
        try:
            honest(*given)
        except PeerError as error:
            raise OperatorError(error.text, error.remedy) from None

    patch.setattr(Forwarders, "_check", staticmethod(check))


def hears_of_a_split_and_forgets(patch: Patch) -> None:
    """A witness is told by others what they saw of a log, and does not hold it against what it saw."""

    async def compare(own: witness.Witness, origin: str, note: bytes) -> None:
        return None

    patch.setattr(witness.Witness, "compare", compare)


def cosigns_what_does_not_follow(patch: Patch) -> None:
    """A witness cosigns what a log signed, and does not look whether it follows what it saw."""

    def consider(
        seen: Seen | None, request: AddCheckpoint, log: Any, own: SignerKey, now: int
    ) -> tuple[Seen, Signature]:  # fmt: skip
        point = parse_checkpoint(request.note.text)
        line = Signature(own.name, own.verifier.id, own.sign(request.note.text, now))
        return Seen(point.size, point.root, request.note.encode(), now), line

    patch.setattr(witness, "consider", consider)


def sees_no_fork_across_sizes(patch: Patch) -> None:
    """A log's own tiles show that a checkpoint does not follow an older one, and nobody looks."""
    patch.setattr(gossip, "contradicts", lambda *_: False)


def believes_whoever_shows_a_fork(patch: Patch) -> None:
    """A node hears of a fork, and does not look whether that log has signed what is shown."""

    def believe(proof: bytes, log: VerifierKey) -> Fork:
        return Fork(f"log {log.name}: they say that it forked", "", b"", b"")

    patch.setattr(halts, "verify_fork", believe)


def knows_of_a_fork_and_goes_on(patch: Patch) -> None:
    """A node says that it has halted federation with a region, and has not."""
    patch.setattr(halts.Halts, "check", lambda *_: None)


TRUE: dict[str, Any] = {"lookups": 0.0, "forks": False, "false_witness": ""}  # no registrars either
_WORLD: dict[str, Any] = {"regions": 3, "people": 2, "safety": 40.0, "liar": ""}
LYING = {
    **_WORLD, "groups": 1, "rate": 5.0, "lookups": 0.3, "liar": "sauda", "lies": 0.2, "every": {"kill": 8.0},
    "limits": {"DIRECTORY_CACHE": 4 * KIB, "DIRECTORY_FRESH": 5 * SECOND},
}  # fmt: skip
FORKED = {**_WORLD, "rate": 1.0, "liar": "quito", "lies": 0.0, "forks": True, "every": {}}
PLANTS = (  # with the rule that each breaks, the seed that found it, and the options that bring it to light
    (lets_anybody_send_on, "ADR 21", 3, LYING),
    (falls_behind_what_it_saw, "section 5, 5", 3, LYING),
    (believes_the_registrar_alone, "section 5, 4", 1, LYING),
    (a_liar_ends_the_node, "13", 1, LYING),
    (hears_of_a_split_and_forgets, "section 5, 5", 3, FORKED),
    (cosigns_what_does_not_follow, "section 5, 5", 1, FORKED),
    (sees_no_fork_across_sizes, "section 5, 5", 6, FORKED),
    (believes_whoever_shows_a_fork, "section 5, 5", 1, {**_WORLD, "rate": 1.0, "false_witness": "sauda", "every": {}}),
    (knows_of_a_fork_and_goes_on, "section 5, 5", 3, {**FORKED, "safety": 150.0, "rate": 4.0}),
)
