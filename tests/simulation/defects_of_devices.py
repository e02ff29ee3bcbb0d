"""Planted defects: what goes wrong where devices are revoked, or their keys rotated (ADR 24), or a user has come only
just now (ADR 29)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio

from relay.barrier import Barrier
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


def denies_what_it_has_not_applied(patch: Patch) -> None:
    """A node that is behind says of who came to another node of its cell that there is nobody of that id."""

    async def reach(barrier: Barrier, asker: str = "") -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(Barrier, "reach", reach)
