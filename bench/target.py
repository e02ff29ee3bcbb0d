"""What a bench drives: a cell that takes clients, and whose nodes can be killed, and perhaps another region behind a
long link. The one here runs on this machine."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Protocol

import trio

from bench.enrol import Home
from bench.pipes import Endpoint
from bench.samples import Samples, ask_samples
from cluster.control import CellView
from cluster.control.pages import Unanswered, ask_view
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.layout import NodeLayout
from relay.errors import OperatorError

REGION: Final = "norden"
ABROAD: Final = "sauda"
LEADER, FOLLOWER = "leader", "follower"  # which node to kill, beside a node's own name
_ELECTED_S = 60.0  # seconds for a cell to have a leader


class Stage(Protocol):
    """What runs and is measured."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Where clients connect, one for each node; the same after a restart."""

    @property
    def pids(self) -> dict[str, int]:
        """The processes that run and are measured, by their nodes' names; another one after a restart."""

    async def samples(self) -> Mapping[str, Samples]:
        """What each node counted so far, by name; empty where nobody does."""

    async def died(self) -> None:
        """Wait; raises OperatorError when a process ends and nobody killed it."""


class Place(Protocol):
    """A region that runs."""

    @property
    def home(self) -> Home:
        """Where users live, and who signs for it."""

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Where clients connect, one for each node; the same after a restart."""


class Target(Stage, Place, Protocol):
    """A running cell, for the bench."""

    @property
    def abroad(self) -> Place:
        """The region behind the link, where there is one."""

    async def choose(self, which: str) -> tuple[str, bool]:
        """The node that `which` means (a name, "leader", "follower") now, and whether it leads."""

    def kill(self, node: str) -> None:
        """SIGKILL."""

    async def stop(self, node: str) -> None:
        """SIGTERM, and wait for the end."""

    async def restart(self, node: str) -> None:
        """Start a node again on its data, and wait until it serves."""


class LocalPlace:
    """A region of a federation on this machine: one cell, each node in a process of its own."""

    def __init__(self, layout: Layout, region: str, now_ms: int) -> None:
        root = layout.home.root(now_ms).region(region)
        secure = any(url.startswith("wss:") for cell in root.cells for entry in cell.nodes for url in entry.clients)
        authority = ssl.DER_cert_to_PEM_cert(root.authority) if secure else ""
        nodes = layout.nodes(region)
        self.home = Home(region, nodes[0].cell, layout.registrar(region))
        self.endpoints = tuple(
            Endpoint(node.clients_addr.host, node.clients_addr.port, authority) for node in nodes
        )  # fmt: skip


class LocalTarget(LocalPlace):
    """The region that is measured. All nodes count, also those abroad."""

    def __init__(self, layout: Layout, federation: LocalFederation, now_ms: int) -> None:
        super().__init__(layout, REGION, now_ms)
        self.layout = layout
        self.abroad = LocalPlace(layout, layout.regions[-1], now_ms)
        self._federation = federation

    @property
    def pids(self) -> dict[str, int]:
        return {name: self._federation.pid(node.region, node.name) for name, node in self._running()}

    async def samples(self) -> Mapping[str, Samples]:
        return {name: await ask_samples(node.admin_addr) for name, node in self._running()}

    def _running(self) -> Iterator[tuple[str, NodeLayout]]:
        """By the names that reports have."""
        for node in self._federation.running():
            yield node.name if node.region == REGION else node.label, node

    async def choose(self, which: str) -> tuple[str, bool]:
        view = await self._view()
        running = [node.name for node in self._federation.running(REGION)]
        if which == LEADER:
            return view.leader, True
        others = [name for name in running if name != view.leader]
        name = others[-1] if which == FOLLOWER and others else which
        if name not in running:
            raise OperatorError(f"no node {which!r} runs that could be killed", f"There are: {', '.join(running)}")
        return name, name == view.leader

    async def _view(self) -> CellView:
        """As the leader sees it."""
        with trio.fail_after(_ELECTED_S):
            while True:
                for node in self._federation.running(REGION):
                    try:
                        view = await ask_view(node.admin_addr)
                    except Unanswered:
                        continue
                    if view.leader:
                        return view
                await trio.sleep(0.05)

    def kill(self, node: str) -> None:
        self._federation.kill(REGION, node)

    async def stop(self, node: str) -> None:
        await self._federation.stop(REGION, node)

    async def restart(self, node: str) -> None:
        await self._federation.start(REGION, node)

    async def died(self) -> None:
        await self._federation.died()


@asynccontextmanager
async def local_target(
    directory: Path, tls: bool, nodes: int, link_ms: float | None = None
) -> AsyncIterator[LocalTarget]:
    """A new cell of so many nodes in `directory` (new or empty), started; stopped at the end. With `link_ms` another
    region of as many, and so long takes the way there and back. Raises OperatorError."""
    env, far = RealEnv(), link_ms is not None
    regions = [REGION, ABROAD] if far else [REGION]
    layout = make_federation(directory, regions, env, nodes=nodes, tls=tls, borders=far)
    async with LocalFederation(layout, delay_s=(link_ms or 0.0) / 2000) as federation:
        await federation.start_all()
        yield LocalTarget(layout, federation, env.clock.wall_ms())
