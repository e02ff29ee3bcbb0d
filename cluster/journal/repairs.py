"""Blocks that a node's disk no longer has as they were written are fetched from the other nodes of the cell (rule 6).

What the block must be is known before anybody is asked: the block after it, where that is good, holds its hash, and the
hash of the newest is in memory. So nobody has to be believed, and two answers cannot disagree. Whoever wants to read
the block waits meanwhile. A store whose block no other node has any more is given up, and the node joins anew.
"""

from __future__ import annotations

import structlog
import trio

from cluster.core import linkwire
from cluster.journal.cell import majority_of
from cluster.journal.disk import RaftDisk
from cluster.journal.journal import RaftJournal
from cluster.links import Links
from relay.core.block import Block, check_follows
from relay.errors import PeerError, Refused, StoreDamaged
from relay.journal.disk import Kept

_log = structlog.get_logger("cluster.repairs")
_ASK_S = 5.0  # seconds for a node to answer with a block
_AGAIN_S = 1.0  # seconds until all are asked again, while too few answer


class Repairs:
    """Mends one block at a time."""

    def __init__(self, journal: RaftJournal, disk: RaftDisk, links: Links) -> None:
        self._journal = journal
        self._disk = disk
        self._links = links
        self._one = trio.Lock()

    async def mend(self, index: int, error: StoreDamaged) -> Block:
        """See LogDisk.mend. Waits as long as it takes for most other nodes to answer. Where none of them has the block
        the journal ends, and so does this life of the node."""
        _log.error("block_damaged", index=index, text=error.text)
        async with self._one:
            missing = [index]
            while (expected := await self._hash_of(missing[-1])) is None:  # the one after it is damaged, too
                missing.append(missing[-1] + 1)
            while True:
                block = await self._restored(missing.pop(), expected, error)
                if not missing:
                    return block
                expected = block.prev

    async def _hash_of(self, index: int) -> bytes | None:
        """Of a committed block, by the one that follows it; None where that one is not good."""
        tip, newest, _ = self._disk.tail.newest
        if index == tip:
            return newest
        after = await self._on_disk(index + 1)
        return after.block.prev if after else None

    async def _on_disk(self, index: int) -> Kept | None:
        good, _ = await self._disk.look(index, index)
        return good[0] if good else None

    async def _restored(self, index: int, expected: bytes, error: StoreDamaged) -> Block:
        kept = await self._on_disk(index)
        if kept and kept.block.hash == expected:
            return kept.block  # somebody else has mended it, or not this one is wrong but the one before
        block, term = self._disk.tail.recent(index), self._journal.raft.log.term(index)
        if block is not None and term is not None:
            kept = Kept(block, term)
        else:
            kept = await self._fetched(index, expected, error)
        await self._disk.put_back(kept)
        return kept.block

    async def _fetched(self, index: int, expected: bytes, error: StoreDamaged) -> Kept:
        """From whoever has it. Raises LookupError where it was released meanwhile, `error` where nobody has it."""
        while True:
            self._disk.tail.check_kept(index)
            kept, without = await self._ask(index, expected)
            if kept is not None:
                return kept
            if without >= majority_of(self._journal.nodes):  # then they are a cell without this store, too
                self._disk.give_up(error, f"{error.text}; and no other node has that block")
                raise error
            _log.warning("block_not_found", index=index, answered=without)
            await trio.sleep(_AGAIN_S)

    async def _ask(self, index: int, expected: bytes) -> tuple[Kept | None, int]:
        """The block, or how many nodes answered without it."""
        found: list[Kept] = []
        without = 0

        async def ask(node: str) -> None:
            nonlocal without
            message = linkwire.FetchBlocks(self._journal.log_id, index, index)
            try:
                answer = await self._links.ask(node, message, _ASK_S)
            except (Refused, PeerError):
                return
            if isinstance(answer, linkwire.BlocksPart):
                kept = self._good(answer, index, expected)
                if kept is None:
                    without += 1
                    return
                found.append(kept)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for node in self._links.peers():
                nursery.start_soon(ask, node)
        return (found[0] if found else None), without

    def _good(self, answer: linkwire.BlocksPart, index: int, expected: bytes) -> Kept | None:
        """The block in an answer, if it is the one."""
        for body in answer.blocks[:1]:
            block = Block(self._journal.log_id, body.index, body.prev, body.time, body.records, body.hash)
            try:
                check_follows(block, None)
            except StoreDamaged:
                return None
            known = self._journal.raft.log.term(index)  # of entries below the checkpoint the core knows none
            if body.index == index and body.hash == expected and known in (None, body.term):
                return Kept(block, body.term)
        return None
