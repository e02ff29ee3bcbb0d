"""The stage of the demo: twelve people with thirty devices, what they can do, and the notes that are taken of it.

Notes are taken where the senders and readers are, on nobody's word: the address book gets every envelope as it goes
out, the ledger every message as an iterator yields it.
"""

from __future__ import annotations

import secrets
import ssl
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from cluster.cli.erasures import collect_receipts
from cluster.cli.reach import Door, Reach
from cluster.control import CellView
from cluster.audit.look import Seen, storage_keys
from cluster.demo.audit import CANARY_RANGE, Book, audit
from cluster.demo.ledger import Ledger, Yielded
from cluster.demo.report import Audit
from cluster.local import Layout, LocalFederation
from cluster.local.people import create_device, create_user, sign_move
from relay import ws
from relay.client import Card, Client, Message, SendRefused, open_client, take_records
from relay.client.connection import Seams, Socket
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.journal.seal import StorageRing

NAMES = ("anna", "bruno", "chiara", "dmitri", "elif", "farah", "goran", "hanh", "imre", "jiwoo", "klara", "luis")
DEVICES = (3, 3, 2, 2)  # of the first, second, … person of a region, and round again
ACCEPTED_S = 45.0  # seconds until a message is accepted; a node that was killed is back long before
MOVED_S = 20.0  # seconds for all devices of who moves to be served in the new home
ERASED_S = 20.0  # seconds for every store of the old home to have let go of everything, and signed it
ELECTED_S = 20.0  # seconds for a cell to have a leader; it takes about one
IN_FLIGHT = 32  # messages that one device has on the way to acceptance at a time
TONGUES = (
    "See you at the posthouse at nine.",
    "Do zobaczenia w zajeździe o dziewiątej.",
    "Увидимся на почтовой станции в девять.",
    "Hẹn gặp ở trạm dịch lúc chín giờ.",
    "아홉 시에 역참에서 만나요.",
)


@dataclass(eq=False)
class Gadget:
    """One device: its store, and its client while it is online."""

    owner: Person
    path: Path
    id: bytes = b""
    client: Client | None = None
    leave: trio.CancelScope = field(default_factory=trio.CancelScope)
    left: trio.Event = field(default_factory=trio.Event)

    def online(self) -> Client:
        assert self.client is not None, f"the story asks {self.path.parent.name} to act while offline"
        return self.client


@dataclass(eq=False)
class Person:
    """A user at home in `region`."""

    name: str
    region: str
    card: Card
    gadgets: list[Gadget] = field(default_factory=list)


class Stage:
    """Everything the chapters act on. Clients live in `nursery`."""

    def __init__(self, layout: Layout, federation: LocalFederation, nursery: trio.Nursery) -> None:
        self.layout = layout
        self.federation = federation
        self.ledger = Ledger()
        self.book = Book()
        self.people: list[Person] = []
        self.failures: list[str] = []
        self.nodes_killed = self.stores_wiped = self.users_moved = 0
        self.renewed: dict[tuple[str, str], str] = {}  # (region, node) whose store was wiped → the id of the lost one
        self.wire_duplicates = 0
        self.unanswered: dict[str, set[bytes]] = defaultdict(set)  # region → envelopes submitted without a receipt
        self.written: set[bytes] = set()  # envelopes that a connection took
        self.audits: list[Audit] = []
        self.dedup, self.socket = True, WatchedSocket  # a test breaks them, to see that duplicates are found
        self._nursery = nursery
        self._moved = trio.Event()
        self._urls: dict[str, str] = {}  # of nodes → region
        self._limits: dict[Gadget, trio.CapacityLimiter] = defaultdict(lambda: trio.CapacityLimiter(IN_FLIGHT))

    # --- the cast --------------------------------------------------------------------------------
    @property
    def regions(self) -> tuple[str, ...]:
        return self.layout.regions

    @property
    def gadgets(self) -> list[Gadget]:
        return [gadget for person in self.people for gadget in person.gadgets]

    def of(self, region: str) -> list[Person]:
        return [person for person in self.people if person.region == region]

    def enrol(self, now_ms: int) -> None:
        """Make everybody's keys and home records, spread over the regions. No node is asked; this takes a while."""
        home = self.layout.home
        for number, name in enumerate(NAMES):
            region = self.regions[number % len(self.regions)]
            person = Person(name, region, create_user(home, name, region, now_ms))
            stores = [name]
            for extra in range(2, DEVICES[number // len(self.regions) % len(DEVICES)] + 1):
                create_device(home, str(extra), name, now_ms)
                stores.append(f"{name}+{extra}")
            person.gadgets += [Gadget(person, home.store(store)) for store in stores]
            self.people.append(person)
            self.book.users[person.card.user] = region
            self.book.names[person.card.user] = name

    # --- coming and going ------------------------------------------------------------------------
    async def come_online(self, gadgets: Iterable[Gadget]) -> None:
        """Open the clients; returns when each of them has collected what waited for it."""
        coming = list(gadgets)
        async with trio.open_nursery() as nursery:
            for gadget in coming:
                nursery.start_soon(self._nursery.start, self._live, gadget)
        for gadget in coming:
            await gadget.online().caught_up()

    async def go_offline(self, gadgets: Iterable[Gadget]) -> None:
        """Close the clients, each when it has nothing more to send; returns when all are closed."""
        going = [gadget for gadget in gadgets if gadget.client is not None]
        for gadget in going:
            await gadget.online().drained()
            gadget.leave.cancel()
        for gadget in going:
            await gadget.left.wait()

    async def _live(self, gadget: Gadget, *, task_status: trio.TaskStatus[None]) -> None:
        gadget.leave, gadget.left = trio.CancelScope(), trio.Event()
        seams = Seams(dial=partial(self._dial_watched, gadget.owner))
        try:
            async with open_client(gadget.path, receive=True, seams=seams, dedup=self.dedup) as client:
                gadget.client, gadget.id = client, client.device
                task_status.started()
                with gadget.leave:
                    async for message in client.messages():
                        self._note(gadget, message)
                self.wire_duplicates += client.stats.duplicates_dropped
        finally:
            gadget.client = None
            gadget.left.set()

    def auditor(self, when: str) -> Callable[[str], None]:
        """A function that audits all nodes of a region, none of which may run: every store unsealed, every file
        scanned. What it finds goes into one audit of all regions."""
        secrets = self.layout.home.secrets
        rings = {region: secrets / f"{region}.storage.key" for region in self.regions}
        scanner = self.book.scanner(key for path in rings.values() for key in storage_keys(path))
        loaded = {region: StorageRing.load(path) for region, path in rings.items()}
        found = Audit(when, [])
        self.audits.append(found)

        def look(region: str) -> None:
            seen: Seen = {}
            for node in self.layout.nodes(region):
                found.shelves.append(
                    audit(region, node.directory, node.data_dir, loaded[region], self.book, scanner, node.name, seen)
                )

        return look

    async def move(self, person: Person, region: str) -> None:
        """Sign somebody's home record for another region. One device knows it, the others learn it from their cell;
        returns when all of them are at home there."""
        home, cell, now_ms = self.layout.home, f"{region}/1", time.time_ns() // 1_000_000
        records = await trio.to_thread.run_sync(sign_move, home, person.name, cell, now_ms)
        await trio.to_thread.run_sync(take_records, person.gadgets[0].path, records, now_ms)
        self.users_moved += 1
        with trio.move_on_after(MOVED_S):
            while any(one.online().card.region != region for one in person.gadgets):  # noqa: ASYNC110 - it has no bell
                await trio.sleep(0.05)
            return
        self.failures.append(f"the move: not all devices of {person.name} went to {region} within {MOVED_S:.0f} s")

    async def erased(self, person: Person, region: str) -> dict[str, int]:
        """Who moved from here has everything: the nodes whose stores have signed that nothing is left of it, and below
        which block. All ought to."""
        nodes = self.federation.running(region)
        doors = (Door(node.name, node.admin_addr, node.control_path) for node in nodes)
        root = self.layout.home.root(time.time_ns() // 1_000_000)
        missing, receipts = await collect_receipts(Reach(tuple(doors)), root, person.card.user, True, ERASED_S)
        if missing:
            self.failures.append(f"the move: no erasure receipt from {', '.join(missing)} in {region}")
        return {receipt.node: receipt.below for _, receipt in receipts}

    # --- the nodes -------------------------------------------------------------------------------
    def names(self, region: str) -> list[str]:
        """The nodes of a region that run."""
        return [node.name for node in self.federation.running(region)]

    async def cell(self, region: str) -> CellView:
        """The region's cell, as its leader sees it."""
        doors = (Door(node.name, node.admin_addr, None) for node in self.federation.running(region))
        return await Reach(tuple(doors)).view(patient=True)

    async def leader(self, region: str) -> str:
        """The node that leads the region's cell."""
        with trio.fail_after(ELECTED_S):
            while not (leader := (await self.cell(region)).leader):  # noqa: ASYNC110 - a process has no bell
                await trio.sleep(0.05)
        return leader

    def kill(self, region: str, name: str) -> None:
        """SIGKILL for a node."""
        self.federation.kill(region, name)
        self.nodes_killed += 1

    # --- saying things ---------------------------------------------------------------------------
    async def say(self, sender: Gadget, to: Person) -> None:
        """One message, until it is accepted. All other devices of both have to yield it."""
        own = [gadget for gadget in sender.owner.gadgets if gadget is not sender]
        content = self._words()
        async with self._limits[sender]:
            await self._post(content, [*to.gadgets, *own], sender.online().send(to.card, content))

    async def tell(self, sender: Gadget, group: bytes) -> None:
        """One message to a group of everybody."""
        content = self._words()
        others = [gadget for gadget in self.gadgets if gadget is not sender]
        async with self._limits[sender]:
            await self._post(content, others, sender.online().send_group(group, content))

    async def volley(self, pairs: Iterable[tuple[Gadget, Person]]) -> int:
        """Say something to each, all at once; returns how many messages that were when all are accepted."""
        count = 0
        async with trio.open_nursery() as nursery:
            for sender, to in pairs:
                nursery.start_soon(self.say, sender, to)
                count += 1
        return count

    async def _post(self, content: bytes, to: Iterable[Gadget], sending: Awaitable[object]) -> None:
        try:
            with trio.fail_after(ACCEPTED_S):
                await sending
        except SendRefused as error:
            self.failures.append(f"a message was refused: {error.text}")
        except trio.TooSlowError:
            self.failures.append(f"a message was not accepted within {ACCEPTED_S:.0f} s")
        else:
            self.ledger.sent(digest(content), [gadget.id for gadget in to])
            self.moved()

    def _words(self) -> bytes:
        """A text with a token of its own: no two messages are equal, and what must not be found can be looked for."""
        token = secrets.token_hex(16)
        self.book.plaintexts.append(token.encode())
        return f"{secrets.choice(TONGUES)} ({token})".encode()

    # --- notes -----------------------------------------------------------------------------------
    def _note(self, gadget: Gadget, message: Message) -> None:
        content = digest(message.content)
        self.ledger.yielded(
            Yielded(gadget.id, content, message.device, message.conversation, message.counter, message.late)
        )
        self.moved()

    @asynccontextmanager
    async def _dial_watched(
        self, owner: Person, url: str, context: ssl.SSLContext | None, deadline_s: float
    ) -> AsyncIterator[Socket]:
        async with ws.connect(url, context, deadline_s) as socket:
            yield self.socket(socket, self, self._region_of(url) or owner.region)

    def _region_of(self, url: str) -> str:
        """Where the node is: who moves submits there before everybody else has noticed."""
        if not self._urls:
            regions = self.layout.home.root(time.time_ns() // 1_000_000).payload.regions
            nodes = ((region.name, node) for region in regions for cell in region.cells for node in cell.nodes)
            self._urls.update((one, name) for name, node in nodes for one in node.clients)
        return self._urls.get(url, "")

    def submitting(self, region: str, envelope: bytes) -> bytes:
        """A client of `region` is about to write this envelope to its connection, perhaps again. Returns its id."""
        own = envelope_id(envelope)
        if own not in self.book.posted:
            self.book.post(envelope, region, secrets.randbelow(CANARY_RANGE))
        elif self.book.posted[own].sender != region:
            self.book.again[own] = region
        self.unanswered[region].add(own)
        return own

    def answered(self, region: str, own: bytes) -> None:
        """A client of `region` read a receipt for this envelope."""
        self.unanswered[region].discard(own)

    def moved(self) -> None:
        """Something was noted: whoever waits looks again."""
        self._moved.set()
        self._moved = trio.Event()

    async def until(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait until `true()`, asked again after every note; False when that took too long."""
        with trio.move_on_after(seconds):
            while not true():
                await self._moved.wait()
        return true()

    async def settled(self, seconds: float, what: str) -> None:
        """Wait until every message reached all its devices; what did not in time goes to the failures."""
        if not await self.until(lambda: self.ledger.open == 0, seconds):
            self.failures.append(f"{what}: {self.ledger.open} deliveries did not come within {seconds:.0f} s")


class WatchedSocket:
    """A client's connection, seen from outside the SDK: which envelopes go out, and what is answered."""

    def __init__(self, socket: Socket, stage: Stage, region: str) -> None:
        self._socket = socket
        self._stage = stage
        self._region = region

    async def send(self, message: bytes) -> None:
        decoded = wire.decode_client(message)
        sent = [item.envelope for item in decoded.items] if isinstance(decoded, wire.Submit) else []
        ids = {self._stage.submitting(self._region, envelope) for envelope in sent}
        await self._socket.send(message)
        self._stage.written |= ids
        self._stage.moved()

    async def receive(self) -> bytes:
        message = await self._socket.receive()
        decoded = wire.decode_server(message)
        if isinstance(decoded, wire.Receipt):
            for item in decoded.items:
                self._stage.answered(self._region, item.id)
        return message

    async def ping(self) -> None:
        await self._socket.ping()
