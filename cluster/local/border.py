"""The border of a region: small TCP forwarders between it and each other region, which can be cut and healed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import trio

from cluster.config_keys import Address
from cluster.local.capture import Reel, Tape
from relay.errors import OperatorError
from relay.limits import KIB

_PIECE = 64 * KIB  # bytes forwarded at once; all that a border ever holds of a direction
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)


class Crossing:
    """One direction of dialling between two regions: a listening port, and where it leads.

    While it is open, connections are forwarded; once shut, they are broken off and new ones refused. `reel` keeps what
    goes through."""

    def __init__(self, at: Address, to: Address, reel: Reel | None = None) -> None:
        self._at = at
        self._to = to
        self._reel = reel
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
                    nursery.start_soon(_pump, inner, outer, out, nursery.cancel_scope)
                    nursery.start_soon(_pump, outer, inner, back, nursery.cancel_scope)


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


async def _pump(
    source: trio.SocketStream, target: trio.SocketStream, keep: Tape, either_ends: trio.CancelScope
) -> None:
    with suppress(*_GONE):
        while data := await source.receive_some(_PIECE):
            keep(data)
            await target.send_all(data)
    either_ends.cancel()
