"""The border of a region: small TCP forwarders between it and each other region, which can be cut and healed, and may
be long: what goes through them arrives later."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol

import trio

from cluster.config_keys import Address
from cluster.local.capture import Reel, Tape
from relay.errors import OperatorError
from relay.limits import KIB

_PIECE = 64 * KIB  # bytes forwarded at once; all that a border ever holds of a direction
_PIECES = 256  # under way on a border that takes its time: 16 MiB, twice what a link has in flight
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Crossing:
    """One direction of dialling between two regions: a listening port, and where it leads.

    While it is open, connections are forwarded; once shut, they are broken off and new ones refused. `reel` keeps what
    goes through. Each way takes `delay_s` seconds, as if the regions were that far apart."""

    def __init__(self, at: Address, to: Address, reel: Reel | None = None, delay_s: float = 0.0) -> None:
        self._at = at
        self._to = to
        self._reel = reel
        self._delay_s = delay_s
        self._shut_by: set[str] = set()
        self._changed = trio.Event()
        self._scope: trio.CancelScope | None = None

    def shut(self, by: str) -> None:
        """Takes effect at once for what is connected, and for new connections as soon as the task runs."""
        self._shut_by.add(by)
        if self._scope is not None:
            self._scope.cancel()

    def open(self, by: str) -> None:
        """Opens when everybody who shut it has opened it again."""
        self._shut_by.discard(by)
        self._changed.set()
        self._changed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled; started once it listens. Raises OperatorError where the port is taken."""
        while True:
            if self._shut_by:
                await self._changed.wait()
                continue
            with trio.CancelScope() as self._scope:
                await self._serve(task_status)
            task_status = trio.TASK_STATUS_IGNORED

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        try:
            listeners = await trio.open_tcp_listeners(self._at.port, host=self._at.host)
        except OSError as error:
            raise OperatorError(f"cannot listen on {self._at}: {error.strerror}", "Stop what listens there") from None
        task_status.started()
        await trio.serve_listeners(self._forward, listeners)

    async def _forward(self, inner: trio.SocketStream) -> None:
        async with inner:
            with suppress(*_GONE):
                async with await trio.open_tcp_stream(*self._to) as outer, trio.open_nursery() as nursery:
                    out, back = self._reel.tapes() if self._reel else (_kept_nowhere, _kept_nowhere)
                    for source, target, keep in ((inner, outer, out), (outer, inner, back)):
                        way: _Way = target
                        if self._delay_s:
                            way = late = _Late(target, self._delay_s)
                            nursery.start_soon(late.run, nursery.cancel_scope)
                        nursery.start_soon(_pump, source, way, keep, nursery.cancel_scope)


class Border:
    """All crossings of one region, in both directions."""

    def __init__(self, region: str, crossings: Iterable[Crossing]) -> None:
        self.region = region
        self._crossings = tuple(crossings)

    def cut(self) -> None:
        """Break off every link from and to the region, and refuse new ones."""
        for crossing in self._crossings:
            crossing.shut(self.region)

    def heal(self) -> None:
        """Let links through again."""
        for crossing in self._crossings:
            crossing.open(self.region)


def _kept_nowhere(data: bytes | bytearray) -> None:
    pass


class _Way(Protocol):
    """Where a direction leads."""

    async def send_all(self, data: bytes | bytearray) -> None: ...


class _Late:
    """What is sent here arrives `delay_s` later, however much is under way meanwhile."""

    def __init__(self, target: trio.SocketStream, delay_s: float) -> None:
        self._target, self._delay_s = target, delay_s
        self._in, self._out = trio.open_memory_channel[tuple[float, bytes | bytearray]](_PIECES)

    async def send_all(self, data: bytes | bytearray) -> None:
        """Waits only where too much is under way."""
        await self._in.send((trio.current_time() + self._delay_s, data))

    async def run(self, either_ends: trio.CancelScope) -> None:
        """Until the target is gone."""
        with suppress(*_GONE):
            async for due, data in self._out:
                await trio.sleep_until(due)
                await self._target.send_all(data)
        either_ends.cancel()


async def _pump(source: trio.SocketStream, target: _Way, keep: Tape, either_ends: trio.CancelScope) -> None:
    with suppress(*_GONE):
        while data := await source.receive_some(_PIECE):
            keep(data)
            await target.send_all(data)
    either_ends.cancel()
