"""The directory, first form: own users from the cell's fold, foreign ones by hint over links.

An answer is verified completely against the root, then its version and digest are made durable, and only then is it
used (DESIGN section 5, rule 5). A chain always starts at version 1, whose digest is the user id: whoever answers can
hold back what is newest, for as long as nobody has seen it, and can change nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol

import structlog
import trio

from cluster.core.linkwire import Answer, LookUp, Peer, Records, Request
from cluster.directory.seen import Seen, Sighting
from relay.core.policy import region_of
from relay.core.trust import HomeRecord, Root, check_current, read_chain, read_home, trust_of, verify_chain
from relay.core.wire import Code
from relay.errors import (
    BrokenChain, NotValidNow, Overloaded, PeerError, PosthouseError, ProtocolError, Refused, Rollback, TrustError,
)
from relay.limits import (
    DIRECTORY_CACHE, DIRECTORY_FAILURES, DIRECTORY_FRESH, DIRECTORY_RETRY, LOOKUP_S, MAX_CHAIN, MAX_HOPS,
)  # fmt: skip
from relay.ports import Env

log = structlog.get_logger("relay.directory")


class OwnUsers(Protocol):
    """The cell's own users, by its fold. Their records were verified before they were appended."""

    def home(self, user: bytes) -> HomeRecord | None:
        """The newest record, if the user is at home in this cell."""

    def chain(self, user: bytes, after: int) -> list[bytes]:
        """The signed records after version `after`, oldest first."""

    def moved(self, user: bytes) -> tuple[list[bytes], bool]:
        """All records of a user who has left for another cell, and whether that has confirmed that it has them and what
        waited here; none where nobody of that id has."""

    async def settled(self, asker: str = "") -> None:
        """Wait until this node has applied what its cell had committed: before, it may deny nobody. `asker`: the other
        cell that wants to know. Raises Overloaded."""


class AsksCells(Protocol):
    """What the directory needs of cluster.links.Links."""

    async def request(self, cell: str, message: Request, deadline_s: float = ...) -> Answer: ...
    def connected(self, cell: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class _Known:
    """A verified foreign user: the newest record, the whole chain, and until when it is fresh (monotonic ms)."""

    record: HomeRecord
    chain: tuple[bytes, ...]
    fresh_until: int

    @property
    def size(self) -> int:
        return 1_024 + 2 * sum(map(len, self.chain))  # bytes; the parsed record is about as large as the signed ones


class _Fetch:
    """One lookup over a link that several callers wait for."""

    def __init__(self) -> None:
        self.done = trio.Event()


class FederationDirectory:
    """relay.ports.Directory over links, and what other cells are told about this cell's users."""

    def __init__(self, root: Root, cell: str, own: OwnUsers, links: AsksCells, env: Env, seen: Seen) -> None:
        self._root, self._cell, self._own, self._links, self._env, self._seen = root, cell, own, links, env, seen
        self.halted: Callable[[str], None] = lambda cell: None  # raises Refused where nobody there is spoken of now
        self._known: OrderedDict[bytes, _Known] = OrderedDict()  # least recently used first
        self._bytes = 0
        self._failures: OrderedDict[tuple[bytes, str], tuple[PosthouseError, int]] = OrderedDict()
        self._fetches: dict[tuple[bytes, str], _Fetch] = {}

    def follow(self, root: Root) -> None:
        """Verify by this root document from now on. Records of regions whose keys it changes are asked for again, and
        verified; what is on the disk of which versions were seen stays."""
        before, self._root = self._root, root
        self._failures.clear()
        doubtful = {one.name for one in before.payload.regions if not _holds_on(one.name, before, root)}
        for user, known in tuple(self._known.items()) if doubtful else ():
            if known.record.payload.move_epoch or region_of(known.record.cell) in doubtful:
                self._bytes -= self._known.pop(user).size

    async def failed(self) -> None:
        """Wait until its disk fails, and raise DiskFailed."""
        await self._seen.failed()

    # --- relay.ports.Directory ---------------------------------------------------------------------
    async def lookup(self, user: bytes, hint: str) -> HomeRecord:
        """The newest verified record of `user`. `hint` is the region of the address card.

        Raises Refused with UNKNOWN_USER, UNKNOWN_REGION or UNREACHABLE; TrustError where an answer did not verify."""
        await self._settle(user, hint)
        own = self._own.home(user) or self._leaving(user)
        return own if own is not None else (await self._foreign(user, hint)).record

    async def chain(self, user: bytes, hint: str, after: int) -> list[bytes]:
        """The signed records after version `after`, oldest first. Raises like `lookup`."""
        await self._settle(user, hint)
        if self._own.home(user) is not None:
            return self._own.chain(user, after)
        leaving = self._leaving(user)
        if leaving is not None:
            return self._own.moved(user)[0][after : leaving.version]
        known = await self._foreign(user, hint)
        if known.record.version <= after and self._make_stale(known):
            with suppress(Refused):  # it cannot be asked now: what is known is all that there is
                known = await self._foreign(user, hint, anew=True)
        return list(known.chain[after:])  # version n is element n - 1

    async def _settle(self, user: bytes, hint: str) -> None:
        """Who ought to be at home here, and is not known, may have come to another node of the cell just now."""
        if hint == region_of(self._cell) and self._own.home(user) is None and self._newest(user) is None:
            try:
                await self._own.settled()
            except Overloaded as error:
                raise Refused(Code.UNREACHABLE, error.text, "Try again", DIRECTORY_RETRY) from None

    def _make_stale(self, known: _Known) -> bool:
        """Who asks for what comes after the record that is kept has heard of a newer one: ask its cell again, unless
        that was done just now."""
        now = self._env.clock.monotonic_ms()
        if now - (known.fresh_until - DIRECTORY_FRESH) < DIRECTORY_RETRY:
            return False
        self._known[known.record.user] = replace(known, fresh_until=now)
        return True

    async def answer(self, peer: Peer, request: LookUp) -> Records:
        """What another cell is told: records of users at home here, and nothing about anybody else. Raises Overloaded
        where this node cannot make sure that it is not behind."""
        await trio.lowlevel.checkpoint()
        user, after = request.user, request.after
        if self._own.home(user) is None and not self._own.moved(user)[0]:
            await self._own.settled(peer.cell)
        if self._own.home(user) is not None:
            return Records(Code.STORED, tuple(self._own.chain(user, after)[:MAX_CHAIN]))
        moved, _ = self._own.moved(user)
        if not moved:
            return Records(Code.UNKNOWN_USER, ())
        leaving = self._leaving(user)
        return Records(Code.STORED, tuple(moved[after : leaving.version if leaving else len(moved)]))

    def _leaving(self, user: bytes) -> HomeRecord | None:
        """The last record by which a user was at home here, until the new home has the one after it and what waited:
        whoever goes by it comes here, and is sent on in order (ADR 21)."""
        moved, confirmed = self._own.moved(user)
        if confirmed:
            return None
        records = (read_home(signed) for signed in reversed(moved))
        return next((record for record in records if record.cell == self._cell), None)

    def stale(self, user: bytes) -> None:
        """A cell has sent on what we handed over: the user has moved. It is asked again before anything else goes."""
        known = self._known.get(user)
        if known is not None:
            self._make_stale(known)

    # --- foreign users -----------------------------------------------------------------------------
    async def _foreign(self, user: bytes, hint: str, anew: bool = False) -> _Known:
        """From the cache, or by one lookup for all who ask at the same time. `anew`: asks the cell in any case; where
        there is no link to it now, the asking makes one. What was kept of a region that is halted is not used."""
        known = await self._kept_or_asked(user, hint, anew)
        self.halted(known.record.cell)
        return known

    async def _kept_or_asked(self, user: bytes, hint: str, anew: bool) -> _Known:
        await trio.lowlevel.checkpoint()
        key = (user, hint)
        while True:
            known = None if anew else self._cached(user)
            if known is not None:
                return known
            self._raise_failure(key)
            fetch = self._fetches.get(key)
            if fetch is None:
                return await self._lead(key)
            await fetch.done.wait()  # cancelled with its leader: then one of us leads
            anew = False

    async def _lead(self, key: tuple[bytes, str]) -> _Known:
        fetch = self._fetches[key] = _Fetch()
        try:
            return await self._fetch(*key)
        except (Refused, TrustError) as error:
            self._failures[key] = (error, self._env.clock.monotonic_ms() + DIRECTORY_RETRY)
            if len(self._failures) > DIRECTORY_FAILURES:
                self._failures.popitem(last=False)
            raise
        finally:
            del self._fetches[key]
            fetch.done.set()

    def _raise_failure(self, key: tuple[bytes, str]) -> None:
        error, until = self._failures.get(key, (None, 0))
        if error is None:
            return
        if self._env.clock.monotonic_ms() < until:
            raise error.with_traceback(None)
        del self._failures[key]

    async def _fetch(self, user: bytes, hint: str) -> _Known:
        old, until = self._newest(user), trio.current_time() + LOOKUP_S
        cells = self._cells(hint) if old is None else [old.record.cell]
        try:
            cell, answer = await self._ask(cells, LookUp(user, old.record.version if old else 0), until)
        except Refused as error:
            if old is None or error.code != Code.UNREACHABLE or not self._valid(old.record):
                raise
            self._check_holds(old)
            return self._keep(old.record, old.chain, DIRECTORY_RETRY)  # mail for a cell that is cut off waits here
        whole = False
        try:
            chain, whole = await self._follow(user, cell, answer, until)
            return await self._accept(user, old, chain, DIRECTORY_FRESH if whole else DIRECTORY_RETRY)
        except NotValidNow:
            raise  # an old record of somebody who has gone: nobody's lie
        except TrustError as error:
            if isinstance(error, Rollback) and not whole:
                raise Refused(Code.UNREACHABLE, "the user's new home cannot be asked now", "Try again", 1000) from None
            log.critical("home_record_refused", user=user[:4].hex(), cells=cells, reason=str(error))
            raise

    def _newest(self, user: bytes) -> _Known | None:
        """What is known, be it from our own log, of somebody who has left: where to ask, and what must not be fallen
        behind."""
        known, (moved, _) = self._known.get(user), self._own.moved(user)
        if moved and (known is None or known.record.version < len(moved)):
            return _Known(read_chain(moved)[-1], tuple(moved), 0)
        return known

    def _cells(self, hint: str) -> list[str]:
        """Where to ask. Raises Refused(UNKNOWN_REGION)."""
        region = next((region for region in self._root.payload.regions if region.name == hint), None)
        if region is None:
            raise Refused(Code.UNKNOWN_REGION, f"the federation has no region {hint!r}", "Check the address card")
        return [cell.name for cell in region.cells if cell.name != self._cell]

    async def _ask(self, cells: Sequence[str], request: LookUp, until: float) -> tuple[str, Sequence[bytes]]:
        """The first cell that knows the user, and its records; all of them together have until `until` (trio's clock),
        and each its share. Raises Refused(UNKNOWN_USER), or UNREACHABLE where one could not say."""
        refused = Refused(Code.UNKNOWN_USER, "nobody of that id is at home there", "Check the address card")
        for place, cell in enumerate(cells):
            left = max(0.0, until - trio.current_time())
            try:
                answer = await self._links.request(cell, request, left / (len(cells) - place))
            except (Refused, PeerError) as error:
                refused = Refused(Code.UNREACHABLE, f"{cell} cannot be asked now: {error.text}", "Try again", 1000)
                continue
            if not isinstance(answer, Records):
                raise TrustError(f"{cell} answered a lookup with {type(answer).__name__}")
            if answer.code == Code.STORED:
                return cell, answer.chain
        raise refused

    async def _follow(
        self, user: bytes, cell: str, chain: Sequence[bytes], until: float
    ) -> tuple[Sequence[bytes], bool]:  # fmt: skip
        """The old home of somebody who has left knows where to, and not what came after: ask on, from cell to cell,
        MAX_HOPS of them at most. (It is verified when there is no more.) And whether the last one answered, and knows
        of no other."""
        for _ in range(MAX_HOPS):
            if not chain or len(chain) >= MAX_CHAIN or (home := _unverified(chain[-1])).cell in (cell, self._cell):
                return chain, True
            cell = home.cell
            try:
                _, more = await self._ask([cell], LookUp(user, home.version), until)
            except Refused:
                return chain, False
            if not more:
                return chain, True
            chain = [*chain, *more][:MAX_CHAIN]  # no more is verified
        return chain, _unverified(chain[-1]).cell == cell

    async def _accept(
        self, user: bytes, old: _Known | None, answer: Sequence[bytes], fresh_ms: int = DIRECTORY_FRESH
    ) -> _Known:
        """Verify, persist, use; in this order. Raises TrustError and its kinds."""
        known = old.record if old else None
        newer = [signed for signed in answer if _unverified(signed).version > (known.version if known else 0)]
        root = self._root
        record = verify_chain(answer, root, self._env.clock.wall_ms(), user, known)
        chain = (*(old.chain if old else ()), *newer)
        highest = await self._seen.highest(user)
        self._check_seen(chain, highest)
        if highest is None or highest.version < record.version:
            self._check_seen(chain, await self._seen.raise_to(user, self._seen.sighting(record)))
        if self._root is not root:  # another one by now, which may know other keys
            verify_chain(answer, self._root, self._env.clock.wall_ms(), user, known)
        self._check_holds(old)
        return self._keep(record, chain, fresh_ms)

    def _check_holds(self, old: _Known | None) -> None:
        """What was known when somebody was asked may not be known any more: `follow` dropped it, and it must not come
        back unverified. Raises Refused(UNREACHABLE): asked again, the whole chain is."""
        if old is not None and self._newest(old.record.user) is None:
            raise Refused(Code.UNREACHABLE, "another root document came meanwhile", "Try again", 1000)

    def _check_seen(self, chain: Sequence[bytes], highest: Sighting | None) -> None:
        """The chain must reach what was seen before, and go through it. Raises Rollback, BrokenChain."""
        if highest is None:
            return
        if len(chain) < highest.version:
            raise Rollback(
                f"home record version {len(chain)} after {highest.version} was seen",
                "The home region restored an old copy, or lies: ask its operator",
            )
        if self._seen.sighting(read_home(chain[highest.version - 1])) != highest:
            raise BrokenChain(
                f"two different home records of version {highest.version}: a fork",
                "Somebody signed twice: ask the user and the operator of the home region",
            )

    # --- the cache ---------------------------------------------------------------------------------
    def _valid(self, record: HomeRecord) -> bool:
        try:
            check_current(record, self._env.clock.wall_ms())
        except TrustError:
            return False
        return True

    def _cached(self, user: bytes) -> _Known | None:
        """What may be used without asking: fresh, or of a cell that there is no link to now. Never what has expired."""
        known = self._newest(user)
        if known is None or not self._valid(known.record):
            return None
        if known.fresh_until <= self._env.clock.monotonic_ms() and self._links.connected(known.record.cell):
            return None
        if user in self._known:
            self._known.move_to_end(user)
        return known

    def _keep(self, record: HomeRecord, chain: tuple[bytes, ...], fresh_ms: int) -> _Known:
        known = _Known(record, chain, self._env.clock.monotonic_ms() + fresh_ms)
        old = self._known.pop(record.user, None)
        self._known[record.user] = known
        self._bytes += known.size - (old.size if old else 0)
        while self._bytes > DIRECTORY_CACHE and len(self._known) > 1:
            _, dropped = self._known.popitem(last=False)
            self._bytes -= dropped.size
        return known


def _holds_on(region: str, before: Root, after: Root) -> bool:
    """Is every record of that region that verified by the one root document sure to verify by the other?"""
    try:
        old, new = before.region(region), after.region(region)
        same = (old.registrar_key, old.log_key, old.earlier) == (new.registrar_key, new.log_key, new.earlier)
        if not (same and new.log_key):
            return same
        was, now = trust_of(before, region), trust_of(after, region)
        return now.k <= was.k and set(was.witnesses) <= set(now.witnesses)
    except TrustError:
        return False


def _unverified(signed: bytes) -> HomeRecord:
    """Raises TrustError."""
    try:
        return read_home(signed)
    except ProtocolError as error:
        raise TrustError(f"a home record is not well formed: {error.text}") from None
