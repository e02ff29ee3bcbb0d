"""The time that a store believes (rule 14)."""

from __future__ import annotations

import structlog

from relay.limits import MAX_CLOCK_JUMP
from relay.ports import Clock

_log = structlog.get_logger("relay.journal")


class Stamp:
    """The wall clock, as long as it keeps pace with the monotonic one since the start; after a jump beyond
    MAX_CLOCK_JUMP the time goes on by the monotonic clock until the wall clock is back, or is to be followed again, or
    the node restarts."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = clock.wall_ms() - clock.monotonic_ms()
        self.jumped = False  # by the last `now`

    def now(self) -> int:
        """Unix time, ms. May go back by less than MAX_CLOCK_JUMP: block times are held by their predecessors'."""
        wall, steady = self._clock.wall_ms(), self._clock.monotonic_ms() + self._offset
        jumped = abs(wall - steady) > MAX_CLOCK_JUMP
        if jumped != self.jumped:
            self.jumped = jumped
            if jumped:
                _log.error("clock_jump_refused", wall_ms=wall, used_ms=steady, remedy="mend the clock, then restart")
            else:
                _log.warning("clock_jump_over", wall_ms=wall)
        return steady if jumped else wall

    def follow(self) -> None:
        """What the wall clock shows now is right: others vouch for it."""
        self._offset = self._clock.wall_ms() - self._clock.monotonic_ms()
