"""What a simulated device keeps: what it has not been answered for, and what it knows of each log."""

from __future__ import annotations

from dataclasses import dataclass, field

from relay.core import wire
from tests.simulation.ledger import Letter


@dataclass(slots=True)
class Out:
    """Something that has no final outcome yet: an envelope of a letter, or a roster version."""

    letter: Letter | None
    data: bytes = b""
    roster: wire.Roster | None = None
    sent_on: int = 0  # the connection it went out on
    sent_at: float = 0.0
    not_before: float = 0.0
    tries: int = 0


@dataclass(slots=True)
class Log:
    """What a device knows of one log."""

    at: dict[int, bytes] = field(default_factory=dict)  # position → envelope id
    where: dict[bytes, int] = field(default_factory=dict)  # envelope id → position
    top: int = 0  # the highest position that was received
    empty: int = 0  # everything up to here was received, said EMPTY
    acked: int = 0
