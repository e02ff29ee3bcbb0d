"""What the rows of a store mean: the sealing and the checks that every journal and the inspector share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from relay.core.block import Block, check_follows
from relay.core.codec import digest, pack
from relay.errors import StoreDamaged
from relay.journal.api import BlockRow, CheckpointHead, CheckpointRow, Place
from relay.journal.database import DAMAGED
from relay.journal.seal import StorageRing, context

_KEY_CHECK = b"posthouse storage key"


class Sealer:
    """Seals and opens what one log keeps. Errors name the block or row."""

    def __init__(self, ring: StorageRing, log_id: bytes, random_bytes: Callable[[int], bytes]) -> None:
        self._ring = ring
        self._log_id = log_id
        self._random_bytes = random_bytes

    def _seal(self, purpose: bytes, place: Sequence[int], plain: Sequence[bytes]) -> bytes:
        return self._ring.seal(context(purpose, self._log_id, *place), plain, self._random_bytes)

    def _open(self, purpose: bytes, place: Sequence[int], sealed: bytes, what: str) -> tuple[bytes, ...]:
        return self._ring.open(context(purpose, self._log_id, *place), sealed, what)

    def block_row(self, block: Block, term: int) -> BlockRow:
        """The row of a block that was made in `term` (0 in a cell of one)."""
        sealed = self._seal(b"B", [block.index, term], block.records)
        return BlockRow(block.index, term, block.prev, block.time, block.hash, sealed)

    def block(self, row: BlockRow) -> Block:
        """The block of a row, its hash and its term verified. Raises StoreDamaged, StoreForeign (a key that is not in
        the ring)."""
        check_kinds((row.term, row.prev, row.time, row.hash), (int, bytes, int, bytes), f"block {row.index}")
        records = self._open(b"B", [row.index, row.term], row.sealed, f"block {row.index}")
        block = Block(self._log_id, row.index, row.prev, row.time, records, row.hash)
        check_follows(block, None)
        return block

    def checkpoint_row(self, place: Place, row: bytes) -> bytes:
        """Seal one row of a checkpoint for the place where it will lie."""
        return self._seal(b"C", place, [row])

    def open_checkpoint_row(self, row: CheckpointRow) -> bytes:
        """Raises StoreDamaged, StoreForeign."""
        lies = f"checkpoint row {row.place.ordinal} of generation {row.place.generation}"
        (plain,) = self._open(b"C", row.place, row.sealed, lies)
        return plain

    def fact(self, key: bytes, value: bytes) -> bytes:
        """Seal one fact of the residency check."""
        return self._seal(b"F" + key, [], [value])

    def open_fact(self, key: bytes, sealed: bytes) -> bytes:
        """Raises StoreDamaged, StoreForeign."""
        (value,) = self._open(b"F" + key, [], sealed, "a residency fact")
        return value

    def key_check(self) -> bytes:
        """A value by which `check_key` tells whether a ring is the store's."""
        return self._seal(b"K", [], [_KEY_CHECK])

    def check_key(self, sealed: bytes, file: Path) -> None:
        """Raises StoreForeign where the ring lacks the store's key."""
        try:
            self._open(b"K", [], sealed, f"{file}: the store")
        except StoreDamaged as error:
            raise StoreDamaged(f"{file}: its key check does not open: {error.text}", DAMAGED) from None


def checkpoint_checksum(log_id: bytes, index: int, digests: Sequence[bytes]) -> bytes:
    """Over the plaintext rows of a checkpoint (their `codec.digest`s), their order and their place."""
    return digest(pack([log_id, index, list(digests)]), b"posthouse.check")


def verify_checkpoint(head: CheckpointHead, log_id: bytes, rows: Sequence[bytes]) -> None:
    """Raises StoreDamaged unless these are the rows that the head stands for."""
    verify_digests(head, log_id, [digest(row) for row in rows])


def verify_digests(head: CheckpointHead, log_id: bytes, digests: Sequence[bytes]) -> None:
    """The same by the digests of the rows."""
    if len(digests) != head.count or checkpoint_checksum(log_id, head.index, digests) != head.checksum:
        raise StoreDamaged(f"the checkpoint after block {head.index} does not match its checksum")


def checkpoint_rows(rows: Sequence[tuple[int, int, bytes]]) -> list[CheckpointRow]:
    """What queries.CHECKPOINT_ROWS found. Raises StoreDamaged where bytes cannot lie."""
    for lies, lies_at, _ in rows:
        check_kinds((lies, lies_at), (int, int), "a row of the checkpoint")
    return [CheckpointRow(Place(lies, lies_at), sealed) for lies, lies_at, sealed in rows]


def check_kinds(values: Sequence[object], kinds: Sequence[type], what: str) -> None:
    """Raises StoreDamaged unless these are the kinds of values that we write: SQLite would keep text in a column of
    numbers, and a flipped bit makes the one of the other. Our numbers are never below 0."""
    for value, kind in zip(values, kinds, strict=True):
        if type(value) is not kind or (isinstance(value, int) and value < 0):
            raise StoreDamaged(f"{what}: a value of another kind than we write")


def check_link(block: Block, prev: Block) -> None:
    """Raises StoreDamaged unless `block`, whose own hash was verified, follows `prev`."""
    if block.index != prev.index + 1 or block.prev != prev.hash or block.time < prev.time:
        raise StoreDamaged(f"block {block.index} does not follow block {prev.index}")


def within(sizes: Sequence[tuple[int, int]], first: int, max_bytes: int) -> int:
    """The last of (number, bytes) from `first` on that a batch of `max_bytes` takes, at least `first` itself."""
    last, total = first, 0
    for index, size in sizes:
        total += size
        if index > first and total > max_bytes:
            break
        last = index
    return last


def check_rows(rows: Sequence[BlockRow], first: int) -> None:
    """Raises StoreDamaged unless the rows are blocks `first`, first + 1, … without a gap."""
    for expected, row in enumerate(rows, first):
        if row.index != expected:
            raise StoreDamaged(f"block {expected} is missing")
    if not rows:
        raise StoreDamaged(f"block {first} is missing")
