"""How long the process stands still: how late its loop wakes, and what each look for garbage takes.

A stop is what a client's p99 is made of, and no counter of work shows it. The rest of the process is not measured: who
held the loop up, a profiler tells (docs/OPERATIONS.md).
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import structlog
import trio

from relay.observe.metrics import Metrics

EVERY_S: Final = 0.02  # seconds between two looks: a stop is seen that much shorter at most; 0.2 % of a core
STOOD_STILL_S: Final = 0.5  # seconds; a longer stop is worth a line in the log
_log = structlog.get_logger("relay.pulse")


async def feel_pulse(metrics: Metrics) -> None:
    """Until cancelled."""
    with _looks_for_garbage() as pauses:
        while True:
            due = trio.current_time() + EVERY_S
            await trio.sleep_until(due)
            late = trio.current_time() - due
            metrics.loop_late_seconds.observe(late)
            if late > STOOD_STILL_S:
                _log.warning("stood_still", seconds=round(late, 3), garbage=round(sum(pauses), 3))
            while pauses:
                metrics.gc_pause_seconds.observe(pauses.pop())


@contextmanager
def _looks_for_garbage() -> Iterator[list[float]]:
    """What each took, s. A look may begin anywhere, also where a metric's lock is held: it must not count by itself."""
    pauses: list[float] = []
    began = 0.0

    def told(phase: str, _: dict[str, Any]) -> None:
        nonlocal began
        if phase == "start":
            began = time.monotonic()
        else:
            pauses.append(time.monotonic() - began)

    gc.callbacks.append(told)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(told)
