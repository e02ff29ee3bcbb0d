"""Clients that stay connected, whatever they speak: they come back by themselves, and not all at once."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Any, Final, Generic

from bench.pipes import Endpoint
from bench.scenario import NS
from bench.sockets import Connection, Hub, LineT, client_context
from bench.tape import Tape

MS: Final = 1_000_000  # ns
_HANDSHAKING = 64  # connections of one worker that are on the way at a time, so that none waits for its deadline
_HANDSHAKE_NS = 15 * NS  # from connect to being served
_BACKOFF_NS = (100 * MS, 400 * MS)  # first and longest wait before another try; a random half of it is taken off
_PING_TURNS = 300
_PING_NS = 30 * NS  # between pings, so that no client that has nothing to ack meets an idle deadline


class Net:
    """What the clients of one worker share: the loop, where to connect, and what went wrong."""

    def __init__(self, hub: Hub, endpoints: Sequence[Endpoint], seed: int, narrow: bool = False) -> None:
        """`narrow`: see bench.sockets.Connection."""
        self.hub, self.endpoints, self.narrow = hub, tuple(endpoints), narrow
        self.context = client_context(self.endpoints[0].authority)
        self.random = Random(seed)
        self.faults: Counter[str] = Counter()
        self.live = 0
        self.connects = 0
        self._handshaking = 0
        self._away = False
        self._waiting: deque[Client[Any]] = deque()
        self._clients: list[Client[Any]] = []

    def add(self, client: Client[Any]) -> None:
        """Connect a new client, and keep it from falling idle."""
        if not self._clients:
            self._pings(0)
        self._clients.append(client)
        self.admit(client)

    def _pings(self, turn: int) -> None:
        """A part of them at a time, so that ten thousand do not ping at once."""
        for client in self._clients[turn::_PING_TURNS]:
            client.ping()
        self.hub.at(time.monotonic_ns() + _PING_NS // _PING_TURNS, lambda: self._pings((turn + 1) % _PING_TURNS))

    def deafen(self, deaf: bool) -> None:
        """All clients stop reading, or read again."""
        for client in self._clients:
            client.deafen(deaf)

    def admit(self, client: Client[Any]) -> None:
        """Connect `client` as soon as fewer than the limit are on the way."""
        self._waiting.append(client)
        self._next()

    def settled(self) -> None:
        """A connection is live, or came to nothing."""
        self._handshaking -= 1
        self._next()

    def leave(self) -> None:
        """All clients are gone at once, without a word."""
        self._away = True
        for client in self._clients:
            client.hang_up()

    def come_back(self) -> None:
        """All connect again, as fast as that goes."""
        self._away = False
        self._next()

    def _next(self) -> None:
        while self._waiting and not self._away and self._handshaking < _HANDSHAKING:
            self._handshaking += 1
            self._waiting.popleft().open()


class Client(Generic[LineT]):
    """One client. It begins with the endpoint at `place`, and goes on to the next one whenever its connection ends.

    `cursor` is the position up to which it has everything; 0 where the system has no positions. `tape`: that of its
    stream, where others here get the same bytes."""

    __slots__ = ("_backoff_ns", "_connection", "_is_live", "_net", "_opened_ns", "_place", "cursor", "tape")

    def __init__(self, net: Net, place: int = 0) -> None:
        self._net = net
        self._place = place
        self._connection: Connection[LineT] | None = None
        self._is_live = False
        self._opened_ns = 0
        self._backoff_ns = _BACKOFF_NS[0]
        self.cursor = 0
        self.tape: Tape | None = None

    def dial(self, endpoint: Endpoint) -> LineT:
        """The line of a new connection to `endpoint`."""
        raise NotImplementedError

    def messages(self, messages: list[bytes], now_ns: int) -> None:
        """What one read brought (see bench.sockets.Owner)."""
        raise NotImplementedError

    def open(self) -> None:
        """Connect now. `Net.admit` calls it in turn."""
        net = self._net
        self._opened_ns = opened_ns = time.monotonic_ns()
        endpoint = net.endpoints[self._place % len(net.endpoints)]
        self._connection = Connection(net.hub, endpoint, net.context, self.dial(endpoint), self, net.narrow)
        net.hub.at(opened_ns + _HANDSHAKE_NS, lambda: self._overdue(opened_ns))

    def _overdue(self, opened_ns: int) -> None:
        if self._opened_ns == opened_ns and not self._is_live and self._connection is not None:
            self._connection.close()
            self.lost("not served in time")

    @property
    def line(self) -> LineT | None:
        """That of the live connection; None where there is none."""
        return self._connection.line if self._connection is not None and self._is_live else None

    def flush(self) -> None:
        """Write what the line has."""
        if self._connection is not None:
            self._connection.flush()

    def ping(self) -> None:
        """Show that the client is there."""
        if (line := self.line) is not None:
            line.ping()
            self.flush()

    def live(self) -> None:
        """Served (again)."""
        self._is_live = True
        self._backoff_ns = _BACKOFF_NS[0]
        self._net.live += 1
        self._net.connects += 1
        self._net.settled()

    def deafen(self, deaf: bool) -> None:
        """Stop reading, or read again."""
        if self._connection is not None:
            self._connection.deafen(deaf)

    def move_on(self) -> None:
        """Leave, and go to the next endpoint."""
        self._place += 1
        self.hang_up()

    def hang_up(self) -> None:
        """Gone; it waits for its turn to connect again."""
        if self._connection is None:
            return
        self._connection.close()
        if self._is_live:
            self._net.live -= 1
        else:
            self._net.settled()
        self._connection, self._is_live = None, False
        self._net.admit(self)

    def lost(self, why: str, retry_after_ns: int = 0) -> None:
        """The connection ended; another one follows, not before `retry_after_ns`."""
        self._net.faults[why] += 1
        if self._is_live:
            self._net.live -= 1
        else:
            self._net.settled()
        self._connection, self._is_live = None, False
        self._place += 1
        wait_ns = max(self._backoff_ns, retry_after_ns)
        wait_ns -= int(self._net.random.random() * wait_ns / 2)
        self._backoff_ns = min(self._backoff_ns * 2, _BACKOFF_NS[1])
        self._net.hub.at(time.monotonic_ns() + wait_ns, lambda: self._net.admit(self))
