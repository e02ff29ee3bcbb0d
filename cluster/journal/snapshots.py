"""Snapshots: how a store that needs what the others no longer keep gets their checkpoint instead (Ongaro, chapter 5).

The leader says that one is due (TakeSnapshot); the store fetches it row by row, stages it, and lets the core decide.
One transaction puts it in the place of everything else; then the node starts anew from it (journal.Rejoin).
"""

from __future__ import annotations

from typing import TypeVar

import structlog
import trio

from cluster.core import linkwire
from cluster.core.raft import Point
from cluster.journal.disk import RaftDisk
from cluster.journal.journal import RaftJournal
from cluster.journal.shapes import to_members
from cluster.links import Links
from relay.errors import Overloaded, PeerError, ProtocolError, Refused, StoreDamaged
from relay.journal.disk import Kept
from relay.limits import LINK_DEADLINE_S, SNAPSHOT_DEADLINE_S

T = TypeVar("T")
_log = structlog.get_logger("cluster.snapshots")


def _body(kept: Kept) -> linkwire.BlockBody:
    block, term = kept
    return linkwire.BlockBody(block.index, term, block.prev, block.time, block.hash, block.records)


class Snapshots:
    """Gives them to peers, takes them from peers; one of each at a time."""

    def __init__(self, journal: RaftJournal, disk: RaftDisk, links: Links) -> None:
        self._journal = journal
        self._disk = disk
        self._links = links
        self._taking = trio.Lock()
        self._nursery: trio.Nursery | None = None

    def start(self, nursery: trio.Nursery) -> None:
        """Serve in this nursery."""
        self._nursery = nursery
        self._journal.need_snapshot = self._send

    # --- the leader's side -----------------------------------------------------------------------
    def _send(self, store: bytes) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self._offer, store)

    async def _offer(self, store: bytes) -> None:
        """Have a peer take a snapshot, and tell the core what came of it."""
        node, taken = self._journal.node_of(store), 0
        async with self._disk.lending() as (index, first):
            if node and index:
                _log.info("snapshot_offered", node=node, index=index)
                try:
                    answer = await self._links.ask(node, linkwire.TakeSnapshot(index, first), SNAPSHOT_DEADLINE_S)
                    taken = answer.index if isinstance(answer, linkwire.SnapshotTaken) else 0
                except (Refused, PeerError) as error:
                    _log.warning("snapshot_failed", node=node, text=error.text)
        self._journal.raft.snapshot_sent(store, taken)
        self._journal.wake()

    async def give(
        self, message: linkwire.FetchCheckpoint | linkwire.FetchFacts | linkwire.FetchBlocks
    ) -> linkwire.Answer:
        """A part of what this store has: none of what is damaged here, or gone. Raises PeerError where another log is
        meant."""
        if message.log_id != self._journal.log_id:
            raise PeerError("a question about another log", "See `posthouse cell status` on both nodes")
        match message:
            case linkwire.FetchCheckpoint(_, index, row):
                rows, count = await self._disk.checkpoint_part(index, row)
                return linkwire.CheckpointPart(count, tuple(rows))
            case linkwire.FetchFacts(_, index, after):
                return linkwire.Facts(tuple(await self._disk.facts_part(index, after)))
            case linkwire.FetchBlocks(_, first, last):
                good, _ = await self._disk.look(first, min(last, self._journal.tip))
                return linkwire.BlocksPart(tuple(map(_body, good)))

    # --- the other side --------------------------------------------------------------------------
    async def take(self, node: str, index: int, first: int) -> linkwire.Answer:
        """Fetch the checkpoint after block `index` from `node`, with the blocks from `first` on that it refers to, and
        have it installed. Raises Overloaded, PeerError."""
        if self._taking.locked():
            raise Overloaded("a snapshot is being taken already")
        async with self._taking:
            try:
                return await self._take(node, index, first)
            except (StoreDamaged, ProtocolError) as error:
                raise PeerError(f"{node} gave a checkpoint that does not verify: {error.text}") from None

    async def _take(self, node: str, index: int, first: int) -> linkwire.Answer:
        log_id, row, count = self._journal.log_id, 0, 1
        async with self._disk.staging(index) as stage:
            while row < count:
                part = await self._ask(node, linkwire.FetchCheckpoint(log_id, index, row), linkwire.CheckpointPart)
                if not part.rows:
                    raise Overloaded("the checkpoint has been replaced meanwhile")
                count = part.count
                await stage.add(part.rows)
                row += len(part.rows)
            key = b""
            while facts := (await self._ask(node, linkwire.FetchFacts(log_id, index, key), linkwire.Facts)).items:
                stage.learn(facts)
                key = facts[-1].key
            at = first
            while at <= index:
                blocks = (await self._ask(node, linkwire.FetchBlocks(log_id, at, index), linkwire.BlocksPart)).blocks
                if not blocks:
                    raise Overloaded(f"block {at}, which belongs to the snapshot, cannot be had now")
                await stage.take(blocks)
                at = blocks[-1].index + 1
            stage.check(first)
            head = stage.head
            if self._journal.raft.install(Point(head.term, index), to_members(head.members)):
                _log.info("snapshot_taken", index=index, rows=count)
                self._journal.wake()
                await trio.sleep_forever()  # the next write installs it, and this life of the node ends
        return linkwire.SnapshotTaken(index)

    async def _ask(self, node: str, message: linkwire.Request, kind: type[T]) -> T:
        answer = await self._links.ask(node, message, LINK_DEADLINE_S)
        if not isinstance(answer, kind):
            raise PeerError(f"{node} answered {type(message).__name__} with {type(answer).__name__}")
        return answer
