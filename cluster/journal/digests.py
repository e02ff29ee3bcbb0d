"""Digests of the state go round the cell (rule 10): every node says what its checkpoint comes to, and the fold decides
at which blocks checkpoints are taken, so that there is something to compare.

A node whose state a majority does not have folds nothing any more: its store is set aside, and it joins with a new one
and the state of the others. Where no majority agrees nobody knows which state is right: every node stops."""

from __future__ import annotations

from collections import defaultdict

import structlog
import trio

from cluster.core.agreement import Verdict, judge
from cluster.core.linkwire import StateDigest
from cluster.journal.disk import RaftDisk
from cluster.journal.ends import Rejoin
from cluster.journal.journal import RaftJournal
from cluster.links import Links
from relay.core.mailroom.checkpoint import FORMAT
from relay.errors import OperatorError, PeerError, Refused

_log = structlog.get_logger("cluster.digests")
_KEPT = 8  # digests of each node
_ASK_S = 5.0  # seconds for a node to take one
_AGAIN_S = 0.5  # seconds after which it is offered again
_PARTING_S = 2.0  # seconds for the others to learn what made this node stop: they must stop, too


class Digests:
    """What the nodes of this one's cell say of their states."""

    def __init__(self, journal: RaftJournal, disk: RaftDisk, links: Links) -> None:
        self._journal = journal
        self._disk = disk
        self._links = links
        self._own: dict[int, bytes] = {}
        self._others: dict[str, dict[int, bytes]] = defaultdict(dict)
        self._new = trio.Event()
        self._split = trio.Event()
        self._split_at = 0
        disk.state_known = self._say

    async def run(self) -> None:
        """Tell the others, until cancelled."""
        async with trio.open_nursery() as nursery:
            for node in self._links.peers():
                nursery.start_soon(self._tell, node)
            await self._split.wait()
            await trio.sleep(_PARTING_S)
            self._disk.tail.end(no_majority(self._split_at))

    def _say(self, index: int, digest: bytes) -> None:
        """This node's state after block `index`."""
        _keep(self._own, index, digest)
        self._new.set()
        self._new = trio.Event()
        self._look(index)

    async def _tell(self, node: str) -> None:
        told = 0
        while True:
            new = self._new
            for index, digest in [one for one in self._own.items() if one[0] > told]:
                message = StateDigest(self._journal.log_id, FORMAT, index, digest)
                try:
                    await self._links.ask(node, message, _ASK_S)
                except (Refused, PeerError):
                    await trio.sleep(_AGAIN_S)
                    break
                told = index
            else:
                await new.wait()

    def heard(self, node: str, message: StateDigest) -> None:
        """What another node of the cell says. Rows of another format say nothing about the state."""
        if message.log_id == self._journal.log_id and message.form == FORMAT:
            _keep(self._others[node], message.index, message.digest)
            self._look(message.index)

    def _look(self, index: int) -> None:
        own, nodes = self._own.get(index), self._journal.nodes
        if own is None:
            return
        others = {node: known[index] for node, known in self._others.items() if index in known and node in nodes}
        verdict = judge(own, others.values(), len(nodes))
        differ = sorted(node for node, digest in others.items() if digest != own)
        if differ:
            _log.error("state_differs", index=index, nodes=differ, verdict=verdict.name.lower())
        if verdict is Verdict.OUTVOTED:
            self._disk.doomed = f"after block {index} this node's state is not that of the other nodes"
            self._disk.tail.end(Rejoin(self._disk.doomed))
        elif verdict is Verdict.SPLIT:
            self._split_at = self._split_at or index
            self._split.set()


def no_majority(index: int) -> OperatorError:
    """What every node of a cell says that cannot go on."""
    return OperatorError(
        f"after block {index} no majority of the cell's nodes has the same state: nobody knows which is right",
        "Keep every node's data directory, run one release on all nodes and report this; see docs/OPERATIONS.md, "
        '"No majority has the same state"',
    )


def _keep(known: dict[int, bytes], index: int, digest: bytes) -> None:
    known[index] = digest
    while len(known) > _KEPT:
        del known[min(known)]
