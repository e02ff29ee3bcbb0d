"""A block: what one commit carries. A batch of records, a time that never goes back, the hash of the one before.

    hash = BLAKE2b-256([format, log id, index, previous hash, time, [BLAKE2b-256(record) …]])

The hash is over the plaintext records, so that storage keys rotate without touching history (section 5, rule 7).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from relay.core.codec import digest, pack
from relay.errors import StoreDamaged
from relay.limits import MAX_BLOCK_RECORDS, SLOT_BITS

FORMAT = 1
GENESIS = bytes(32)  # the `prev` of block 1


@dataclass(frozen=True, slots=True)
class Block:
    """One committed block. `index` counts from 1; `time` is Unix ms and never below the previous block's."""

    log_id: bytes
    index: int
    prev: bytes
    time: int
    records: tuple[bytes, ...]
    hash: bytes

    @property
    def size(self) -> int:
        """Bytes of its records."""
        return sum(map(len, self.records))


def block_hash(log_id: bytes, index: int, prev: bytes, time: int, records: Sequence[bytes]) -> bytes:
    """The hash that binds a block's content and its place in the log."""
    leaves = [digest(record, b"posthouse.record") for record in records]
    return digest(pack([FORMAT, log_id, index, prev, time, leaves]), b"posthouse.block")


def make_block(log_id: bytes, index: int, prev: bytes, time: int, records: Sequence[bytes]) -> Block:
    """Build block `index`, hash included. At most MAX_BLOCK_RECORDS records."""
    assert 0 < len(records) <= MAX_BLOCK_RECORDS
    kept = tuple(records)
    return Block(log_id, index, prev, time, kept, block_hash(log_id, index, prev, time, kept))


def check_follows(block: Block, prev: Block | None) -> None:
    """Raises StoreDamaged unless the block's hash holds and, where given, it follows `prev` in the same log."""
    if block.hash != block_hash(block.log_id, block.index, block.prev, block.time, block.records):
        raise StoreDamaged(f"block {block.index}: its hash does not match its records")
    if prev is None:
        return
    follows = block.index == prev.index + 1 and block.prev == prev.hash
    if not follows or block.log_id != prev.log_id or block.time < prev.time:
        raise StoreDamaged(f"block {block.index} does not follow block {prev.index}")


def position(index: int, slot: int) -> int:
    """(index, slot) as one 64-bit integer that sorts like the pair."""
    return index << SLOT_BITS | slot
