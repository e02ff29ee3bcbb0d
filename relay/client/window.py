"""What one connection submitted and nobody answered yet, and what the answers say about the connection. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from relay.client.sealer import Ready
from relay.core.wire import Code
from relay.limits import MIB

WINDOW, WINDOW_BYTES = 1_024, 4 * MIB  # envelopes and bytes submitted and not answered yet
STALES = 2  # STALE answers in a row, to what was sealed by this connection's clock: one of the clocks was set


@dataclass(frozen=True, slots=True)
class _Submit:
    size: int
    sealed: bool
    at: float


class Window:
    """Times in seconds of any one steady clock."""

    def __init__(self) -> None:
        self._submits: dict[bytes, _Submit] = {}  # by envelope id, oldest first
        self._stales = 0
        self._heard = 0.0

    def room(self) -> tuple[int, int]:
        """Envelopes and bytes that may be submitted now; not more where one is not positive."""
        return WINDOW - len(self._submits), WINDOW_BYTES - sum(submit.size for submit in self._submits.values())

    def add(self, one: Ready, now: float) -> None:
        self._submits.pop(one.id, None)
        self._submits[one.id] = _Submit(len(one.data), one.sealed, now)

    def answered(self, found: bytes, code: int) -> None:
        """An envelope has an outcome, for now or for good."""
        submit = self._submits.pop(found, None)
        if submit is not None and submit.sealed:
            self._stales = self._stales + 1 if code == Code.STALE else 0

    def heard(self, now: float) -> None:
        """A receipt came."""
        self._heard = now

    @property
    def astray(self) -> bool:
        """What WELCOME said about the node's time holds no more."""
        return self._stales >= STALES

    def silence(self, now: float) -> float:
        """Seconds that the oldest envelope has waited and no receipt came; 0 where none waits."""
        oldest = next(iter(self._submits.values()), None)
        return 0.0 if oldest is None else now - max(oldest.at, self._heard)
