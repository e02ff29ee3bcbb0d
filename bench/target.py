"""What a bench drives: a cell that takes clients, and whose nodes can be killed. The one here runs on this machine."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
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
from relay.errors import OperatorError

REGION: Final = "norden"
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


class Target(Stage, Protocol):
    """A running cell, for the bench."""

    @property
    def home(self) -> Home:
        """Where the bench's users live, and who signs for it."""

    async def choose(self, which: str) -> tuple[str, bool]:
        """The node that `which` means (a name, "leader", "follower") now, and whether it leads."""

    def kill(self, node: str) -> None:
        """SIGKILL."""

    async def restart(self, node: str) -> None:
        """Start a node again on its data, and wait until it serves."""


class LocalTarget:
    """One region, one cell, each node in a process of its own."""

    def __init__(self, layout: Layout, federation: LocalFederation, now_ms: int) -> None:
        self.layout = layout
        self._federation = federation
        root = layout.home.root(now_ms).region(REGION)
        secure = any(url.startswith("wss:") for cell in root.cells for entry in cell.nodes for url in entry.clients)
        authority = ssl.DER_cert_to_PEM_cert(root.authority) if secure else ""
        nodes = layout.nodes(REGION)
        self.home = Home(REGION, nodes[0].cell, layout.registrar(REGION))
        self.endpoints = tuple(
            Endpoint(node.clients_addr.host, node.clients_addr.port, authority) for node in nodes
        )  # fmt: skip

    @property
    def pids(self) -> dict[str, int]:
        return {node.name: self._federation.pid(REGION, node.name) for node in self._federation.running(REGION)}

    async def samples(self) -> Mapping[str, Samples]:
        return {node.name: await ask_samples(node.admin_addr) for node in self._federation.running(REGION)}

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
        """SIGTERM, and wait for the end."""
        await self._federation.stop(REGION, node)

    async def restart(self, node: str) -> None:
        await self._federation.start(REGION, node)

    async def died(self) -> None:
        await self._federation.died()


@asynccontextmanager
async def local_target(directory: Path, tls: bool, nodes: int) -> AsyncIterator[LocalTarget]:
    """A new cell of so many nodes in `directory` (new or empty), started; stopped at the end. Raises OperatorError."""
    env = RealEnv()
    layout = make_federation(directory, [REGION], env, nodes=nodes, tls=tls)
    async with LocalFederation(layout) as federation:
        await federation.start_all()
        yield LocalTarget(layout, federation, env.clock.wall_ms())
