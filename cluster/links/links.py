"""Links between nodes, over mTLS (TLS 1.3; DESIGN section 5, rule 1): what cells ask of each other, and what the nodes
of one cell ask of and note to each other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, Protocol

import trio

from cluster.core.linkwire import VERSION, Answer, CellNote, LinkFault, LinkHello, Peer, Request, federation_id
from cluster.links.incoming import Handler, Incoming
from cluster.links.outgoing import KeptLink
from cluster.links.pace import FAR, NEAR
from cluster.links.secure import Party, Security
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
    peers_up: Any  # gauge with label node: 1 while there is a working link to that node of the own cell
    notes_dropped: Any  # counter with labels node and reason: "no_link", "no_room" or "inbox"
    refused: Any  # counter with label reason: LINK for each peer that was refused or cut off


class Links:
    """One outgoing link a cell, made on demand and kept; one to each other node of the own cell, kept while `run` runs;
    any number of inbound ones. `run` must be running."""

    def __init__(
        self, env: Env, root: Root, own: Own, credentials: Security, metrics: LinkMetrics | None = None,
        check: Callable[[str], None] = lambda cell: None,
    ) -> None:  # fmt: skip
        """`check` raises Refused for a cell that nothing is asked of. Raises OperatorError where the certificate is
        another node's."""
        proved = credentials.peer
        if (proved.region, proved.cell, proved.node) != (own.region, own.cell, own.node):
            what = f"the certificate is of {proved.cell}/{proved.node}, the config of {own.cell}/{own.node}"
            raise OperatorError(what, "Use the certificate that was issued for this node")
        self.lapsed: Callable[[], Collection[str]] = tuple  # regions that are not believed any more, at this moment
        self.refused = 0  # inbound links that were refused or cut off
        self._env, self._root, self._metrics, self._check = env, root, metrics, check
        self._party = Party(root, credentials, LinkHello(VERSION, federation_id(root), own.cell, own.node))
        self._nursery: trio.Nursery | None = None
        self._incoming: Incoming | None = None
        self._cells: dict[str, KeptLink] = {}
        self._nodes: dict[str, KeptLink] = {}
        for cell in root.cells():
            if cell != own.cell:
                self._cell_changed(cell, False)
        house = root.cell(own.cell)
        for node in house.nodes if house else ():
            if node.name != own.node:
                changed = partial(self._node_changed, node.name)
                self._nodes[node.name] = KeptLink(env, self._party, own.cell, [node], NEAR, changed)
                changed(False)
                for reason in ("no_link", "no_room"):
                    self.count_dropped(node.name, reason, 0)

    async def run(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        handler: Handler,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve inbound links, and keep the outgoing ones, until cancelled. Raises what the handler may end the node
        with (see Handler), in a group."""
        believing = _Believing(handler, self._check_believed)
        incoming = self._incoming = Incoming(self._party, believing, self._count_refused)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(trio.serve_listeners, incoming.serve, listeners)
                for link in self._nodes.values():
                    nursery.start_soon(link.run)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def follow(self, root: Root) -> None:
        """Go by this root document from now on, on open links too: whom it does not let in is let go."""
        self._root = self._party.root = root
        for name, link in tuple(self._cells.items()):
            cell = root.cell(name)
            if cell is not None and cell.nodes:
                link.follow(cell.nodes)
            else:
                link.close()
                del self._cells[name]
        for name in root.cells():
            if name not in self._cells and not self._party.is_near(name):
                self._cell_changed(name, False)
        house = root.cell(self._party.hello.cell)
        for node in house.nodes if house else ():
            if node.name in self._nodes:
                self._nodes[node.name].follow([node])
        if self._incoming is not None:
            self._incoming.judge()

    # --- other cells -----------------------------------------------------------------------------
    async def request(self, cell: str, message: Request, deadline_s: float = LINK_DEADLINE_S) -> Answer:
        """One request to another cell and its answer. Raises Refused: UNKNOWN_REGION (no such cell), UNREACHABLE (no
        link or no answer in time, or another root document before it could go out), or the code of the peer's
        LinkFault; RegionHalted; PeerError where somebody else answers."""
        check = partial(self._check_cell, cell, self._root)
        check()
        return await self._request(cell, self._link(cell), message, deadline_s, check)

    def connected(self, cell: str) -> bool:
        """Whether there is a working link to `cell` now."""
        link = self._cells.get(cell)
        return link is not None and link.connected

    # --- the own cell ----------------------------------------------------------------------------
    def peers(self) -> tuple[str, ...]:
        """The other nodes of the own cell, as the root lists them."""
        return tuple(self._nodes)

    def reaches(self, node: str) -> bool:
        """Whether there is a working link to a node of the own cell now."""
        return node in self._nodes and self._nodes[node].connected

    def note(self, node: str, note: CellNote) -> bool:
        """Send one way, in order, to a node of the own cell; never waits. False: dropped, because there is no link or
        NOTE_BYTES wait for it. True promises nothing. Raises ProtocolError where the note fits no frame."""
        link = self._nodes.get(node)
        if link is None or link.note(note):
            return link is not None
        self.count_dropped(node, "no_room" if link.connected else "no_link", 1)
        return False

    async def ask(self, node: str, message: Request, deadline_s: float = LINK_DEADLINE_S) -> Answer:
        """One request to a node of the own cell and its answer. Raises as `request`; UNREACHABLE for a node that the
        root does not list."""
        link = self._nodes.get(node)
        if link is None:
            raise Refused(Code.UNREACHABLE, f"the cell has no other node {node!r}", "Check the root document")
        self._check_running()
        return await self._request(f"node {node}", link, message, deadline_s, lambda: None)

    # --- both ------------------------------------------------------------------------------------
    async def _request(
        self, who: str, link: KeptLink, message: Request, deadline_s: float, check: Callable[[], None]
    ) -> Answer:
        answer: Answer | None = None
        with trio.move_on_after(deadline_s):
            answer = await link.request(message, check)
        if answer is None:
            raise Refused(Code.UNREACHABLE, f"{who} gave no answer in {deadline_s:g} s", "Try again", 1000)
        if isinstance(answer, LinkFault):
            raise Refused(answer.code, f"{who}: {answer.text[:200]}", "", answer.retry_after_ms)
        return answer

    def _link(self, name: str) -> KeptLink:
        cell = self._root.cell(name)
        if cell is None or not cell.nodes or self._party.is_near(name):
            raise Refused(Code.UNKNOWN_REGION, f"the federation has no other cell {name!r}", "Check the root document")
        nursery = self._check_running()
        link = self._cells.get(name)
        if link is None:
            changed = partial(self._cell_changed, name)
            link = self._cells[name] = KeptLink(self._env, self._party, name, cell.nodes, FAR, changed)
            nursery.start_soon(link.run)
        return link

    def _check_cell(self, cell: str, root: Root) -> None:
        """Raises Refused where nothing is asked of that cell at this moment; and of what was judged by another root
        document, whose policies may have let it go out, when it had to wait for a link."""
        self._check(cell)
        if self._root is not root:
            what = "another root document came while it waited for a link"
            raise Refused(Code.UNREACHABLE, what, "Try again", 1000)
        self._check_believed(cell.partition("/")[0])

    def _check_believed(self, region: str) -> None:
        """Raises Refused for another region whose statement has run out since this node began, or that was removed.
        The own cell goes on, as with an expired certificate: loudly."""
        if region in self.lapsed() and not self._party.hello.cell.startswith(f"{region}/"):
            what = f"the statement of region {region} has expired, or the keepers removed it"
            raise Refused(Code.UNREACHABLE, what, "Its operator signs it again: posthouse init statement", 60_000)

    def _check_running(self) -> trio.Nursery:
        if self._nursery is None:
            raise Refused(Code.UNREACHABLE, "this node's links are not running", "Try again", 1000)
        return self._nursery

    def _cell_changed(self, cell: str, up: bool) -> None:
        if self._metrics is not None:
            self._metrics.links_up.labels(cell).set(int(up))

    def _node_changed(self, node: str, up: bool) -> None:
        if self._metrics is not None:
            self._metrics.peers_up.labels(node).set(int(up))

    def count_dropped(self, node: str, reason: str, notes: int) -> None:
        """Count notes to or from a node of the own cell that go no further."""
        if self._metrics is not None:
            self._metrics.notes_dropped.labels(node, reason).inc(notes)

    def _count_refused(self) -> None:
        self.refused += 1
        if self._metrics is not None:
            self._metrics.refused.labels("LINK").inc()


class _Believing:
    """A handler that is asked by regions only whose statement holds, whenever their links began."""

    def __init__(self, handler: Handler, check: Callable[[str], None]) -> None:
        self._handler, self._check, self.note = handler, check, handler.note

    async def answer(self, peer: Peer, message: Request) -> Answer:
        """Raises Refused, and what the handler raises."""
        self._check(peer.region)
        return await self._handler.answer(peer, message)
