"""The composition root: one node of one cell, from its config to its last checkpoint."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from cluster.config import NodeConfig
from cluster.config_keys import Address
from cluster.core.linkwire import federation_id
from cluster.directory.federation import FederationDirectory
from cluster.directory.seen import open_seen
from cluster.env import RealEnv, clients_that_fit
from cluster.forwarder import Forwarders
from cluster.handover import LinksAbroad, Reception
from cluster.links import Links
from cluster.pki import NodeCredentials
from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.trust import HomeRecord
from relay.delivery import Delivery
from relay.errors import OperatorError, PosthouseError, StoreDamaged, StoreError
from relay.gateway.api import Identity
from relay.gateway.connection import Bounds
from relay.gateway.server import Entrance, Gateway
from relay.intake import Intake
from relay.journal.database import found_in
from relay.journal.guard import ResidencyGuard
from relay.journal.portal import Portal, open_portal
from relay.journal.rows import STORE_FILE
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from relay.observe.admin import serve_admin
from relay.observe.metrics import Metrics
from relay.office import Office
from relay.ports import Env, Journal
from relay.steward import Steward

_log = structlog.get_logger("cluster.node")
DIRECTORY_FILE = "directory.sqlite"  # in the data directory, beside the store
_REPLAY_S = 600.0  # seconds for what follows the checkpoint to be applied; the checkpoint bounds how much that is
_AGAIN_S = 1.0  # seconds after which a signal is a second one: Ctrl-C may reach a node twice, by terminal and parent
_SAVE_S = 30.0  # seconds for the last checkpoint of a stopping node


@dataclass(frozen=True)
class OwnUsers:
    """The users of this cell, for the directory: what the mailroom says."""

    delivery: Delivery

    def home(self, user: bytes) -> HomeRecord | None:
        """The newest record of a user at home here."""
        known = self.delivery.room.state.users.get(user)
        return known.record if known else None

    def chain(self, user: bytes, after: int) -> list[bytes]:
        """Signed records after version `after`, oldest first."""
        known = self.delivery.room.state.users.get(user)
        return known.chain[after:] if known else []


class Node:
    """The parts of a running node, wired. `run` starts them in the order in which they need each other."""

    def __init__(
        self, config: NodeConfig, env: Env, journal: Journal, room: Mailroom, credentials: NodeCredentials,
        directory: FederationDirectory, links: Links, metrics: Metrics, delivery: Delivery,
    ) -> None:
        own = config.node
        identity = Identity(own.region, own.cell, own.name, journal.log_id)
        self._config = config
        self._env = env
        self._journal = journal
        self._credentials = credentials
        self._links = links
        self._directory = directory
        self._metrics = metrics
        self._delivery = delivery
        self._intake = Intake(journal, metrics)
        self._steward = Steward(journal, delivery, self._intake, metrics)
        abroad = LinksAbroad(links)
        self._office = Office(identity, config.root, delivery, self._intake, directory, abroad, metrics)
        self._reception = Reception(delivery, self._intake, self._office, directory)
        self._forwarders = Forwarders(journal, delivery, self._intake, links, metrics, env)
        limits = config.limits
        self._gateway = Gateway(
            self._office, env, metrics, max_connections=_room(limits.connections), drain_s=limits.drain_s,
            bounds=Bounds(handshake_s=limits.handshake_s, idle_s=limits.idle_s),
        )
        self._why_not_ready: str | None = "starting"
        self._parts = trio.CancelScope()  # everything but the watch for signals and the last checkpoint

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until SIGTERM or SIGINT, then drain and save a checkpoint; a second signal ends the draining, one while
        starting the start. Raises PosthouseError, in a group."""
        async with trio.open_nursery() as watch:
            await watch.start(self._stop_on_signal)
            with self._parts:
                await self._serve(task_status)
            with trio.move_on_after(_SAVE_S) as scope:
                scope.shield = True
                await self._steward.save()
            watch.cancel_scope.cancel()
        _log.info("stopped", tip=self._journal.tip)

    async def _serve(self, task_status: trio.TaskStatus[None]) -> None:
        """Start all parts, and end them in the order in which nothing acknowledged needs them any more."""
        listen = self._config.listen
        admin = await self._listen("admin", listen.admin)
        links = await self._listen("links", listen.links)
        entrances = await self._entrances()
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_admin, admin, self._metrics, lambda: self._why_not_ready)
            nursery.start_soon(self._directory.failed)
            nursery.start_soon(self._delivery.run)
            await self._catch_up()
            if self._journal.tip == 0:
                self._intake.offer([records.encode_record(records.FoldVersion(FOLD_VERSION))])  # rule 10
            nursery.start_soon(self._intake.run)
            nursery.start_soon(self._steward.run)
            await nursery.start(self._links.run, links, self._reception)
            nursery.start_soon(self._forwarders.run)
            self._why_not_ready = None
            _log.info("ready", tip=self._journal.tip)
            task_status.started()
            await self._gateway.run(entrances)
            self._why_not_ready = "stopping"
            nursery.cancel_scope.cancel()

    async def _listen(self, key: str, where: Address | Path) -> list[trio.abc.Listener[trio.abc.Stream]]:
        """Listeners where [listen] `key` says. Raises OperatorError, which names the key."""
        try:
            if isinstance(where, Path):
                return list(await self._env.listen_unix(where))
            return list(await self._env.listen(where.host, where.port))
        except OperatorError as error:
            raise OperatorError(f"listen.{key}: {error.text}", error.remedy) from error

    async def _entrances(self) -> list[Entrance]:
        listen = self._config.listen
        entrances: list[Entrance] = []
        if listen.clients is not None:
            context = self._credentials.clients_server if listen.tls else None
            entrances += [Entrance(one, context) for one in await self._listen("clients", listen.clients)]
        if listen.unix is not None:
            entrances += [Entrance(one) for one in await self._listen("unix", listen.unix)]
        return entrances

    async def _catch_up(self) -> None:
        """Serve nobody before every block that was committed earlier is applied."""
        tip = self._journal.tip
        with trio.move_on_after(_REPLAY_S):
            await self._delivery.wait_for(lambda: self._delivery.room.state.index >= tip)
        if self._delivery.room.state.index < tip:
            raise StoreError(f"the log could not be applied within {_REPLAY_S:.0f} s", "Look at the disk and its load")

    async def _stop_on_signal(self, task_status: trio.TaskStatus[None]) -> None:
        asked = 0.0
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                if self._why_not_ready is None:
                    asked, self._why_not_ready = trio.current_time(), "stopping"
                    self._gateway.stop()
                elif trio.current_time() - asked >= _AGAIN_S:
                    self._parts.cancel()
                _log.info("stopping", at_once=self._parts.cancel_called)


def _room(connections: int) -> int:
    room = clients_that_fit(connections)
    if room < connections:
        remedy = "raise the limit of open files (ulimit -n)"
        _log.warning("connections_lowered", wanted=connections, room=room, remedy=remedy)
    return room


async def load_mailroom(journal: Journal, cell: str) -> Mailroom:
    """The mailroom as of the last checkpoint; what follows in the log is applied by Delivery (rule 11)."""
    saved = await journal.load_checkpoint()
    return Mailroom.from_checkpoint(saved[1]) if saved else Mailroom(cell, journal.log_id)


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
async def open_node(config: NodeConfig, env: Env, portal: Portal) -> AsyncIterator[Node]:
    """Open the stores and wire a node. Raises PosthouseError."""
    own, paths, root = config.node, config.paths, config.root
    credentials = NodeCredentials.load(paths.certificate, paths.private_key, root)
    ring = StorageRing.load(paths.storage_key)
    guard = ResidencyGuard(own.region, own.cell, root)
    check_data(paths.data)
    async with open_solo(
        paths.data, env=env, ring=ring, residency=guard, cell=own.cell, federation=federation_id(root), portal=portal
    ) as journal:
        metrics = Metrics()
        with found_in(paths.data / STORE_FILE):
            room = await load_mailroom(journal, own.cell)
        delivery = Delivery(journal, room, metrics, env.clock)
        links = Links(env, root, credentials.peer, credentials, metrics)
        async with open_seen(paths.data / DIRECTORY_FILE, portal, env.random_bytes(32)) as seen:
            directory = FederationDirectory(root, own.cell, OwnUsers(delivery), links, env, seen)
            yield Node(config, env, journal, room, credentials, directory, links, metrics, delivery)


async def run_node(config: NodeConfig) -> None:
    """Run a node until SIGTERM or SIGINT. Raises PosthouseError (the first, where several parts failed at once)."""
    try:
        async with open_portal() as portal, open_node(config, RealEnv(), portal) as node:
            await node.run()
    except BaseExceptionGroup as group:
        ours = group.subgroup(PosthouseError)
        while ours is not None and isinstance(ours, BaseExceptionGroup):
            first = ours.exceptions[0]
            if isinstance(first, PosthouseError):
                raise first from group
            ours = first if isinstance(first, BaseExceptionGroup) else None
        raise
