"""A world that does not come to an end by itself comes to one all the same, as a violation."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import trio

from tests.simulation.world import Violation, World

LOOK_S = 4.0  # seconds of real time between two looks
STILL_S = 4.0  # seconds of this process's time in which virtual time must have moved
WAITS = 10  # a machine that has much else to do may take that many times as long


@contextmanager
def standing_still(worlds: list[World], most: float) -> Iterator[None]:
    """Inside, the newest of `worlds` ends with a Violation when its time stands still while its process works, and
    after `most` seconds of its work, or WAITS as many on the wall. In the main thread only. Raises Violation by itself
    where even that is not heeded: somebody never comes to a checkpoint."""
    began, begun, last, told = time.monotonic(), time.process_time(), -1.0, ""
    worked = begun

    def end() -> None:
        agenda = worlds[-1].agenda
        agenda._error = agenda._error or Violation(told)
        agenda._failed.set()

    def look(_number: int, _frame: FrameType | None) -> None:
        nonlocal worked, last, told
        try:
            now, token = trio.current_time(), trio.lowlevel.current_trio_token()
        except RuntimeError:
            return  # not begun, or over
        if told:
            if time.process_time() - worked > STILL_S:
                raise Violation(told)
            return
        if now != last:
            worked, last = time.process_time(), now
        if time.process_time() - worked > STILL_S:
            told = f"the world stands still at {now:.6f} s: somebody goes round and round"
        elif time.process_time() - begun > most or time.monotonic() - began > most * WAITS:
            told = f"after {most:.0f} s of work, or more of waiting, the world has come to {now:.6f} s only"
        if told:
            worked = time.process_time()
            token.run_sync_soon(end)

    old = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, LOOK_S, LOOK_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
