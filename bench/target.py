"""What a bench drives: something that takes clients and can be killed. The one here is a federation of one node."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol

from bench.enrol import Home
from bench.pipes import Endpoint
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation

REGION = "norden"


class Target(Protocol):
    """A running cell, for the bench."""

    @property
    def home(self) -> Home:
        """Where the bench's users live, and who signs for it."""

    @property
    def endpoint(self) -> Endpoint:
        """Where clients connect; the same after a restart."""

    @property
    def pid(self) -> int:
        """The process that is measured; another one after a restart."""

    def kill(self) -> None:
        """SIGKILL."""

    async def restart(self) -> None:
        """Start again on the same data, and wait until it serves."""

    async def died(self) -> None:
        """Wait; raises OperatorError when the process ends and nobody killed it."""


class LocalTarget:
    """One region, one cell, one node, in a process of its own."""

    def __init__(self, layout: Layout, federation: LocalFederation, now_ms: int) -> None:
        self.layout = layout
        self._federation = federation
        node = layout.node(REGION)
        root = layout.home.root(now_ms).region(REGION)
        secure = any(url.startswith("wss:") for cell in root.cells for entry in cell.nodes for url in entry.clients)
        authority = ssl.DER_cert_to_PEM_cert(root.authority) if secure else ""
        self.home = Home(REGION, node.cell, layout.registrar(REGION))
        self.endpoint = Endpoint(node.clients_addr.host, node.clients_addr.port, authority)

    @property
    def pid(self) -> int:
        return self._federation.pid(REGION)

    def kill(self) -> None:
        self._federation.kill(REGION)

    async def restart(self) -> None:
        await self._federation.start(REGION)

    async def died(self) -> None:
        await self._federation.died()


@asynccontextmanager
async def local_target(directory: Path, tls: bool) -> AsyncIterator[LocalTarget]:
    """A new federation of one node in `directory` (new or empty), started; stopped at the end. Raises OperatorError."""
    env = RealEnv()
    layout = make_federation(directory, [REGION], env, tls=tls)
    async with LocalFederation(layout) as federation:
        await federation.start(REGION)
        yield LocalTarget(layout, federation, env.clock.wall_ms())
