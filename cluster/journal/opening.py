"""Opening the log of a replicated cell on one node: taking up its store, making the log, or asking to be let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from cluster.core.raft import ORIGIN, HardState, Member, Members, Point, Raft, Settings, Stored, Stub
from cluster.journal.cell import Cell, ask_to_join
from cluster.journal.chain import Chain
from cluster.journal.disk import RaftDisk, read_head, unpack_figures
from cluster.journal.journal import RaftJournal, Rejoin, removed
from cluster.journal.shapes import from_members, members_in, to_members
from cluster.journal.snapshots import Snapshots
from cluster.links import Links
from relay.core.block import GENESIS, Block
from relay.errors import ProtocolError, StoreDamaged
from relay.journal.api import LogStore, Meta, StoreEnv
from relay.journal.database import found_in
from relay.journal.rows import Sealer
from relay.journal.seal import StorageRing
from relay.journal.tail import Tail
from relay.limits import RECENT_BLOCKS
from relay.ports import Residency

_log = structlog.get_logger("cluster.journal")
_ASK_S = 1.0  # seconds for the other nodes to say which log theirs is, each time


@asynccontextmanager
async def open_raft(
    path: Path, *, env: StoreEnv, ring: StorageRing, residency: Residency, cell: str, federation: bytes, node: str,
    nodes: Sequence[str], links: Links,
) -> AsyncIterator[Cell]:
    """This node's part of the log of `cell`, kept in the directory `path`; `Cell.run` must be running. `nodes` are all
    nodes that the root lists for the cell; the links to them are up.

    Raises StoreLocked, StoreForeign, DiskFailed, OperatorError; Rejoin where the store here cannot be used any more and
    was set aside (rule 4): open again."""
    if env.was_removed(path):
        raise removed(node)
    own = env.random_bytes(16)
    found, founder = env.store_exists(path), env.bootstrap(path)
    log_id = env.random_bytes(16) if found or founder else await _meet(links, own)
    check = Sealer(ring, log_id, env.random_bytes).key_check()
    founders = from_members(Members((Member(own, node),))) if founder else b""
    store = await env.open_store(path, Meta(federation, cell, log_id, own, check, 1, GENESIS, 0, 0, founders))
    sealer = Sealer(ring, store.meta.log_id, env.random_bytes)
    tail = Tail(store.meta.log_id, env.clock, keep=RECENT_BLOCKS)
    disk = RaftDisk(store, sealer, residency, tail)
    doomed = ""
    try:
        sealer.check_key(store.meta.key_check, store.file)
        if store.behind is not None:
            raise StoreDamaged(f"{store.file}: {store.behind}")
        journal = await _take_up(disk, env, links, node, nodes)
        if founder:
            env.bootstrapped(path)
        _log.info("store_opened", store=store.meta.store.hex(), first=tail.first, tip=tail.tip)
        yield Cell(journal, Snapshots(journal, disk, links), links)
    except BaseException as error:
        if disk.removed:
            env.keep_out(path)
        doomed = disk.doomed or _damage_in(error)
        if not doomed:
            raise
    finally:
        tail.end(trio.ClosedResourceError("the journal is closed"))
        await store.close()
    if doomed:
        _log.error("store_set_aside", text=doomed)
        env.set_aside(path, store.meta.store)
        raise Rejoin(f"the store of this node was set aside: {doomed}")


def _damage_in(error: BaseException) -> str:
    """What is said of a damaged store, wherever in a group of errors; empty where nothing is."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_damage_in, error.exceptions)), "")
    return error.text if isinstance(error, StoreDamaged) else ""


async def _meet(links: Links, own: bytes) -> bytes:
    """Which log the other nodes have. Until one of them says so."""
    while True:
        log_id = await ask_to_join(links, own, _ASK_S)
        if log_id is not None:
            return log_id
        await trio.sleep(_ASK_S / 2)


async def _take_up(
    disk: RaftDisk, env: StoreEnv, links: Links, node: str, nodes: Sequence[str]
) -> RaftJournal:
    """Find out how far the store has come, verify what follows its checkpoint, and start the core in doubt."""
    store, tail, meta = disk.store, disk.tail, disk.store.meta
    disk.head = await store.checkpoint()
    ends = await store.ends()
    if ends and ends[0] != meta.first:
        raise StoreDamaged(f"{store.file}: block {meta.first} is missing: the oldest one kept is {ends[0]}")
    last = ends[1] if ends else meta.first - 1
    start, members = await _start(disk)
    if not meta.first - 1 <= start.index <= last:
        raise StoreDamaged(f"{store.file}: the checkpoint is after block {start.index}, the log ends at {last}")
    terms = await _terms(store, start.index + 1, last)
    blocks = await _blocks(disk, meta, start.index, last)
    committed = max(start.index, min(store.commit, last))
    tail.start_at(meta.first, meta.prev, meta.time)
    await _skip_to(disk, tail, start.index)
    fresh = [block for block in blocks if block.index > start.index]
    for block in fresh:
        if block.index <= committed:
            tail.commit(block)
    await disk.learn_facts()
    chain = Chain(meta.log_id, *tail.newest, disk.residency)
    stubs = []
    for block in fresh:
        if block.index > committed:
            chain.add(block, chain.check(block.records))
        stubs.append(Stub(terms[block.index], block.size, members_in(block)))
    stored = Stored(
        HardState(store.hard.term, store.hard.vote or None), start, members, stubs, committed,
        unpack_figures(store.known),
    )  # fmt: skip
    own = Member(meta.store, node)
    raft = Raft(meta.store, stored, Settings(), env.random_bytes(32), env.clock.monotonic_ms())
    return RaftJournal(own, disk, chain, raft, links, env, nodes, is_new=last == 0 and bool(members.voters))


async def _start(disk: RaftDisk) -> tuple[Point, Members]:
    """Where the core's log begins: at the checkpoint, or where the kept blocks begin; and the members there."""
    meta, head = disk.store.meta, disk.head
    if head is None:
        return (Point(meta.prev_term, meta.first - 1) if meta.first > 1 else ORIGIN), to_members(meta.members)
    sealed = await disk.store.checkpoint_rows(head.generation, 0)
    if not sealed:
        raise StoreDamaged(f"{disk.store.file}: the checkpoint after block {head.index} has no rows")
    with found_in(disk.store.file):
        try:
            first = read_head(disk.sealer.open_checkpoint_row(head.index, 0, sealed[0]))
        except ProtocolError as error:
            raise StoreDamaged(f"the head of the checkpoint cannot be read: {error.text}") from None
    return Point(first.term, head.index), to_members(first.members)


async def _terms(store: LogStore, first: int, last: int) -> dict[int, int]:
    terms: dict[int, int] = {}
    while first <= last:
        batch = await store.terms(first, last)
        if not batch:
            raise StoreDamaged(f"{store.file}: block {first} is missing")
        terms.update((index, term) for index, term, _ in batch)
        first = batch[-1][0] + 1
    return terms


async def _blocks(disk: RaftDisk, meta: Meta, start: int, last: int) -> list[Block]:
    """The verified blocks from `start` (the one at the checkpoint, if it is kept) on."""
    blocks: list[Block] = []
    index = max(meta.first, start)
    while index <= last:
        for block in await disk.load(index, last):
            follows = block.prev == (blocks[-1].hash if blocks else meta.prev)
            if (blocks or block.index == meta.first) and not follows:
                raise StoreDamaged(f"{disk.store.file}: block {block.index} does not follow the one before")
            blocks.append(block)
        index = blocks[-1].index + 1
    return blocks


async def _skip_to(disk: RaftDisk, tail: Tail, index: int) -> None:
    """Blocks up to the checkpoint were verified before it was taken; the last one gives the chain its beginning."""
    if index >= tail.first:
        (block,) = await disk.load(index, index)
        tail.skip_to(block)
