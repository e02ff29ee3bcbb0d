"""An asyncio event loop in one thread beside trio: for aiosqlite, and the only file that imports asyncio.

`Portal.run` is to asyncio what `trio.to_thread.run_sync` is to threads: it may be cancelled before the call starts and
not after, so that a commit that began is known to have ended, and the state that follows from it is never left stale.
It waits in real time, DISK_DEADLINE_S and a tenth of that at most: a disk that hangs breaks the portal, and nothing
runs behind its back. `Portal.hand` gives the same for a function that a thread of aiosqlite's calls, without the way
through asyncio: each change of threads on a busy machine costs a write about a millisecond.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Generic, TypeVar, TypeVarTuple

import outcome
import trio
from outcome import Outcome

from relay.limits import DISK_DEADLINE_S

_LOOKS = 10  # times within the deadline it is looked what is beyond it

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class _Call(Generic[T]):
    """A call that somebody waits for, on its way through another thread."""

    def __init__(self) -> None:
        self.since = time.monotonic()
        self.ended = trio.Event()
        self.outcome: Outcome[T] | None = None

    def end(self, how: Outcome[T]) -> None:
        """The first end counts; in trio's thread."""
        if self.outcome is None:
            self.outcome = how
            self.ended.set()


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that hears nothing after its end. aiosqlite's threads may outlive it (a disk that hung comes back,
    a file did not open) and tell it so; what then escapes them would be printed as a traceback."""

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)


class Portal:
    """Runs asyncio functions for trio tasks. Made by `open_portal`."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._trio = trio.lowlevel.current_trio_token()
        self._loop: asyncio.AbstractEventLoop | None = None  # while the thread serves
        self._stop: asyncio.Event | None = None
        self._calls: set[_Call[Any]] = set()  # those that somebody waits for; of trio's thread
        self._running: set[asyncio.Task[None]] = set()  # of the asyncio thread
        self._posted: set[asyncio.Task[None]] = set()  # of the asyncio thread
        self._broken = False

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Await `function(*args)` in the asyncio thread; its result or exception. Calls start in the order made.

        Not cancellable once started. Raises trio.BrokenResourceError when the call did not end within the deadline
        (and from then on, because it may still be running), trio.ClosedResourceError after the portal closed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        loop, call = self._serving(), _Call[T]()
        loop.call_soon_threadsafe(self._start, lambda: function(*args), call)
        return await self._ended(call)

    async def hand(self, submit: Callable[[Callable[[], None]], None], function: Callable[[], T]) -> T:
        """Have `function` called by the thread that `submit` gives functions to; its result or exception. As `run`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._serving()
        call = _Call[T]()
        submit(lambda: self._tell_trio(partial(call.end, outcome.capture(function))))
        return await self._ended(call)

    async def _ended(self, call: _Call[T]) -> T:
        self._calls.add(call)
        with trio.CancelScope(shield=True):  # bounded by the deadline that `_give_up_late` holds it to
            await call.ended.wait()
        self._calls.remove(call)
        assert call.outcome is not None
        return call.outcome.unwrap()

    def _serving(self) -> asyncio.AbstractEventLoop:
        if self._broken:
            raise trio.BrokenResourceError("an earlier call hangs")
        if self._loop is None:
            raise trio.ClosedResourceError("the portal is closed")
        return self._loop

    def post(self, function: Callable[[], Awaitable[object]]) -> None:
        """Start a last call that nobody waits for, also where an earlier one hangs; closing gives it its deadline."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._start_posted, function)

    def _start(self, function: Callable[[], Awaitable[T]], call: _Call[T]) -> asyncio.Task[None]:
        async def carry() -> None:
            how = await outcome.acapture(function)
            if isinstance(how, outcome.Error) and isinstance(how.error, asyncio.CancelledError):
                how = outcome.Error(trio.BrokenResourceError("the portal closed before the call ended"))
            self._tell_trio(partial(call.end, how))

        task = asyncio.ensure_future(carry())
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    def _start_posted(self, function: Callable[[], Awaitable[object]]) -> None:
        self._posted.add(self._start(function, _Call()))

    def _give_up_late(self) -> None:
        """Nobody waits any longer for a call that began before the deadline's time, and may still be running; in
        trio's thread."""
        for call in self._calls:
            if call.outcome is None and time.monotonic() - call.since > self._deadline_s:
                self._broken = True
                late = trio.BrokenResourceError(f"a call did not end within {self._deadline_s} s")
                call.end(outcome.Error(late))

    def _tell_trio(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._trio.run_sync_soon(action)

    async def _serve(self, ready: trio.Event) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._tell_trio(ready.set)
        while not self._stop.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), self._deadline_s / _LOOKS)
            self._tell_trio(self._give_up_late)
        if self._posted:
            await asyncio.wait(self._posted, timeout=self._deadline_s)

    def _thread(self, ready: trio.Event, ended: trio.Event) -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(self._serve(ready))  # in the end it cancels what outlived the deadline
        finally:
            self._tell_trio(ended.set)

    @asynccontextmanager
    async def _opened(self) -> AsyncIterator[Portal]:
        ready, ended = trio.Event(), trio.Event()
        thread = threading.Thread(target=self._thread, args=(ready, ended), name="posthouse-portal", daemon=True)
        thread.start()
        with trio.CancelScope(shield=True):
            await ready.wait()
        try:
            yield self
        finally:
            loop, stop = self._loop, self._stop
            assert loop is not None and stop is not None
            self._loop = None
            with trio.CancelScope(shield=True):
                for call in list(self._calls):
                    await call.ended.wait()
                loop.call_soon_threadsafe(stop.set)
                await ended.wait()
            thread.join()


@asynccontextmanager
async def open_portal(deadline_s: float = DISK_DEADLINE_S) -> AsyncIterator[Portal]:
    """A portal for the time of the block. On the way out it takes no new call, waits for those that run (each at most
    `deadline_s`), and its thread has ended when the block is left."""
    async with Portal(deadline_s)._opened() as portal:
        yield portal
