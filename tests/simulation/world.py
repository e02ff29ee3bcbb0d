"""One simulated world: one trio run in virtual time, all randomness from one seed, and a trace of what happened.

Two runs of the same seed, code and options give the same trace, whatever PYTHONHASHSEED says: trio's own scheduler is
seeded (as pytest-trio does for Hypothesis), the clock only moves when everybody waits, and no thread takes part.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any

import trio
import trio._core._run as trio_run
from trio.testing import MockClock

START_MS = 1_800_000_000_000  # Unix ms at virtual time 0
GRAIN_S = 0.0005  # seconds: what the agenda is rounded to
KEPT = 400  # lines of the trace that a failing seed shows


class Violation(BaseException):
    """An invariant does not hold. It ends the world, whoever is in the way: no `except Exception` holds it up."""


class Trace:
    """The ordered list of events with their virtual times: counted, hashed, and the newest kept for a look."""

    def __init__(self, keep: int = KEPT, echo: Callable[[str], None] | None = None) -> None:
        self.counts: Counter[str] = Counter()  # of events by kind, and of what is too small to be one
        self.events = 0
        self.newest: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=keep)
        self._hash = blake2b(digest_size=16)
        self._echo = echo

    def __call__(self, kind: str, *what: object) -> None:
        """Note an event. `what` are plain values: text, numbers, bytes; nothing whose text holds a memory address."""
        now = trio.current_time()
        self.events += 1
        self.counts[kind] += 1
        self.newest.append((now, kind, what))
        self._hash.update(f"{now!r} {kind} {what!r}\n".encode())
        if self._echo is not None:
            self._echo(line(now, kind, what))

    def digest(self) -> str:
        return self._hash.hexdigest()

    def lines(self) -> Iterator[str]:
        for entry in self.newest:
            yield line(*entry)


def line(now: float, kind: str, what: tuple[object, ...]) -> str:
    """One event for a reader."""
    shown = (value[:4].hex() if isinstance(value, bytes) else str(value) for value in what)
    return f"{now:12.6f}  {kind:<18} {' '.join(shown)}"


class Agenda:
    """What happens at a given virtual time: callbacks that do not wait. The clock itself runs them, in order of time,
    when it jumps: no task is woken for what is only under way."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = count()
        self._failed = trio.Event()
        self._error: BaseException | None = None
        self.now = 0.0  # the time, for whoever looks from without

    def at(self, when: float, callback: Callable[..., None], *args: Any) -> None:
        """Call `callback(*args)` at virtual time `when`, rounded up to GRAIN_S, so that the world does not stop for
        every one of them; what is due at the same time runs in the order of the calls."""
        heappush(self._heap, (math.ceil(when / GRAIN_S) * GRAIN_S, next(self._numbers), callback, args))

    def after(self, seconds: float, callback: Callable[..., None], *args: Any) -> None:
        self.at(trio.current_time() + seconds, callback, *args)

    def next(self) -> float:
        """When something is due."""
        return self._heap[0][0] if self._heap else math.inf

    def run_due(self, now: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, callback, args = heappop(heap)
            try:
                callback(*args)
            except BaseException as error:  # the clock may not raise: `watch` does
                self.fail(error)

    def fail(self, error: BaseException) -> None:
        """The world ends with this error, or an earlier one."""
        self._error = self._error or error
        self._failed.set()

    async def watch(self) -> None:
        """Raise what a callback raised. Until cancelled."""
        await self._failed.wait()
        assert self._error is not None
        raise self._error


def jumping_clock(agenda: Agenda) -> MockClock:
    """Virtual time that stands still while anybody can run, and then jumps to the next deadline, or to what is next on
    the agenda. It does what trio's own does with `autojump_threshold=0`, and asks no real clock."""
    clock = MockClock(autojump_threshold=0)
    now = 0.0

    def current_time() -> float:
        return now

    def autojump() -> None:
        nonlocal now
        runner = trio_run.GLOBAL_RUN_CONTEXT.runner
        while not runner.runq:
            deadline, due = runner.deadlines.next_deadline(), agenda.next()
            if min(deadline, due) == math.inf:
                return  # at the very end trio waits for itself
            now = agenda.now = max(now, min(deadline, due))
            if due <= now:
                agenda.run_due(now)
            if deadline <= now:
                return

    clock.current_time = current_time  # type: ignore[method-assign]
    clock._autojump = autojump  # type: ignore[method-assign]
    return clock


class World:
    """What everything in a simulation shares."""

    def __init__(self, seed: int, echo: Callable[[str], None] | None = None) -> None:
        self.seed = seed
        self.trace = Trace(echo=echo)
        self.agenda = Agenda()
        self.ended = 0.0  # virtual time at the end
        self.token: trio.lowlevel.TrioToken | None = None  # once it runs

    def random(self, name: str) -> Random:
        """A source of randomness of its own for `name`: what one part draws does not change what another one gets."""
        return Random(f"{self.seed}/{name}")

    @property
    def counts(self) -> Counter[str]:
        return self.trace.counts


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """trio's scheduler shuffles by the seed."""
    before = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    state = trio_run._r.getstate()
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    try:
        yield
    finally:
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
        trio_run._r.setstate(state)


def simulate(seed: int, main: Callable[[World], Awaitable[None]], echo: Callable[[str], None] | None = None) -> World:
    """Run `main` in a world of its own, in virtual time. Raises what it raises."""
    world = World(seed, echo)

    async def run() -> None:
        world.token = trio.lowlevel.current_trio_token()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(world.agenda.watch)
                await main(world)
                nursery.cancel_scope.cancel()
        finally:
            world.ended = trio.current_time()

    with deterministic(seed):
        trio.run(run, clock=jumping_clock(world.agenda), strict_exception_groups=True)
    return world
