"""The tables of a store, and the queries that the running store and the inspector share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from relay.core.codec import Decoder, digest, pack
from relay.errors import ProtocolError, StoreDamaged
from relay.journal.api import Hard, Meta
from relay.journal.database import DAMAGED, Kind
from relay.limits import MIB

KIND = Kind("store", 0x506F7374, 5)  # "Post"

META = "SELECT federation, cell, log_id, store, key_check, first, prev, prev_term, time, members, checksum FROM meta"
SET_META = "REPLACE INTO meta VALUES (1, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
STATE = "SELECT seq, term, vote, committed, known, checksum FROM state"
SET_STATE = "REPLACE INTO state VALUES (1, ?, ?, ?, ?, ?, ?)"
ENDS = "SELECT min(idx), max(idx) FROM block"
LAST = "SELECT idx, hash FROM block ORDER BY idx DESC LIMIT 1"
SIZES = "SELECT idx, ifnull(length(sealed), 0) FROM block WHERE idx BETWEEN ? AND ? ORDER BY idx LIMIT 256"
BLOCKS = "SELECT idx, term, prev, time, hash, sealed FROM block WHERE idx BETWEEN ? AND ? ORDER BY idx"
NEXT_BLOCK = "SELECT idx, term, prev, time, hash, sealed FROM block WHERE idx >= ? ORDER BY idx LIMIT 1"
NEXT_STAGED = "SELECT idx, term, prev, time, hash, sealed FROM staged_block WHERE idx >= ? ORDER BY idx LIMIT 1"
ADD_BLOCK = "INSERT INTO block (idx, term, prev, time, hash, sealed) VALUES (?, ?, ?, ?, ?, ?)"
REPAIR_BLOCK = "REPLACE INTO block (idx, term, prev, time, hash, sealed) VALUES (?, ?, ?, ?, ?, ?)"
TERMS = "SELECT idx, term, hash FROM block WHERE idx BETWEEN ? AND ? ORDER BY idx LIMIT ?"
TERM = "SELECT term FROM block WHERE idx = ?"
END_OF = "SELECT hash, term, time FROM block WHERE idx = ?"
CUT_BLOCKS, CUT_FACTS = "DELETE FROM block WHERE idx >= ?", "DELETE FROM fact WHERE idx >= ?"
DROP_BLOCKS = "DELETE FROM block WHERE idx < ?"
DROP_LOG = (("DELETE FROM block", [()]), ("DELETE FROM fact", [()]))
STAGE_BLOCK = "INSERT INTO staged_block (idx, term, prev, time, hash, sealed) VALUES (?, ?, ?, ?, ?, ?)"
TAKE_STAGED, DROP_STAGED = "INSERT INTO block SELECT * FROM staged_block", "DELETE FROM staged_block"
STAGED_SIZES = "SELECT idx, ifnull(length(sealed), 0) FROM staged_block ORDER BY idx LIMIT 256"
UNSTAGE_BLOCKS = "DELETE FROM staged_block WHERE idx <= ?"

CHECKPOINT = "SELECT generation, idx, count, checksum FROM checkpoint"
SET_CHECKPOINT = "REPLACE INTO checkpoint (only, generation, idx, count, checksum) VALUES (1, ?, ?, ?, ?)"
_CHECKPOINT_ROW = """
    FROM checkpoint_row AS one LEFT JOIN checkpoint_row AS there
    ON there.generation = one.lies AND there.ordinal = one.lies_at WHERE one.generation = ? AND one.ordinal"""
CHECKPOINT_SIZES = (
    f"SELECT one.ordinal, ifnull(length(there.sealed), 0) {_CHECKPOINT_ROW} >= ? ORDER BY one.ordinal LIMIT 256"
)
CHECKPOINT_ROWS = (
    f"SELECT one.lies, one.lies_at, there.sealed {_CHECKPOINT_ROW} BETWEEN ? AND ? ORDER BY one.ordinal"
)
CHECKPOINT_ORDINALS = "SELECT ordinal FROM checkpoint_row WHERE generation = ? ORDER BY ordinal"
ADD_CHECKPOINT_ROW = "INSERT INTO checkpoint_row (generation, ordinal, lies, lies_at, sealed) VALUES (?, ?, ?, ?, ?)"
_OTHER_ROWS = """
    FROM checkpoint_row WHERE generation NOT IN (?1, ?2)
    AND (generation, ordinal) NOT IN (SELECT lies, lies_at FROM checkpoint_row WHERE generation IN (?1, ?2))"""
OTHER_GENERATIONS = f"SELECT DISTINCT generation {_OTHER_ROWS} ORDER BY generation"
OTHER_SIZES = f"SELECT -rowid, ifnull(length(sealed), 0) {_OTHER_ROWS} ORDER BY rowid DESC LIMIT 1024"
DROP_OTHER_ROWS = f"DELETE {_OTHER_ROWS} AND rowid >= -?3"
DROP_CHECKPOINT_ROWS = f"DELETE {_OTHER_ROWS}"

ADD_FACT = "INSERT INTO fact (key, idx, sealed) VALUES (?, ?, ?)"
ALL_FACTS = "SELECT key, sealed FROM fact ORDER BY key, idx"
FACTS = (  # of a group SQLite gives the row that has its max() (https://sqlite.org/lang_select.html#bareagg)
    "SELECT key, max(idx), sealed FROM fact WHERE key > ? AND idx <= ? GROUP BY key ORDER BY key LIMIT ?"
)
PRUNE_FACTS = """
    DELETE FROM fact WHERE key IN (SELECT key FROM fact WHERE idx >= ? AND idx < ?)
    AND idx < (SELECT max(newer.idx) FROM fact AS newer WHERE newer.key = fact.key AND newer.idx < ?)
"""


_known: Decoder[tuple[tuple[bytes, int], ...]] = Decoder(tuple[tuple[bytes, int], ...], "known", MIB)


@dataclass(frozen=True, slots=True)
class State:
    """The row that changes with every write of the log; `seq` counts them."""

    seq: int
    hard: Hard
    commit: int
    known: Mapping[bytes, int]


def state_values(state: State) -> tuple[Any, ...]:
    """The values of the state row."""
    known = pack(sorted(state.known.items()))
    values = (state.seq, state.hard.term, state.hard.vote, state.commit, known)
    return (*values, checksum(values))


def read_state(rows: list[Any], file: Path) -> State:
    """The state row. Raises StoreDamaged."""
    seq, term, vote, commit, known = checked(rows, "state row", file)
    try:
        return State(seq, Hard(term, vote), commit, dict(_known(known)))
    except ProtocolError as error:
        raise StoreDamaged(f"{file}: its state row cannot be read: {error.text}", DAMAGED) from None


def meta_values(meta: Meta) -> tuple[Any, ...]:
    """The values of the meta row."""
    values = astuple(meta)
    return (*values, checksum(values))


def read_meta(rows: list[Any], file: Path) -> Meta:
    """The meta row. Raises StoreDamaged."""
    return Meta(*checked(rows, "meta row", file))


def checksum(values: tuple[Any, ...]) -> bytes:
    """Over the values of a row that nothing else protects."""
    return digest(pack(list(values)), b"posthouse.row")


def checked(rows: list[Any], what: str, file: Path) -> tuple[Any, ...]:
    """The values of the one row of a table, less the checksum at its end. Raises StoreDamaged."""
    if not rows:
        raise StoreDamaged(f"{file}: its {what} is missing", DAMAGED)
    *values, check = rows[0]
    if checksum(tuple(values)) != check:
        raise StoreDamaged(f"{file}: its {what} does not match its checksum", DAMAGED)
    return tuple(values)
