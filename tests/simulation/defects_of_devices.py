"""Planted defects: what goes wrong where devices are revoked, or their keys rotated (ADR 24)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from relay.core.block import position
from relay.core.mailroom import residents
from relay.core.mailroom.turn import Turn
from relay.delivery import Delivery

Patch = pytest.MonkeyPatch


def lets_a_revoked_device_go_on(patch: Patch) -> None:
    """A session of a device that was revoked is not ended."""
    patch.setattr(Delivery, "_gone", lambda delivery, effect: None)


def forgets_what_waits_at_a_rotation(patch: Patch) -> None:
    """A device with new keys is taken for a new device."""

    def rename(turn: Turn, old: bytes, new: bytes) -> None:
        turn.state.devices[new] = replace(turn.state.devices.pop(old), id=new, cursor=position(turn.index, 0))

    patch.setattr(residents, "_rename", rename)
