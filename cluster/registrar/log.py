"""The one task that owns a region's log: requests become batches, batches become checkpoints, and then answers.

Whatever waits goes into the next batch (natural group commit): check, sign, log in one transaction, have it cosigned,
answer. While one batch is with disk and witnesses the next one gathers, and new users are checked and signed. What is
asked about users is answered between two batches, when the map is that of the cosigned checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import structlog
import trio
from msgspec import structs
from nacl.signing import SigningKey
from outcome import Error, Outcome, Value

from cluster.core.homelog import Standing, release_entry
from relay.core.tlog import Note, NotLogged, TooFewWitnesses, verify_staple
from cluster.enrolment import (
    Asked, change_of, check_registrar, check_released, noted, read_request, release_next, sign_next, stands,
)  # fmt: skip
from cluster.registrar.choir import Choir
from cluster.registrar.store import Registry
from cluster.registrar.tables import Found, Head, Item
from relay.core.trust import (
    HomeRecord, Root, StapledHome, check_stapled, let_go_before, moves, split_home, trust_of, verify_home,
)  # fmt: skip
from relay.errors import DiskFailed, OperatorError, Overloaded, PosthouseError
from relay.limits import REGISTRAR_BATCH, REGISTRAR_QUEUE

_log = structlog.get_logger("cluster.registrar.log")
_NOTHING = "Nothing was logged. Ask again when the other regions' registrars answer"
_LOGGED = "What was logged stays logged: ask again, with the same request, when the other regions' registrars answer"


@dataclass(eq=False)
class _Wish:
    """A request that waits. `first`: of a new user, the signed record: that depends on nothing that is logged.
    `before`: the records so far of a user who comes from another region, and `release` the staple of the release there.
    `leaves`: the user asks to be let go."""

    asked: Asked
    first: HomeRecord | None = None
    before: tuple[bytes, ...] = ()
    release: bytes = b""
    leaves: bool = False
    ended: trio.Event = field(default_factory=trio.Event)
    outcome: Outcome[StapledHome] | None = None

    @property
    def size(self) -> int:
        return len(self.asked.request) + sum(map(len, self.before)) + len(self.release)

    def end(self, how: Outcome[StapledHome]) -> None:
        self.outcome = how
        self.ended.set()

    async def answer(self) -> StapledHome:
        await self.ended.wait()
        assert self.outcome is not None
        return self.outcome.unwrap()


@dataclass
class _Batch:
    """What becomes of the requests of one batch: `items` follow the log's first `size` entries. `answers`: the signed
    record or the released request, and the entry's number, also of requests that were answered before."""

    size: int
    items: list[Item] = field(default_factory=list)
    newest: dict[bytes, HomeRecord] = field(default_factory=dict)  # by user
    gone: dict[bytes, Asked] = field(default_factory=dict)  # by user
    answers: dict[_Wish, tuple[bytes, int]] = field(default_factory=dict)
    actions: list[str] = field(default_factory=list)  # as the audit log says them
    _made: dict[tuple[bool, bytes], tuple[bytes, int]] = field(default_factory=dict)  # by what, and digest

    def add(self, wish: _Wish, brought: Sequence[HomeRecord], record: HomeRecord, last: HomeRecord | None) -> None:
        self.items += brought
        self.newest[record.user] = record
        self._log(wish, record, record.signed, noted(change_of(record, last), record.user, record.version))

    def let_go(self, wish: _Wish, released: Asked) -> None:
        self.gone[released.user] = released
        self._log(wish, released, released.request, noted("release", released.user, released.payload.version))

    def _log(self, wish: _Wish, item: Item, answer: bytes, action: str) -> None:
        self.actions.append(action)
        self._made[wish.leaves, item.digest] = self.answers[wish] = answer, self.size + len(self.items)
        self.items.append(item)

    def repeats(self, wish: _Wish, known: Found, stands: Callable[[Asked], bool]) -> bool:
        """The same was asked for before, in this batch or an earlier one: it has that answer. A release that `stands`
        no more is given anew."""
        same, asked = self._made.get((wish.leaves, wish.asked.digest)), wish.asked.digest
        gone = known.gone if wish.leaves else None
        if same is None and gone is not None and gone.digest == asked and stands(gone):
            same = gone.request, known.gone_number
        if same is None and not wish.leaves and known.same is not None and known.same.digest == asked:
            same = known.same.signed, known.number
        if same is not None:
            self.answers[wish] = same
        return same is not None


@dataclass
class RegionLog:
    """The log of `root`'s region whose registrar has `registrar`: OperatorError where the root names another key.
    `now_ms`: Unix time."""

    region: str
    registry: Registry
    choir: Choir
    root: Root
    registrar: SigningKey
    now_ms: Callable[[], int]
    on_batch: Callable[[int, int], None] = lambda logged, refused: None
    on_logged: Callable[[Head, list[str]], None] = lambda head, actions: None  # durable, and nobody was told yet
    on_refused: Callable[[], None] = lambda: None  # before it came into a batch
    _waiting: deque[_Wish] = field(default_factory=deque)
    _bytes: int = 0
    _bell: trio.Event = field(default_factory=trio.Event)
    _lock: trio.Lock = field(default_factory=trio.Lock)  # a batch from its first look to its last answer; first come
    _failure: DiskFailed | None = None

    def __post_init__(self) -> None:
        check_registrar(self.root, self.region, self.registrar)

    async def enrol(
        self, request: bytes, founds: bool = True, before: Sequence[bytes] = (), release: bytes = b""
    ) -> StapledHome:
        """Check, sign and log a request (docs/PROTOCOL.md, section 5); the record and its staple. The same request
        again gives the same record. `before`: the records so far, of a user who comes from another region; those that
        are not here are logged, too. `release`: the staple of the release there. `founds`: new users, and who comes,
        are taken, too.

        Raises OperatorError and TrustError (and their kinds) for what is not signed (AlreadyReleased: the user was let
        go with another request); TooFewWitnesses where the other regions do not answer (its text says whether the
        record is logged); Overloaded; DiskFailed."""
        wish = self._read(request, founds, tuple(before), release)
        self._offer(wish)
        return await wish.answer()

    async def release(self, request: bytes, founds: bool = True) -> StapledHome:
        """Let a user go who is at home here: the request with the release, logged, and its staple. The same request
        again gives the same. From then on no other record of that version is signed, nor released. `founds`: as with
        who comes, that is the operator's to permit.

        Raises like `enrol`."""
        self._check_room(len(request))
        wish = _Wish(read_request(request), leaves=True)
        if not founds:
            raise OperatorError(f"{self.region} lets no users go here", "Ask the region's operator")
        self._offer(wish)
        return await wish.answer()

    async def released(self, user: bytes) -> StapledHome | None:
        """The newest request of a user's that was released, and its staple. Raises TooFewWitnesses, StoreDamaged."""
        async with self._lock:
            self.choir.present(self.registry.head.note)
            note = await self._cosigned("nothing can be proven now")
            [found] = await self.registry.look([(user, 0)])
            if found.gone is None or not self._stands(found.gone):
                return None
            [staple] = await self.registry.staples([found.gone_number], note)
            return StapledHome(found.gone.request, staple)

    def _stands(self, gone: Asked) -> bool:
        return stands(gone, self.root, self.region)

    async def enrol_many(self, requests: Sequence[bytes], founds: bool = True) -> list[StapledHome | PosthouseError]:
        """The same for many requests at once: to each, in order, the answer or what `enrol` would raise. They go into
        one batch, where they fit."""
        taken: list[_Wish | PosthouseError] = []
        for request in requests:
            await trio.lowlevel.checkpoint()
            try:
                taken.append(self._read(request, founds))
            except PosthouseError as error:
                taken.append(error)
        for place, one in enumerate(taken):
            try:
                if isinstance(one, _Wish):
                    self._offer(one)
            except PosthouseError as error:
                taken[place] = error
        return [await _outcome(one) for one in taken]

    def _read(self, request: bytes, founds: bool, before: tuple[bytes, ...] = (), release: bytes = b"") -> _Wish:
        self._check_room(len(request) + sum(map(len, before)) + len(release))
        asked = read_request(request)
        if asked.payload.region != self.region:
            raise OperatorError(f"this is the registrar of {self.region}", f"Ask that of {asked.payload.region}")
        if (asked.payload.version == 1 or before) and not founds:
            raise OperatorError(f"{self.region} takes in no new users here", "Ask the region's operator")
        try:
            return _Wish(asked, self._sign(asked, None) if asked.payload.version == 1 else None, before, release)
        except PosthouseError:
            self.on_refused()
            raise

    def _offer(self, wish: _Wish) -> None:
        self._check_room(wish.size)
        self._waiting.append(wish)
        self._bytes += wish.size
        self._bell.set()

    def _check_room(self, size: int) -> None:
        """Before the work and before the wait. Raises Overloaded; DiskFailed where nothing will be logged any more."""
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        if self._bytes + size > REGISTRAR_QUEUE:
            raise Overloaded("the registrar has more requests than it can take")

    async def standing(self, user: bytes, after: int = 0) -> Standing:
        """The records of a user after version `after` with their staples, and the evidence. Raises TooFewWitnesses,
        StoreDamaged."""
        async with self._lock:
            self.choir.present(self.registry.head.note)
            note = await self._cosigned("nothing can be proven now")
            records = await self.registry.records(user, after, note)
            return Standing(tuple(records), await self.registry.evidence(user, note))

    async def run(self) -> None:
        """Serve requests, for ever. Raises DiskFailed, StoreDamaged."""
        self.choir.present(self.registry.head.note)
        try:
            while True:
                self._bell = trio.Event()
                if self._waiting:
                    async with self._lock:
                        await self._batch()
                else:
                    await self._bell.wait()
        except DiskFailed as error:
            self._failure = error
            raise
        finally:
            _leave(self._waiting)

    async def _batch(self) -> None:
        wishes = [self._waiting.popleft() for _ in range(min(len(self._waiting), REGISTRAR_BATCH))]
        self._bytes -= sum(wish.size for wish in wishes)
        try:
            await self._serve(wishes)
        except PosthouseError as error:
            for wish in wishes:
                if wish.outcome is None:
                    wish.end(Error(error))
            if not isinstance(error, TooFewWitnesses):
                raise
        finally:
            _leave(wishes)

    async def _serve(self, wishes: Sequence[_Wish]) -> None:
        if not self.choir.confirmed and self.choir.trust.k:
            await self._cosigned(f"the registry of {self.region} was not confirmed yet", _NOTHING)
        found = await self.registry.look([(wish.asked.user, wish.asked.payload.version) for wish in wishes])
        batch = _Batch(self.registry.head.size)
        for wish, known in zip(wishes, found, strict=True):
            await trio.lowlevel.checkpoint()
            try:
                if not batch.repeats(wish, known, self._stands):
                    self._take(batch, wish, known)
            except PosthouseError as error:
                wish.end(Error(error))
        if batch.items:
            head = await self.registry.append(batch.items, self.now_ms())
            self.on_logged(head, batch.actions)
            self.choir.present(head.note)
        self.on_batch(len(batch.items), len(wishes) - len(batch.answers))
        if batch.answers:
            note = await self._cosigned(f"{len(batch.items)} record(s) are logged, and not cosigned yet")
            staples = await self.registry.staples([number for _, number in batch.answers.values()], note)
            for (wish, (answer, _)), staple in zip(batch.answers.items(), staples, strict=True):
                wish.end(Value(StapledHome(answer, staple)))

    def _take(self, batch: _Batch, wish: _Wish, known: Found) -> None:
        """Check a request after what is logged, and sign it."""
        asked, version = wish.asked, wish.asked.payload.version
        last, gone = batch.newest.get(asked.user, known.newest), batch.gone.get(asked.user, known.gone)
        if wish.leaves:
            if last is None:
                what = f"the log of {self.region} has no such user"
                raise OperatorError(what, "Ask where the user is at home; log records made before with `enrol` first")
            check_released(gone, version, asked.digest)
            _, released = release_next(asked, last, self.root, self.registrar, self.now_ms())
            batch.let_go(wish, read_request(released))
            return
        brought = self._brought(wish, last)
        for record in brought:
            check_released(gone, record.version, record.digest)
        check_released(gone, version, asked.digest)
        last = brought[-1] if brought else last
        record = wish.first or self._sign(asked, last)
        self._check_left(wish, record, last, gone)
        batch.add(wish, brought, record, last)

    def _check_left(self, wish: _Wish, record: HomeRecord, last: HomeRecord | None, gone: Asked | None) -> None:
        """The release that `record` carries, of whoever moves, is in the log of the region that is left, if that has
        one. Raises NotLogged, and what `verify_staple` raises."""
        left = last.payload.region if last is not None and moves(record, last) else ""
        if not left or not self.root.region(left).log_key:
            return
        if left == self.region:
            logged = gone is not None and gone.digest == record.digest
        elif logged := bool(wish.release):
            verify_staple(wish.release, release_entry(wish.asked.request), trust_of(self.root, left))
        if not logged:
            what = f"the release of a user by {left} without the proof that it is in that region's log"
            raise NotLogged(what, f"Have the registrar of {left} release the user (`posthouse registrar release`)")

    def _brought(self, wish: _Wish, last: HomeRecord | None) -> list[HomeRecord]:
        """The records that lead from the newest one here to where the user comes from, as they are logged: without
        staples, but for those that show when a release was given whose key was replaced since. The newest is in the log
        of the region that is left, if that has one. Raises TrustError."""
        newest, found, bare = last, list[HomeRecord](), dict[int, HomeRecord]()
        for signed in wish.before[last.version if last else 0 :]:
            before, newest = newest, verify_home(signed, self.root, newest)
            found.append(newest)
            if before is None or not let_go_before(newest, before, self.root):
                bare[newest.version] = structs.replace(newest, signed=split_home(signed)[0])
        if found:
            check_stapled(found[-1], self.root)
        return [bare.get(record.version, record) for record in found]

    def _sign(self, asked: Asked, last: HomeRecord | None) -> HomeRecord:
        return sign_next(asked, last, self.root, self.registrar, self.now_ms())

    async def _cosigned(self, what: str, remedy: str = _LOGGED) -> Note:
        note = await self.choir.cosigned()
        if note is None:
            raise TooFewWitnesses(f"{what}: fewer than {self.choir.trust.k} witnesses answer", remedy)
        return note


async def _outcome(taken: _Wish | PosthouseError) -> StapledHome | PosthouseError:
    if isinstance(taken, PosthouseError):
        return taken
    try:
        return await taken.answer()
    except PosthouseError as error:
        return error


def _leave(wishes: Iterable[_Wish]) -> None:
    """Nobody is left waiting for an answer that does not come."""
    for wish in wishes:
        if wish.outcome is None:
            wish.end(Error(trio.ClosedResourceError("the registrar stops")))
