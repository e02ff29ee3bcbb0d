"""TCP in memory, as it behaves when it goes wrong: what is lost arrives late or not at all, who is cut off is told late
or never, a window that is full makes its sender wait, and a message may end in the middle.

A path between two hosts has a latency, jitter, loss and bandwidth, and may be blocked in one direction. Bytes that meet
a block are sent again once it is gone, or their connection ends for the sender after GIVE_UP_S, as a kernel does it.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

import trio

from tests.simulation.stream import GIVE_UP_S, SimListener, SimStream
from tests.simulation.world import World

INSIDE: Final = 12_500_000.0  # bytes a second of a connection inside a region: 100 Mbit/s
BACKLOG: Final = 64  # connections that wait to be accepted; past it nobody answers
FIRST_RETRY_S: Final = 0.2  # seconds before a lost segment goes out again; doubled each time
RETRIES: Final = 8  # losses of one segment in a row that end the connection


@dataclass(slots=True)
class Weather:
    """How the network is now, everywhere. Latencies in seconds, bandwidth in bytes a second, `window` in bytes."""

    near: float = 0.0005  # within a region
    far: float = 0.03  # between regions
    access: float = 0.01  # between a device and a node
    jitter: float = 0.2  # share of the latency
    loss: float = 0.0  # of a segment
    split: float = 0.05  # of a segment that arrives in two
    bandwidth: float = 12_500_000.0  # of one connection, but not inside a region
    window: int = 64 * 1024


class Host:
    """A machine with a network address. `up`: it has power; a process may still be down."""

    def __init__(self, name: str, region: str, *, is_node: bool) -> None:
        self.name, self.region, self.is_node = name, region, is_node
        self.up = True
        self.streams: dict[int, SimStream] = {}  # ends that processes of it hold


class Network:
    """All hosts, paths and connections."""

    def __init__(self, world: World, weather: Weather) -> None:
        self.world, self.weather = world, weather
        self.agenda, self.trace = world.agenda, world.trace
        self.random: Random = world.random("network")
        self.hosts: dict[str, Host] = {}
        self.holding: dict[int, SimStream] = {}  # ends with bytes that did not get through
        self.watch: Callable[[Host, Host, bytes], None] = lambda source, target, data: None  # sees all that is sent
        self._blocked: dict[tuple[str, str], int] = {}
        self._changed = trio.lowlevel.ParkingLot()
        self._listeners: dict[tuple[str, int], SimListener] = {}
        self._numbers = count(1)

    def add(self, name: str, region: str, *, is_node: bool = False) -> Host:
        host = self.hosts[name] = Host(name, region, is_node=is_node)
        return host

    # --- paths -----------------------------------------------------------------------------------
    def block(self, source: str, target: str) -> None:
        """Nothing gets from `source` to `target` any more. Counted: as many `unblock`s make it free."""
        self._blocked[source, target] = self._blocked.get((source, target), 0) + 1

    def unblock(self, source: str, target: str) -> None:
        left = self._blocked.get((source, target), 0) - 1
        if left > 0:
            self._blocked[source, target] = left
        elif self._blocked.pop((source, target), 0):
            self._change()

    def heal(self) -> None:
        """All paths are free."""
        self._blocked.clear()
        self._change()

    def open(self, source: Host, target: Host) -> bool:
        """Does anything get through from `source` to `target` now?"""
        return source.up and target.up and (source.name, target.name) not in self._blocked

    def _change(self) -> None:
        """Whoever waits for a path or a host looks again."""
        self._changed.unpark_all()
        for stream in list(self.holding.values()):
            stream.try_again()

    def bandwidth(self, source: Host, target: Host) -> float:
        """Bytes a second of one connection."""
        inside = source.is_node and target.is_node and source.region == target.region
        return INSIDE if inside else self.weather.bandwidth

    def latency(self, source: Host, target: Host) -> float:
        weather = self.weather
        if source is target:
            base = 0.00005
        elif not (source.is_node and target.is_node):
            base = weather.access
        else:
            base = weather.near if source.region == target.region else weather.far
        return base * (1 + weather.jitter * self.random.random())

    def repeated(self) -> float:
        """Seconds that a segment is late because it was lost, some times in a row; inf where that ends it."""
        loss = self.weather.loss
        if loss == 0.0:
            return 0.0
        late, wait = 0.0, FIRST_RETRY_S
        for _ in range(RETRIES):
            if self.random.random() >= loss:
                return late
            self.trace.counts["segment lost"] += 1
            late, wait = late + wait, wait * 2
        return math.inf

    # --- connections -----------------------------------------------------------------------------
    async def listen(self, host: Host, port: int) -> SimListener:
        """Raises OSError (EADDRINUSE)."""
        await trio.lowlevel.checkpoint()
        if (host.name, port) in self._listeners:
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = self._listeners[host.name, port] = SimListener(self, host, port, BACKLOG)
        return listener

    def forget(self, listener: SimListener) -> None:
        if self._listeners.get((listener.host.name, listener.port)) is listener:
            del self._listeners[listener.host.name, listener.port]

    async def dial(self, source: Host, name: str, port: int) -> SimStream:
        """Raises OSError: nobody listens there, or nothing came back for GIVE_UP_S."""
        await trio.lowlevel.checkpoint()
        target = self.hosts.get(name)
        if target is None:
            raise OSError(errno.EHOSTUNREACH, "No such host")
        with trio.move_on_after(GIVE_UP_S):
            while True:
                await trio.sleep(min(self.repeated(), GIVE_UP_S) + self.latency(source, target))
                if not (self.open(source, target) and self.open(target, source)):
                    await self._wait_open(source, target)
                    continue
                listener = self._listeners.get((target.name, port))
                if listener is None or listener.room():
                    return await self._meet(source, target, listener)
                await trio.sleep(1.0)  # the backlog is full: nobody answers, and it is tried again
        raise OSError(errno.ETIMEDOUT, "Connection timed out")

    async def _meet(self, source: Host, target: Host, listener: SimListener | None) -> SimStream:
        if listener is None:
            await trio.sleep(self.latency(target, source))
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        number = next(self._numbers)
        dialer = SimStream(self, 2 * number, source, target)
        accepted = SimStream(self, 2 * number + 1, target, source)
        for end, peer in ((dialer, accepted), (accepted, dialer)):
            end.peer, end.host.streams[end.key] = peer, end
        self.trace("connected", number, source.name, target.name)
        listener.offer(accepted)
        try:
            await trio.sleep(self.latency(target, source))
        except BaseException:
            dialer.close()
            raise
        return dialer

    async def _wait_open(self, source: Host, target: Host) -> None:
        while not (self.open(source, target) and self.open(target, source)):
            await self._changed.park()
        await trio.sleep(self.random.uniform(0.0, 3.0))  # until the next try of the kernel

    def connections(self) -> list[SimStream]:
        """The dialer's end of every connection that its process holds."""
        return [end for host in self.hosts.values() for end in host.streams.values() if not end.key & 1]

    # --- machines --------------------------------------------------------------------------------
    def kill_process(self, host: Host) -> None:
        """The process on `host` has died: its kernel closes everything, and tells the others."""
        self._shut(host)
        for stream in list(host.streams.values()):
            stream.reset()

    def power_off(self, host: Host) -> None:
        """The machine stops: nobody is told anything."""
        host.up = False
        self._shut(host)
        for stream in [*host.streams.values(), *(one for one in self.holding.values() if one.host is host)]:
            stream.break_off()
            stream.drop_held()

    def power_on(self, host: Host) -> None:
        """The machine is back. It knows nothing of its old connections, and says so to whoever writes to them."""
        host.up = True
        self._change()

    def _shut(self, host: Host) -> None:
        for listener in [one for key, one in self._listeners.items() if key[0] == host.name]:
            listener.shut()
