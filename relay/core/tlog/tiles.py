"""A log as tiles: what a growth writes, and what is where. (c2sp.org/tlog-tiles: height 8, SHA-256.)

Tile n of level l holds the hashes of up to 256 neighbouring subtrees of 256**l leaves each. Only the last tile of a
level may be partial; it is written anew, wider, while it fills. A full tile never changes, and its root is one hash of
the level above. So a tree of n leaves is stored in n·(1 + 1/255) hashes, and any hash of the tree is at most seven
levels above one that is stored.

Entries lie beside it in bundles of 256, each after its length in 16 bits.

All functions take sizes and bytes and give names and bytes; who reads and writes them is the caller's business. Where a
partial tile is asked for, a wider version of it will do: a tile only grows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from relay.core.tlog.errors import BadTile, Malformed, NotInTree
from relay.core.tlog.tree import HASH, Frontier, node_hash
from relay.limits import MAX_LOG_ENTRY, MAX_TREE

HEIGHT: Final = 8  # levels of the tree in one tile
FULL: Final = 1 << HEIGHT  # hashes of a full tile, entries of a full bundle
_LEVELS: Final = 8  # tile levels of the greatest tree: 63 bits by 8


class Tile(NamedTuple):
    """The name of a tile: level, number in the level, hashes in it (1 to 256)."""

    level: int
    number: int
    width: int = FULL

    @property
    def path(self) -> str:
        """As in `tile/0/x001/234` or, partial, `tile/0/x001/234.p/5`."""
        return f"tile/{self.level}/{_elements(self.number, self.width)}"


class Bundle(NamedTuple):
    """The name of an entry bundle: its number, entries in it (1 to 256)."""

    number: int
    width: int = FULL

    @property
    def path(self) -> str:
        """As in `tile/entries/x001/234.p/5`."""
        return f"tile/entries/{_elements(self.number, self.width)}"


def _elements(number: int, width: int) -> str:
    digits = str(number)
    digits = digits.zfill(len(digits) + -len(digits) % 3)
    *above, last = (digits[at : at + 3] for at in range(0, len(digits), 3))
    return "".join(f"x{part}/" for part in above) + last + ("" if width == FULL else f".p/{width}")


_PATH: Final = re.compile(
    r"tile/(?P<level>entries|0|[1-9][0-9]?)/(?P<number>(?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/(?P<width>[1-9][0-9]{0,2}))?"
)


def parse_path(path: str) -> Tile | Bundle:
    """The tile or bundle that a path names; exactly one path names each. Raises Malformed."""
    if match := _PATH.fullmatch(path):
        number, width = int(match["number"].replace("x", "").replace("/", "")), int(match["width"] or FULL)
        entries = match["level"] == "entries"
        name = Bundle(number, width) if entries else Tile(int(match["level"]), number, width)
        if name.path == path and number <= MAX_TREE >> HEIGHT and (entries or int(match["level"]) < 64):
            return name
    raise Malformed(f"{path[:80]!r} is not the path of a tile", "Tiles are named as c2sp.org/tlog-tiles says")


# --- which tiles ---------------------------------------------------------------------------------
def tile_at(level: int, number: int, size: int) -> Tile:
    """Tile `number` of `level` as a tree of `size` leaves has it. Raises NotInTree when it has none."""
    width = min(FULL, (size >> HEIGHT * level) - (number << HEIGHT))
    if width <= 0 or number < 0:
        raise NotInTree(f"tile {number} of level {level}: a tree of {size} has none", "Ask with the size of the tree")
    return Tile(level, number, width)


def edge(size: int) -> tuple[Tile, ...]:
    """The partial tiles of a tree: all that is needed to append to it, and to know its root."""
    counts = ((level, size >> HEIGHT * level) for level in range(_LEVELS))
    return tuple(Tile(level, count >> HEIGHT, count % FULL) for level, count in counts if count % FULL)


def tiles_written(old: int, new: int) -> Iterator[Tile]:
    """The tiles that differ between a tree of `old` and one of `new` leaves, level by level. From 0: all tiles."""
    for level in range(_LEVELS):
        before, after = old >> HEIGHT * level, new >> HEIGHT * level
        if before < after:
            yield from (tile_at(level, number, new) for number in range(before >> HEIGHT, (after - 1 >> HEIGHT) + 1))


def bundles_written(old: int, new: int) -> Iterator[Bundle]:
    """The same for entry bundles: they lie as the tiles of level 0 do."""
    return (Bundle(tile.number, tile.width) for tile in tiles_written(old, new) if tile.level == 0)


# --- what is in them -----------------------------------------------------------------------------
def read_tile(tile: Tile, tiles: Mapping[Tile, bytes]) -> bytes:
    """The bytes of `tile`, cut off where the stored one is wider. Raises BadTile."""
    data = tiles.get(tile)
    if data is None or len(data) < tile.width * HASH or len(data) % HASH or len(data) > FULL * HASH:
        found = "missing" if data is None else f"{len(data)} bytes long"
        raise BadTile(f"{tile.path}: it is {found}, {tile.width * HASH} are needed", "Rebuild the log's tiles")
    return data[: tile.width * HASH]


def split(data: bytes) -> list[bytes]:
    """A tile's hashes."""
    return [data[at : at + HASH] for at in range(0, len(data), HASH)]


def subtree_root(hashes: list[bytes]) -> bytes:
    """The root over a complete subtree's hashes: 1, 2, 4, … or 256 of them."""
    while len(hashes) > 1:
        hashes = [node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)]
    return hashes[0]


def grow(size: int, tiles: Mapping[Tile, bytes], leaves: Sequence[bytes]) -> dict[Tile, bytes]:
    """What to write when `leaves` (leaf hashes) follow a tree of `size` leaves: the tiles of
    `tiles_written(size, size + len(leaves))`. `tiles` has those of `edge(size)`. Raises BadTile, NotInTree."""
    if not 0 <= size <= MAX_TREE - len(leaves):
        raise NotInTree(f"{len(leaves)} leaves after {size} are more than any tree may have", "Start a new log")
    written: dict[Tile, bytes] = {}
    level, before, fresh = 0, size, list(leaves)
    while fresh:
        if before % FULL:
            fresh = split(read_tile(Tile(level, before >> HEIGHT, before % FULL), tiles)) + fresh
        above = []
        for number, at in enumerate(range(0, len(fresh), FULL), before >> HEIGHT):
            part = fresh[at : at + FULL]
            written[Tile(level, number, len(part))] = b"".join(part)
            if len(part) == FULL:
                above.append(subtree_root(part))
        level, before, fresh = level + 1, before >> HEIGHT, above
    return written


def frontier(size: int, tiles: Mapping[Tile, bytes]) -> Frontier:
    """The frontier (and so the root) of a stored tree, from the tiles of `edge(size)`. Raises BadTile."""
    hashes: list[bytes] = []
    for tile in reversed(edge(size)):
        rest, at = split(read_tile(tile, tiles)), 0
        for bit in reversed(range(HEIGHT)):
            if tile.width >> bit & 1:
                hashes.append(subtree_root(rest[at : at + (1 << bit)]))
                at += 1 << bit
    return Frontier(size, tuple(hashes))


# --- entries -------------------------------------------------------------------------------------
def encode_bundle(entries: Sequence[bytes]) -> bytes:
    """Up to 256 entries in a row, each after its length in 16 bits, big-endian. Raises Malformed."""
    if len(entries) > FULL:
        raise Malformed(f"a bundle of {len(entries)} entries: {FULL} is the most", "Begin the next bundle")
    for entry in entries:
        if len(entry) > MAX_LOG_ENTRY:
            raise Malformed(f"a log entry of {len(entry)} bytes: {MAX_LOG_ENTRY} is the most", "Log its hash instead")
    return b"".join(len(entry).to_bytes(2) + entry for entry in entries)


def decode_bundle(data: bytes) -> tuple[bytes, ...]:
    """The entries of a bundle. Raises Malformed."""
    entries, at = [], 0
    while at < len(data):
        begin = at + 2
        at = begin + int.from_bytes(data[at:begin])
        entries.append(data[begin:at])
        if at > len(data) or begin > len(data) or len(entries) > FULL:
            raise Malformed("an entry bundle that ends within an entry, or has too many", "Fetch it anew")
    return tuple(entries)


def grow_bundles(size: int, last: bytes, entries: Sequence[bytes]) -> dict[Bundle, bytes]:
    """What to write when `entries` follow a log of `size`: the bundles of `bundles_written`. `last` is the partial
    bundle of `size`, empty when there is none. Raises Malformed; BadTile when `last` is not of that size."""
    kept = decode_bundle(last)
    if len(kept) != size % FULL:
        raise BadTile(f"the last bundle of {size} entries: it has {len(kept)}", "Rebuild the log's entry bundles")
    fresh = [*kept, *entries]
    parts = (fresh[at : at + FULL] for at in range(0, len(fresh), FULL)) if entries else iter(())
    return {Bundle(number, len(part)): encode_bundle(part) for number, part in enumerate(parts, size >> HEIGHT)}
