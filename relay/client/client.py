"""The SDK's face: `open_client` and what one can do with it.

    async with open_client(path) as client:
        await client.send(card, b"hello")
        async for message in client.messages():
            ...

Everything that was queued or yielded lives in the local store: it survives reconnects and restarts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import structlog
import trio

from relay.client import groups as grouping
from relay.client import people
from relay.client.card import Card
from relay.client.channels import Channels
from relay.client.connection import (
    BACKOFF_MAX_S, BACKOFF_S, Elsewhere, HungUp, Seams, Socket, addresses, greet, tls_context,
)
from relay.client.desk import Desk
from relay.client.errors import ClientClosed, Fenced, NotReceiving, NotServed, SendRefused, TooLarge
from relay.client.line import Line
from relay.client.messages import Messages
from relay.client.outgoing import ACCEPTED, QUEUED, STORED, queue_message, unfinished
from relay.client.proving import receipts
from relay.client.receipts import LEVELS as RECEIPTS
from relay.client.receipts import receipt_level, want_receipts
from relay.client.shapes import MAX_CONTENT, Failure, Group, Sent, Stats
from relay.client.store import Db, Store, get_cursor, load_own, put_cursor
from relay.core import wire
from relay.core.policy import Policies
from relay.core.trust import HomeRecord
from relay.core.wire import Code
from relay.errors import OperatorError, Overloaded, PosthouseError, ProtocolError, RolledBack, StoreLocked, TrustError
from relay.limits import HANDSHAKE_S, MAX_STRING

log = structlog.get_logger("relay.client")

LEVELS = {"queued": QUEUED, "accepted": ACCEPTED, "stored": STORED}
STRAY_S = 300.0  # seconds in which the session of a connection that was given up may start late, and fence the next
FOR_GOOD = (Fenced, NotServed, RolledBack, OperatorError)  # errors that no reconnect heals
FAREWELL_S = 2.0  # seconds that closing waits until the last ack has gone out
RECHECK_S = 1.0  # seconds between looks at what another process may have settled


class Client:
    """One device's client. Made by `open_client`."""

    def __init__(self, desk: Desk, connect_to: Sequence[str] | None, *, receives: bool) -> None:
        self._desk = desk
        self._given, self._at = connect_to, desk.own.cell  # where to connect, while our user is at home there
        self._line: Line | None = None
        self._messages = Messages(desk)
        self.channels = Channels(desk)
        self.receives = receives
        self.user, self.device = desk.own.user, desk.own.device

    @property
    def card(self) -> Card:
        """Our address card: with the region where we are at home now."""
        return Card(self._desk.own.region, self.user)

    @property
    def stats(self) -> Stats:
        """Counts since this client was opened."""
        return self._desk.stats

    @property
    def failures(self) -> deque[Failure]:
        """Messages refused after nobody waited any more, newest last; take them out as you see to them."""
        return self._desk.failures

    @property
    def connected(self) -> bool:
        """A node serves us now."""
        return self._line is not None

    # --- sending ---------------------------------------------------------------------------------
    async def send(
        self, card: Card, content: bytes, name: str = "", wait: str = "accepted", receipt: str = ""
    ) -> Sent:
        """Send `content` to a user; `name` for files. Durable in the local store when this is cancelled or raises.

        `wait`: "queued" (it is in the store), "accepted" (durable in our cell), "stored" (durable in the recipient's).
        `receipt`: "accepted" or "stored" has signed receipts collected of that; `receipts` gives them.
        Raises SendRefused (final; `code`), TooLarge, or why the client ended (Fenced, NotServed, RolledBack)."""
        self._check(content, name, wait, receipt)
        desk = self._desk

        def work(db: Db) -> Sent:
            sent = queue_message(db, desk.own, card.user, card.region, content, name, desk.now)
            want_receipts(db, sent.send, RECEIPTS[receipt])
            return sent

        sent = await desk.run(work)
        with self._explained([card.region]):
            return await self._sent(sent, wait)

    async def send_group(
        self, group: bytes, content: bytes, name: str = "", wait: str = "accepted", receipt: str = ""
    ) -> Sent:
        """Send to all members of a group, like `send`. Raises also UnknownGroup."""
        self._check(content, name, wait, receipt)
        desk = self._desk

        def work(db: Db) -> Sent:
            random = desk.seams.random_bytes
            sent = grouping.queue_group_message(db, desk.own, group, content, name, desk.now, random)
            want_receipts(db, sent.send, RECEIPTS[receipt])
            return sent

        return await self._sent(await desk.run(work), wait)

    async def receipts(self, sent: Sent) -> list[bytes]:
        """The signed receipts that `send` was asked for, verified by the root; one for each envelope that the message
        travels in (see relay.core.receipts). Waits for the outcome, and until they are there: they are asked for again
        for some minutes, also after a restart. Raises like `send`; NotProven: it was taken, and there are none."""
        desk = self._desk
        level = await desk.run(lambda db: receipt_level(db, sent.send), lazily=True)
        if level:
            await desk.outcome(sent.send, STORED if level == Code.STORED else ACCEPTED)
        return await receipts(desk, sent.send)

    @contextmanager
    def _explained(self, where: Sequence[str], *, group: bool = False) -> Iterator[None]:
        """Where the policy of a region was against it, our root document probably says which."""
        try:
            yield
        except SendRefused as error:
            policies, own = Policies(self._desk.own.root), self._desk.own.cell
            whys = (policies.unshared(own, [one])[1] if group else policies.forbidden(own, one) for one in where)
            why = next(filter(None, whys), "")
            if error.code != Code.NOT_PERMITTED or not why:
                raise
            raise SendRefused(error.code, f"{error.text}: {why}", error.remedy) from None

    def _check(self, content: bytes, name: str, wait: str, receipt: str = "") -> None:
        self._desk.check()
        if receipt not in RECEIPTS:
            raise ValueError(f"receipt={receipt!r} is none of {', '.join(filter(None, RECEIPTS))}")
        if wait not in LEVELS:
            raise ValueError(f"wait={wait!r} is none of {', '.join(LEVELS)}")
        if len(content) > MAX_CONTENT:
            raise TooLarge(f"a message of {len(content)} bytes", f"At most {MAX_CONTENT}: split it")
        if len(name) > MAX_STRING:
            raise TooLarge(f"a name of {len(name)} characters", f"At most {MAX_STRING}")

    async def _sent(self, sent: Sent, wait: str) -> Sent:
        self._desk.stats.sent += 1
        self._desk.post.ring()
        if LEVELS[wait] > QUEUED:
            await self._desk.outcome(sent.send, LEVELS[wait])
        return sent

    async def outcome(self, sent: Sent, wait: str = "stored") -> None:
        """Wait until a message that was queued by this client has come to `wait`. Raises like `send`."""
        await self._desk.outcome(sent.send, LEVELS[wait])

    async def drained(self) -> None:
        """Wait until every outgoing message has its final outcome. (If this client only submits, outcomes that come
        while it is away are taken in by whoever receives for the device.)"""
        while True:
            self._desk.check()
            armed = self._desk.changed.armed()
            if not await self._desk.run(unfinished, lazily=True):
                return
            with trio.move_on_after(RECHECK_S):
                await armed.wait()

    # --- receiving -------------------------------------------------------------------------------
    def messages(self) -> Messages:
        """What came, in order, for ever. A message is settled when the next one is asked for: it comes again after a
        crash in between. A client has one iterator: asked for again, it goes on where it was. Raises NotReceiving, or
        why the client ended."""
        if not self.receives:
            raise NotReceiving
        return self._messages

    async def caught_up(self) -> None:
        """Wait until everything that waited at the node when the current connection began is in the local store."""
        if not self.receives:
            raise NotReceiving
        while True:
            self._desk.check()
            armed = self._desk.changed.armed()
            if self._line is not None and self._line.caught_up:
                return
            await armed.wait()

    async def unread(self) -> tuple[int, int]:
        """(messages that the app did not settle yet, envelopes that cannot be read yet because their sender's record, a
        key or what comes before is missing), both in the local store."""
        counts = "SELECT (SELECT count(*) FROM inbox), (SELECT count(*) FROM waiting) + (SELECT count(*) FROM held)"
        messages, waiting = await self._desk.run(lambda db: db.execute(counts).fetchone(), lazily=True)
        return int(messages), int(waiting)

    # --- groups ----------------------------------------------------------------------------------
    async def create_group(self, title: str, cards: Sequence[Card]) -> Group:
        """Make a group of us and `cards`, publish it and tell all members. Raises like `send` (also for a member that
        nobody knows)."""
        return await self._publish(title, cards, b"")

    async def add_to_group(self, group: bytes, cards: Sequence[Card]) -> Group:
        """Add members; while an earlier change of the group has no outcome, this waits and nothing is queued yet.

        Raises like `create_group`; UnknownGroup; NotOwner on any device but the one that created it."""
        return await self._publish("", cards, group)

    async def _publish(self, title: str, cards: Sequence[Card], group: bytes) -> Group:
        self._check(b"", title, "accepted")
        desk = self._desk
        people_of = [await self.look_up(card) for card in cards]
        seed = desk.seams.random_bytes(32)
        own = await desk.run(lambda db: people.newest(db, desk.own, desk.own.user), lazily=True)
        everybody = [*people_of, *([own] if own else [])]
        while True:
            desk.check()
            armed = desk.changed.armed()
            drafted = await desk.run(
                lambda db: grouping.draft(db, desk.own, title, everybody, desk.now, seed, group)
            )
            if drafted is not None:
                break
            await armed.wait()  # for the outcome of the change before
        found, send = drafted
        desk.post.ring()
        with self._explained([record.cell for record in everybody], group=True):
            await desk.outcome(send, ACCEPTED)
        return next(one for one in await self.groups() if one.id == found)

    async def groups(self) -> list[Group]:
        """All groups that this device knows."""
        return await self._desk.run(lambda db: grouping.groups(db, self._desk.own), lazily=True)

    async def look_up(self, card: Card) -> HomeRecord:
        """The newest home record of a user that is known here, asked for if none is.

        Raises Refused (UNKNOWN_USER, UNKNOWN_REGION), TrustError, or why the client ended."""
        desk = self._desk
        while True:
            desk.check()
            armed = desk.changed.armed()
            record = await desk.run(lambda db: people.newest(db, desk.own, card.user), lazily=True)
            if record is not None and people.usable(record, desk.server_now):
                return record
            if (error := desk.unfound.pop((card.user, card.region), None)) is not None:
                raise error
            desk.want(card.user, card.region)
            await armed.wait()

    # --- the connection --------------------------------------------------------------------------
    async def run(self) -> None:
        """Keep connected until cancelled, or until something happens that no reconnect heals."""
        desk, failed, turn = self._desk, 0, 0
        left = pardoned = -math.inf  # when the last connection ended, and when a FENCED was taken for our own
        start = int(desk.seams.random_float() * len(addresses(desk.own, self._given)))
        while True:
            after_ms, lived = 0, False
            try:
                url = self._url(start + turn)
                async with desk.seams.dial(url, tls_context(desk.own), HANDSHAKE_S) as socket:
                    with trio.fail_after(HANDSHAKE_S):
                        welcome, nonce = await self._greet(socket)
                    lived = True
                    self._line = Line(desk, socket, welcome, receive=self.receives, nonce=nonce, url=url)
                    self.channels.connected(self._line.channels)
                    await self._line.serve()
            except FOR_GOOD as error:
                now = trio.current_time()
                if not isinstance(error, Fenced) or not now - left < STRAY_S <= now - pardoned:
                    log.error("client_ended", reason=error.text)
                    desk.end(error)
                    return
                pardoned = now  # once: two copies of a store would fence each other for ever
                log.info("disconnected", reason=error.text)
            except Elsewhere as error:
                lived = await self._follow(error.records)
            except (PosthouseError, trio.TooSlowError, OSError) as error:
                if isinstance(error, HungUp):
                    after_ms = error.after_ms
                elif isinstance(error, Overloaded):
                    after_ms = error.retry_after_ms
                log.info("disconnected", reason=str(error) or type(error).__name__)
            finally:
                if self._line is not None:
                    self._line.channels.end()
                self._line = None
            left = trio.current_time()
            desk.stats.reconnects += 1
            turn, failed = turn + 1, 0 if lived else failed + 1
            backoff = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failed, 10)) * (0.5 + desk.seams.random_float())
            await trio.sleep(max(after_ms / 1000, backoff))

    def _url(self, turn: int) -> str:
        """Where to connect next. Raises OperatorError where the root lists no node of our home."""
        own = self._desk.own
        if own.cell != self._at:
            self._given, self._at = None, own.cell
        urls = addresses(own, self._given)
        return urls[turn % len(urls)]

    async def _follow(self, records: Sequence[bytes]) -> bool:
        """A node says that we are at home elsewhere. True where the records hold, and we go there."""
        desk, before = self._desk, self._desk.own.cell
        try:
            await desk.take_in(lambda incoming: incoming.learned(desk.own.user, records, desk.server_now))
        except (TrustError, ProtocolError) as error:
            log.error("move_refused", reason=error.text)
            return False
        await desk.look_home()
        log.info("moved", left=before, home=desk.own.cell)
        return desk.own.cell != before

    async def say_goodbye(self) -> None:
        """Ack what is in the store, if that takes no longer than FAREWELL_S: who opens it next is not sent it again."""
        with trio.move_on_after(FAREWELL_S), suppress(PosthouseError):
            if self._line is not None:
                await self._line.last_ack()

    async def _greet(self, socket: Socket) -> tuple[wire.Welcome, bytes]:
        desk = self._desk
        chain, (log_id, cursor) = await desk.run(lambda db: (people.own_chain(db), get_cursor(db)), lazily=True)
        welcome, nonce = await greet(socket, desk.own, chain, log_id, cursor, receive=self.receives)
        desk.sealer.offset, desk.sealer.longest = welcome.time - desk.now, welcome.max_lifetime
        if self.receives and welcome.log_id != log_id:  # another log: its own cursor counts from here on (rule 13)
            await desk.run(lambda db: put_cursor(db, welcome.log_id, welcome.cursor))
        return welcome, nonce


@asynccontextmanager
async def open_client(
    path: Path, receive: bool | None = None, connect_to: Sequence[str] | None = None, *, hold_s: float = 5.0,
    dedup: bool = True, seams: Seams | None = None,
) -> AsyncIterator[Client]:  # fmt: skip
    """Open the store at `path` and keep connected to the device's home cell.

    `receive`: True (raises StoreLocked if another process does), False (only submit), None (receive if nobody else
    does). `connect_to`: URLs instead of the root's. `hold_s`: seconds that a message is held back for its predecessor.
    `dedup=False` exists for a test that plants a defect. Raises OperatorError, StoreError, TrustError."""
    seams = seams or Seams()
    store = Store(path, inline=True) if seams.inline else await trio.to_thread.run_sync(Store, path)
    failed: Exception | None = None
    try:
        receives = receive is not False and store.take_receive_lock()
        if receive and not receives:
            raise StoreLocked(f"another process receives with {store.path}", "Stop it, or open with receive=False")
        own = await store.run(lambda db: load_own(db, seams.wall_ms()))
        if seams.wall_ms() >= own.root.payload.fresh_until:
            log.warning("root_stale", store=str(store.path), remedy="Its node is asked for the newest one")
        desk = Desk(store, own, seams, dedup=dedup, hold_ms=int(hold_s * 1000))
        await desk.recall()
        addresses(own, connect_to)  # there are some
        client = Client(desk, connect_to, receives=receives)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.run)
                nursery.start_soon(desk.watch_other_processes)
                try:
                    yield client
                except Exception as error:  # noqa: BLE001  raised again below, outside of the nursery that would wrap it
                    failed = error
                await client.say_goodbye()
                desk.end(ClientClosed("the client was closed", "What is not sent yet is sent when it is opened again"))
                nursery.cancel_scope.cancel()
        finally:
            await desk.let_go()
    finally:
        store.close()
    if failed is not None:
        raise failed
