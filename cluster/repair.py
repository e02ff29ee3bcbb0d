"""Starting over after damage: `posthouse journal repair` on the store of a stopped node.

A member of a cell of several nodes has its store set aside, and comes back as a new one that takes everything from the
others (rule 4). A cell of one has nobody to take it from: what holds of its log goes on under a new log id, so that
devices and other cells know that something may be missing (rules 5 and 13). So does, by order of the operator, what one
store has of the log of a cell that lost most of its stores for good: it becomes the only voter, and the others join it.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from cluster.core.raft import Member, Members
from cluster.journal.disk import Head
from cluster.journal.shapes import from_members
from relay.core.block import GENESIS, Block, make_block
from relay.core.codec import digest, encode
from relay.core.mailroom import Mailroom
from relay.core.mailroom.state import State
from relay.errors import DiskFailed, OperatorError, StoreDamaged
from relay.journal.api import CheckpointHead, Hard, LogStore, Meta, Place, StoreEnv, Write
from relay.journal.database import found_in
from relay.journal.files import REPAIRED, STORE_FILE, put_in_place, sync_directory
from relay.journal.rows import Sealer, check_link, check_rows, checkpoint_checksum, verify_checkpoint
from relay.journal.seal import StorageRing

_FRESH = "repairing"  # in the data directory, while the new store is being made
_KEEP = "Keep the directory: this command cannot save what waits in it"


@dataclass(frozen=True)
class Renewed:
    """A log under a new id, `log`, with the blocks `first` to `tip`. `lost`: why it ends there, where more is known to
    have been; or empty. `aside`: the store that it was made of."""

    log: bytes
    first: int
    tip: int
    lost: str
    aside: bytes


async def renew_log(
    directory: Path, env: StoreEnv, ring: StorageRing, *, cell: str, federation: bytes, alone: str = ""
) -> Renewed:
    """Make a new store of what holds in the store of a cell of one, and put it in its place; the old one is set aside.
    `alone`: the store is of this node of a cell of several, and the new one becomes the cell's only voter. All its
    blocks count then, known to be committed or not: what was confirmed may be among either.

    Raises StoreLocked, StoreForeign, DiskFailed; StoreDamaged where the fold cannot be had without what is damaged."""
    file = directory / STORE_FILE
    if not (env.store_exists(directory) or (file.exists() and file.stat().st_size)):
        raise OperatorError(f"{directory} has no store", "There is nothing to repair")
    fresh = directory / _FRESH
    shutil.rmtree(fresh, ignore_errors=True)  # of a repair that did not come to its end
    log, own = env.random_bytes(16), env.random_bytes(16)
    sealer = Sealer(ring, log, env.random_bytes)
    store = await env.open_store(
        directory, Meta(federation, cell, log, own, sealer.key_check(), 1, GENESIS, 0, 0, b"")
    )  # fmt: skip
    try:
        old = _Old(store, Sealer(ring, store.meta.log_id, env.random_bytes), bool(alone))
        meta, aside = store.meta, store.meta.store
        room = await old.fold()
        members = from_members(Members((Member(own, alone),))) if alone else b""
        place = meta.first, meta.prev, meta.prev_term, meta.time
        new = await env.open_store(fresh, Meta(federation, cell, log, own, sealer.key_check(), *place, members))
        try:
            await _copy(old, new, sealer, log, room)
        finally:
            await new.close()
        lost = old.lost or store.behind or ""
        _is_whole(fresh)
    finally:
        await store.close()
    put_in_place(directory, aside, env.clock.wall_ms())
    return Renewed(log, meta.first, room.state.index, lost, aside)


class _Old:
    """The store that is to be replaced. `lost`: what the first block that does not hold says."""

    def __init__(self, store: LogStore, sealer: Sealer, several: bool) -> None:
        sealer.check_key(store.meta.key_check, store.file)
        if (store.hard.term > 0) != several:
            of = "one node, or has no log yet" if several else "several nodes"
            raise OperatorError(f"{store.file} is of a cell of {of}", "Check the root document of its config")
        self.store = store
        self.sealer = sealer
        self.several = several
        self.lost = ""

    async def blocks(self) -> AsyncIterator[tuple[Block, int]]:
        """From the oldest on, as far as they hold, each with its term."""
        meta, ends = self.store.meta, await self.store.ends()
        last = Block(meta.log_id, meta.first - 1, b"", meta.time, (), meta.prev)
        while ends is not None and last.index < ends[1]:
            try:
                rows = await self.store.blocks(last.index + 1, ends[1])
                check_rows(rows, last.index + 1)
                for row in rows:
                    block = self.sealer.block(row)
                    check_link(block, last)
                    yield block, row.term
                    last = block
            except StoreDamaged as error:
                self.lost = error.text
                return

    async def fold(self) -> Mailroom:
        """The fold after the last block that holds. Raises StoreDamaged where it cannot be had."""
        room, last = await self._checkpoint(), self.store.meta.first - 1
        async for block, _ in self.blocks():
            last = block.index
            if last > room.state.index:
                room.apply(block)
        if last < room.state.index:
            what = f"{self.store.file}: {self.lost or f'the log ends at block {last}'}"
            raise StoreDamaged(f"{what}; the checkpoint after block {room.state.index} needs what is missing", _KEEP)
        return room

    async def _checkpoint(self) -> Mailroom:
        meta, head = self.store.meta, await self.store.checkpoint()
        if head is None:
            if meta.first > 1:
                raise StoreDamaged(f"{self.store.file}: no checkpoint of the blocks that were let go", _KEEP)
            return Mailroom(meta.cell, meta.log_id)
        rows: list[bytes] = []
        with found_in(self.store.file):
            while batch := await self.store.checkpoint_rows(head.generation, len(rows)):
                rows += map(self.sealer.open_checkpoint_row, batch)
            verify_checkpoint(head, meta.log_id, rows)
            return Mailroom.from_checkpoint(rows[self.several :])  # their first is its head


async def _copy(old: _Old, new: LogStore, sealer: Sealer, log: bytes, room: Mailroom) -> None:
    """The blocks, chained anew under the new log id; then the fold after them, as their checkpoint; then the facts."""
    prev, term, time = new.meta.prev, new.meta.prev_term, new.meta.time
    tip = room.state.index
    async for block, block_term in old.blocks():
        if block.index > tip:
            break
        made = make_block(log, block.index, prev, block.time, block.records)
        await new.write(Write(rows=[sealer.block_row(made, block_term)]))
        prev, term, time = made.hash, block_term, made.time
    if old.several:
        await new.write(Write(hard=Hard(max(term, old.store.hard.term)), commit=tip))
    _renumber(room.state, log)
    rows = [encode(Head(term, prev, time, new.meta.members))] if old.several else []
    rows += room.checkpoint()
    for ordinal, row in enumerate(rows):
        await new.add_checkpoint_rows(1, ordinal, [sealer.checkpoint_row(Place(1, ordinal), row)])
    if tip:
        checksum = checkpoint_checksum(log, tip, [digest(row) for row in rows])
        await new.finish_checkpoint(CheckpointHead(1, tip, len(rows), checksum))
    key = b""
    while facts := await old.store.facts(key, tip):
        again = [(one, index, sealer.fact(one, old.sealer.open_fact(one, sealed))) for one, index, sealed in facts]
        await new.write(Write(facts=again, commit=tip))
        key = facts[-1][0]


def _renumber(state: State, log: bytes) -> None:
    """A new log id is a new beginning for other cells, too: what still waits for them is numbered from 1 (rule 16)."""
    state.log_id = log
    for outbox in state.outboxes.values():
        outbox.items = dict(enumerate((item for _, item in sorted(outbox.items.items())), 1))
        outbox.done, outbox.last = 0, len(outbox.items)


def _is_whole(fresh: Path) -> None:
    """The new store is complete: from here on it is the one that counts, whatever happens. Raises DiskFailed."""
    try:
        sync_directory(fresh)
        fresh.rename(fresh.with_name(REPAIRED))
        sync_directory(fresh.parent)
    except OSError as error:
        raise DiskFailed(f"{fresh}: {error.strerror}", "Look at the disk, then run the repair again") from error
