"""The tasks of one live connection: reader, intake, acks, submits, pings, lookups. When one ends, all end."""

from __future__ import annotations

import math
from collections import deque

import structlog
import trio

from relay.client import people, sealer
from relay.client.channeltalk import ChannelTalk
from relay.client.connection import Elsewhere, HungUp, Socket, hung_up
from relay.client.desk import MAX_INBOX, Desk
from relay.client.incoming import wanted_senders
from relay.client.lookups import Lookups, Task
from relay.client.outgoing import MAILBOX
from relay.client.proving import Proving
from relay.client.roots import Roots
from relay.client.sealer import Prepared, Ready
from relay.client.store import Db, process_gone
from relay.client.window import Window
from relay.core import wire
from relay.errors import PosthouseError
from relay.limits import ACK_BYTES, MAX_FRAME, MIB, UNACKED_BYTES

log = structlog.get_logger("relay.client")

PING_S = 30.0  # seconds between pings; the node lets go of who is silent for IDLE_S
ANSWER_S = 30.0  # seconds without any receipt, while something submitted waits for one
RESCUE_S = 30.0  # seconds between looks at what other processes with the same store sent; repeats are harmless
PONG_S = 30.0  # seconds a pong may take
ARRIVED_BYTES = UNACKED_BYTES + 4 * MIB  # bytes that came and are not in the store yet: all mail that the node sends
# without an ack, and then some receipts; past it the reader waits
FULL_S = 0.5  # seconds between looks whether a full inbox has room again
BATCH_BYTES = 2 * MIB  # bytes taken into the store in one transaction
HOLD_AWAY_MS = 60_000  # how long a message is held back while its predecessor may still wait at the node

Arrival = wire.Deliver | wire.Notice | wire.Receipt | wire.Empty


class Line:
    """One connection after WELCOME."""

    def __init__(
        self, desk: Desk, socket: Socket, welcome: wire.Welcome, *, receive: bool, nonce: bytes, url: str
    ) -> None:
        self._desk = desk
        self._socket = socket
        self._welcome = welcome
        self._receive = receive
        self._sending = trio.Lock()
        self._arrived: deque[tuple[Arrival, int]] = deque()
        self._arrived_bytes = 0
        self._more, self._room = trio.Event(), trio.Event()
        self._window = Window()
        self._position = self._acked = 0
        self._unacked = self._unacked_bytes = 0
        self._ack_due = trio.Event()
        self._roots = Roots(desk, self._say, url)
        self._lookups = Lookups(desk, self._say, self._start, self._roots.newer)
        self._proving = Proving(desk, self._say, self._roots.newer)
        self.channels = ChannelTalk(self._say, desk.own.device, nonce, desk.own.cell)
        self._draining = False
        self._empty = False
        self._ended: Exception | None = None

    @property
    def caught_up(self) -> bool:
        """EMPTY came, everything up to it is in the store, and who had to be asked for was asked for."""
        return self._empty and not self._lookups.trying

    async def serve(self) -> None:
        """Until the connection ends; raises why."""
        await self._prepare()
        tasks = [self._read, self._take_in, self._submit, self._lookups.run, self._ping, self._rescue, self._expect]
        tasks += [self._stay, self._proving.run, self._roots.run]
        if self._receive:
            tasks += [self._ack, self._hold]
        async with trio.open_nursery() as nursery:
            for task in tasks:
                nursery.start_soon(self._guard, nursery, task)
            self._nursery = nursery
        if self._ended is not None:
            raise self._ended

    async def _guard(self, nursery: trio.Nursery, task: Task) -> None:
        try:
            await task()
        except (PosthouseError, trio.TooSlowError) as error:
            self._ended = self._ended or error
            nursery.cancel_scope.cancel()

    def _start(self, task: Task) -> None:
        self._nursery.start_soon(self._guard, self._nursery, task)

    async def _prepare(self) -> None:
        """What the last connection left: submit again what was not answered, ask for who was not found."""
        desk = self._desk

        def work(db: Db) -> dict[bytes, str]:
            alive = {carrier for carrier in sealer.carriers(db) if not process_gone(carrier)}
            sealer.requeue(db, (sealer.carriers(db) - alive) | {desk.sealer.carrier})
            wanted = wanted_senders(db)
            rows = db.execute(
                "SELECT DISTINCT address, hint FROM parcels WHERE what=? AND newest>version", (MAILBOX,)
            ).fetchall()
            wanted.update({bytes(address): hint for address, hint in rows})
            record = people.newest(db, desk.own, desk.own.user)
            if record is None or record.version < self._welcome.home_version:
                wanted[desk.own.user] = desk.own.region
            return wanted

        desk.wish(await desk.run(work))
        self._lookups.trying = set(desk.wanted)
        await self._rearm()

    async def _say(self, message: wire.ClientMessage | bytes) -> None:
        data = message if isinstance(message, bytes) else wire.encode_message(message)
        async with self._sending:
            await self._socket.send(data)

    # --- coming in -------------------------------------------------------------------------------
    async def _read(self) -> None:
        while True:
            data = await self._socket.receive()
            message = wire.decode_server(data)
            if isinstance(message, Arrival):
                if isinstance(message, wire.Receipt):
                    self._window.heard(trio.current_time())
                    self.channels.took(message)
                while self._arrived_bytes >= ARRIVED_BYTES:
                    self._room = trio.Event()
                    await self._room.wait()
                self._arrived.append((message, len(data)))
                self._arrived_bytes += len(data)
                self._more.set()
            elif isinstance(message, wire.Record):
                self._lookups.answered(message)
            elif isinstance(message, wire.Moved):
                raise Elsewhere(message.records)
            elif isinstance(message, wire.Channel | wire.Page | wire.Posted):
                self.channels.take(message)
            elif isinstance(message, wire.Proof):
                self._proving.answered(message)
            elif isinstance(message, wire.RootPart):
                self._roots.answered(message)
            elif isinstance(message, wire.Drain):
                self._start(self._leave(message.spread_ms))
            elif isinstance(message, wire.Error):
                self._roots.ended(message)
                raise hung_up(message)

    def _leave(self, spread_ms: int) -> Task:
        async def leave() -> None:
            self._draining = True
            await trio.sleep(spread_ms / 1000 * self._desk.seams.random_float())
            raise HungUp("the node is going away")

        return leave

    async def _take_in(self) -> None:
        desk = self._desk
        while True:
            self._more = trio.Event()
            if not self._arrived:
                await self._more.wait()
            batch, size = self._next_batch(full=desk.inbox_bytes > MAX_INBOX)
            if not batch:  # the app does not take its mail: the node keeps the rest, and only receipts go on
                with trio.move_on_after(FULL_S):
                    await desk.changed.armed().wait()
                continue
            known = set(desk.wanted)
            await self._keep(batch)
            self._lookups.trying |= desk.wanted.keys() - known
            self._arrived_bytes -= size
            self._room.set()
            await self._taken(batch)

    def _next_batch(self, *, full: bool) -> tuple[list[Arrival], int]:
        """What goes into the store next, and its size in bytes; only receipts when the inbox is full."""
        batch: list[Arrival] = []
        left: list[tuple[Arrival, int]] = []
        size = 0
        while self._arrived and size < BATCH_BYTES:
            message, length = self._arrived.popleft()
            if full and not isinstance(message, wire.Receipt):
                left.append((message, length))
                continue
            batch.append(message)
            size += length
        self._arrived.extendleft(reversed(left))
        return batch, size

    async def _keep(self, batch: list[Arrival]) -> None:
        await self._desk.take_in(lambda incoming: incoming.batch(batch, self._welcome.log_id))

    async def _taken(self, batch: list[Arrival]) -> None:
        for message in batch:
            if isinstance(message, wire.Receipt):
                for item in message.items:
                    self._window.answered(item.id, item.code)
                self._desk.post.ring()
            elif isinstance(message, wire.Empty):
                await self._rearm()
                self._empty = True
                self._desk.changed.ring()
            else:
                if isinstance(message, wire.Notice):
                    self._window.answered(message.id, message.code)
                else:
                    self._unacked_bytes += len(message.envelope)
                self._position = max(self._position, message.position)
                self._unacked += 1
        if self._window.astray:
            raise HungUp("the clock of the node or of this machine was set: WELCOME tells the difference anew")
        if self._unacked:
            self._ack_due.set()
        if self._unacked >= self._welcome.ack_every or self._unacked_bytes >= ACK_BYTES:
            await self._ack_now()

    async def _rearm(self) -> None:
        """What is held back waits anew: its predecessor may be on its way."""
        desk = self._desk
        now = desk.now

        def work(db: Db) -> int | None:
            db.execute("UPDATE held SET since=?", (now,))
            oldest: int | None = db.execute("SELECT min(since) FROM held").fetchone()[0]
            return oldest

        desk.oldest_held = await desk.run(work)
        desk.held.ring()

    async def _ack_now(self) -> None:
        if self._position > self._acked:
            self._acked, self._unacked, self._unacked_bytes = self._position, 0, 0
            await self._say(wire.Ack(self._acked))

    async def last_ack(self) -> None:
        """Ack what is in the store; it is with the node's operating system when this returns. Raises Closed."""
        await self._ack_now()
        async with self._sending:  # another task may be at it
            pass

    async def _ack(self) -> None:
        while True:
            await self._ack_due.wait()
            self._ack_due = trio.Event()
            await trio.sleep(self._welcome.ack_ms / 1000)
            await self._ack_now()

    async def _hold(self) -> None:
        """Gives what waited long enough for its predecessor; while the node may still have that, longer."""
        desk = self._desk
        while True:
            armed = desk.held.armed()
            hold = desk.hold_ms if self._empty else max(HOLD_AWAY_MS, desk.hold_ms)
            oldest = desk.oldest_held
            wait_s = math.inf if oldest is None else max(0, oldest + hold - desk.now) / 1000
            with trio.move_on_after(min(wait_s, 60.0)) as scope:
                await armed.wait()
            if scope.cancelled_caught:
                await self._give_due(hold)

    async def _give_due(self, hold_ms: int) -> None:
        await self._desk.take_in(lambda incoming: incoming.due(hold_ms))

    # --- going out -------------------------------------------------------------------------------
    async def _submit(self) -> None:
        desk = self._desk
        while True:
            armed = desk.post.armed()
            prepared = Prepared()
            room, room_bytes = self._window.room()
            if room > 0 and room_bytes > 0 and not self._draining:
                room, room_bytes = min(room, self._welcome.max_batch), min(room_bytes, MAX_FRAME // 2)
                prepared = await self._next(room, room_bytes)
                self._lookups.trying |= prepared.effects.wanted.keys() - desk.wanted.keys()
                touched = prepared.effects.touched
                desk.apply(prepared.effects)
                await desk.settle(touched)
            if prepared.ready:
                await self._hand_over(prepared.ready)
                continue
            wait_s = max(0.01, (prepared.next_at - desk.now) / 1000) if prepared.next_at else 60.0
            with trio.move_on_after(wait_s):
                await armed.wait()

    async def _next(self, room: int, room_bytes: int) -> Prepared:
        desk = self._desk
        return await desk.run(lambda db: desk.sealer.prepare(db, desk.now, room, room_bytes))

    async def _hand_over(self, ready: list[Ready]) -> None:
        """SUBMIT frames, in order; a roster's publication is a frame of its own."""
        items: list[wire.SubmitItem] = []
        size = 0
        for one in ready:
            self._window.add(one, trio.current_time())
            if items and (one.publish or size + len(one.data) > MAX_FRAME - 64 * 1024):
                await self._say(wire.Submit(tuple(items)))
                items, size = [], 0
            if one.publish:
                await self._say(one.data)
            else:
                items.append(wire.SubmitItem(one.hint, one.data))
                size += len(one.data) + 512
        if items:
            await self._say(wire.Submit(tuple(items)))

    async def _stay(self) -> None:
        """Until our user is at home elsewhere."""
        cell = self._desk.own.cell
        while self._desk.own.cell == cell:
            await self._desk.moved.armed().wait()
        raise HungUp(f"this user is at home in {self._desk.own.cell} now")

    async def _ping(self) -> None:
        while True:
            await trio.sleep(PING_S)
            with trio.move_on_after(PONG_S) as scope:
                await self._socket.ping()
            if scope.cancelled_caught and self._arrived_bytes < ARRIVED_BYTES:  # else it is we who do not read
                raise HungUp("the node does not answer")

    async def _expect(self) -> None:
        """A node that pongs and gives no receipts is left; what it did not answer is submitted to the next one."""
        while True:
            await trio.sleep(ANSWER_S / 6)
            silent = self._window.silence(trio.current_time()) > ANSWER_S
            if silent and self._arrived_bytes < ARRIVED_BYTES:  # else it is we who do not read
                raise HungUp("the node does not answer what was submitted")

    async def _rescue(self) -> None:
        """What a process that ended had sent is sent by us."""
        desk, before = self._desk, set[int]()

        def look(db: Db) -> tuple[set[int], bool]:
            return sealer.rescue(db, desk.sealer.carrier, before)

        while True:
            await trio.sleep(RESCUE_S)
            before, found = await desk.run(look, lazily=True)
            if found:
                desk.post.ring()
