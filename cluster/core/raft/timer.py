"""When a store stops waiting for a leader: an election timeout, and at random up to another one (Raft 3.4)."""

from __future__ import annotations

from relay.core.codec import digest


class Timer:
    """`at`: ms; when the waiting ends. What is random comes from `seed`: same inputs, same outputs."""

    def __init__(self, seed: bytes, election_ms: int) -> None:
        self.at = 0
        self._seed = seed
        self._election_ms = election_ms
        self._draws = 0

    def draw(self, below: int) -> int:
        """The next number of the sequence, in [0, below)."""
        self._draws += 1
        drawn = digest(self._seed + self._draws.to_bytes(8, "big"), b"posthouse.raft")
        return int.from_bytes(drawn[:8], "big") % below

    def wait(self, now: int, timeouts: int = 1) -> None:
        self.at = now + timeouts * self._election_ms + self.draw(self._election_ms)
