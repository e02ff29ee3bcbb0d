"""How patient a link is: with cells abroad, and with the nodes of the own cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.limits import (
    CELL_BACKOFF_MAX_S, CELL_HANDSHAKE_S, CELL_PING_S, CELL_SILENCE_S, LINK_BACKOFF_MAX_S, LINK_HANDSHAKE_S,
    LINK_PING_S, LINK_SILENCE_S,
)


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds; see relay.limits."""

    handshake_s: float
    ping_s: float
    silence_s: float
    backoff_max_s: float


FAR: Final = Pace(LINK_HANDSHAKE_S, LINK_PING_S, LINK_SILENCE_S, LINK_BACKOFF_MAX_S)
NEAR: Final = Pace(CELL_HANDSHAKE_S, CELL_PING_S, CELL_SILENCE_S, CELL_BACKOFF_MAX_S)
