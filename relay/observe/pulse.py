"""How long the process stands still: how late its loop wakes, and what each look for garbage takes. And what keeps
those looks short (ADR 38), and tells that the processors are what everything waits for (ADR 39).

Python looks at what is new when 700 more things were made than let go, so that it does not see coming what is made anew
in the place of what was there: parts of each connection that says something. With 10,000 of them a look at the newest
took 20 to 70 ms. So the pulse has it look in small steps.

It looks through all that was there before whenever a quarter has come on top: a second for 10,000 connections, and
nothing else runs meanwhile. So whatever such a look leaves is put where the next ones do not look (`gc.freeze`). What
is let go is freed at once all the same, unless it points in circles; such things lie there until all is looked through
again, seldom: when there is twice as much of it as the last time, and LEAST.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
import trio

from relay.limits import BUSY_S, INTAKE_EVERY_MOST_S, INTAKE_EVERY_S, INTAKE_ROUNDS
from relay.observe.metrics import Metrics

EVERY_S: Final = 0.02  # seconds between two looks at the clock: a stop is seen that much shorter; 0.2 % of a core
STOOD_STILL_S: Final = 0.5  # seconds; a longer stop is worth a line in the log
LEAST: Final = 500_000  # objects, some 200 MiB of connections
_TICK_S: Final = 0.001  # seconds that a timer may be late on a machine with nothing to do: epoll counts in ms
_MOST_S: Final = 0.004  # seconds: one long stop says no more than that
_SHARE: Final = 0.04  # of the newest look in the mean: that of half a second
_BLOCK: Final = 0.1  # of the newest block in the mean
_OLDEST: Final = 2  # generation: a look at that is one at everything that is not frozen
_STEPS: Final = (8, 32)  # looks at what is new until one at the second and at the oldest generation: 0.16 s and 0.64 s
_log = structlog.get_logger("relay.pulse")


class Pulse:
    """How late the loop wakes now, on average; and how long what a node does for a block takes."""

    __slots__ = ("busy", "commit_s", "late_s", "round_s")

    def __init__(self) -> None:
        self.late_s = 0.0  # seconds, beside a timer's tick
        # Is there more to do than the processors do at once? Then what shares a block or a write comes sooner than what
        # has one of its own.
        self.busy = False
        self.commit_s = 0.0  # seconds that a batch takes from when it is made until it is committed
        self.round_s = 0.0  # seconds that the fan-out takes for a block with mail; 0 for one whose mail is for few

    def felt(self, late: float) -> None:
        """It woke `late` seconds late."""
        self.late_s += _SHARE * (min(max(0.0, late - _TICK_S), _MOST_S) - self.late_s)
        self.busy = self.late_s > (BUSY_S / 2 if self.busy else BUSY_S)

    def committed(self, seconds: float) -> None:
        """A batch is."""
        self.commit_s += _BLOCK * (seconds - self.commit_s)

    def gave(self, seconds: float) -> None:
        """The mail of a block, or of some, was given out."""
        self.round_s += _BLOCK * (seconds - self.round_s)

    @property
    def every_s(self) -> float:
        """Seconds from batch to batch at least, while it is busy: what comes sooner finds the others still at it."""
        return min(max(INTAKE_EVERY_S, self.commit_s + INTAKE_ROUNDS * self.round_s), INTAKE_EVERY_MOST_S)


async def feel_pulse(metrics: Metrics, pulse: Pulse) -> None:
    """Until cancelled. One node a process."""
    with Garbage().watched() as garbage:
        while True:
            due = trio.current_time() + EVERY_S
            if garbage.due:
                garbage.look_at_all()  # and be late for it
            garbage.look_at_new()
            await trio.sleep_until(due)
            late = trio.current_time() - due
            metrics.loop_late_seconds.observe(late)
            pulse.felt(late)
            if late > STOOD_STILL_S:
                _log.warning("stood_still", seconds=round(late, 3), garbage=round(sum(garbage.pauses), 3))
            while garbage.pauses:
                metrics.gc_pause_seconds.observe(garbage.pauses.pop())


class Garbage:
    """What Python's collector is told, and what it took: `pauses`, s. `due`: all should be looked through."""

    def __init__(self, least: int = LEAST) -> None:
        self.pauses: list[float] = []
        self.due = False
        self._least = least
        self._began = 0.0
        self._frozen = 0  # objects, or more: those that were let go since count until they are counted anew
        self._bound = 0
        self._steps = 0

    @contextmanager
    def watched(self) -> Iterator[Garbage]:
        """For the time of the block; then the collector looks at everything again, as it likes."""
        self._count()
        gc.callbacks.append(self._told)
        try:
            yield self
        finally:
            gc.callbacks.remove(self._told)
            gc.unfreeze()

    def look_at_new(self) -> None:
        """Once every EVERY_S: at what has come since, now and then at what came before that, too."""
        self._steps += 1
        gc.collect(sum(self._steps % each == 0 for each in _STEPS))

    def look_at_all(self) -> None:
        """Free what points in circles, wherever it lies."""
        gc.unfreeze()
        gc.collect()
        self._count()

    def _count(self) -> None:
        self.due = False
        self._frozen = gc.get_freeze_count()
        self._bound = 2 * self._frozen + self._least

    def _told(self, phase: str, info: dict[str, Any]) -> None:
        """A look may begin anywhere, also where a metric's lock is held: no metric here."""
        if phase == "start":
            self._began = time.monotonic()
            return
        if info["generation"] == _OLDEST:
            self._frozen += len(gc.get_objects(generation=_OLDEST))
            gc.freeze()
            if self._frozen > self._bound and not self.due:
                self._frozen = gc.get_freeze_count()  # it goes through them: not each time
                self.due = self._frozen > self._bound
        self.pauses.append(time.monotonic() - self._began)
