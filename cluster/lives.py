"""The lives of a node's process: one after the other, as long as its store is replaced."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import structlog
import trio

from cluster.config import NodeConfig, rerouted
from cluster.core.auditlog import FAILED
from cluster.credentials import OwnCredentials, open_node_trail
from cluster.env import RealEnv
from cluster.journal import Rejoin, StoreSetAside
from cluster.kept import hold_data
from cluster.node import Kit, live
from cluster.rootfile import RootFile
from cluster.stopping import Stop, stop_on_signal
from cluster.trail import Trail
from relay.errors import DiskFailed, OperatorError, PosthouseError
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing

_log = structlog.get_logger("cluster.node")
_SET_ASIDE = 3  # stores in a row; one is damaged by chance, not three before the node ever served
_LIVES_S = 1.0  # seconds between two lives of a node whose store was replaced


async def serve_node(
    config: NodeConfig, kit: Kit, stop: Stop, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a node until `stop`; again from its disk whenever its store was replaced. Started when it first is ready.
    Raises PosthouseError (the first, where several parts failed at once)."""
    told, lost = False, 0

    def ready() -> None:
        nonlocal told, lost
        lost = 0
        if not told:
            told = True
            task_status.started()

    while True:
        try:
            await live(config, kit, stop, ready)
            return
        except BaseExceptionGroup as group:
            ours, unexpected = _first_of_ours(group), group.split(PosthouseError)[1]
            if ours is not None and unexpected is not None:
                _log.error("unexpected", exc_info=unexpected)
            lost += isinstance(ours, StoreSetAside)
            if isinstance(ours, Rejoin) and kit.trail is not None:
                what = "store.set-aside" if isinstance(ours, StoreSetAside) else "node.rejoin"
                kit.trail.note(what, "node", why=ours.text)
            if isinstance(ours, Rejoin) and lost < _SET_ASIDE:
                _log.warning("rejoins", text=ours.text)
            elif isinstance(ours, Rejoin):
                what = f"{lost} stores in a row were set aside before this node served: {ours.text}"
                raise OperatorError(what, "Look at the disk, then start it again; they are in quarantine/") from group
            elif ours is not None:
                raise ours from group
            else:
                raise
        await trio.sleep(_LIVES_S * (1 + kit.env.random_float()))


def _first_of_ours(group: BaseExceptionGroup[BaseException]) -> PosthouseError | None:
    """The first of our own errors; one that is not Rejoin, if there is one: it ends the node."""
    ours = group.subgroup(PosthouseError)
    found: list[PosthouseError] = []

    def collect(one: BaseException) -> None:
        if isinstance(one, BaseExceptionGroup):
            for inner in one.exceptions:
                collect(inner)
        elif isinstance(one, PosthouseError):
            found.append(one)

    if ours is not None:
        collect(ours)
    graver = [one for one in found if not isinstance(one, Rejoin)]
    return next(iter(graver or found), None)


async def run_node(config: NodeConfig, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Run a node until SIGTERM or SIGINT. Its start and its end are in the audit log. Raises PosthouseError."""
    with hold_data(config.paths.data):
        trail, root = open_node_trail(config.paths, config.node), config.root
        try:
            trail.note("node.start", "node", root_version=root.payload.version, root=root.digest.hex())
            await _run_noted(config, trail, task_status)
        except BaseException as error:
            ours = _first_of_ours(error) if isinstance(error, BaseExceptionGroup) else error
            why = ours.text if isinstance(ours, PosthouseError) else type(error).__name__
            with suppress(DiskFailed):  # it is what ended the node, then
                trail.note("node.stop", "node", f"{FAILED}: {why}")
            raise
        else:
            trail.note("node.stop", "node")
        finally:
            trail.close()


async def _run_noted(config: NodeConfig, trail: Trail, task_status: trio.TaskStatus[None]) -> None:
    paths = config.paths
    cell = config.node.cell
    routed = partial(rerouted, routes=config.routes)
    # Written down, then used.
    root = RootFile(paths.root, paths.data, config.root.signed, cell, note=trail.note, routed=routed)
    async with open_portal() as portal:
        credentials = OwnCredentials(paths.certificate, paths.private_key, config.root, note=trail.note)
        root.following.add([credentials.follow], always=True)
        kit = Kit(RealEnv(portal), credentials, StorageRing.load(paths.storage_key), root, trail=trail)
        stop = Stop()
        async with trio.open_nursery() as watch:
            watch.start_soon(trail.failed)
            watch.start_soon(credentials.watch)
            watch.start_soon(root.watch)
            await watch.start(stop_on_signal, stop)
            await serve_node(config, kit, stop, task_status)
            watch.cancel_scope.cancel()
