"""One end of a simulated TCP connection, and a listener. Made by tests.simulation.network.

What is sent counts against the window until the other end's process has read it. A segment is scheduled when it is
sent; a block or a machine that is off holds it back until it gets through, or until the kernel gives up.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from tests.simulation.network import Host, Network

SEGMENT: Final = 16 * 1024  # bytes that arrive at once at most
GIVE_UP_S: Final = 60.0  # seconds after which a kernel stops repeating what nobody confirms (Linux: 15 min; less here)
PROBE_S: Final = 5.0  # seconds between two questions to an end whose window is full
Segment = tuple[int, bytes | None]  # its number, and its bytes; None is the FIN


class SimStream(trio.abc.HalfCloseableStream):
    """One end. `host` is where its process runs, `other` the host at the far end; an even `key` is the dialer's."""

    def __init__(self, net: Network, key: int, host: Host, other: Host) -> None:
        self.net, self.key, self.host, self.other = net, key, host, other
        self.peer: SimStream
        # receiving
        self._came: deque[bytes] = deque()  # arrived in order, and not read
        self._early: dict[int, bytes | None] = {}  # arrived before what precedes it
        self._next = 0  # the number of the segment that is expected
        self._unread = 0
        self._ended = False  # the other side's FIN was reached
        self._arrived = trio.lowlevel.ParkingLot()
        self._receiving = False
        # sending
        self._window = net.weather.window
        self._under_way = 0  # bytes that the other process has not read
        self._number = 0
        self._held: list[Segment] = []  # what did not get through
        self._held_since = math.inf
        self._line_free = 0.0  # when the line takes the next byte
        self._bandwidth = net.bandwidth(host, other)
        self._room = trio.lowlevel.ParkingLot()
        self._sending = False
        self._sent_fin = False
        # both
        self.closed = False  # by our process
        self.broken = False  # a reset came, the kernel gave up, or the machine is dead
        self.deaf = False  # half-open: nothing that is sent from here arrives, and nobody is told

    @property
    def number(self) -> int:
        """Of the connection."""
        return self.key >> 1

    # --- trio.abc --------------------------------------------------------------------------------
    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._sending:
            raise trio.BusyResourceError("another task sends on this stream")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint()
            self._check_sendable()
            rest = bytes(data)
            self.net.watch(self.host, self.other, rest)
            while rest:
                if self._has_room(len(rest)):
                    size = min(self._window - self._under_way, SEGMENT)
                    self._send(rest[:size])
                    rest = rest[size:]
                else:
                    self.net.trace.counts["window full"] += 1
                    await self._wait_room(len(rest))
                self._check_sendable()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_sendable()
        while not self._has_room(1):
            await self._wait_room(1)
            self._check_sendable()

    def _has_room(self, wanted: int) -> bool:
        """No tiny segments when the other end reads slowly (RFC 9293 3.8.6.2: the silly window)."""
        return self._window - self._under_way >= min(wanted, self._window // 2)

    async def _wait_room(self, wanted: int) -> None:
        """Until the other process has read something. The kernel asks now and then whether somebody is still there."""
        asked = trio.current_time()
        while not (self._has_room(wanted) or self.broken or self.closed):
            with trio.move_on_after(PROBE_S):
                await self._room.park()
                continue
            if not self._through():
                if trio.current_time() - asked > GIVE_UP_S:
                    self.break_off()
                continue
            asked = trio.current_time()
            if self.peer.broken or self.peer.closed:
                self.peer._tell_reset()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._fin()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._receiving:
            raise trio.BusyResourceError("another task receives on this stream")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            self._check_open()
            while not self._came:
                if self._ended:
                    return b""
                await self._arrived.park()
                self._check_open()
            return self._take(max_bytes or SEGMENT)
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    # --- for the network and the faults ------------------------------------------------------------
    def close(self) -> None:
        """What close(2) does: FIN behind what was sent; RST where something arrived and was not read."""
        if self.closed:
            return
        if self._unread and not self.broken:
            self.reset()
        elif not self.broken:
            self._fin()
        self.closed = True
        self._leave()

    def reset(self) -> None:
        """RST: this end is broken; the other one learns it by a segment, if that gets there."""
        if not self.broken:
            self.break_off()
            self._tell_reset()

    def break_off(self) -> None:
        """This end is broken. Nobody else is told."""
        if self.broken:
            return
        self.broken = True
        self._came.clear()
        self._early.clear()
        self._unread = 0
        self.drop_held()
        self._leave()

    def drop_held(self) -> None:
        self._held.clear()
        self._held_since = math.inf
        self.net.holding.pop(self.key, None)

    def silence(self) -> None:
        """Something between the two forgets the connection: nothing arrives any more, and nobody is told."""
        self.deaf = self.peer.deaf = True

    def try_again(self) -> None:
        """The path may be free: what is held back goes out with the kernel's next repetition."""
        if self._through():
            self.net.agenda.after(self.net.random.uniform(0.0, 1.0), self._release)

    # --- sending ---------------------------------------------------------------------------------
    def _through(self) -> bool:
        return not self.deaf and self.net.open(self.host, self.other)

    def _send(self, part: bytes) -> None:
        self._under_way += len(part)
        if len(part) > 1 and self.net.random.random() < self.net.weather.split:
            at = self.net.random.randrange(1, len(part))
            self._first(part[:at])
            part = part[at:]
        self._first(part)

    def _fin(self) -> None:
        if not (self._sent_fin or self.broken):
            self._sent_fin = True
            self._first(None)

    def _first(self, part: bytes | None) -> None:
        """A segment goes out for the first time."""
        segment = (self._number, part)
        self._number += 1
        if self._through():
            self._schedule(segment)
        else:
            self._hold(segment)

    def _schedule(self, segment: Segment) -> None:
        net, part = self.net, segment[1]
        late = net.repeated()
        if late == math.inf:
            net.trace("lost for good", self.number)
            self.reset()
            return
        size = len(part) if part else 1
        self._line_free = max(self._line_free, trio.current_time()) + size / self._bandwidth
        net.agenda.at(self._line_free + late + net.latency(self.host, self.other), self._arrive, segment)

    def _arrive(self, segment: Segment) -> None:
        """At the other end, now."""
        if self.broken and not self.closed:
            return  # what a dead machine or a reset connection had under way
        if not self._through():
            self._hold(segment)
            return
        peer = self.peer
        if not (peer.broken or peer.closed):
            peer._accept(segment)
        elif segment[1] is not None or peer.broken:
            peer._tell_reset()  # nobody is there: the kernel answers with a reset

    def _hold(self, segment: Segment) -> None:
        if not self._held:
            self._held_since = now = trio.current_time()
            self.net.agenda.at(now + GIVE_UP_S, self._give_up, now)
            self.net.holding[self.key] = self
        self._held.append(segment)

    def _release(self) -> None:
        if self._held and self._through():
            held = sorted(self._held, key=lambda segment: segment[0])
            self.drop_held()
            for segment in held:
                self._schedule(segment)

    def _give_up(self, since: float) -> None:
        if self._held and self._held_since == since:
            self.net.trace("gave up", self.number)
            self.break_off()

    def _tell_reset(self) -> None:
        """An RST goes to the other end; lost where the path is blocked: that end finds out by itself, or never."""
        if self._through():
            self.net.agenda.after(self.net.latency(self.host, self.other), self.peer.break_off)

    # --- receiving ---------------------------------------------------------------------------------
    def _accept(self, segment: Segment) -> None:
        self._early[segment[0]] = segment[1]
        while self._next in self._early:
            part = self._early.pop(self._next)
            self._next += 1
            if part is None:
                self._ended = True
            else:
                self.net.trace("segment", self.key, len(part))
                self._came.append(part)
                self._unread += len(part)
        self._arrived.unpark_all()

    def _take(self, most: int) -> bytes:
        part = self._came.popleft()
        if len(part) > most:
            self._came.appendleft(part[most:])
            part = part[:most]
        self._unread -= len(part)
        self.peer._under_way -= len(part)
        self.peer._room.unpark_all()
        return part

    # --- the state of this end ---------------------------------------------------------------------
    def _leave(self) -> None:
        self.host.streams.pop(self.key, None)
        self._arrived.unpark_all()
        self._room.unpark_all()

    def _check_open(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError("this end was closed")
        if self.broken:
            raise trio.BrokenResourceError("the connection is broken")

    def _check_sendable(self) -> None:
        self._check_open()
        if self._sent_fin:
            raise trio.ClosedResourceError("the end was sent already")


class SimListener(trio.abc.Listener[SimStream]):
    """Connections that wait to be accepted, bounded."""

    def __init__(self, net: Network, host: Host, port: int, backlog: int) -> None:
        self.net, self.host, self.port = net, host, port
        self._send, self._receive = trio.open_memory_channel[SimStream](backlog)

    def room(self) -> bool:
        stats = self._send.statistics()
        return stats.current_buffer_used < stats.max_buffer_size

    def offer(self, stream: SimStream) -> None:
        self._send.send_nowait(stream)

    async def accept(self) -> SimStream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    def shut(self) -> None:
        """Nobody is accepted any more; who waits is told."""
        self.net.forget(self)
        waiting = list[SimStream]()
        try:
            while True:
                waiting.append(self._receive.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel, trio.ClosedResourceError):
            pass
        for stream in waiting:
            stream.reset()
        self._send.close()
        self._receive.close()

    async def aclose(self) -> None:
        self.shut()
        await trio.lowlevel.checkpoint()
