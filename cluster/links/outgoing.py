"""The dialer's side: one live link with several requests in flight, and the loop that keeps one to each cell."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from itertools import count

import structlog
import trio

from cluster.core.linkwire import (
    Answer, Answered, Ended, LinkEvent, LinkHello, LinkMachine, Ping, Request, encode_message,
)
from cluster.links.secure import LinkLost, SecureStream, dial, end_error, receive, stream_errors
from cluster.pki import NodeCredentials
from relay.core.trust import Root, RootCell
from relay.core.wire import Code
from relay.errors import PeerError, Refused
from relay.limits import LINK_BACKOFF_MAX_S, LINK_BACKOFF_S, LINK_DEADLINE_S, LINK_PING_S, LINK_SILENCE_S
from relay.ports import Env

log = structlog.get_logger("relay.links")


class _Waiter:
    """One caller, until its answer came or the link ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None


class Outgoing:
    """One open link, dialer's side. `run` serves it until it ends; `ask` may be called by many tasks meanwhile."""

    def __init__(self, stream: SecureStream, machine: LinkMachine) -> None:
        self._stream = stream
        self._machine = machine
        self._queue: deque[bytes] = deque()  # bounded by the machine's room
        self._queued = trio.Event()
        self._waiters: dict[int, _Waiter] = {}
        self._asked: dict[int, float] = {}  # every open request, oldest first, and when; also those given up
        self._freed = trio.Event()
        self._turn = trio.Lock()  # first come, first sent: small requests do not starve a large one
        self._heard = trio.current_time()
        self._ping = 0
        self._reason: LinkLost | PeerError | None = None

    async def ask(self, message: Request) -> Answer:
        """The answer to one request. Raises Refused(UNREACHABLE) where the link ends first. Callers set a deadline."""
        packed = encode_message(message)
        async with self._turn:
            while self._reason is None and not self._machine.room(len(packed)):
                await self._freed.wait()
            if self._reason is not None:
                raise self._broken()
            request, waiter = self._post(packed), _Waiter()
            self._waiters[request] = waiter
        try:
            await waiter.done.wait()
        finally:
            self._waiters.pop(request, None)
        if waiter.answer is None:
            raise self._broken()
        return waiter.answer

    async def run(self) -> LinkLost | PeerError:
        """Serve the link until it ends; returns why. When cancelled it ends too."""
        try:
            async with trio.open_nursery() as nursery:
                for part in (self._read, self._write, self._watch):
                    nursery.start_soon(self._guard, part, nursery.cancel_scope)
        finally:
            self._reason = self._reason or LinkLost("this node stops")
            for waiter in self._waiters.values():
                waiter.done.set()
            self._freed.set()
            await trio.aclose_forcefully(self._stream)
        return self._reason

    def _broken(self) -> Refused:
        return Refused(Code.UNREACHABLE, f"the link ended before the answer: {self._reason}", "It is tried again", 1000)

    async def _guard(self, part: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
        try:
            with stream_errors():
                await part()
        except (LinkLost, PeerError) as error:
            self._reason = self._reason or error
            scope.cancel()

    def _post(self, packed: bytes, *, first: bool = False) -> int:
        request, frame = self._machine.request(packed)
        self._asked[request] = trio.current_time()
        (self._queue.appendleft if first else self._queue.append)(frame)
        self._queued.set()
        return request

    async def _read(self) -> None:
        while True:
            events = await receive(self._stream, self._machine)
            self._heard = trio.current_time()
            for event in events:
                self._take(event)

    def _take(self, event: LinkEvent) -> None:
        if isinstance(event, Ended):
            end_error(event.fault)
        assert isinstance(event, Answered)  # the table of states lets nothing else come to an open dialer
        del self._asked[event.id]
        waiter = self._waiters.get(event.id)
        if waiter is not None:
            waiter.answer = event.message
            waiter.done.set()
        self._freed.set()
        self._freed = trio.Event()

    async def _write(self) -> None:
        while True:
            while self._queue:
                await self._stream.send_all(self._queue.popleft())
            self._queued = trio.Event()
            await self._queued.wait()

    async def _watch(self) -> None:
        """A half-open link says nothing: ping when it is quiet, end it when it stays so or holds a request too long."""
        ping = encode_message(Ping())
        while True:
            await trio.sleep(LINK_PING_S / 2)
            now = trio.current_time()
            if now - self._heard >= LINK_SILENCE_S:
                raise LinkLost(f"not a byte for {LINK_SILENCE_S:.0f} s")
            if self._asked and now - next(iter(self._asked.values())) >= LINK_DEADLINE_S + LINK_PING_S:
                raise LinkLost(f"no answer for {LINK_DEADLINE_S:.0f} s")
            if now - self._heard >= LINK_PING_S and self._ping not in self._asked:
                self._ping = self._post(ping, first=True)


class CellLink:
    """Keeps one link to one cell: dials, serves, backs off, dials again; another of its nodes each time."""

    def __init__(
        self, env: Env, root: Root, credentials: NodeCredentials, own: LinkHello, cell: RootCell,
        on_change: Callable[[str, bool], None],
    ) -> None:  # fmt: skip
        self._env, self._root, self._credentials, self._own, self._cell = env, root, credentials, own, cell
        self._on_change = on_change
        self._live: Outgoing | None = None
        self._bad: PeerError | None = None  # why the last dial met somebody else
        self._changed = trio.Event()
        self._said = ""  # the last failure that was logged: a cell that stays away is logged once

    @property
    def connected(self) -> bool:
        return self._live is not None

    async def request(self, message: Request) -> Answer:
        """Waits for a link, then for the answer. Raises PeerError, Refused(UNREACHABLE). The caller sets a deadline."""
        while self._live is None:
            if self._bad is not None:
                raise PeerError(f"{self._cell.name}: {self._bad.text}", self._bad.remedy)
            await self._changed.wait()
        return await self._live.ask(message)

    async def run(self) -> None:
        """Never ends by itself."""
        failures = 0
        for turn in count():
            node = self._cell.nodes[turn % len(self._cell.nodes)]
            lasted = 0.0
            try:
                stream, machine = await dial(
                    self._env, self._root, self._credentials, self._own, self._cell.name, node
                )
            except (LinkLost, PeerError) as error:
                self._failed(node.name, error)
            else:
                began = trio.current_time()
                await self._serve(node.name, Outgoing(stream, machine))
                lasted = trio.current_time() - began
            failures = 0 if lasted >= LINK_BACKOFF_MAX_S else failures + 1
            await trio.sleep(self._pause(failures))

    async def _serve(self, node: str, live: Outgoing) -> None:
        self._bad, self._said = None, ""
        self._switch(live)
        log.info("link_up", cell=self._cell.name, node=node)
        try:
            reason = await live.run()
        finally:
            self._switch(None)
        log.warning("link_down", cell=self._cell.name, node=node, reason=str(reason))

    def _failed(self, node: str, error: LinkLost | PeerError) -> None:
        self._bad = error if isinstance(error, PeerError) else None
        self._switch(None)
        if str(error) != self._said:
            self._said = str(error)
            event = "link_peer_refused" if self._bad else "link_unreachable"
            log.warning(event, cell=self._cell.name, node=node, reason=str(error))

    def _switch(self, live: Outgoing | None) -> None:
        if (live is None) != (self._live is None):
            self._on_change(self._cell.name, live is not None)
        self._live = live
        self._changed.set()
        self._changed = trio.Event()

    def _pause(self, failures: int) -> float:
        """Seconds: doubled each time, and spread so that cells which lost the same peer do not come back as one."""
        full = min(LINK_BACKOFF_MAX_S, LINK_BACKOFF_S * 2.0 ** min(failures, 16))
        return full * (0.5 + 0.5 * self._env.random_float())
