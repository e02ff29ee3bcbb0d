"""The composition root: one life of one node of one cell, from its config to its last checkpoint.

Links come up first, since a node may need its cell to start; then the log, the fold over it, and last the gateway."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path

import structlog
import trio

from cluster.config import NodeConfig
from cluster.config_keys import Address
from cluster.control import CellControl, cell_pages
from cluster.control.pages import Erasing
from cluster.control.views import control_of
from cluster.core.linkwire import federation_id
from cluster.core.raft import Members
from cluster.credentials import OwnCredentials
from cluster.directory.federation import FederationDirectory
from cluster.directory.own import FoldedUsers
from cluster.env import NodeEnv, clients_that_fit
from cluster.erasure import Erasures
from cluster.following import Following
from cluster.forwarder import Forwarders
from cluster.halts import Halts
from cluster.handover import LinksAbroad, Reception
from cluster.journal import RaftJournal, open_raft
from cluster.journal.cell import majority_of
from cluster.links import Links
from cluster.notary import Notary
from cluster.onlookers import Onlookers
from cluster.readiness import MAJORITY, Readiness
from cluster.rootfile import RootFile
from cluster.stopping import Stop
from cluster.switchboard import Switchboard
from cluster.trail import Noting, Trail, unnoted
from relay.barrier import Barrier
from relay.certificates import certify
from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.mailroom.checkpoint import Loading
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.packing import Shelf
from relay.core.receipts import Certify
from relay.delivery import Delivery
from relay.errors import OperatorError, StoreDamaged, StoreError
from relay.gateway.api import Identity
from relay.gateway.connection import Bounds
from relay.gateway.server import Entrance, Gateway
from relay.intake import Intake
from relay.journal.database import found_in
from relay.journal.guard import ResidencyGuard
from relay.journal.files import STORE_FILE, check_repaired
from relay.journal.scrub import Scrubber
from relay.journal.seal import StorageRing
from relay.journal.shelf import SealedShelf
from relay.journal.solo import SoloJournal, open_solo
from relay.observe.admin import Answer, Page, serve_admin
from relay.observe.metrics import Metrics
from relay.observe.pulse import Pulse, feel_pulse
from relay.office import Office
from relay.ports import Env, Journal
from relay.steward import Steward

_log = structlog.get_logger("cluster.node")
OwnJournal = RaftJournal | SoloJournal
DIRECTORY_FILE = "directory.sqlite"  # in the data directory, beside the store
_REPLAY_S = 600.0  # seconds for what follows the checkpoint to be applied; the checkpoint bounds how much that is
_SAVE_S = 30.0  # seconds for the last checkpoint of a stopping node
_MEMBERS_S = 0.5  # seconds between two looks at who is in the cell, for the audit log
_RETIRE_S = 2.0  # seconds for another node to take over the leadership of a stopping one


@dataclass(frozen=True)
class Kit:
    """What a node runs on beside its config: the world, its keys. The simulator brings its own."""

    env: NodeEnv
    credentials: OwnCredentials
    ring: StorageRing
    root: RootFile | None = None  # the simulator has no files
    certify: Certify = certify
    trail: Trail | None = None  # the simulator has no files

    @property
    def note(self) -> Noting:
        """How to note something in the audit log."""
        return self.trail.note if self.trail is not None else unnoted


class Node:
    """The parts of a running node, wired. `serve` starts them in the order in which they need each other."""

    def __init__(
        self, config: NodeConfig, kit: Kit, journal: OwnJournal, room: Mailroom, directory: FederationDirectory,
        links: Links, metrics: Metrics, delivery: Delivery, intake: Intake, barrier: Barrier, switchboard: Switchboard,
    ) -> None:
        own, env = config.node, kit.env
        identity = Identity(own.region, own.cell, own.name, journal.log_id)
        self._config = config
        self._kit = kit
        self._journal = journal
        self._links = links
        self._directory = directory
        self._metrics = metrics
        self._delivery = delivery
        self._switchboard = switchboard
        self._intake = intake
        self.steward = Steward(journal, delivery, self._intake, metrics)
        self._scrubber = Scrubber(journal.disk, metrics)
        journal.disk.renew_checkpoint = self.steward.renew
        self.steward.cleaned = journal.disk.clean
        abroad = LinksAbroad(links, own.cell)
        store = journal.disk.store.meta.store
        self._notary = Notary(own.cell, store, delivery, config.root, kit.credentials, kit.certify, links)
        self._office = Office(
            identity, config.root, delivery, self._intake, directory, abroad, metrics, self._notary
        )
        self._office.halted = directory.halted = switchboard.check
        self._reception = Reception(config.root, delivery, intake, barrier, self._office, directory)
        self._forwarders = Forwarders(config.root, journal, delivery, self._intake, links, metrics, env)
        self._forwarders.taken_over = lambda header: directory.stale(header.to)
        self.follow = [part.follow for part in (self._office, self._reception, self._forwarders, self._notary)]
        limits = config.limits
        self._gateway = Gateway(
            self._office, env, metrics, max_connections=_room(limits.connections), drain_s=limits.drain_s,
            bounds=Bounds(handshake_s=limits.handshake_s, idle_s=limits.idle_s),
        )

    async def serve(self, stop: Stop, readiness: Readiness) -> None:
        """Serve until asked to stop, then drain."""
        async with self._entrances():
            pass  # what is wrong with them is told now; nobody is let in who would only wait
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._directory.failed)
            if isinstance(self._journal, RaftJournal) and self._kit.trail is not None:
                nursery.start_soon(_watch_members, self._journal, self._kit.trail.note)
            nursery.start_soon(self._delivery.run)
            readiness.say(MAJORITY)
            await self._meet_the_cell()
            readiness.say("applying the log")
            await self._catch_up()
            nursery.start_soon(self._intake.run)
            nursery.start_soon(self.steward.run)
            nursery.start_soon(self._scrubber.run)
            nursery.start_soon(self._notary.run)
            nursery.start_soon(self._office.channels.far.run)
            self._switchboard.office, self._switchboard.reception = self._office, self._reception
            self._switchboard.notary = self._notary
            nursery.start_soon(self._forwarders.run)
            async with self._entrances() as entrances:
                readiness.open()
                _log.info("ready", tip=self._journal.tip)
                if isinstance(self._journal, RaftJournal):
                    nursery.start_soon(readiness.watch, self._journal, self._links.reaches)
                nursery.start_soon(self._drain_when_asked, stop, readiness)
                await self._gateway.run(entrances)
            nursery.cancel_scope.cancel()

    async def _drain_when_asked(self, stop: Stop, readiness: Readiness) -> None:
        await stop.asked.wait()
        readiness.close()
        self._gateway.stop()

    @asynccontextmanager
    async def _entrances(self) -> AsyncIterator[list[Entrance]]:
        """Where clients come in. Closed whatever happens: the next life of this process listens there again."""
        listen, env = self._config.listen, self._kit.env
        entrances: list[Entrance] = []
        async with AsyncExitStack() as stack:
            for key, where, encrypted in (("clients", listen.clients, listen.tls), ("unix", listen.unix, False)):
                listeners = await listen_at(env, key, where) if where is not None else []
                context = self._kit.credentials.clients_server if encrypted else None
                entrances += [Entrance(await stack.enter_async_context(one), context) for one in listeners]
            yield entrances

    async def _meet_the_cell(self) -> None:
        """Everything that was committed before this is committed here, too, when a block of our own is: only then can
        this node speak for the cell. The first block of a log says which rules it follows (rule 10)."""
        journal = self._journal
        if isinstance(journal, RaftJournal):
            opening = records.FoldVersion(FOLD_VERSION) if journal.is_new else records.Tick()
            await journal.append([records.encode_record(opening)])
            nodes = self._config.root.cell(self._config.node.cell)
            await journal.voters(majority_of([one.name for one in nodes.nodes] if nodes else []))
        elif journal.tip == 0:
            await journal.append([records.encode_record(records.FoldVersion(FOLD_VERSION))])

    async def _catch_up(self) -> None:
        """Serve nobody before every block that was committed earlier is applied."""
        with trio.move_on_after(_REPLAY_S) as scope:
            await self._delivery.applied(self._journal.tip)
        if scope.cancelled_caught:
            raise StoreError(f"the log could not be applied within {_REPLAY_S:.0f} s", "Look at the disk and its load")


def _room(connections: int) -> int:
    room = clients_that_fit(connections)
    if room < connections:
        remedy = "raise the limit of open files (ulimit -n)"
        _log.warning("connections_lowered", wanted=connections, room=room, remedy=remedy)
    return room


async def listen_at(env: Env, key: str, where: Address | Path) -> list[trio.abc.Listener[trio.abc.Stream]]:
    """Listeners where [listen] `key` says. Raises OperatorError, which names the key."""
    try:
        if isinstance(where, Path):
            return list(await env.listen_unix(where))
        return list(await env.listen(where.host, where.port))
    except OperatorError as error:
        raise OperatorError(f"listen.{key}: {error.text}", error.remedy) from error


async def load_mailroom(journal: Journal, cell: str, shelf: Shelf | None = None) -> Mailroom:
    """The mailroom as of the last checkpoint; what follows in the log is applied by Delivery (rule 11)."""
    loading = Loading(shelf)
    if await journal.load_checkpoint(loading.take) is None:
        return Mailroom(cell, journal.log_id, shelf)
    return Mailroom.of(loading.done())


def check_data(directory: Path) -> None:
    """Refuse a data directory whose log has gone while the rest is there: a new log beside it would look like a healthy
    node that has forgotten everything (rule 4: a cell of one stops with a word of advice). Raises StoreDamaged."""
    log = directory / STORE_FILE
    if (directory / DIRECTORY_FILE).exists() and not (log.exists() and log.stat().st_size):
        raise StoreDamaged(
            f"{log} is missing or empty, and {DIRECTORY_FILE} beside it is not",
            "Put the log back. If it is lost for good, move the whole directory away to start with an empty one",
        )


@asynccontextmanager
async def _open_journal(
    config: NodeConfig, kit: Kit, shelf: Shelf, links: Links, switchboard: Switchboard, following: Following
) -> AsyncIterator[OwnJournal]:
    """The journal of a cell of one, or of a replicated cell, running."""
    own, paths, root, env = config.node, config.paths, config.root, kit.env
    guard, federation = ResidencyGuard(own.region, own.cell, root, shelf), federation_id(root)
    following.add([guard.follow])
    listed = root.cell(own.cell)
    nodes = [node.name for node in listed.nodes] if listed else []
    check_repaired(paths.data)
    if len(nodes) <= 1:
        check_data(paths.data)
        async with open_solo(
            paths.data, env=env, ring=kit.ring, residency=guard, cell=own.cell, federation=federation
        ) as solo:
            yield solo
        return
    async with open_raft(
        paths.data, env=env, ring=kit.ring, residency=guard, cell=own.cell, federation=federation, node=own.name,
        nodes=nodes, links=links,
    ) as cell:
        switchboard.cell = cell
        async with trio.open_nursery() as nursery:  # within: its writer ends before the store is closed
            nursery.start_soon(cell.run)
            yield cell.journal
            nursery.cancel_scope.cancel()


async def live(config: NodeConfig, kit: Kit, stop: Stop, ready: Callable[[], None]) -> None:
    """One life of a node. Raises PosthouseError, in a group; Rejoin where the next life is due."""
    with kit.env.open_shelf(config.paths.data) as shelf:
        await _live(config, kit, shelf, stop, ready)


async def _live(
    config: NodeConfig, kit: Kit, shelf: SealedShelf, stop: Stop, ready: Callable[[], None]
) -> None:
    own, paths, env = config.node, config.paths, kit.env
    following = kit.root.following if kit.root is not None else Following(config.root, own.cell)
    config = replace(config, root=(root := following.begin()))
    metrics = Metrics()
    halts = Halts(root, own.region, paths.data, metrics)
    switchboard = Switchboard(halts.check)
    metrics.certificate_expires.set_function(lambda: kit.credentials.expires_ms / 1000)
    metrics.root_fresh.set_function(lambda: (kit.root.trusted if kit.root else root).payload.fresh_until / 1000)
    readiness, pulse = Readiness(ready), Pulse()
    control: list[CellControl | None] = [None]
    erasing = Erasing()
    links = Links(env, root, kit.credentials.peer, kit.credentials, metrics, halts.check)
    if kit.root is not None:
        links.lapsed = kit.root.lapsed
    following.add([halts.follow, links.follow])
    async with trio.open_nursery() as base:
        await _open_faces(config, kit, base, metrics, readiness, halts, lambda: control[0], erasing)
        base.start_soon(halts.watch_all)
        await base.start(links.run, await listen_at(env, "links", config.listen.links), switchboard)
        if kit.trail is not None:
            switchboard.onlookers = Onlookers(kit.trail, root, kit.certify, links)
            following.add([switchboard.onlookers.follow])
            base.start_soon(switchboard.onlookers.run)
            base.start_soon(feel_pulse, metrics, pulse)  # not in the simulator, whose clock is its own
        base.start_soon(readiness.give_up, stop.asked, base.cancel_scope)
        readiness.say("joining the cell")
        async with _open_journal(config, kit, shelf, links, switchboard, following) as journal:
            shelf.on_failure = journal.disk.tail.end  # rule 7
            control[0] = control_of(journal, own.cell, own.name)
            store = journal.disk.store.meta.store.hex()
            kit.note("store.open", "node", store=store, log=journal.log_id.hex(), first=journal.first, tip=journal.tip)
            with found_in(paths.data / STORE_FILE):
                room = await load_mailroom(journal, own.cell, shelf)
            delivery = Delivery(journal, room, metrics, env.clock, pulse)
            intake = Intake(journal, metrics, pulse)
            barrier = Barrier(journal, intake, delivery)
            async with env.open_seen(paths.data / DIRECTORY_FILE) as seen:
                directory = FederationDirectory(root, own.cell, FoldedUsers(delivery, barrier), links, env, seen)
                node = Node(
                    config, kit, journal, room, directory, links, metrics, delivery, intake, barrier, switchboard
                )
                node.steward.shelf = shelf
                following.add([directory.follow, *node.follow])
                erasures = Erasures(
                    lambda: room.state, journal, lambda: node.steward.erased, own.name, paths.certificate,
                    paths.private_key, env.clock.wall_ms,
                )
                erasing.receipts, erasing.now = erasures.receipts, node.steward.erase
                await _serve_to_the_end(node, journal, stop, readiness)
        _log.info("stopped", tip=journal.tip)
        base.cancel_scope.cancel()


async def _watch_members(journal: RaftJournal, note: Noting) -> None:
    """Note who is in the cell, by what is committed here, whenever it has changed; until cancelled."""
    noted: Members | None = None
    while True:
        members = journal.raft.log.members_upto(journal.tip)
        if members != noted:
            noted = members
            voters = [f"{one.node} {one.store.hex()}" for one in members.voters]
            learners = [f"{one.node} {one.store.hex()}" for one in members.learners]
            note("cell.members", "cell", block=journal.tip, voters=voters, learners=learners)
        await trio.sleep(_MEMBERS_S)


async def _serve_to_the_end(node: Node, journal: OwnJournal, stop: Stop, readiness: Readiness) -> None:
    """Until asked to stop; then save, and have another node lead."""
    try:
        with stop.parts():
            await node.serve(stop, readiness)
        with trio.move_on_after(_SAVE_S) as scope:
            scope.shield = True
            await node.steward.save()
        if isinstance(journal, RaftJournal):
            with trio.move_on_after(_RETIRE_S):
                await journal.retire()
    except BaseException:  # whatever it is: what is left of this life may wait for other nodes
        readiness.say("joining the cell")
        raise


async def _open_faces(
    config: NodeConfig, kit: Kit, nursery: trio.Nursery, metrics: Metrics, readiness: Readiness, halts: Halts,
    control: Callable[[], CellControl | None], erasing: Erasing,
) -> None:
    """The admin port, which shows; and the control socket, which also takes orders."""

    def ready() -> str | None:
        return readiness.reason

    def warning() -> str:
        return "; ".join(filter(None, (halts.warning, kit.root.waits if kit.root is not None else "")))

    faces = await listen_at(kit.env, "admin", config.listen.admin)
    pages = cell_pages(control, orders=False, erasing=erasing)
    if (trail := kit.trail) is not None:
        pages["/audit"] = Page(lambda: Answer(HTTPStatus.OK, trail.checkpoint()))
    await nursery.start(serve_admin, faces, metrics, ready, pages, warning)
    if config.listen.control is not None:
        faces = await listen_at(kit.env, "control", config.listen.control)
        pages = cell_pages(control, orders=True, erasing=erasing, note=kit.note)
        await nursery.start(serve_admin, faces, metrics, ready, pages, warning)
