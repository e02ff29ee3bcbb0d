"""Who answers what comes over the links, while a node starts and once it serves."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cluster.core.linkwire import CellEphemeral, Done, Join, LookUp, Peer, Request
from cluster.switchboard import Switchboard
from relay.errors import Overloaded, PeerError

PEER = Peer("norden", "norden/1", "n2")
EPHEMERAL = CellEphemeral(bytes(32), bytes(32), bytes(32), b"typing")


class Cell:
    """One that was opened, and knows nothing of clients."""

    async def answer(self, peer: Peer, message: Request) -> Done:
        if not isinstance(message, Join):
            raise PeerError(f"{peer.node} asked for {type(message).__name__}")
        return Done()


async def test_a_node_that_starts_asks_for_patience_and_blames_nobody() -> None:
    board: Any = Switchboard()
    for message in (EPHEMERAL, Join(bytes(16)), LookUp(bytes(32), 0)):
        with pytest.raises(Overloaded, match="starting"):
            await board.answer(PEER, message)
    board.cell = Cell()
    assert await board.answer(PEER, Join(bytes(16))) == Done()
    for message in (EPHEMERAL, LookUp(bytes(32), 0)):
        with pytest.raises(Overloaded, match="starting"):
            await board.answer(PEER, message)


async def test_what_is_off_the_log_goes_to_who_is_connected() -> None:
    board: Any = Switchboard()
    heard: list[bytes] = []
    board.cell, board.office = Cell(), SimpleNamespace(deliver_ephemeral=lambda *said: heard.append(said[-1]))
    assert await board.answer(PEER, EPHEMERAL) == Done() and heard == [b"typing"]
