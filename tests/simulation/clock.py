"""The clocks of one machine: a wall clock that may jump and drift, and a monotonic one that only drifts."""

from __future__ import annotations

import trio

from tests.simulation.world import START_MS


class SimClock:
    """relay.ports.Clock over virtual time. It belongs to a machine and outlives its processes."""

    def __init__(self, boot_ms: int = 0) -> None:
        self._since = trio.current_time()
        self._steady = float(boot_ms)  # ms of the monotonic clock at `_since`
        self._wall = START_MS + self._since * 1000  # Unix ms at `_since`
        self._rate = 1.0
        self._peak = 0.0

    def _passed_ms(self) -> float:
        return (trio.current_time() - self._since) * 1000 * self._rate

    def wall_ms(self) -> int:
        """Unix time as this machine has it, ms."""
        return int(self._wall + self._passed_ms())

    def monotonic_ms(self) -> int:
        """Never goes back, ms."""
        return int(self._steady + self._passed_ms())

    def set(self, *, jump_ms: float = 0.0, drift: float | None = None) -> None:
        """Somebody sets the clock (`jump_ms`), or it runs at 1 + `drift` from now on."""
        self.peak_ms()
        passed = self._passed_ms()
        self._steady += passed
        self._wall += passed + jump_ms
        self._since = trio.current_time()
        if drift is not None:
            self._rate = 1.0 + drift

    def mend(self) -> None:
        """Right time again, and no drift: what NTP does in the end."""
        self.set(drift=0.0)
        self._wall = START_MS + self._since * 1000

    def peak_ms(self) -> float:
        """How far this clock was ever ahead of the truth."""
        self._peak = max(self._peak, self.wrong_ms())
        return self._peak

    def wrong_ms(self) -> float:
        """How far this clock is from the truth."""
        return self.wall_ms() - (START_MS + trio.current_time() * 1000)
