"""The gateway: accepts clients on several listeners, serves them, and lets them go gently when the node stops.

Accepts in an inner nursery and serves in an outer one, so that accepting can stop while clients are still served.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from relay.core import wire
from relay.core.frames import server_frame
from relay.gateway.api import Office
from relay.gateway.connection import Bounds, Connection, GatewayMetrics, Surroundings
from relay.gateway.outbox import Queued
from relay.gateway.tls import TlsStream
from relay.gateway.websocket import busy_response
from relay.limits import DRAIN_S, DRAIN_SPREAD_MS, HANDSHAKE_S, LINGER_S, MAX_CONNECTIONS, SECOND
from relay.ports import Env

_log = structlog.get_logger("relay.gateway")

ACCEPT_RETRY_S: Final = 0.1  # after an accept error; the usual one, no file descriptors, passes when a client leaves
MAX_REFUSALS: Final = 64  # connections that are told 503 at a time; past it they are closed without a word
BUSY_RETRY_S: Final = 10  # Retry-After for a client that there is no room for
_REQUEST: Final = 4096  # bytes of a refused client's request that are read before the answer


@dataclass(frozen=True, slots=True)
class Entrance:
    """One listener, and for TLS what gives each connection its context: the certificate may be renewed meanwhile."""

    listener: trio.abc.Listener[trio.abc.Stream]
    context: Callable[[], ssl.SSLContext] | None = None


class Gateway:
    """Serves clients for an office."""

    def __init__(
        self,
        office: Office,
        env: Env,
        metrics: GatewayMetrics,
        *,
        max_connections: int = MAX_CONNECTIONS,
        drain_s: float = DRAIN_S,
        bounds: Bounds | None = None,
    ) -> None:
        self._around = Surroundings(office, env, metrics, Queued(metrics.outbox_bytes), bounds or Bounds())
        self._max_connections = max_connections
        self._drain_s = drain_s
        self._connections: dict[Connection, None] = {}  # in the order in which they came
        self._refusing = 0
        self._accepting = trio.CancelScope()
        self._changed = trio.Event()  # replaced whenever a connection ends

    @property
    def connections(self) -> int:
        """Clients that are connected now."""
        return len(self._connections)

    def stop(self) -> None:
        """Accept nobody any more and drain: `run` returns when all have left, or were sent away. Idempotent."""
        self._accepting.cancel()

    async def run(
        self, entrances: Sequence[Entrance], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve until `stop`, then drain. Closes the listeners. Cancelled, it closes everything at once."""
        async with trio.open_nursery() as serving:
            with self._accepting:
                async with trio.open_nursery() as accepting:
                    for entrance in entrances:
                        accepting.start_soon(self._accept, entrance, serving, name="accept")
                    task_status.started()
            await self._drain()
            serving.cancel_scope.cancel()

    async def _accept(self, entrance: Entrance, serving: trio.Nursery) -> None:
        async with entrance.listener as listener:
            while True:
                try:
                    stream = await listener.accept()
                except OSError as error:
                    _log.warning("accept_failed", errno=error.errno, retry_s=ACCEPT_RETRY_S)
                    await trio.sleep(ACCEPT_RETRY_S)
                    continue
                context = entrance.context() if entrance.context else None
                if len(self._connections) < self._max_connections:
                    connection = Connection(stream, self._around, serving, context)
                    self._connections[connection] = None
                    serving.start_soon(self._serve, connection, name="client")
                elif self._refusing < MAX_REFUSALS:
                    self._refusing += 1
                    serving.start_soon(self._refuse, stream, context, name="refusal")
                else:
                    await trio.aclose_forcefully(stream)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.run()
        except Exception as error:  # noqa: BLE001  one connection's trouble is nobody else's
            _log.error("connection_crashed", error=type(error).__name__)
        finally:
            self._connections.pop(connection, None)
            self._changed.set()
            self._changed = trio.Event()

    async def _refuse(self, transport: trio.abc.Stream, context: ssl.SSLContext | None) -> None:
        """HTTP 503, without the WebSocket machinery."""
        self._around.metrics.refused.labels(wire.Fault.OVERLOADED.name.lower()).inc()
        stream = transport
        try:
            with trio.move_on_after(HANDSHAKE_S):
                if context is not None:
                    stream = secure = TlsStream(transport, context)
                    await secure.do_handshake()
                await stream.receive_some(_REQUEST)
                await stream.send_all(busy_response(BUSY_RETRY_S))
                with trio.move_on_after(LINGER_S):
                    if isinstance(transport, trio.abc.HalfCloseableStream):
                        await transport.send_eof()
                    while await transport.receive_some(_REQUEST):
                        pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._refusing -= 1
            await trio.aclose_forcefully(stream)

    async def _drain(self) -> None:
        """Tell every client, wait for those who leave by themselves, then close the rest."""
        clients = len(self._connections)
        _log.info("draining", clients=clients, seconds=self._drain_s)
        spread_ms = max(SECOND, clients * DRAIN_SPREAD_MS)
        frame = server_frame(wire.encode_message(wire.Drain(spread_ms)))
        for connection in list(self._connections):
            connection.drain(frame)
        await self._empty_within(self._drain_s)
        for connection in list(self._connections):
            connection.leave()
        await self._empty_within(self._around.bounds.linger_s + 1)
        _log.info("drained", cut_off=len(self._connections))

    async def _empty_within(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            while self._connections:
                await self._changed.wait()
