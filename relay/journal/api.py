"""What a journal keeps its log in: the port between journals and stores. Rows in, rows out.

A store knows no storage key and no Raft. One writer at a time: the journal above holds the lock. The first I/O error of
any part of a write fails a store for good (rule 7).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from relay.errors import DiskFailed
from relay.ports import Env

FactRow = tuple[bytes, int, bytes]  # key (32 bytes), index of the block that taught it, sealed value


@dataclass(frozen=True, slots=True)
class Meta:
    """Whose log it is, and the end of what was released: `prev` (hash), `prev_term`, `time` (Unix ms) and `members` (an
    encoded relay.core.records.Members, or empty) are those of block first - 1; members may be newer than that."""

    federation: bytes
    cell: str
    log_id: bytes
    store: bytes  # 16 random bytes; a store that lost anything never comes back under the same (rule 4)
    key_check: bytes
    first: int
    prev: bytes
    prev_term: int
    time: int
    members: bytes


@dataclass(frozen=True, slots=True)
class Hard:
    """What a voter must not forget (rule 2). `vote` is a store's id, or empty. Both stay at this default in a cell of
    one."""

    term: int = 0
    vote: bytes = b""


@dataclass(frozen=True, slots=True)
class BlockRow:
    """A block as it rests: its records sealed, together with index and term."""

    index: int
    term: int
    prev: bytes
    time: int
    hash: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class CheckpointHead:
    """The current checkpoint: taken after block `index`, `count` rows, a checksum over them."""

    generation: int
    index: int
    count: int
    checksum: bytes


class Place(NamedTuple):
    """Where the bytes of a checkpoint's row lie: the generation that wrote them, and as which row of that."""

    generation: int
    ordinal: int


class CheckpointRow(NamedTuple):
    """A row of a checkpoint, as it rests: sealed for the place where it lies."""

    place: Place
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Write:
    """One transaction. What is None stays as it is."""

    rows: Sequence[BlockRow] = ()  # they follow what is left after the truncation
    truncate_from: int | None = None  # drop this block and all after it, and the facts that they taught
    hard: Hard | None = None
    known: Mapping[bytes, int] | None = None  # the whole map: store → highest index it was seen to acknowledge (rule 5)
    facts: Sequence[FactRow] = ()
    commit: int | None = None  # a hint for the next start, never above what is durable


class LogStore(Protocol):
    """An open store. `meta`, `hard`, `known` and `commit` are as loaded and kept current by what changes them.

    Every method raises DiskFailed from the first I/O error on (and tells `on_failure` of it, once), StoreDamaged where
    the database itself is damaged, trio.ClosedResourceError after `close`. A call that started completes: a cancelled
    caller does not learn how."""

    file: Path  # for the words of errors
    meta: Meta
    hard: Hard
    known: dict[bytes, int]
    commit: int
    on_failure: Callable[[DiskFailed], None]
    behind: str | None  # what the mark knows and the database has lost, for the operator (rule 5): do not use the store

    def check(self) -> None:
        """Raises DiskFailed if the store has failed, trio.ClosedResourceError if it was closed."""

    async def write(self, write: Write) -> None:
        """All of it or nothing; durable, mark included, on return. An empty one has no effect but that."""

    async def ends(self) -> tuple[int, int] | None:
        """Indexes of the oldest and the newest block that are kept; None where none is."""

    async def blocks(self, first: int, last: int) -> list[BlockRow]:
        """Rows of blocks `first` … `last`, as many as fit into READ_BATCH, but at least one where there is one."""

    async def terms(self, first: int, last: int) -> list[tuple[int, int, bytes]]:
        """(index, term, hash) of blocks from `first` on, unverified: as many as one read should bring, none beyond
        `last`; none at the end. It reads no block."""

    async def repair(self, row: BlockRow) -> None:
        """Put a good row in the place of a damaged or missing one, of the same block (rule 6)."""

    async def release(self, first: int, below: int, members: bytes | None = None) -> int:
        """Delete some blocks from the oldest, `first`, on, but none from `below` on, and the versions of facts that
        only they needed. `members`: those as of block below - 1 (None: no change). Returns the new oldest."""

    async def checkpoint(self) -> CheckpointHead | None:
        """The current checkpoint's head."""

    async def checkpoint_rows(self, generation: int, first: int) -> list[CheckpointRow]:
        """Rows from ordinal `first` on, as many as one read should bring; none at the end."""

    async def clear_unfinished(self, generation: int, lent: int | None = None) -> bool:
        """Delete checkpoint rows of every generation but this one and `lent`, from their ends, unless these have them,
        too; and staged blocks: some of them a call, so that appends get in between. False where there were none."""

    async def add_checkpoint_rows(self, generation: int, ordinal: int, rows: Sequence[bytes | Place]) -> None:
        """Write rows of a checkpoint that `finish_checkpoint` or `install` will make the current one: their sealed
        bytes, or where those lie already, which is a place of a row of the current one."""

    async def finish_checkpoint(self, head: CheckpointHead) -> None:
        """Make `head` the current checkpoint. The rows of the one before are for `clear_unfinished`."""

    async def facts(self, after: bytes, upto: int | None = None) -> list[FactRow]:
        """Some facts with keys above `after`, in order: of each key the newest that a block up to `upto` (None: any)
        taught; none at the end. What the released blocks taught is kept for every `upto` from first - 1 on."""

    async def stage_blocks(self, rows: Sequence[BlockRow]) -> None:
        """Keep the next blocks of a snapshot aside, until `install`."""

    async def install(
        self, meta: Meta, head: CheckpointHead, facts: Sequence[FactRow], known: Mapping[bytes, int], commit: int
    ) -> None:
        """A snapshot, in one transaction: all blocks, facts and older checkpoints go, `meta` and the rest take their
        place, and so do the staged blocks: those from meta.first up to head.index, or none where meta.first is above.
        The rows of head.generation were added before. `hard` stays."""

    async def fold_wal(self) -> None:
        """Fold the write-ahead log into the database when it has grown enough. Its I/O errors count (rule 7)."""

    async def clear_wal(self) -> None:
        """Fold it now, and cut it to nothing: what was let go is in it no more."""

    async def close(self) -> None:
        """Let go of the store, whatever state it is in; also when cancelled. Raises nothing."""


class StoreEnv(Env, Protocol):
    """An environment that has a disk: what a node that keeps a log runs in. `directory` is the node's, for its data."""

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        """Open the store of the federation and cell that `fresh` names, or make it with `fresh` as its meta row: then,
        and only then, `meta.store` of what comes back is that of `fresh`.

        Raises StoreLocked, StoreForeign (another federation's or cell's, another format, no store of ours),
        StoreDamaged, DiskFailed; OperatorError for a directory that cannot be used."""

    def store_exists(self, directory: Path) -> bool:
        """Was a store ever made here? Also where its database is lost: it is then opened as `behind`."""

    def set_aside(self, directory: Path, store: bytes) -> None:
        """Move a closed store that must not be used again to quarantine/<UTC time>-<store>/ (rule 4). After a crash in
        the midst of it, what is left opens as `behind`. Raises DiskFailed."""

    def bootstrap(self, directory: Path) -> bool:
        """Is this the node that starts its cell's log? (A file that provisioning leaves says so.)"""

    def was_removed(self, directory: Path) -> bool:
        """Has the cell removed this node, and nobody said that it may come back?"""

    def keep_out(self, directory: Path) -> None:
        """Remember that it did. Raises DiskFailed."""

    def bootstrapped(self, directory: Path) -> None:
        """The log was started: no node does it again. Raises DiskFailed."""
