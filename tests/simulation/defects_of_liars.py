"""Planted defects in what honest regions do about one that lies."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import movers
from cluster.directory.federation import FederationDirectory
from cluster.forwarder import Forwarders
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


_WORLD: dict[str, Any] = {"regions": 3, "people": 2, "safety": 40.0, "liar": ""}
LYING = {
    **_WORLD, "groups": 1, "rate": 5.0, "lookups": 0.3, "liar": "sauda", "lies": 0.2, "every": {"kill": 8.0},
    "limits": {"DIRECTORY_CACHE": 4 * KIB, "DIRECTORY_FRESH": 5 * SECOND},
}  # fmt: skip
PLANTS = (  # with the rule that each breaks, the seed that found it, and the options that bring it to light
    (lets_anybody_send_on, "ADR 21", 3, LYING),
    (falls_behind_what_it_saw, "section 5, 5", 3, LYING),
    (believes_the_registrar_alone, "section 5, 4", 1, LYING),
    (a_liar_ends_the_node, "13", 1, LYING),
)
