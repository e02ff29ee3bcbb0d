"""A world that does not come to an end by itself comes to one all the same, as a violation.

A thread looks on. No timer's signal may do it: each would wake trio, whose scheduler then draws one more number, and
the same seed would be another world on a busy machine."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

import trio

from tests.simulation.world import Violation, World

LOOK_S = 2.0  # seconds of real time between two looks
STILL_S = 4.0  # seconds of this process's time in which virtual time must have moved
WAITS = 10  # a machine that has much else to do may take that many times as long


@contextmanager
def standing_still(worlds: list[World], most: float) -> Iterator[None]:
    """Inside, the newest of `worlds` ends with a Violation when its time stands still while its process works, and
    after `most` seconds of its work, or WAITS as many on the wall. In the main thread only. Raises Violation by itself
    where even that is not heeded: somebody never comes to a checkpoint."""
    watcher = _Watcher(worlds, most)
    old = signal.signal(signal.SIGALRM, watcher.insist)
    watcher.start()
    try:
        yield
    finally:
        watcher.over.set()
        watcher.join()
        signal.signal(signal.SIGALRM, old)


class _Watcher(threading.Thread):
    def __init__(self, worlds: list[World], most: float) -> None:
        super().__init__(daemon=True)
        self.over = threading.Event()
        self._worlds, self._most, self._told = worlds, most, ""

    def run(self) -> None:
        began, begun = time.monotonic(), time.process_time()
        worked, last = begun, -1.0
        while not self.over.wait(LOOK_S):
            if not self._worlds or (token := self._worlds[-1].token) is None:
                continue  # not begun
            now, work = self._worlds[-1].agenda.now, time.process_time()
            if self._told:
                if work - worked > STILL_S:
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                continue
            if now != last:
                worked, last = work, now
            if work - worked > STILL_S:
                self._told = f"the world stands still at {now:.6f} s: somebody goes round and round"
            elif work - begun > self._most or time.monotonic() - began > self._most * WAITS:
                self._told = f"after {self._most:.0f} s of work, or more of waiting, the world came to {now:.6f} s only"
            if self._told:
                worked = work
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._end)

    def _end(self) -> None:
        self._worlds[-1].agenda.fail(Violation(self._told))

    def insist(self, _number: int, _frame: FrameType | None) -> None:
        """In the main thread, wherever that is."""
        if not self.over.is_set():
            raise Violation(self._told)
