"""What a connection asks of broadcast channels, handed to the office."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from relay.core import wire
from relay.gateway.api import ChannelOffice, Line
from relay.limits import MAX_LOOKUPS

_Answer = Callable[[], Awaitable[None]]
_SMALL = (wire.Subscribe, wire.SubscribeFar, wire.Unsubscribe, wire.Read)  # what may wait in memory


class ChannelTurns:
    """What one connection asks of channels, one after the other: one whose page does not leave is not read on.

    What crosses a border is answered beside the rest, and what comes after it waits behind it: a cell that does not
    answer holds up nobody's mail. Past MAX_LOOKUPS that wait the connection is not read on, either."""

    __slots__ = ("_waiting", "_went")

    def __init__(self) -> None:
        self._waiting: deque[_Answer] | None = None  # None: nothing is answered beside
        self._went: trio.Event | None = None  # somebody waits for room

    async def ask(
        self, office: ChannelOffice, line: Line, message: wire.ChannelMessage, nonce: bytes,
        beside: Callable[[_Answer], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`nonce`: of the connection's CHALLENGE; `beside` starts what answers while the connection reads on. Called by
        one task."""
        answer = partial(_ask, office, line, message, nonce)
        while self._waiting is not None and not self._takes(message):
            self._went = trio.Event()
            await self._went.wait()
        if self._waiting is not None:
            self._waiting.append(answer)
        elif office.crosses(message):
            self._waiting = deque([answer])
            await beside(self._run)
        else:
            await answer()

    def _takes(self, message: wire.ChannelMessage) -> bool:
        return isinstance(message, _SMALL) and len(self._waiting or ()) < MAX_LOOKUPS

    async def _run(self) -> None:
        try:
            while self._waiting:
                await self._waiting.popleft()()
                self._tell()
        finally:  # what is left when it is cancelled holds the connection
            self._waiting = None
            self._tell()

    def _tell(self) -> None:
        if self._went is not None:
            self._went.set()
            self._went = None


async def _ask(office: ChannelOffice, line: Line, message: wire.ChannelMessage, nonce: bytes) -> None:
    match message:
        case wire.Subscribe() | wire.SubscribeFar():
            await office.subscribe(line, message, nonce)
        case wire.Unsubscribe(channel):
            office.unsubscribe(line, channel)
        case wire.Read():
            await office.read(line, message)
        case wire.Terms(terms):
            await office.publish(line, terms)
        case wire.Posts(posts):
            await office.post(line, posts)
