"""Planted defects in what policies of the signed root permit (ADR 25): each in the one place that all three ask."""

from __future__ import annotations

from typing import Any

import pytest

from relay.core.policy import Policies
from relay.core.trust import Policy

Patch = pytest.MonkeyPatch


def lets_mail_over_any_border(patch: Patch) -> None:
    """Nobody asks where a region may send to, and whom it receives from."""
    patch.setattr(Policies, "forbidden", lambda *_: "")


def lets_what_is_bound_abroad_wait(patch: Patch) -> None:
    """What is bound abroad waits at home, although nothing may."""
    patch.setattr(Policies, "may_wait", lambda *_: True)


def keeps_mail_as_long_as_it_likes(patch: Patch) -> None:
    """Nobody asks how long a region keeps mail."""
    patch.setattr(Policies, "rests_too_long", lambda *_: False)


RULED: dict[str, Any] = {
    "regions": 3, "people": 1, "safety": 30.0, "rate": 4.0, "every": {"kill": 8.0}, "policies": {
        "norden": Policy(send_to=("sauda",), hold="deny"), "sauda": Policy(retention_days=1),
        "quito": Policy(receive_from=("sauda",)),
    },
}  # fmt: skip
PLANTS = (  # with the rule that each breaks, the seed that found it, and the options that bring it to light
    (lets_mail_over_any_border, "section 5, 2", 1, RULED),
    (lets_what_is_bound_abroad_wait, "section 5, 3", 2, RULED),
    (keeps_mail_as_long_as_it_likes, "ADR 25", 2, RULED),
)
