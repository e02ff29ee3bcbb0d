"""One client connection: reads, lets the session machine judge, carries its effects out against the office.

The conversation has a nursery: the read loop, Office.serve, lookups. Its deadline is the
handshake's until WELCOME, and then moves with the bytes that arrive. The outbox's writer lives in the nursery of the
gateway: last words (ERROR, close) leave when the conversation is over, and an idle connection pays for no second one.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

import structlog
import trio

from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.frames import GOING_AWAY, close_frame, server_frame
from relay.core.session import Admit, Ask, Begun, Close, Effect, Send, Session, State, closing
from relay.core.wire import Code, Fault
from relay.errors import Overloaded, PosthouseError, Refused
from relay.gateway.api import Office
from relay.gateway.channels import ChannelTurns
from relay.gateway.outbox import Outbox, Queued
from relay.gateway.source import reader
from relay.gateway.tls import TlsStream
from relay.gateway.websocket import accept
from relay.limits import HANDSHAKE_S, IDLE_S, KIB, LINGER_S, MAX_LOOKUPS, MAX_STRING, MIB, OUTBOX_BYTES
from relay.observe.logs import innermost
from relay.ports import Env
from relay.ws import Closed

_log = structlog.get_logger("relay.gateway")

NONCE_BYTES: Final = 32
CLOSE_BASE: Final = 4000  # close codes for applications start here (RFC 6455 7.4.2): ours is 4000 + Fault
UNPROVEN_BYTES: Final = 64 * MIB  # read from clients that have not shown who they are; past it they hear OVERLOADED,
UNPROVEN_EACH: Final = 16 * KIB  # but for those that sent no more than this: a handshake with some records fits
_DISCARD: Final = 64 * 1024  # bytes thrown away at a time while lingering


class GatewayMetrics(Protocol):
    """What the gateway counts (relay.observe.metrics.Metrics has it)."""

    connections: Any  # gauge
    sessions: Any  # gauge
    outbox_bytes: Any  # gauge
    refused: Any  # counter with label reason


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds of one connection: seconds and bytes. A config may tighten them."""

    handshake_s: float = HANDSHAKE_S
    idle_s: float = IDLE_S
    linger_s: float = LINGER_S
    outbox_bytes: int = OUTBOX_BYTES


@dataclass(slots=True)
class Unproven:
    """Bytes that were read from all clients that are not served yet, and may lie in memory."""

    size: int = 0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all connections of a gateway share."""

    office: Office
    env: Env
    metrics: GatewayMetrics
    queued: Queued
    bounds: Bounds = Bounds()
    unproven: Unproven = field(default_factory=Unproven)


class Connection:
    """One client, from the accepted stream to its close. It is the Line that the office sees."""

    __slots__ = (
        "_around", "_attached", "_channels", "_close", "_gone", "_heard", "_live", "_lookups", "_nursery", "_open",
        "_outbox", "_receive_some", "_scope", "_serving", "_stream", "_transport", "_unproven", "device", "user",
    )  # fmt: skip

    def __init__(
        self,
        transport: trio.abc.Stream,
        around: Surroundings,
        writers: trio.Nursery,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """`writers` holds the outbox's writer task and outlives `run`; `context`: speak TLS on
        `transport`, which then has to be a socket."""
        self.device = b""
        self.user = b""
        self._around = around
        self._transport = transport
        self._stream: trio.abc.Stream = transport if context is None else TlsStream(transport, context)
        self._receive_some = reader(self._stream)
        self._outbox = Outbox(self._stream, writers, around.queued, self._abandon, around.bounds.outbox_bytes)
        self._scope = trio.CancelScope()  # ends the conversation: its nursery's, once it has begun
        self._nursery: trio.Nursery
        self._close: Close | None = None  # why we end it
        self._gone = False  # the client has left, or the stream is broken: nobody to talk to
        self._open = False  # the WebSocket handshake is done
        self._attached = False  # the office knows the line
        self._live = False  # WELCOME is queued
        self._serving = False  # counted as a session
        self._heard = -math.inf  # when the deadline was last moved, s
        self._channels = ChannelTurns()
        self._lookups = 0
        self._unproven = 0  # our part of what the surroundings count

    # --- Line ------------------------------------------------------------------------------------
    @property
    def live(self) -> bool:
        """See Line."""
        return self._live

    def push(self, frames: Sequence[bytes]) -> bool:
        """See Line."""
        return self._live and self._outbox.push(frames)

    def give(self, data: bytes) -> bool:
        """See Line."""
        return self._live and self._outbox.give(data)

    def flush(self) -> None:
        """See Line."""
        self._outbox.flush()

    async def send(self, frame: bytes) -> None:
        """See Line."""
        await self._outbox.send(frame)

    async def room(self) -> None:
        """See Line."""
        await self._outbox.room()

    def end(self, fault: Fault, text: str, retry_after_ms: int = 0, records: tuple[bytes, ...] = ()) -> None:
        """See Line."""
        self._end(Close(fault, text, retry_after_ms, records))

    # --- for the server --------------------------------------------------------------------------
    def drain(self, frame: bytes) -> None:
        """Queue DRAIN for a client that is served; one that is not yet is let go."""
        if self._live:
            self.push((frame,))
            self.flush()
        else:
            self.leave()

    def leave(self) -> None:
        """Close with 1001 (going away), without ERROR."""
        self._scope.cancel()

    async def run(self) -> None:
        """Serve the client until it is over, and close the stream. Raises nothing of the client's making."""
        self._around.metrics.connections.inc()
        try:
            try:
                await self._converse()
            finally:
                self._finish()
            await self._linger()
        finally:
            self._around.metrics.connections.dec()
            self._count_unproven(-self._unproven)
            self._outbox.discard()
            await trio.aclose_forcefully(self._stream)

    # --- the conversation ------------------------------------------------------------------------
    async def _converse(self) -> None:
        """Everything up to the decision to end. After it, `_gone` or `_close` say why; neither means going away."""
        async with trio.open_nursery() as self._nursery:
            leaving, self._scope = self._scope, self._nursery.cancel_scope
            self._scope.deadline = trio.current_time() + self._around.bounds.handshake_s
            if leaving.cancel_called:
                self._scope.cancel()
            await self._talk_until_over()
        if trio.current_time() >= self._scope.deadline:
            self._end(self._late())

    def _late(self) -> Close:
        """What the client is told whose deadline has passed. One that pings and does not read is not heard either: who
        is not read from gets no pong, and until that has left the reader waits."""
        if self._live and self._outbox.size:
            what = f"{self._outbox.size} bytes wait, and what the node sends is not read"
            return Close(Fault.UNREAD, f"The connection was closed: {what}. Reconnect, and read")
        what = "nothing was heard for too long" if self._live else "the handshake took too long"
        return Close(Fault.TIMEOUT, f"The connection was closed: {what}. Reconnect")

    async def _talk_until_over(self) -> None:
        try:
            await self._talk()
        except (Closed, trio.BrokenResourceError, trio.ClosedResourceError):
            self._abandon()
        except Exception as error:  # noqa: BLE001  one connection's trouble is nobody else's
            self._fail(error, State.LIVE if self._live else State.STARTING)

    async def _talk(self) -> None:
        if isinstance(self._stream, TlsStream):
            await self._stream.do_handshake()
        socket = await accept(self._outbox.send_all, self._read)
        self._open = True
        try:
            data = await socket.receive()
            session = Session(self._challenge(), lambda: self._around.office.root)
            while True:
                await self._carry_out(session, session.receive(data))
                if self._live:
                    self._rearm()  # the time that the office took is not the client's
                data = await socket.receive()
        finally:
            socket.discard()

    async def _read(self, max_bytes: int) -> bytes | bytearray:
        """What the WebSocket reader reads with: any byte is a sign of life."""
        data = await self._receive_some(max_bytes)
        if self._live:
            self._rearm()
        else:
            self._count_unproven(len(data))
            if self._around.unproven.size > UNPROVEN_BYTES and self._unproven > UNPROVEN_EACH:
                self._end(Close(Fault.OVERLOADED, "The node has too much to read from newcomers", 1_000))
        return data

    def _count_unproven(self, size: int) -> None:
        self._unproven += size
        self._around.unproven.size += size

    def _rearm(self) -> None:
        """Move the idle deadline. Not at every byte: a sixteenth of it is near enough."""
        now, idle_s = trio.current_time(), self._around.bounds.idle_s
        if now - self._heard > idle_s / 16:
            self._heard = now
            self._scope.deadline = now + idle_s

    def _challenge(self) -> wire.Challenge:
        who, env = self._around.office.identity, self._around.env
        nonce = env.random_bytes(NONCE_BYTES)
        return wire.Challenge(nonce, who.region, who.cell, who.node, who.log_id, env.clock.wall_ms())

    async def _carry_out(self, session: Session, effect: Effect) -> None:
        match effect:
            case Ask():
                await self._ask(effect, session.nonce)
            case Send(message):
                await self._outbox.send(server_frame(wire.encode_message(message)))
            case Admit():
                await self._begin(session, effect)
            case Close():
                self._end(effect)

    async def _begin(self, session: Session, effect: Admit) -> None:
        """Have the office admit and start the device, and say WELCOME."""
        office = self._around.office
        await office.admit(effect.user, effect.device, effect.records)
        self.user, self.device = effect.user, effect.device
        self._attached = True
        started = await office.start(self, session.hello, session.nonce)
        begun = Begun(
            started.log_id, started.cursor, started.home_version, started.time_ms, started.max_lifetime, started.ack_ms
        )
        await self._carry_out(session, session.begun(begun))
        self._live = True
        self._count_unproven(-self._unproven)
        if session.hello.receive:
            self._serving = True
            self._around.metrics.sessions.inc()
            self._nursery.start_soon(self._serve, name="session")

    async def _serve(self) -> None:
        try:
            await self._around.office.serve(self)
        except Exception as error:  # noqa: BLE001  see _talk_until_over
            self._fail(error, State.LIVE)

    # --- requests --------------------------------------------------------------------------------
    async def _ask(self, effect: Ask, nonce: bytes) -> None:
        office = self._around.office
        match effect.message:
            case wire.Submit(items):
                try:
                    await office.submit(self, items)
                except (Refused, Overloaded) as error:
                    await self._refuse([envelope_id(item.envelope) for item in items], error)
            case wire.Ack(position):
                office.ack(self, position)
            case wire.Lookup() as request:
                await self._beside(partial(self._lookup, request))
            case wire.Prove() as request:
                await self._beside(partial(self._prove, request))
            case wire.Roster() as roster:
                try:
                    await office.roster(self, roster)
                except (Refused, Overloaded) as error:
                    await self._refuse([digest(roster.head)], error)
            case wire.Ephemeral() as message:
                with suppress(Refused, Overloaded):  # nobody is told
                    await office.ephemeral(self, message)
            case about_channels:
                await self._channels.ask(office.channels, self, about_channels, nonce, self._beside)

    async def _refuse(self, ids: Sequence[bytes], error: Refused | Overloaded) -> None:
        """A receipt with the same refusal for each."""
        code = error.code if isinstance(error, Refused) else Code.OVERLOADED
        cell = self._around.office.identity.cell
        receipt = wire.Receipt(tuple(wire.ReceiptItem(id_, code, 0, 0, cell) for id_ in ids))
        await self._outbox.send(server_frame(wire.encode_message(receipt)))

    async def _beside(self, answer: Callable[[], Awaitable[None]]) -> None:
        """Answer while the connection reads on; past MAX_LOOKUPS it does not."""
        if self._lookups < MAX_LOOKUPS:
            self._lookups += 1
            self._nursery.start_soon(self._answer, answer, name="lookup")
        else:
            await answer()

    async def _answer(self, answer: Callable[[], Awaitable[None]]) -> None:
        try:
            await answer()
        except Exception as error:  # noqa: BLE001  see _talk_until_over
            self._fail(error, State.LIVE)
        finally:
            self._lookups -= 1

    async def _lookup(self, request: wire.Lookup) -> None:
        try:
            record = await self._around.office.lookup(self, request)
        except Refused as error:
            record = wire.Record(request.request, error.code, ())
        except Overloaded:
            record = wire.Record(request.request, Code.UNREACHABLE, ())
        await self._outbox.send(server_frame(wire.encode_message(record)))

    async def _prove(self, request: wire.Prove) -> None:
        proof = await self._around.office.prove(self, request)
        await self._outbox.send(server_frame(wire.encode_proof(proof)))

    # --- the end ---------------------------------------------------------------------------------
    def _fail(self, error: Exception, state: State) -> None:
        close = closing(error, state)
        if close.fault is Fault.INTERNAL:
            text = error.text if isinstance(error, PosthouseError) else ""
            _log.error("connection_failed", error=type(error).__name__, text=text, where=innermost(error))
        self._end(close)

    def _end(self, close: Close) -> None:
        """ERROR and close; the first reason counts."""
        if self._close is None and not self._gone:
            self._close = close
            self._around.metrics.refused.labels(close.fault.name.lower()).inc()
        self._scope.cancel()

    def _abandon(self) -> None:
        """The client has left, or the stream is broken."""
        self._gone = True
        self._scope.cancel()

    def _finish(self) -> None:
        """Once, when the conversation is over (also when cancelled): the last words, and the office is told."""
        if self._open and not self._gone:
            frames, code = [], GOING_AWAY
            if self._close is not None:
                close = self._close
                if close.records:
                    frames.append(server_frame(wire.encode_message(wire.Moved(close.records))))
                error = wire.Error(close.fault, close.text[:MAX_STRING], close.retry_after_ms)
                frames.append(server_frame(wire.encode_message(error)))
                code = CLOSE_BASE + close.fault
            self._outbox.finish([*frames, close_frame(code)])
        if self._serving:
            self._around.metrics.sessions.dec()
        if self._attached:
            self._around.office.detach(self)

    async def _linger(self) -> None:
        """Let the client read the last words, also an HTTP refusal: closing while bytes arrive would make the kernel
        throw them away. Over at once when the client has closed its side."""
        with trio.move_on_after(self._around.bounds.linger_s):
            try:
                await self._outbox.written()
                if isinstance(self._transport, trio.abc.HalfCloseableStream):
                    await self._transport.send_eof()
                while await self._transport.receive_some(_DISCARD):
                    pass
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
