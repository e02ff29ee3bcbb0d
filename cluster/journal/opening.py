"""Opening the log of a replicated cell on one node: taking up its store, making the log, or asking to be let in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from cluster.core.raft import ORIGIN, HardState, Member, Members, Point, Raft, Settings, Stored, Stub
from cluster.journal.cell import Cell, logs_led, standings
from cluster.journal.chain import Chain
from cluster.journal.digests import Digests
from cluster.journal.disk import RaftDisk, read_head, unpack_figures
from cluster.journal.ends import StoreSetAside, removed
from cluster.journal.journal import RaftJournal
from cluster.journal.repairs import Repairs
from cluster.journal.shapes import from_members, members_in, to_members
from cluster.journal.snapshots import Snapshots
from cluster.links import Links
from relay.core.block import GENESIS, Block
from relay.errors import DiskFailed, ProtocolError, StoreDamaged, StoreForeign
from relay.journal.api import LogStore, Meta, StoreEnv
from relay.journal.database import found_in
from relay.journal.rows import Sealer
from relay.journal.seal import StorageRing
from relay.journal.tail import Tail
from relay.limits import RAFT_ELECTION, RECENT_BLOCKS, SECOND
from relay.ports import Residency

_log = structlog.get_logger("cluster.journal")
_UNKNOWN = bytes(16)  # the id of a store that is too damaged to tell it
_LEFT_S = 2.0 * RAFT_ELECTION / SECOND  # seconds after which nobody leads because of what this store had said
_ASK_S = 1.0  # seconds for the other nodes to say which log theirs is, each time


@asynccontextmanager
async def open_raft(
    path: Path, *, env: StoreEnv, ring: StorageRing, residency: Residency, cell: str, federation: bytes, node: str,
    nodes: Sequence[str], links: Links,
) -> AsyncIterator[Cell]:
    """This node's part of the log of `cell`, kept in the directory `path`; `Cell.run` must be running. `nodes` are all
    nodes that the root lists for the cell; the links to them are up.

    Raises StoreLocked, StoreForeign, DiskFailed, OperatorError; StoreSetAside where the store here cannot be used any
    more and was moved away (rules 4 and 6): open again."""
    if env.was_removed(path):
        raise removed(node)
    own = env.random_bytes(16)
    found, founder = env.store_exists(path), env.bootstrap(path)
    log_id = env.random_bytes(16) if found or founder else await _meet(links)
    check = Sealer(ring, log_id, env.random_bytes).key_check()
    founders = from_members(Members((Member(own, node),))) if founder else b""
    try:
        store = await env.open_store(path, Meta(federation, cell, log_id, own, check, 1, GENESIS, 0, 0, founders))
    except StoreDamaged as error:
        raise await _set_aside(path, env, links, _UNKNOWN, error.text) from error
    sealer = Sealer(ring, store.meta.log_id, env.random_bytes)
    tail = Tail(store.meta.log_id, env.clock, keep=RECENT_BLOCKS)
    disk = RaftDisk(store, sealer, residency, tail)
    doomed = ""
    try:
        with found_in(store.file):
            sealer.check_key(store.meta.key_check, store.file)
            if store.behind is not None:
                raise StoreDamaged(store.behind)
            if store.hard.term == 0 and await store.ends() is not None:
                raise StoreForeign(
                    f"{store.file}: the log of a cell of one node, and the root lists {len(nodes)} for this cell",
                    "Such a log cannot be spread over several nodes yet: list one node, or start a new cell beside it",
                )
            journal = await _take_up(disk, env, links, node, nodes)
        if founder:
            env.bootstrapped(path)
        _log.info("store_opened", store=store.meta.store.hex(), first=tail.first, tip=tail.tip)
        disk.mender = Repairs(journal, disk, links).mend
        yield Cell(journal, Snapshots(journal, disk, links), Digests(journal, disk, links), links)
    except BaseException as error:
        if disk.removed:
            env.keep_out(path)
        doomed = disk.doomed or _damage_in(error, store.file)
        if not doomed:
            raise
    finally:
        tail.end(trio.ClosedResourceError("the journal is closed"))
        await store.close()
    if doomed:
        raise await _set_aside(path, env, links, store.meta.store, doomed)


async def _set_aside(path: Path, env: StoreEnv, links: Links, store: bytes, why: str) -> StoreSetAside:
    """Move the store, closed, out of the way, and say what to raise then. But not before the cell goes on without it
    (rule 8): what damages more disks than it can spare, or looks like damage on all of them, must not empty them all.
    Raises DiskFailed."""
    _log.error("store_unfit", store=store.hex(), text=why, next="set aside, when the rest of the cell has a leader")
    await trio.sleep(_LEFT_S)
    while not await logs_led(links, _ASK_S):  # noqa: ASYNC110 - of other nodes
        await trio.sleep(_ASK_S)
    env.set_aside(path, store)
    _log.warning("store_set_aside", store=store.hex())
    return StoreSetAside(f"the store of this node was set aside: {why}")


def _damage_in(error: BaseException, file: Path) -> str:
    """What is said of damage in `file`, wherever in a group of errors; empty where nothing is. What names no file, or
    another one, is not about this store: its bytes are as they were written, and every node's are."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, (_damage_in(one, file) for one in error.exceptions)), "")
    if isinstance(error, DiskFailed) and error.__cause__ is not None:  # of a write that found it
        return _damage_in(error.__cause__, file)
    return error.text if isinstance(error, StoreDamaged) and str(file) in error.text else ""


async def _meet(links: Links) -> bytes:
    """Which log the other nodes have. Until one of them says so, and none says otherwise. (Nothing is asked for yet: a
    store that is let in has to be there.)"""
    told = False
    while True:
        logs = {said.log_id for said in (await standings(links, _ASK_S)).values()}
        if len(logs) == 1:
            return logs.pop()
        if logs and not told:
            told = True
            remedy = "One node is to start a cell's log: move the data directory of the other away"
            _log.error("two_logs", logs=[log.hex() for log in sorted(logs)], remedy=remedy)
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
    start, members, hash_ = await _start(disk)
    if not meta.first - 1 <= start.index <= last:
        raise StoreDamaged(f"{store.file}: the checkpoint is after block {start.index}, the log ends at {last}")
    terms = await _terms(store, start.index + 1, last)
    blocks = await _blocks(disk, meta, start.index, last)
    committed = max(start.index, min(store.commit, last))
    tail.start_at(meta.first, meta.prev, meta.time)
    await _skip_to(disk, tail, start.index)
    if tail.newest[1] != hash_:
        raise StoreDamaged(f"{store.file}: the checkpoint is of another block than stands before {start.index + 1}")
    fresh = [block for block in blocks if block.index > start.index]
    for block in fresh:
        if block.index <= committed:
            tail.commit(block)
    await disk.learn_facts()
    chain = Chain(meta.log_id, *tail.newest, disk.residency)
    stubs = []
    for block in fresh:
        if block.index > committed:
            chain.take(block)
        stubs.append(Stub(terms[block.index], block.size, members_in(block)))
    stored = Stored(
        HardState(store.hard.term, store.hard.vote or None), start, members, stubs, committed,
        unpack_figures(store.known),
    )  # fmt: skip
    own = Member(meta.store, node)
    raft = Raft(meta.store, stored, Settings(), env.random_bytes(32), env.clock.monotonic_ms())
    return RaftJournal(own, disk, chain, raft, links, env, nodes, is_new=last == 0 and bool(members.voters))


async def _start(disk: RaftDisk) -> tuple[Point, Members, bytes]:
    """Where the core's log begins: at the checkpoint, or where the kept blocks begin; the members there, and the hash
    of the block."""
    meta, head = disk.store.meta, disk.head
    if head is None:
        begins = Point(meta.prev_term, meta.first - 1) if meta.first > 1 else ORIGIN
        return begins, to_members(meta.members), meta.prev
    sealed = await disk.store.checkpoint_rows(head.generation, 0)
    if not sealed:
        raise StoreDamaged(f"{disk.store.file}: the checkpoint after block {head.index} has no rows")
    with found_in(disk.store.file):
        try:
            first = read_head(disk.sealer.open_checkpoint_row(sealed[0]))
        except ProtocolError as error:
            raise StoreDamaged(f"the head of the checkpoint cannot be read: {error.text}") from None
    return Point(first.term, head.index), to_members(first.members), first.hash


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
