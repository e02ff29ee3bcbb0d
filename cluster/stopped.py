"""What a stopped node's store holds, and whether it holds together: for `posthouse journal verify` and `inspect`.

Nothing is written but SQLite's index of its write-ahead log, which goes again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from cluster.journal.disk import Head, read_head
from cluster.journal.shapes import members_in, to_members
from relay.core import records
from relay.core.block import Block
from relay.core.mailroom import Mailroom
from relay.errors import PosthouseError, ProtocolError, StoreDamaged
from relay.journal.files import STORE_FILE, bootstrap, mark_file
from relay.journal.inspect import StoppedStore, open_stopped
from relay.journal.mark import Mark, Marked
from relay.journal.seal import StorageRing


@dataclass
class Examination:
    """What was seen. `findings` say what is wrong, in words; `tip` is the last block that holds, made in `term` (0 in a
    cell of one). Of several stores of one log that with the highest (term, tip) is the one that an election prefers."""

    directory: Path
    cell: str = ""
    federation: str = ""
    log: str = ""
    store: str = ""
    first: int = 0
    tip: int = 0
    term: int = 0
    from_ms: int = 0
    to_ms: int = 0
    bytes: int = 0
    records: Counter[str] = field(default_factory=Counter)
    checkpoint: int = 0
    checkpoint_rows: int = 0
    users: int = 0
    waiting: int = 0
    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    quarantine: tuple[str, ...] = ()
    founds: bool = False
    findings: list[str] = field(default_factory=list)


def examine(directory: Path, ring: StorageRing) -> Examination:
    """Read everything in the store of the data directory: each block and the chain, the checkpoint, the fold over what
    follows it, the mark. Raises StoreLocked where a node runs on it, StoreForeign, OperatorError where none is."""
    seen = Examination(directory, founds=bootstrap(directory))
    seen.quarantine = tuple(sorted(path.name for path in directory.glob("quarantine/*") if path.is_dir()))
    with open_stopped(directory, ring) as store:
        seen.cell, seen.federation = store.cell, store.federation.hex()
        seen.log, seen.first, seen.tip = store.log_id.hex(), store.first, store.first - 1
        room = _read_checkpoint(store, seen)
        last = _read_blocks(store, seen, room)
        seen.term = store.term(seen.tip)
    marked = _read_mark(directory, seen)
    if marked is not None:
        _hold_against(marked, last, seen)
    return seen


def _read_checkpoint(store: StoppedStore, seen: Examination) -> Mailroom | None:
    """The fold as of the checkpoint, or of the beginning. None where blocks cannot be applied to anything."""
    try:
        saved = store.checkpoint()
        if saved is None:
            if store.first > 1:
                raise StoreDamaged(f"blocks before {store.first} were let go, and there is no checkpoint of them")
            return Mailroom(store.cell, store.log_id)
        seen.checkpoint, rows = saved
        seen.checkpoint_rows = len(rows)
        head = _head(rows)
        if head is not None:
            _note_members(seen, head.members)
        room = Mailroom.from_checkpoint(without_head(rows))
        if room.state.index != seen.checkpoint:
            raise StoreDamaged(f"the checkpoint after block {seen.checkpoint} is of block {room.state.index}")
        return room
    except StoreDamaged as error:
        seen.findings.append(error.text)
        return None


def _head(rows: list[bytes]) -> Head | None:
    """The first row of a checkpoint of a cell of several nodes; a cell of one has none."""
    try:
        return read_head(rows[0]) if rows else None
    except ProtocolError:
        return None


def without_head(rows: list[bytes]) -> list[bytes]:
    """The rows of a checkpoint that are the fold's: all but the first, where that is the head."""
    return rows[1:] if _head(rows) else rows


def _note_members(seen: Examination, encoded: bytes) -> None:
    members = to_members(encoded)
    seen.voters = tuple(f"{one.node} {one.store.hex()}" for one in members.voters)
    seen.learners = tuple(f"{one.node} {one.store.hex()}" for one in members.learners)


def _read_blocks(store: StoppedStore, seen: Examination, room: Mailroom | None) -> Block | None:
    last: Block | None = None
    try:
        for block in store.blocks():
            last, seen.tip = block, block.index
            seen.from_ms, seen.to_ms = seen.from_ms or block.time, block.time
            seen.bytes += block.size
            seen.records.update(type(records.decode_record(record)).__name__ for record in block.records)
            if block.index > seen.checkpoint and (members := members_in(block)) is not None:
                seen.voters = tuple(f"{one.node} {one.store.hex()}" for one in members.voters)
                seen.learners = tuple(f"{one.node} {one.store.hex()}" for one in members.learners)
            if room is not None and block.index > room.state.index:
                room.apply(block)
    except StoreDamaged as error:  # what follows it is not looked at
        seen.findings.append(error.text)
    if room is not None:
        seen.users = len(room.state.users)
        seen.waiting = len(room.state.sources)
    if seen.checkpoint > seen.tip:
        seen.findings.append(f"the checkpoint is after block {seen.checkpoint}, and the log holds to {seen.tip} only")
    return last


def _read_mark(directory: Path, seen: Examination) -> Marked | None:
    file = mark_file(directory / STORE_FILE)
    mark = Mark(file)
    mark.close()
    if mark.newest is None:
        seen.findings.append(f"{file.name} is missing or cannot be read: nobody can tell whether the log is whole")
        return None
    seen.store = mark.newest.store.hex()
    return mark.newest


def _hold_against(marked: Marked, last: Block | None, seen: Examination) -> None:
    """The mark may know more than the database: then acknowledged history is missing (rule 5)."""
    if marked.index > seen.tip:
        seen.findings.append(f"its mark says that it came to block {marked.index}, and it holds to {seen.tip} only")
    elif last is not None and last.index == marked.index and last.hash != marked.hash:
        seen.findings.append(f"block {last.index} is not the one that its mark knows")


def known_store(directory: Path) -> bytes:
    """The id of the store, by its mark; zeros where that cannot be read."""
    try:
        mark = Mark(mark_file(directory / STORE_FILE))
        mark.close()
    except (OSError, PosthouseError):
        return bytes(16)
    return mark.newest.store if mark.newest else bytes(16)
