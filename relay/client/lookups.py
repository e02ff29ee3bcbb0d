"""The lookups of one live connection: whom the desk wants is asked for until the answer holds."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from relay.client import people
from relay.client.desk import Desk
from relay.client.incoming import waits_for
from relay.client.outgoing import newest_spoken
from relay.core import wire
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import PosthouseError, Refused, TrustError
from relay.limits import LINK_DEADLINE_S

log = structlog.get_logger("relay.client")

LOOKUPS = 16  # at the same time
LOOKUP_S = LINK_DEADLINE_S + 5  # seconds: the node may have to ask another region
LOOKUP_TRIES = 14  # answers without the version that a receipt spoke of, or the device that signed, until that is taken
# for a mistake: about 90 s, for a node may answer from what it heard a minute ago (DIRECTORY_FRESH)
LOOKUP_RETRY_S, LOOKUP_RETRY_MAX_S = 0.2, 10.0  # doubling

Task = Callable[[], Awaitable[None]]


class Lookups:
    """`say` sends a message; `start` runs a task that ends with the connection; `newer`: is there a newer root document
    than this one, by which something does not verify?"""

    def __init__(
        self, desk: Desk, say: Callable[[wire.ClientMessage], Awaitable[None]], start: Callable[[Task], None],
        newer: Callable[[Root], Awaitable[bool]],
    ) -> None:  # fmt: skip
        self._desk = desk
        self._say = say
        self._start = start
        self._newer = newer
        self._asked: dict[int, tuple[trio.Event, list[wire.Record]]] = {}
        self._request = 0
        self._looking: set[bytes] = set()
        self._turn = trio.CapacityLimiter(LOOKUPS)
        self.trying: set[bytes] = set()  # users whose first lookup on this connection is under way

    async def run(self) -> None:
        """Look up whoever is wanted, until cancelled."""
        desk = self._desk
        while True:
            armed = desk.lookup.armed()
            for user in desk.wanted:
                if user not in self._looking:
                    self._looking.add(user)
                    self._start(self._search(user))
            await armed.wait()

    def answered(self, record: wire.Record) -> None:
        """An answer came."""
        asked = self._asked.get(record.request)
        if asked is not None:
            asked[1].append(record)
            asked[0].set()

    def _search(self, user: bytes) -> Task:
        async def search() -> None:
            desk = self._desk
            delay, misses, turn = LOOKUP_RETRY_S, 0, 0
            while True:
                wishes = desk.wishes[user]
                async with self._turn:
                    found = await self._ask(user, turn, misses >= LOOKUP_TRIES)
                self.trying.discard(user)
                desk.changed.ring()
                if found and wishes == desk.wishes[user]:
                    break
                if found:
                    continue
                misses, turn = misses + (found is False), turn + 1
                await trio.sleep(delay * (0.5 + desk.seams.random_float()))
                delay = min(2 * delay, LOOKUP_RETRY_MAX_S)
            self._looking.discard(user)
            desk.wanted.pop(user, None)
            del desk.wishes[user]
            desk.sealer.unknown.discard(user)
            desk.post.ring()

        return search

    async def _ask(self, user: bytes, turn: int, give_up: bool) -> bool | None:
        """One LOOKUP. True: done with it, for good or bad; False: an older version than spoken of; None: no answer."""
        desk = self._desk
        record, hints = await desk.run(
            lambda db: (people.newest(db, desk.own, user), people.hints(db, desk.own, user)), lazily=True
        )
        hints = hints if record else list(dict.fromkeys([*desk.wanted[user], *hints]))
        hint = hints[turn % len(hints)]
        self._request += 1
        number, answers = self._request, list[wire.Record]()
        self._asked[number] = (answered := trio.Event(), answers)
        try:
            await self._say(wire.Lookup(number, user, hint, record.version if record else 0))
            with trio.move_on_after(LOOKUP_S):
                await answered.wait()
        finally:
            del self._asked[number]
        if not answers or answers[0].code == Code.UNREACHABLE:
            return None
        root = desk.own.root
        try:
            if answers[0].code >= 16:
                raise Refused(answers[0].code, f"the lookup in {hint} was refused")
            version = await desk.take_in(lambda incoming: incoming.learned(user, answers[0].records, desk.server_now))
        except (TrustError, Refused) as error:
            if isinstance(error, TrustError) and await self._newer(root):
                return None
            log.warning("lookup_failed", user=user.hex()[:8], region=hint, reason=error.text)
            return await self._unknown(user, hint, error)
        if give_up:
            await desk.take_in(lambda incoming: incoming.give_up(user))
            return True
        return await desk.run(lambda db: newest_spoken(db, user) <= version and not waits_for(db, user), lazily=True)

    async def _unknown(self, user: bytes, hint: str, error: PosthouseError) -> bool | None:
        """True: no other region is left to ask."""
        desk = self._desk
        left = await desk.take_in(lambda incoming: incoming.unknown(user, hint, error, desk.server_now))
        asked = desk.wanted[user]
        if hint in asked:
            asked.remove(hint)
        asked.extend(other for other in left if other not in asked)
        desk.not_found(user, hint, error)
        return None if left else True
