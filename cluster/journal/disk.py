"""What a store of a replicated cell does beside a solo one's: entries with terms, Raft's own state, snapshots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from cluster.core import linkwire
from cluster.core.raft import Entry, Figure, Members, Point
from cluster.core.raft import Write as CoreWrite
from cluster.journal.chain import Chain
from cluster.journal.ends import Rejoin
from cluster.journal.shapes import from_members
from relay.core.block import Block, check_follows
from relay.core.codec import Decoder, Struct, digest, encode
from relay.core.mailroom.checkpoint import rows_digest
from relay.core.shapes import Hash, UInt
from relay.errors import StoreDamaged
from relay.journal.api import CheckpointHead, FactRow, Hard, LogStore, Write
from relay.journal.disk import LogDisk, held
from relay.journal.rows import Sealer, checkpoint_checksum
from relay.journal.tail import Tail, each_row
from relay.limits import MAX_CHECKPOINT_ROW, READ_BATCH
from relay.ports import Residency, Rows

_INDEX_BITS = 40  # a figure in the store: term and index as one integer that sorts like the pair


class Head(Struct):
    """The first row of a checkpoint: the place that it was taken at, and the cell's members there (records.Members)."""

    term: UInt
    hash: Hash
    time: UInt
    members: bytes


read_head: Decoder[Head] = Decoder(Head, "head of a checkpoint", MAX_CHECKPOINT_ROW)


def pack_figures(figures: Sequence[Figure]) -> dict[bytes, int]:
    """Figures as the store keeps them."""
    return {figure.store: figure.upto.term << _INDEX_BITS | figure.upto.index for figure in figures}


def unpack_figures(known: dict[bytes, int]) -> tuple[Figure, ...]:
    """The reverse of `pack_figures`."""
    mask = (1 << _INDEX_BITS) - 1
    return tuple(Figure(store, Point(both >> _INDEX_BITS, both & mask)) for store, both in sorted(known.items()))


@dataclass(slots=True)
class Stage:
    """A snapshot that is being fetched. `head` comes with its first row. `whole`: all of it is there, and verified."""

    index: int
    generation: int
    disk: RaftDisk
    first: bytes = b""  # row
    digests: list[bytes] = field(default_factory=list)  # of the rows
    facts: list[FactRow] = field(default_factory=list)
    oldest: linkwire.BlockBody | None = None  # of the blocks, and the newest one so far
    newest: Block | None = None
    whole: bool = False

    async def add(self, rows: Sequence[bytes]) -> None:
        """The next rows came."""
        self.first = self.first or (rows[0] if rows else b"")
        self.digests += [one for one, _ in await self.disk.stage_rows(self.generation, len(self.digests), rows)]

    def learn(self, facts: Sequence[linkwire.Fact]) -> None:
        """Facts of the residency check came."""
        sealer = self.disk.sealer
        self.facts += [(one.key, one.index, sealer.fact(one.key, one.value)) for one in facts]

    async def take(self, bodies: Sequence[linkwire.BlockBody]) -> None:
        """The next blocks came: what is not settled waits in them. Raises StoreDamaged where they do not follow."""
        rows = []
        for body in bodies:
            block = Block(self.disk.tail.log_id, body.index, body.prev, body.time, body.records, body.hash)
            check_follows(block, self.newest)
            self.oldest, self.newest = self.oldest or body, block
            rows.append(self.disk.sealer.block_row(block, body.term))
        async with self.disk.changing():
            await self.disk.store.stage_blocks(rows)
            await self.disk.store.fold_wal()

    def check(self, first: int) -> None:
        """Raises StoreDamaged unless the blocks reach from `first` to the checkpoint, and lead to its head."""
        found = (self.oldest.index, self.newest.index, self.newest.hash) if self.oldest and self.newest else None
        if found != ((first, self.index, self.head.hash) if first <= self.index else None):
            raise StoreDamaged(f"the blocks before the checkpoint after block {self.index} do not lead to it")
        self.whole = True

    @property
    def head(self) -> Head:
        """Raises ProtocolError, StoreDamaged where the first row is none."""
        if not self.first:
            raise StoreDamaged("a checkpoint without a head")
        return read_head(self.first)


class RaftDisk(LogDisk):
    """The store of one node of a replicated cell."""

    def __init__(self, store: LogStore, sealer: Sealer, residency: Residency, tail: Tail) -> None:
        super().__init__(store, sealer, residency, tail)
        self.staged: Stage | None = None
        self.removed = False  # the cell has removed this store, and with it its node
        self.doomed = ""  # why this store must not be used again, once that is known
        self.mender: Callable[[int, StoreDamaged], Awaitable[Block]] | None = None  # once other nodes can be asked
        self.state_known: Callable[[int, bytes], None] = lambda index, digest: None  # of a checkpoint, saved or loaded
        self._pins: list[int] = []  # blocks from there on stay; one for each loan of `lent`

    async def mend(self, index: int, error: StoreDamaged) -> Block:
        """See LogDisk.mend; from other nodes of the cell."""
        if self.mender is None:
            raise error
        return await self.mender(index, error)

    # --- the log ---------------------------------------------------------------------------------
    async def put(self, write: CoreWrite, chain: Chain) -> None:
        """Make what the core wants written durable, all at once. With a snapshot the journal ends: it is of what was
        there before. Raises DiskFailed; Rejoin where the snapshot is not there any more, and nothing was written."""
        rows, facts = [], list[FactRow]()
        for entry in write.append:
            block: Block = entry.payload
            rows.append(self.sealer.block_row(block, entry.term))
            facts += [(key, block.index, self.sealer.fact(key, value)) for key, value in chain.facts(block.index)]
        hard = Hard(write.hard.term, write.hard.vote or b"") if write.hard else None
        known = pack_figures(write.known)
        async with held(self.writing):
            if write.reset is not None:
                await self._install(write, known)
            await self.store.write(Write(rows, write.truncate_from, hard, known, facts, self.tail.tip))
            if write.reset is not None:
                self.tail.end(Rejoin("this store took over a snapshot of its cell"))

    async def _install(self, write: CoreWrite, known: dict[bytes, int]) -> None:
        """Put the staged snapshot in the place of everything."""
        stage = self.staged
        assert write.reset is not None
        if stage is None or not stage.whole or stage.index != write.reset.end.index:
            raise Rejoin("a snapshot was not taken over: the one who asked for that is gone, and with him its rows")
        head, now = stage.head, self.store.meta
        checksum = checkpoint_checksum(now.log_id, stage.index, stage.digests)
        meta = replace(
            now, first=stage.index + 1, prev=head.hash, prev_term=head.term, time=head.time, members=head.members
        )
        if (oldest := stage.oldest) is not None:
            meta = replace(meta, first=oldest.index, prev=oldest.prev, prev_term=oldest.term, time=oldest.time)
        checkpoint = CheckpointHead(stage.generation, stage.index, len(stage.digests), checksum)
        await self.store.install(meta, checkpoint, stage.facts, known, stage.index)

    @property
    def checkpoint_index(self) -> int:
        """The block after which the newest checkpoint was taken; 0 where there is none."""
        return self.head.index if self.head else 0

    async def load_entries(self, entries: Sequence[Entry]) -> list[Block]:
        """The blocks of entries that the core no longer holds. Raises LookupError where the log has changed since: the
        same index may stand for another entry now."""
        first, last = entries[0].index, entries[-1].index
        blocks: list[Block] = []
        try:
            while len(blocks) < len(entries):
                blocks += await self.load(first + len(blocks), last)
        except StoreDamaged:
            await self._stored(entries)  # what was cut off meanwhile is not damaged
            raise
        if await self._stored(entries) != [block.hash for block in blocks]:
            raise LookupError(f"blocks {first} to {last} are others now")
        return blocks

    async def _stored(self, entries: Sequence[Entry]) -> list[bytes]:
        """The hashes of entries, as their rows have them. Raises LookupError where other entries are there, or none."""
        first, last = entries[0].index, entries[-1].index
        stored: list[tuple[int, bytes]] = []
        while len(stored) < len(entries):
            batch = await self.store.terms(first + len(stored), last)
            if not batch:
                raise LookupError(f"block {first + len(stored)} is gone")
            stored += [(term, hash_) for _, term, hash_ in batch]
        if [term for term, _ in stored] != [entry.term for entry in entries]:
            raise LookupError(f"blocks {first} to {last} are of other terms now")
        return [hash_ for _, hash_ in stored]

    # --- checkpoints -----------------------------------------------------------------------------
    async def save(self, index: int, rows: Rows, block: Block, term: int, members: Members) -> None:
        """Save the checkpoint taken after `block`, with its head in front."""
        head = encode(Head(term, block.hash, block.time, from_members(members)))

        async def with_head() -> AsyncIterator[bytes]:
            yield head
            async for row in each_row(rows):
                yield row

        digests = await self.save_checkpoint(index, with_head())
        self.state_known(index, rows_digest(digests[1:]))

    async def load_saved(self, take: Callable[[bytes], None]) -> int | None:
        """`load_checkpoint` without its head."""
        digests = list[bytes]()

        def take_row(row: bytes) -> None:
            digests.append(digest(row))
            if len(digests) > 1:
                take(row)

        index = await self.load_checkpoint(take_row)
        if index is not None:
            self.state_known(index, rows_digest(digests[1:]))
        return index

    # --- snapshots -------------------------------------------------------------------------------
    @asynccontextmanager
    async def lending(self) -> AsyncIterator[tuple[int, int]]:
        """The index of the newest checkpoint and that of the oldest block: both stay until the end, whatever is saved
        and released meanwhile (rule 12). (0, 0) where there is none to lend now: none was saved or loaded yet, or one
        older than the newest is lent already, whose rows go when the next one is saved after it came back."""
        async with self.writing:  # no step of a release is under way
            head, first = self.head, self.tail.first
            lends = head is not None and head in self.digests and self.lent in (None, head)
            if lends:
                self.lent = head
                self._pins.append(first)
        try:
            yield (head.index, first) if head is not None and lends else (0, 0)
        finally:
            if lends:
                self._pins.remove(first)
                self.lent = self.lent if self._pins else None

    def may_release(self, below: int) -> int:
        """`below`, or less where a pin holds."""
        return min([below, *self._pins])

    async def checkpoint_part(self, index: int, row: int) -> tuple[list[bytes], int]:
        """Rows of the checkpoint after block `index`, from `row` on, and how many there are; none where it is not, or
        no longer, the newest or a lent one. Raises StoreDamaged where they are not the ones that were saved or loaded:
        another is saved then. (Who gets them sees the checksum of the whole nowhere.)"""
        head = next((one for one in (self.head, self.lent) if one is not None and one.index == index), None)
        digests = self.digests.get(head) if head is not None else None
        if head is None or digests is None:
            return [], 0
        sealed = await self.store.checkpoint_rows(head.generation, row)
        try:
            rows = [self.sealer.open_checkpoint_row(one) for one in sealed]
            if list(map(digest, rows)) != digests[row : row + max(1, len(rows))]:
                raise StoreDamaged(f"the checkpoint after block {index}: other rows from {row} on than were saved")
            return rows, head.count
        except StoreDamaged:
            if head is self.head:
                self.distrust_checkpoint()
            raise

    async def facts_part(self, upto: int, after: bytes) -> list[linkwire.Fact]:
        """Facts of the residency check with keys above `after`, in order, as of block `upto`, which is kept or the last
        one released: as many as one answer should bring. What later blocks taught is not for who takes those blocks
        yet: who left a group with one of them was there before. Raises StoreDamaged; nobody else has these facts in
        this order, so that the store is given up."""
        found: list[linkwire.Fact] = []
        size = 0
        try:
            for key, index, sealed in await self.store.facts(after, upto):
                value = self.sealer.open_fact(key, sealed)
                size += len(value)
                if found and size > READ_BATCH:
                    break
                found.append(linkwire.Fact(key, index, value))
        except StoreDamaged as error:
            self.give_up(error, error.text)
            raise
        return found

    def give_up(self, error: StoreDamaged, why: str) -> None:
        """This store is no good any more: the journal ends, and so does this life of the node."""
        self.doomed = why
        self.tail.end(error)

    @asynccontextmanager
    async def staging(self, index: int) -> AsyncIterator[Stage]:
        """Room for a snapshot after block `index` beside what is there. What is not installed is cleared later."""
        async with self.checkpointing:
            generation = self.head.generation if self.head else 0
            await self.clear(generation)
            self.staged = Stage(index, generation + 1, self)
            try:
                yield self.staged
            finally:
                self.staged = None


