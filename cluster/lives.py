"""The lives of a node's process: one after the other, as long as its store is replaced."""

from __future__ import annotations

import structlog
import trio

from cluster.config import NodeConfig
from cluster.credentials import OwnCredentials
from cluster.env import RealEnv
from cluster.journal import Rejoin, StoreSetAside
from cluster.kept import hold_data
from cluster.node import Kit, live
from cluster.rootfile import RootFile
from cluster.stopping import Stop, stop_on_signal
from relay.errors import OperatorError, PosthouseError
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
    """Run a node until SIGTERM or SIGINT. Raises PosthouseError."""
    paths = config.paths
    with hold_data(paths.data):
        root = RootFile(paths.root, paths.data, config.root.signed)  # verified, written down, then used
        async with open_portal() as portal:
            credentials = OwnCredentials(paths.certificate, paths.private_key, config.root)
            kit = Kit(RealEnv(portal), credentials, StorageRing.load(paths.storage_key), root)
            stop = Stop()
            async with trio.open_nursery() as watch:
                watch.start_soon(credentials.watch)
                watch.start_soon(root.watch)
                await watch.start(stop_on_signal, stop)
                await serve_node(config, kit, stop, task_status)
                watch.cancel_scope.cancel()
