"""The dialer's side: one live link with several requests in flight, and the loop that keeps one to a cell or a node."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import count

import structlog
import trio

from cluster.core.linkmachine import Answered, Ended, LinkEvent, LinkMachine
from cluster.core.linkwire import (
    SPEAKS_CHANNELS, Answer, CellNote, LookUp, Ping, ReadThere, Records, Request, encode_message, patience,
)  # fmt: skip
from cluster.links.pace import Pace
from cluster.links.secure import LinkLost, Party, dial, end_error, receive, stream_errors
from cluster.pki import Claim, admit_again
from relay.core.trust import RootNode
from relay.core.wire import Code
from relay.errors import PeerError, Refused
from relay.gateway.tls import Piece, TlsStream
from relay.limits import LINK_BACKOFF_S, LINK_WRITE, NOTE_BYTES
from relay.ports import Env

log = structlog.get_logger("relay.links")
_PING = encode_message(Ping())


class _Waiter:
    """One caller, until its answer came or the link ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.answer: Answer | None = None


class Outgoing:
    """One open link, dialer's side. `run` serves it until it ends; `ask` may be called by many tasks meanwhile."""

    def __init__(self, stream: trio.abc.Stream, machine: LinkMachine, claim: Claim, pace: Pace) -> None:
        self.claim = claim
        self._scope = trio.CancelScope()
        self._stream = stream
        self._machine = machine
        self._pace = pace
        self._sink = stream if isinstance(stream, TlsStream) else None  # what can be written without waiting
        self._sealing: list[Piece] = []  # what the sink has not taken of the last batch
        self._unsent = 0  # bytes of that batch that have not left
        self._queue: deque[bytes] = deque()  # frames of requests; bounded by the machine's room
        self._notes: deque[bytes] = deque()  # frames of notes
        self._note_bytes = 0  # of those; at most NOTE_BYTES
        self._queued = trio.Event()
        self._waiters: dict[int, _Waiter] = {}
        self._due: dict[int, float] = {}  # every open request, and until when it must be answered; also those given up
        self._freed = trio.Event()
        self._turn = trio.Lock()  # first come, first sent: small requests do not starve a large one
        self._heard = trio.current_time()
        self._ping = 0
        self._channels: bool | None = None  # whether the peer knows ReadThere, once it was asked
        self._reason: LinkLost | PeerError | None = None

    @property
    def ended(self) -> bool:
        return self._reason is not None

    async def ask(self, message: Request, check: Callable[[], None]) -> Answer:
        """The answer to one request. Raises Refused(UNREACHABLE) where the link ends first, or the peer is too old for
        the question; and what `check` raises when it is about to go out. Callers set a deadline."""
        if isinstance(message, ReadThere) and not await self._speaks_channels(check):
            what = "the peer's release does not know channels of other cells"
            raise Refused(Code.UNREACHABLE, what, "Its operator upgrades it", 60_000)
        return await self._ask(message, check)

    async def _speaks_channels(self, check: Callable[[], None]) -> bool:
        """Asked once a link: the next one may be to another node of the cell, or to a newer release."""
        if self._channels is None:
            answer = await self._ask(LookUp(SPEAKS_CHANNELS, 0), check)
            if not isinstance(answer, Records):
                return False  # it is starting: asked again
            self._channels = answer.code == Code.STORED
        return self._channels

    async def _ask(self, message: Request, check: Callable[[], None]) -> Answer:
        packed = encode_message(message)
        async with self._turn:
            while self._reason is None and not self._machine.room(len(packed)):
                await self._freed.wait()
            if self._reason is not None:
                raise self._broken()
            check()
            request, waiter = self._post(packed, patience(message)), _Waiter()
            self._waiters[request] = waiter
        try:
            await waiter.done.wait()
        finally:
            self._waiters.pop(request, None)
        if waiter.answer is None:
            raise self._broken()
        return waiter.answer

    def note(self, message: CellNote) -> bool:
        """Queue a note, in order. False: there was no room. Raises ProtocolError where it fits no frame."""
        if self._reason is not None:
            return False
        frame = self._machine.note(encode_message(message))
        if self._note_bytes + len(frame) > NOTE_BYTES:
            return False  # what waits stays without gaps: it is the newest that Raft sends again
        self._notes.append(frame)
        self._note_bytes += len(frame)
        self._flush()
        return True

    async def run(self) -> LinkLost | PeerError:
        """Serve the link until it ends; returns why. When cancelled it ends too."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for part in (self._read, self._write, self._watch):
                        nursery.start_soon(self._guard, part)
        finally:
            self._reason = self._reason or LinkLost("this node stops")
            for waiter in self._waiters.values():
                waiter.done.set()
            self._freed.set()
            await trio.aclose_forcefully(self._stream)
        return self._reason

    def end(self, reason: LinkLost | PeerError) -> None:
        """`run` ends, and returns this."""
        self._reason = self._reason or reason
        self._scope.cancel()

    def _broken(self) -> Refused:
        return Refused(Code.UNREACHABLE, f"the link ended before the answer: {self._reason}", "It is tried again", 1000)

    async def _guard(self, part: Callable[[], Awaitable[None]]) -> None:
        try:
            with stream_errors():
                await part()
        except (LinkLost, PeerError) as error:
            self.end(error)

    def _post(self, packed: bytes, patience_s: float, *, first: bool = False) -> int:
        request, frame = self._machine.request(packed)
        self._due[request] = trio.current_time() + patience_s + self._pace.ping_s
        (self._queue.appendleft if first else self._queue.append)(frame)
        self._flush()
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
        del self._due[event.id]
        waiter = self._waiters.get(event.id)
        if waiter is not None:
            waiter.answer = event.message
            waiter.done.set()
        self._freed.set()
        self._freed = trio.Event()

    def _flush(self) -> None:
        """What the socket takes at once leaves at once; the rest is the writer task's."""
        try:
            left = self._sink is None or self._write_now(self._sink)
        except OSError:
            left = True  # the writer task meets it, too
        if left:
            self._queued.set()

    def _write_now(self, sink: TlsStream) -> bool:
        """Write until nothing is left (False), or the socket takes no more. Raises OSError."""
        while self._unsent or self._queue or self._notes:
            if not self._unsent:
                batch = self._gather()
                self._sealing, self._unsent = [batch], len(batch)
            sent = sink.write(self._sealing)
            if not sent:
                return True
            self._unsent -= sent
        return False

    async def _write(self) -> None:
        while True:
            if self._sink is not None:
                while self._write_now(self._sink):
                    await trio.lowlevel.wait_writable(self._sink.socket)
            else:
                while batch := self._gather():
                    await self._stream.send_all(batch)
            self._queued = trio.Event()
            await self._queued.wait()

    def _gather(self) -> bytes:
        """What goes out in the next write. Requests and notes take turns: neither kind waits for all of the other."""
        frames: list[bytes] = []
        size = 0
        while size < LINK_WRITE and (self._queue or self._notes):
            if self._queue:
                frames.append(self._queue.popleft())
                size += len(frames[-1])
            if self._notes:
                frames.append(self._notes.popleft())
                size += len(frames[-1])
                self._note_bytes -= len(frames[-1])
        return b"".join(frames)

    async def _watch(self) -> None:
        """A half-open link says nothing: ping when it is quiet, end it when it stays so or holds a request too long."""
        while True:
            await trio.sleep(self._pace.ping_s / 2)
            now = trio.current_time()
            if now - self._heard >= self._pace.silence_s:
                raise LinkLost(f"not a byte for {self._pace.silence_s:.0f} s")
            if self._due and now >= min(self._due.values()):
                raise LinkLost("a request was not answered in its time")
            if now - self._heard >= self._pace.ping_s and self._ping not in self._due:
                self._ping = self._post(_PING, patience(Ping()), first=True)


class KeptLink:
    """Keeps one link to a cell, or to one node of it: dials, serves, backs off, dials again; the next of `nodes` each
    time. `on_change`: called with whether there is a link now."""

    def __init__(
        self, env: Env, party: Party, cell: str, nodes: Sequence[RootNode], pace: Pace,
        on_change: Callable[[bool], None],
    ) -> None:  # fmt: skip
        self._env, self._party, self._cell, self._nodes, self._pace = env, party, cell, nodes, pace
        self._on_change = on_change
        self._live: Outgoing | None = None
        self._bad: PeerError | None = None  # why the last dial met somebody else
        self._changed = trio.Event()
        self._followed = trio.Event()
        self._scope = trio.CancelScope()
        self._said = ""  # the last failure that was logged: a cell that stays away is logged once

    @property
    def connected(self) -> bool:
        return self._live is not None and not self._live.ended

    async def request(self, message: Request, check: Callable[[], None]) -> Answer:
        """Waits for a link, then for the answer. Raises PeerError, Refused(UNREACHABLE); and what `check` raises, once
        there is a link with room: it may have been long. The caller sets a deadline."""
        while self._live is None or self._live.ended:
            if self._bad is not None:
                raise PeerError(f"{self._cell}: {self._bad.text}", self._bad.remedy)
            await self._changed.wait()
        return await self._live.ask(message, check)

    def note(self, message: CellNote) -> bool:
        """See Outgoing.note. False where there is no link, too: what is said now is stale when there is one again."""
        return self._live is not None and self._live.note(message)

    def follow(self, nodes: Sequence[RootNode]) -> None:
        """The root document of now lists these. An open link goes on where it still lets that node in; else, and where
        there is none, the next dial is due."""
        self._nodes, self._bad = nodes, None
        if self._live is not None:
            try:
                admit_again(self._live.claim, self._party.root)
            except PeerError as error:
                self._live.end(error)
        self._followed.set()
        self._followed = trio.Event()

    def close(self) -> None:
        """The root document does not list the cell any more: `run` ends."""
        self._scope.cancel()

    async def run(self) -> None:
        """Until it is closed."""
        with self._scope:
            await self._keep()

    async def _keep(self) -> None:
        failures = 0
        for turn in count():
            followed = self._followed  # also while the old place is dialled
            node = self._nodes[turn % len(self._nodes)]
            lasted = 0.0
            try:
                stream, machine, claim = await dial(self._env, self._party, self._cell, node, self._pace.handshake_s)
            except (LinkLost, PeerError) as error:
                self._failed(node.name, error)
            else:
                began = trio.current_time()
                await self._serve(node.name, Outgoing(stream, machine, claim, self._pace))
                lasted, followed = trio.current_time() - began, self._followed
            failures = 0 if lasted >= self._pace.backoff_max_s else failures + 1
            with trio.move_on_after(self._pause(failures)):
                await followed.wait()
                failures = 0

    async def _serve(self, node: str, live: Outgoing) -> None:
        self._bad, self._said = None, ""
        self._switch(live)
        log.info("link_up", cell=self._cell, node=node)
        try:
            reason = await live.run()
        finally:
            self._switch(None)
        log.warning("link_down", cell=self._cell, node=node, reason=str(reason))

    def _failed(self, node: str, error: LinkLost | PeerError) -> None:
        self._bad = error if isinstance(error, PeerError) else None
        self._switch(None)
        if str(error) != self._said:
            self._said = str(error)
            event = "link_peer_refused" if self._bad else "link_unreachable"
            log.warning(event, cell=self._cell, node=node, reason=str(error))

    def _switch(self, live: Outgoing | None) -> None:
        if (live is None) != (self._live is None):
            self._on_change(live is not None)
        self._live = live
        self._changed.set()
        self._changed = trio.Event()

    def _pause(self, failures: int) -> float:
        """Seconds: doubled each time, and spread so that cells which lost the same peer do not come back as one."""
        full = min(self._pace.backoff_max_s, LINK_BACKOFF_S * 2.0 ** min(failures, 16))
        return full * (0.5 + 0.5 * self._env.random_float())
