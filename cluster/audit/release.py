"""Sends canaries: from every user who stays online to every other one, and to a group of all, by the ordinary client.

Notes are taken beside the client, of what goes out and comes in: which envelopes belong to which canary, what their
sender was told, who got them.
"""

from __future__ import annotations

import secrets
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import trio

from cluster.audit.kit import HEARD, LINKS, SENT, Canary, Kit, Mark, make_kit, pieces_of
from cluster.core.linkwire import federation_id
from cluster.local.home import Home
from cluster.local.people import card_of, create_user
from relay import ws
from relay.client import Card, Client, SendRefused, Sent, open_client
from relay.client.connection import Seams, Socket
from relay.core import wire
from relay.core.envelope import To, envelope_id, read_header
from relay.core.wire import Code
from relay.errors import OperatorError, Refused

NEWS_S: Final = 10.0  # seconds for a group's news to reach whoever is to write to it
SETTLE_S: Final = 1.0  # seconds for what one canary sends to be answered, before the next one
_POLL_S: Final = 0.05
_OWN: Final = ("canary-{}-1", "canary-{}-2")  # the users that are made where none are named: online, and left offline


@dataclass(eq=False)
class Person:
    """A test user; `away` is left offline."""

    name: str
    card: Card
    away: bool
    client: Client | None = None

    @property
    def at_home(self) -> str:
        return f"{self.name} ({self.card.region})"

    def online(self) -> Client:
        assert self.client is not None
        return self.client


def find_people(home: Home, users: Sequence[str], away: Sequence[str], now_ms: int) -> list[Person]:
    """The named test users; where none are named two in each region whose registrar's key is in `home`, made if they
    are not there yet. Raises OperatorError."""
    if users:
        return [Person(name, card_of(home, name), name in away) for name in dict.fromkeys([*users, *away])]
    regions = [entry.name for entry in home.root(now_ms).payload.regions]
    ours = [region for region in regions if (home.secrets / f"{region}.registrar.key").exists()]
    if not ours:
        what = f"{home.directory} has no registrar's key: no test users can be made"
        raise OperatorError(what, "Name your own with --user, and some with --away")
    people = []
    for region in ours:
        for place, pattern in enumerate(_OWN):
            name = pattern.format(region)
            card = card_of(home, name) if name in home.names() else create_user(home, name, region, now_ms)
            people.append(Person(name, card, place > 0))
    return people


@dataclass
class Release:
    """Sends, and takes notes in `kit`. `links`: where what goes over the clients' links is kept."""

    kit: Kit
    people: list[Person]
    links: Path
    groups: dict[bytes, list[Person]] = field(default_factory=dict)
    now: Canary | None = None  # being sent
    marks: dict[bytes, Mark] = field(default_factory=dict)
    awaited: dict[bytes, set[str]] = field(default_factory=dict)  # envelope → who of those online is to get it
    all_sent: bool = False

    async def run(self, home: Home, count: int) -> None:
        """Send `count` canaries for each two users, and to the group; returns when all that are online got theirs. It
        may be cancelled: how far each came is in the kit. Raises what a client raises."""
        async with AsyncExitStack() as stack:
            for person in self.people:
                if person.away:  # what waits from before goes, and its node learns of it
                    async with self._open(home, person) as client:
                        with trio.move_on_after(NEWS_S):
                            await client.caught_up()
                else:
                    person.client = await stack.enter_async_context(self._open(home, person))
                    await person.client.caught_up()
            senders = [person for person in self.people if not person.away]
            for sender in senders:
                for to in self.people:
                    for _ in range(count if to is not sender else 0):
                        await self._one_to_one(sender, to)
            await self._to_a_group(senders, count)
            self.all_sent = True
            while not self._all_came():  # noqa: ASYNC110 - what comes rings no one bell
                await trio.sleep(_POLL_S)

    @asynccontextmanager
    async def _open(self, home: Home, person: Person) -> AsyncIterator[Client]:
        seams = Seams(dial=partial(self._dial, person))
        async with open_client(home.store(person.name), receive=True, seams=seams) as client:
            yield client

    @asynccontextmanager
    async def _dial(
        self, person: Person, url: str, context: ssl.SSLContext | None, deadline_s: float
    ) -> AsyncIterator[Socket]:
        async with ws.connect(url, context, deadline_s) as socket:
            yield TappedSocket(socket, self, person)

    # --- sending ---------------------------------------------------------------------------------
    async def _one_to_one(self, sender: Person, to: Person) -> None:
        content, name = self._begin(sender, to.at_home + (", who is offline" if to.away else ""))
        await self._accepted(sender, partial(sender.online().send, to.card, content, name))

    async def _to_a_group(self, senders: list[Person], count: int) -> None:
        """A group of all whose record can be had; it, too, has a name that nobody may see."""
        owner = senders[0]
        members = [person for person in self.people if person is owner or await self._known(owner, person)]
        if len(members) < 2:
            return
        cards = [person.card for person in members if person is not owner]
        _, title = self._begin(owner, "the name of a group of all, to its members")
        group = await owner.online().create_group(title, cards)
        self.groups[group.id] = members
        await self._settled(owner)
        for sender in senders:
            if sender in members and await self._has_heard(sender, group.id):
                for _ in range(count):
                    content, name = self._begin(sender, f"a group of {len(members)}")
                    await self._accepted(sender, partial(sender.online().send_group, group.id, content, name))

    def _begin(self, sender: Person, to: str) -> tuple[bytes, str]:
        """A content and a name with a random text each. What goes out from now on is of this canary."""
        content, name = secrets.token_hex(16), secrets.token_hex(16)
        number = len(self.kit.canaries) + 1
        self.now = Canary(
            name=f"canary {number}", what=f"from {sender.at_home} to {to}", sender=sender.name,
            origin=sender.card.region, texts=(content, name),
        )  # fmt: skip
        self.kit.canaries.append(self.now)
        return f"A canary in the mail: {content}".encode(), name

    async def _accepted(self, sender: Person, send: Callable[[], Awaitable[Sent]]) -> None:
        try:
            await send()
        except SendRefused:
            return  # its code is noted
        await self._settled(sender)

    async def _settled(self, sender: Person) -> None:
        """Until everything is answered, or a region that cannot be reached lets it wait."""
        with trio.move_on_after(SETTLE_S):
            await sender.online().drained()

    async def _known(self, asker: Person, person: Person) -> bool:
        with trio.move_on_after(NEWS_S):
            try:
                await asker.online().look_up(person.card)
                return True
            except Refused:
                return False
        return False

    async def _has_heard(self, person: Person, group: bytes) -> bool:
        with trio.move_on_after(NEWS_S):
            while group not in [one.id for one in await person.online().groups()]:  # noqa: ASYNC110 - no bell for it
                await trio.sleep(_POLL_S)
            return True
        return False

    # --- notes -----------------------------------------------------------------------------------
    def submitted(self, envelope: bytes) -> None:
        """A client is about to write this envelope to its connection, perhaps again. What was queued in its store from
        before, for somebody else, is not ours."""
        own, header = envelope_id(envelope), read_header(envelope)
        to = self.groups.get(header.to, []) if header.kind is To.ROSTER else [
            person for person in self.people if person.card.user == header.to
        ]  # fmt: skip
        if own in self.marks or self.now is None or not to:
            return
        homes = tuple(sorted({person.card.region for person in to}))
        waits = tuple(sorted({person.card.region for person in to if person.away}))
        mark = Mark(id=own, pieces=pieces_of(envelope), size=len(envelope), homes=homes, waits=waits)
        self.marks[own] = mark
        self.awaited[own] = {person.name for person in to if not person.away} - {self.now.sender}
        self.now.marks.append(mark)

    def answered(self, own: bytes, code: int) -> None:
        """The sender was told. STORED is the last word, whatever else comes late."""
        if own in self.marks and self.marks[own].code != Code.STORED:
            self.marks[own].code = code

    def delivered(self, envelope: bytes, person: Person) -> None:
        """A client got an envelope."""
        mark = self.marks.get(envelope_id(envelope))
        if mark is not None and person.name not in mark.seen:
            mark.seen.append(person.name)

    def _all_came(self) -> bool:
        """Every envelope has its final answer, and is with everybody for whom it is and who is online."""
        return all(
            mark.code > Code.STORED or (mark.code == Code.STORED and self.awaited[own] <= {*mark.seen})
            for own, mark in self.marks.items()
        )


class TappedSocket:
    """A client's connection, with notes taken of what goes through."""

    def __init__(self, socket: Socket, release: Release, person: Person) -> None:
        self._socket = socket
        self._release = release
        self._person = person

    async def send(self, message: bytes) -> None:
        decoded = wire.decode_client(message)
        for item in decoded.items if isinstance(decoded, wire.Submit) else ():
            self._release.submitted(item.envelope)
        self._keep(SENT, message)
        await self._socket.send(message)

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        self._keep(HEARD, message)
        decoded = wire.decode_server(message)
        if isinstance(decoded, wire.Receipt):
            for item in decoded.items:
                self._release.answered(item.id, item.code)
        if isinstance(decoded, wire.Notice):
            self._release.answered(decoded.id, decoded.code)
        if isinstance(decoded, wire.Deliver):
            self._release.delivered(decoded.envelope, self._person)
        return message

    async def ping(self) -> None:
        await self._socket.ping()

    def _keep(self, way: str, message: bytes) -> None:
        with (self._release.links / f"{self._person.name}.{way}").open("ab") as file:
            file.write(message)


async def release(
    home: Home, people: list[Person], directory: Path, now_ms: int, count: int, seconds: float
) -> tuple[Kit, bool]:
    """Send canaries between `people`, and leave the kit in a new `directory`, also when cut short: what was sent can be
    looked for. Where nothing was, there is no kit. (The kit, whether all were sent) after `seconds` at the latest; what
    cannot be handed over now is no reason to wait longer. Raises OperatorError."""
    if all(person.away for person in people) or len(people) < 2:
        raise OperatorError("canaries need a sender and a recipient", "Name a --user, and others (or --away)")
    make_kit(directory)
    kit = Kit(federation=federation_id(home.root(now_ms)), sent_ms=now_ms, canaries=[])
    sending = Release(kit, people, directory / LINKS)
    try:
        with trio.move_on_after(seconds):
            await sending.run(home, count)
    finally:
        if kit.canaries:
            kit.save(directory)
        else:
            shutil.rmtree(directory)
    return kit, sending.all_sent
