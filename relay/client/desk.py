"""What the tasks of one open client share: the store, what waits for what, and the bells they ring for each other."""

from __future__ import annotations

import os
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TypeVar

import trio

from relay.client import outgoing
from relay.client.connection import Seams
from relay.client.errors import send_refused
from relay.client.incoming import Incoming
from relay.client.outgoing import REFUSED, progress, settle
from relay.client.people import newest
from relay.client.sealer import Sealer, requeue
from relay.client.shapes import Effects, Failure, Own, Stats
from relay.client.store import Db, Store, get, reopen, take_root
from relay.core.trust import HomeRecord, Root
from relay.errors import PosthouseError, StoreError, TrustError
from relay.limits import MIB

T = TypeVar("T")

MAX_INBOX = 256 * MIB  # bytes that the app has not asked for yet; past it nothing more is taken from the node
RECENT = 4_096  # outcomes remembered for a caller who is about to ask
POLL_S = 0.25  # seconds between looks at what another process did with the store


class Bell:
    """Wakes whoever waits; a ring in between is not lost to who took `armed` before looking."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def armed(self) -> trio.Event:
        return self._event

    def ring(self) -> None:
        self._event.set()
        self._event = trio.Event()


@dataclass(slots=True)
class _Waiter:
    level: int
    done: trio.Event = field(default_factory=trio.Event)
    code: int = 0


class Desk:
    """One open client's shared state."""

    def __init__(self, store: Store, own: Own, seams: Seams, *, dedup: bool, hold_ms: int) -> None:
        self.store = store
        self.own = own
        self.seams = seams
        self.dedup = dedup
        self.hold_ms = hold_ms
        self.stats = Stats()
        self.sealer = Sealer(own, seams.random_bytes, os.getpid())
        self.failures: deque[Failure] = deque(maxlen=outgoing.MAX_FAILURES)
        self.mail, self.post, self.lookup, self.changed = Bell(), Bell(), Bell(), Bell()
        self.held, self.moved, self.proofs = Bell(), Bell(), Bell()
        self.wanted: dict[bytes, list[str]] = {}  # users to look up → region hints
        self.unfound: dict[tuple[bytes, str], PosthouseError] = {}  # (user, hint) that failed for good, for who asks
        self.wishes: Counter[bytes] = Counter()  # how often each was wanted: a wish during a lookup asks once more
        self.deaf: dict[str, float] = {}  # URLs of nodes that do not know ASKROOT → until when they are not asked
        self.inbox_bytes = 0
        self.oldest_held: int | None = None  # since when the message that waits longest for its predecessor does
        self.ended: Exception | None = None  # why this client can do no more
        self._waiters: dict[int, list[_Waiter]] = {}
        self._recent: OrderedDict[int, tuple[int, int]] = OrderedDict()

    @property
    def now(self) -> int:
        """Our Unix time, ms."""
        return self.seams.wall_ms()

    @property
    def server_now(self) -> int:
        """The node's Unix time, ms, as far as we know."""
        return self.now + self.sealer.offset

    async def run(self, work: Callable[[Db], T], *, lazily: bool = False) -> T:
        """One transaction."""
        return await self.store.run(work, lazily=lazily)

    async def take_in(self, work: Callable[[Incoming], T]) -> T:
        """One transaction over what came in, and its effects."""

        def transaction(db: Db) -> tuple[T, Effects, int | None]:
            incoming = Incoming(db, self.own, self.now, dedup=self.dedup)
            result = work(incoming)
            effects = incoming.finish()
            return result, effects, db.execute("SELECT min(since) FROM held").fetchone()[0]

        result, effects, oldest = await self.run(transaction)
        if oldest != self.oldest_held:
            self.oldest_held = oldest
            self.held.ring()
        self.apply(effects)
        return result

    def apply(self, effects: Effects) -> None:
        """Wake whom it concerns."""
        self.stats.add(effects.counts)
        for failure in effects.failures:
            if failure.send not in self._waiters:
                self.failures.append(failure)
        self.outcomes(effects.outcomes)
        self.inbox_bytes += effects.inbox_bytes
        if effects.wanted:
            self.wish(effects.wanted)
            self.wishes.update(effects.wanted.keys())
            self.sealer.unknown.update(effects.wanted)
            self.lookup.ring()
        if effects.moved:
            self.settle_in(effects.moved)
        if effects.mail:
            self.mail.ring()
        if effects.post:
            self.post.ring()
        if effects.proofs:
            self.proofs.ring()
        self.changed.ring()

    def settle_in(self, record: HomeRecord) -> None:
        """Our user is at home where `record` says."""
        self.own = self.sealer.own = replace(self.own, region=record.payload.region, cell=record.cell)
        self.moved.ring()

    async def take_root(self, signed: bytes) -> Root:
        """Go by a newer root document once it is verified, and on the disk. Raises TrustError and its kinds."""
        root = await self.run(lambda db: take_root(db, signed, self.now, self.own.cell))
        self._go_by(root)
        return root

    def _go_by(self, root: Root) -> None:
        self.own = self.sealer.own = replace(self.own, root=root)
        self.changed.ring()

    async def look_root(self) -> None:
        """Another process may have put a newer root document into the store."""
        signed = await self.run(lambda db: get(db, "root"), lazily=True)
        if signed != self.own.root.signed:
            with suppress(TrustError):
                self._go_by(await self.run(lambda db: reopen(db, self.now), lazily=True))

    async def look_home(self) -> None:
        """Another process may have put a newer record of our own user into the store."""
        record = await self.run(lambda db: newest(db, self.own, self.own.user), lazily=True)
        if record is not None and record.cell != self.own.cell:
            await self.take_in(lambda incoming: incoming.settle_in(record))

    def wish(self, wanted: dict[bytes, str]) -> None:
        """Put users on the list of those to look up."""
        for user, hint in wanted.items():
            hints = self.wanted.setdefault(user, [])
            if hint not in hints:
                hints.append(hint)

    def want(self, user: bytes, hint: str) -> None:
        """Look `user` up."""
        if hint not in self.wanted.get(user, ()):
            self.apply(Effects(wanted={user: hint}))

    def not_found(self, user: bytes, hint: str, error: PosthouseError) -> None:
        """The lookup of `user` in `hint` failed for good."""
        self.unfound[user, hint] = error
        while len(self.unfound) > RECENT:
            del self.unfound[next(iter(self.unfound))]
        if isinstance(error, TrustError):
            self.failures.append(Failure(0, error))
        self.changed.ring()

    async def recall(self) -> None:
        """What the store knows from before."""

        def work(db: Db) -> tuple[int, list[tuple[int, int]]]:
            size = db.execute("SELECT total(length(content)) FROM inbox").fetchone()[0]
            return int(size), db.execute("SELECT sid, code FROM failures ORDER BY sid").fetchall()

        self.inbox_bytes, failures = await self.run(work, lazily=True)
        self.failures.extend(Failure(sid, send_refused(code, f"message {sid}")) for sid, code in failures)

    async def settle(self, touched: set[int]) -> None:
        """Finish sends whose outcome was decided without the relay."""
        if not touched:
            return

        def work(db: Db) -> Effects:
            effects = Effects()
            settle(db, touched, self.now, effects)
            return effects

        self.apply(await self.run(work))

    # --- who waits for an outcome ----------------------------------------------------------------
    async def outcome(self, send: int, level: int) -> None:
        """Wait until `send` has come to `level`. Raises SendRefused, or why the client ended."""
        waiter = _Waiter(level)
        self._waiters.setdefault(send, []).append(waiter)
        try:
            if send in self._recent:
                self.outcomes({send: self._recent[send]})
            self.check()
            if not waiter.done.is_set():  # another process may have brought it there before we began to watch
                await self._look_at([send])
            await waiter.done.wait()
            self.check(unless=waiter.code > 0)
        finally:
            waiters = self._waiters[send]
            waiters.remove(waiter)
            if not waiters:
                del self._waiters[send]
        if waiter.code:
            raise send_refused(waiter.code, "the message")

    def outcomes(self, outcomes: dict[int, tuple[int, int]]) -> None:
        """Sends have come to (state, code)."""
        for send, (state, code) in outcomes.items():
            self._recent[send] = (state, code)
            self._recent.move_to_end(send)
            for waiter in self._waiters.get(send, ()):
                if state >= waiter.level:
                    waiter.code = code if state == REFUSED else 0
                    waiter.done.set()
        while len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    async def _look_at(self, sends: list[int]) -> None:
        self.outcomes(await self.run(lambda db: {send: progress(db, send) for send in sends}))

    def end(self, error: Exception) -> None:
        """This client can do no more: everybody who waits learns why."""
        self.ended = self.ended or error
        for waiters in self._waiters.values():
            for waiter in waiters:
                waiter.done.set()
        for bell in (self.mail, self.post, self.lookup, self.changed):
            bell.ring()

    async def let_go(self) -> None:
        """What we submitted and nobody answered is for who has the store open, or opens it next."""
        with trio.CancelScope(shield=True), suppress(StoreError):  # bounded by the disk; it is closed all the same
            await self.run(lambda db: requeue(db, {self.sealer.carrier}), lazily=True)

    def check(self, *, unless: bool = False) -> None:
        """Raises why the client ended, if it did."""
        if self.ended is not None and not unless:
            raise self.ended

    async def watch_other_processes(self) -> None:
        """Another process may receive or submit with the same store: look now and then, and pass its news on."""
        try:
            await self._watch()
        except StoreError as error:
            self.end(error)

    async def _watch(self) -> None:
        seen = await self.store.changes()
        while True:
            await trio.sleep(POLL_S)
            version = await self.store.changes()
            if version == seen:
                continue
            seen = version
            await self.look_root()
            await self.look_home()
            sends = list(self._waiters)
            if sends:
                await self._look_at(sends)
            for bell in (self.mail, self.post, self.proofs, self.changed):
                bell.ring()

