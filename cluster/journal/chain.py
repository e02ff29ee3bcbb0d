"""The blocks between the committed tip and the end of the log: made or received, perhaps written, not committed yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.core.block import Block, make_block
from relay.errors import StoreDamaged
from relay.ports import Residency

Fact = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Link:
    """A block, and what its records teach the residency check once it is committed."""

    block: Block
    facts: tuple[Fact, ...]


class Chain:
    """Starts at the committed tip: `index`, `hash` and `time` are its. Every block passes the disk writer's residency
    check before it gets in, that is: before it is written anywhere."""

    def __init__(self, log_id: bytes, index: int, last: bytes, time: int, residency: Residency) -> None:
        self._log_id = log_id
        self._base = (index, last, time)
        self._links: list[Link] = []
        self._residency = residency

    @property
    def last(self) -> int:
        """Index of the newest block."""
        return self._base[0] + len(self._links)

    def _end(self) -> tuple[int, bytes, int]:
        if not self._links:
            return self._base
        block = self._links[-1].block
        return block.index, block.hash, block.time

    def make(self, records: Sequence[bytes], time: int) -> Block:
        """The block that would come next, stamped `time` or the last one's."""
        index, last, before = self._end()
        return make_block(self._log_id, index + 1, last, max(before, time), records)

    def check(self, records: Sequence[bytes]) -> tuple[Fact, ...]:
        """The facts that records of a block to be made after the newest one teach. Raises ResidencyError."""
        return tuple(self._residency.check(records, self._above()))

    def _above(self) -> list[Fact]:
        return [fact for link in self._links for fact in link.facts]

    def holds(self, block: Block) -> bool:
        """Is this very block in the chain?"""
        place = block.index - self._base[0] - 1
        return 0 <= place < len(self._links) and self._links[place].block.hash == block.hash

    def add(self, block: Block, facts: tuple[Fact, ...]) -> None:
        """Append a block. Raises StoreDamaged where it does not follow: two histories of one log."""
        index, last, time = self._end()
        if block.index != index + 1 or block.prev != last or block.time < time:
            raise StoreDamaged(
                f"block {block.index} does not follow block {index} of this log",
                "Two histories of one log met: keep all stores, and compare them with `posthouse journal verify`",
            )
        self._links.append(Link(block, facts))

    def take(self, block: Block) -> tuple[Fact, ...]:
        """A block that the core wants written: into the chain, in place of what stood there. Its facts. Raises
        StoreDamaged, ResidencyError."""
        if self.holds(block):
            return self.facts(block.index)
        self.truncate(block.index)
        facts = tuple(self._residency.check(block.records, self._above(), made=True))
        self.add(block, facts)
        return facts

    def facts(self, index: int) -> tuple[Fact, ...]:
        return self._links[index - self._base[0] - 1].facts

    def truncate(self, first: int) -> None:
        """Drop the blocks from index `first` on."""
        del self._links[max(0, first - self._base[0] - 1) :]

    def commit(self, upto: int) -> list[Link]:
        """The blocks up to index `upto` are committed: they leave the chain."""
        count = upto - self._base[0]
        if count > len(self._links):
            raise StoreDamaged(f"block {upto} is committed, and the chain ends at {self.last}")
        gone, self._links = self._links[:count], self._links[count:]
        if gone:
            block = gone[-1].block
            self._base = (block.index, block.hash, block.time)
        return gone
