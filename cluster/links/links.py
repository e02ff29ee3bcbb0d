"""Links between cells: what a node asks of others and they of it, over mTLS (TLS 1.3; DESIGN section 5, rule 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import trio

from cluster.core.linkwire import VERSION, Answer, LinkFault, LinkHello, Request, federation_id
from cluster.links.incoming import Handler, Incoming
from cluster.links.outgoing import CellLink
from cluster.pki import NodeCredentials
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import OperatorError, Refused
from relay.limits import LINK_DEADLINE_S
from relay.ports import Env


class Own(Protocol):
    """Who this node is (gateway.api.Identity, linkwire.Peer)."""

    @property
    def region(self) -> str: ...
    @property
    def cell(self) -> str: ...
    @property
    def node(self) -> str: ...


class LinkMetrics(Protocol):
    """What links count (relay.observe.metrics.Metrics)."""

    links_up: Any  # gauge with label cell: 1 while there is a working link to it
    refused: Any  # counter with label reason: LINK for each peer that was refused or cut off


class Links:
    """One outgoing link a cell, made on demand and kept; any number of inbound ones. `run` must be running."""

    def __init__(
        self, env: Env, root: Root, own: Own, credentials: NodeCredentials, metrics: LinkMetrics | None = None
    ) -> None:
        """Raises OperatorError where the certificate is another node's."""
        proved = credentials.peer
        if (proved.region, proved.cell, proved.node) != (own.region, own.cell, own.node):
            what = f"the certificate is of {proved.cell}/{proved.node}, the config of {own.cell}/{own.node}"
            raise OperatorError(what, "Use the certificate that was issued for this node")
        self.refused = 0  # inbound links that were refused or cut off
        self._env, self._root, self._credentials, self._metrics = env, root, credentials, metrics
        self._hello = LinkHello(VERSION, federation_id(root), own.cell, own.node)
        self._nursery: trio.Nursery | None = None
        self._cells: dict[str, CellLink] = {}
        for cell in root.cells():
            if cell != own.cell:
                self._changed(cell, False)

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve inbound links, and keep the outgoing ones, until cancelled. Raises DiskFailed, in a group."""
        incoming = Incoming(self._root, self._credentials, self._hello, handler, self._count_refused)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(trio.serve_listeners, incoming.serve, listeners)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def request(self, cell: str, message: Request, deadline_s: float = LINK_DEADLINE_S) -> Answer:
        """One request to a cell and its answer. Raises Refused: UNKNOWN_REGION (no such cell), UNREACHABLE (no link or
        no answer in time), or the code of the peer's LinkFault; PeerError where somebody else answers for the cell."""
        answer: Answer | None = None
        with trio.move_on_after(deadline_s):
            answer = await self._link(cell).request(message)
        if answer is None:
            raise Refused(Code.UNREACHABLE, f"{cell} gave no answer in {deadline_s:g} s", "Try again", 1000)
        if isinstance(answer, LinkFault):
            raise Refused(answer.code, f"{cell}: {answer.text[:200]}", "", answer.retry_after_ms)
        return answer

    def connected(self, cell: str) -> bool:
        """Whether there is a working link to `cell` now."""
        link = self._cells.get(cell)
        return link is not None and link.connected

    def _link(self, name: str) -> CellLink:
        cell = self._root.cell(name)
        if cell is None or not cell.nodes:
            raise Refused(Code.UNKNOWN_REGION, f"the federation has no cell {name!r}", "Check the root document")
        if self._nursery is None:
            raise Refused(Code.UNREACHABLE, "this node's links are not running", "Try again", 1000)
        link = self._cells.get(name)
        if link is None:
            link = CellLink(self._env, self._root, self._credentials, self._hello, cell, self._changed)
            self._cells[name] = link
            self._nursery.start_soon(link.run)
        return link

    def _changed(self, cell: str, up: bool) -> None:
        if self._metrics is not None:
            self._metrics.links_up.labels(cell).set(int(up))

    def _count_refused(self) -> None:
        self.refused += 1
        if self._metrics is not None:
            self._metrics.refused.labels("LINK").inc()
