"""The tables of a registry and what is read and written in them: functions for the connection's thread.

What is read is checked where it costs little: an entry against its leaf in the tile, a bucket against the crown.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from cluster.core.epochmap import (
    BITS, Crown, Summary, Value, bucket_of, change, find, place_of, summarise, value_of,
)  # fmt: skip
from cluster.core.homelog import EpochEntry, ReleaseEntry, read_entry, release_entry
from cluster.enrolment import Asked, read_request
from relay.core.tlog import (
    Checkpoint, Frontier, Note, Staple, Tile, consistency_proof, consistency_tiles, edge, encode_bundle, grow,
    inclusion_proofs, inclusion_tiles_of, leaf_hash, parse_checkpoint,
)  # fmt: skip
from relay.core.tlog.tiles import FULL
from relay.core.tlog.tree import HASH
from relay.core.codec import encode
from relay.core.trust import HomeEntry, HomeRecord, home_entry, read_home, split_home, staple_home
from relay.errors import StoreDamaged
from relay.journal.database import DAMAGED, Connection, fetch

_TILES: Final = "CREATE TABLE tiles (tile INTEGER PRIMARY KEY, hashes BLOB NOT NULL)"
_BUCKETS: Final = (
    "CREATE TABLE buckets (number INTEGER PRIMARY KEY, hash BLOB NOT NULL, users INTEGER NOT NULL, rows BLOB NOT NULL)"
)
TREES: Final = (_TILES, _BUCKETS)  # of the log and of the map
TABLES: Final = (
    *TREES,
    """CREATE TABLE head (one INTEGER PRIMARY KEY CHECK (one = 1), origin TEXT NOT NULL, size INTEGER NOT NULL,
       note BLOB NOT NULL, epoch INTEGER NOT NULL, users INTEGER NOT NULL, time INTEGER NOT NULL)""",
    "CREATE TABLE entries (number INTEGER PRIMARY KEY, entry BLOB NOT NULL)",
    "CREATE TABLE chains (number INTEGER PRIMARY KEY, before INTEGER NOT NULL)",  # entries of versions 2, 3, …
    "CREATE TABLE releases (user BLOB PRIMARY KEY, number INTEGER NOT NULL) WITHOUT ROWID",  # entries of the newest
)
# Of a move that another region's log had first, whose release is by a key that was replaced since: its staple there.
# Made whenever a registry is opened: one that was made before has none.
BROUGHT: Final = "CREATE TABLE IF NOT EXISTS brought (number INTEGER PRIMARY KEY, staple BLOB NOT NULL)"
Sign = Callable[[Checkpoint], Note]
Item = HomeRecord | Asked  # what is logged: a record, or a request that was released
_LEVEL: Final = 56  # a tile's row is its level << 56 | its number


class Head(NamedTuple):
    """The log after a batch: size and root of the tree, the checkpoint with the log's own signature, the number of the
    epoch that ends it, users in the map, and the epoch's time (Unix ms)."""

    size: int
    root: bytes
    note: bytes
    epoch: int
    users: int
    time: int


@dataclass
class Book:
    """What is in memory of an open registry."""

    origin: str
    head: Head
    tree: Frontier
    crown: Crown


class Found(NamedTuple):
    """What the registry has of a user: the newest record, the one that was asked about with its entry's number, and
    the newest request that was released, with its entry's number."""

    newest: HomeRecord | None
    same: HomeRecord | None
    number: int
    gone: Asked | None = None
    gone_number: int = 0


# --- writing -------------------------------------------------------------------------------------
def append(
    connection: Connection, book: Book, items: Sequence[Item], time_ms: int, sign: Sign
) -> Head:
    """One batch in one transaction. `book.head` stays as it was: whoever calls sets it, once it is marked."""
    head = book.head
    epoch = head.epoch + 1 if head.size else 0
    connection.execute("BEGIN IMMEDIATE")
    records = [(number, item) for number, item in enumerate(items, head.size) if isinstance(item, HomeRecord)]
    gone = [(item.user, number) for number, item in enumerate(items, head.size) if isinstance(item, Asked)]
    users = head.users + sum(record.version == 1 for _, record in records)
    chained = put_in_map(connection, book.crown, records)
    last = EpochEntry(epoch, book.crown.root, users, max(time_ms, head.time))
    entries = [*map(_entry_of, items), encode(last)]
    leaves = [leaf_hash(entry) for entry in entries]
    tiles = grow(head.size, edge_tiles(connection, head.size), leaves)
    book.tree = book.tree.extend(leaves)
    checkpoint = Checkpoint(book.origin, book.tree.size, book.tree.root())
    note = sign(checkpoint).encode()
    connection.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(entries, head.size))
    put_tiles(connection, tiles)
    connection.executemany("INSERT INTO chains VALUES (?, ?)", chained)
    connection.executemany("REPLACE INTO releases VALUES (?, ?)", gone)
    proofs = [(number, split_home(record.signed)[1]) for number, record in records]
    connection.executemany("INSERT INTO brought VALUES (?, ?)", [(number, proof) for number, proof in proofs if proof])
    connection.execute(
        "UPDATE head SET size = ?, note = ?, epoch = ?, users = ?, time = ?",
        (checkpoint.size, note, epoch, users, last.time),
    )
    connection.execute("COMMIT")
    return Head(checkpoint.size, checkpoint.root, note, epoch, users, last.time)


def _entry_of(item: Item) -> bytes:
    return home_entry(split_home(item.signed)[0]) if isinstance(item, HomeRecord) else release_entry(item.request)


def put_in_map(
    connection: Connection, crown: Crown, records: Iterable[tuple[int, HomeRecord]]
) -> list[tuple[int, int]]:
    """These records, by entry number, become the newest of their users. For each that had one, both numbers."""
    old: dict[int, bytes] = {}
    changes: dict[int, dict[bytes, Value]] = {}
    chained: list[tuple[int, int]] = []
    for number, record in records:
        place = place_of(record.user)
        bucket = bucket_of(place)
        if bucket not in old:
            old[bucket], changes[bucket] = _bucket(connection, crown, bucket), {}
        known = changes[bucket].get(place) or find(old[bucket], place)
        if known is not None:
            chained.append((number, known.number))
        changes[bucket][place] = Value(value_of(record.version, record.digest), number)
    for bucket, values in changes.items():
        rows = change(old[bucket], values)
        summary = summarise(rows)
        crown.put(bucket, summary)
        connection.execute("REPLACE INTO buckets VALUES (?, ?, ?, ?)", (bucket, *summary, rows))
    return chained


def put_tiles(connection: Connection, tiles: Mapping[Tile, bytes]) -> None:
    """Tiles, each in the place of a narrower one."""
    connection.executemany("REPLACE INTO tiles VALUES (?, ?)", [(_row(tile), data) for tile, data in tiles.items()])


# --- reading -------------------------------------------------------------------------------------
def look(connection: Connection, crown: Crown, users: Sequence[tuple[bytes, int]]) -> list[Found]:
    """See Registry.look."""
    return [_find(connection, crown, user, version) for user, version in users]


def _find(connection: Connection, crown: Crown, user: bytes, version: int) -> Found:
    found, newest = list(chain(connection, crown, user)), None
    for _, record in reversed(found):
        newest = read_home(record.signed, newest)  # with the devices that there were: none of them comes back
    same = next(((record, number) for number, record in found if record.version == version), (None, 0))
    return Found(newest, *same, *(release(connection, user) or (None, 0)))


def release(connection: Connection, user: bytes) -> tuple[Asked, int] | None:
    """The newest request of a user's that was released, and the number of its entry."""
    rows = fetch(connection, "SELECT number FROM releases WHERE user = ?", (user,))
    if not rows:
        return None
    found = read_entry(entry(connection, rows[0][0]))
    asked = read_request(found.released) if isinstance(found, ReleaseEntry) else None
    if asked is None or asked.user != user:
        raise StoreDamaged(f"entry {rows[0][0]} is not the release of the user of whom it is said", DAMAGED)
    return asked, rows[0][0]


def chain(connection: Connection, crown: Crown, user: bytes) -> Iterator[tuple[int, HomeRecord]]:
    """A user's records with their entries' numbers, newest first."""
    place = place_of(user)
    found = find(_bucket(connection, crown, bucket_of(place)), place)
    if found is None:
        return
    record = _record(connection, found.number)
    if found.value != value_of(record.version, record.digest):
        raise StoreDamaged(f"entry {found.number} is not the record that the map has", DAMAGED)
    number = found.number
    yield number, record
    while record.version > 1:
        rows = fetch(connection, "SELECT before FROM chains WHERE number = ?", (number,))
        later, number = record, rows[0][0] if rows else 0
        record = _record(connection, number)
        if (later.payload.prev, later.version) != (record.digest, record.version + 1):
            raise StoreDamaged(f"entry {number} is not what was before version {later.version} of its user", DAMAGED)
        yield number, record


def records(connection: Connection, crown: Crown, user: bytes, after: int, note: Note) -> list[bytes]:
    """See Registry.records."""
    found = [*itertools.takewhile(lambda one: one[1].version > after, chain(connection, crown, user))][::-1]
    proofs = staples(connection, [number for number, _ in found], parse_checkpoint(note.text).size, note)
    return [
        staple_home(record.signed, _brought(connection, number) or proof)
        for (number, record), proof in zip(found, proofs, strict=True)
    ]


def _brought(connection: Connection, number: int) -> bytes:
    rows = fetch(connection, "SELECT staple FROM brought WHERE number = ?", (number,))
    return rows[0][0] if rows else b""


def _record(connection: Connection, number: int) -> HomeRecord:
    found = read_entry(entry(connection, number))
    if not isinstance(found, HomeEntry):
        raise StoreDamaged(f"entry {number} is no home record, and the map says so", DAMAGED)
    return read_home(found.signed)


def entry(connection: Connection, number: int) -> bytes:
    """An entry, which is what its leaf says."""
    rows = fetch(connection, "SELECT entry FROM entries WHERE number = ?", (number,))
    leaf = tile(connection, Tile(0, number >> 8, number % FULL + 1)) or b""
    if not rows or leaf_hash(rows[0][0]) != leaf[-HASH:]:
        raise StoreDamaged(f"entry {number} of the log is not what its tree says", DAMAGED)
    data: bytes = rows[0][0]
    return data


def edge_tiles(connection: Connection, size: int) -> dict[Tile, bytes]:
    """The tiles that appending to a tree of `size` needs."""
    return _tiles(connection, edge(size))


def tile(connection: Connection, wanted: Tile) -> bytes | None:
    """See Registry.tile."""
    rows = fetch(connection, "SELECT hashes FROM tiles WHERE tile = ?", (_row(wanted),))
    return rows[0][0][: wanted.width * HASH] if rows and len(rows[0][0]) >= wanted.width * HASH else None


def bundle(connection: Connection, number: int, width: int) -> bytes | None:
    """See Registry.bundle."""
    first = number * FULL
    query = "SELECT entry FROM entries WHERE number >= ? AND number < ? ORDER BY number"
    entries = [data for (data,) in fetch(connection, query, (first, first + width))]
    return encode_bundle(entries) if len(entries) == width else None


def summaries(connection: Connection) -> Iterator[tuple[int, Summary]]:
    """Of all buckets."""
    for number, digest, users in connection.execute("SELECT number, hash, users FROM buckets"):
        if len(digest) != HASH or not 0 <= number < 1 << BITS:
            raise StoreDamaged(f"bucket {number} of the map: not one of ours", DAMAGED)
        yield number, Summary(digest, users)


def staples(connection: Connection, indexes: Sequence[int], size: int, note: Note) -> list[bytes]:
    """See Registry.staples."""
    proofs = inclusion_proofs(indexes, size, _tiles(connection, inclusion_tiles_of(indexes, size)))
    return [Staple(index, proof, note).encode() for index, proof in zip(indexes, proofs, strict=True)]


def consistency(connection: Connection, old: int, new: int) -> tuple[bytes, ...]:
    """See Registry.consistency."""
    return consistency_proof(old, new, _tiles(connection, consistency_tiles(old, new)))


def last_epoch(connection: Connection, size: int, note: Note) -> tuple[bytes, bytes]:
    """The entry that ends the log, and its staple."""
    [staple] = staples(connection, [size - 1], size, note)
    return entry(connection, size - 1), staple


def map_proof(connection: Connection, crown: Crown, user: bytes) -> bytes:
    """What the map says of a user."""
    place = place_of(user)
    return crown.prove(place, _bucket(connection, crown, crown.where(place))).encode()


def _bucket(connection: Connection, crown: Crown, number: int) -> bytes:
    rows = fetch(connection, "SELECT rows FROM buckets WHERE number = ?", (number,))
    data: bytes = rows[0][0] if rows else b""
    if summarise(data) != crown.summary(number):
        raise StoreDamaged(f"bucket {number} of the map is not what its root says", DAMAGED)
    return data


def _tiles(connection: Connection, wanted: Sequence[Tile]) -> dict[Tile, bytes]:
    found = {name: tile(connection, name) for name in wanted}
    if lacking := [name.path for name, data in found.items() if data is None]:
        raise StoreDamaged(f"{', '.join(lacking)}: missing, or too short", DAMAGED)
    return {name: data for name, data in found.items() if data is not None}


def _row(name: Tile) -> int:
    return name.level << _LEVEL | name.number
