"""Tiles: their names, what a growth writes, and proofs out of them."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.tlog import (
    BadTile,
    Bundle,
    LogError,
    Malformed,
    NotInTree,
    Tile,
    bundles_written,
    consistency_proof,
    consistency_tiles,
    decode_bundle,
    edge,
    encode_bundle,
    frontier,
    grow,
    grow_bundles,
    inclusion_proof,
    inclusion_proofs,
    inclusion_tiles,
    inclusion_tiles_of,
    leaf_hash,
    parse_path,
    tile_at,
    tiles_written,
    verify_consistency,
    verify_inclusion,
)
from relay.limits import MAX_LOG_ENTRY, MAX_TREE
from tests.relay.core.tlog import naive

MANY = 1_000_000
ENTRIES = naive.entries(1200)
HASHES = tuple(map(leaf_hash, ENTRIES))


def grown(*sizes: int) -> dict[Tile, bytes]:
    """All tiles of a log that grew in these steps; from each step only what `edge` names is read."""
    tiles: dict[Tile, bytes] = {}
    for old, new in pairwise((0, *sizes)):
        written = grow(old, {tile: tiles[tile] for tile in edge(old)}, HASHES[old:new])
        assert set(written) == set(tiles_written(old, new))
        tiles |= written
    return tiles


ALL = grown(*range(1, 1201))  # a checkpoint after each entry: every partial tile there can be


# --- names ---------------------------------------------------------------------------------------
def test_the_paths_of_the_specification() -> None:
    assert Tile(0, 1234067).path == "tile/0/x001/x234/067"
    assert Tile(0, 1234, 5).path == "tile/0/x001/234.p/5"
    assert Tile(2, 0, 1).path == "tile/2/000.p/1"
    assert Bundle(1234, 5).path == "tile/entries/x001/234.p/5"
    assert Bundle(999).path == "tile/entries/999"


@given(st.integers(0, 63), st.integers(0, MAX_TREE >> 8), st.integers(1, 256))
def test_a_path_names_what_it_came_from(level: int, number: int, width: int) -> None:
    for name in (Tile(level, number, width), Bundle(number, width)):
        assert parse_path(name.path) == name


@pytest.mark.parametrize("path", [
    "", "tile/0/000/", "tile/64/000", "tile/00/000", "tile/0/00", "tile/0/x000/001", "tile/0/001/234", "tile/0/x001",
    "tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p", "tile/0/000\n", "tile/0/٠٠٠",
    "tile/entries/x000/000", "tile/-1/000", "/tile/0/000", "tile/0/x999/x999/x999/x999/x999/x999/999",
])  # fmt: skip
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(Malformed):
        parse_path(path)


@given(st.text() | st.from_regex(r"tile/[0-9e]{1,3}/(x?[0-9]{3}/?){0,4}(\.p/[0-9]{0,4})?"))
def test_any_path_is_named_or_refused(path: str) -> None:
    with suppress(Malformed):
        assert parse_path(path).path == path


# --- which tiles a tree has ----------------------------------------------------------------------
def test_the_example_of_the_specification() -> None:
    tiles = list(tiles_written(0, 70_000))
    assert [tile for tile in tiles if tile.width < 256] == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert [tile for tile in tiles if tile.width == 256] == [*(Tile(0, number) for number in range(273)), Tile(1, 0)]
    assert edge(70_000) == (Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1))
    assert list(tiles_written(0, 256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert [bundle.path for bundle in bundles_written(255, 257)] == ["tile/entries/000", "tile/entries/001.p/1"]
    assert edge(0) == () and list(tiles_written(7, 7)) == []


@given(st.lists(st.integers(0, 1200), min_size=1, max_size=5, unique=True).map(sorted))
def test_however_it_grew_a_tile_is_what_the_definition_says(sizes: list[int]) -> None:
    for tile, data in grown(*sizes).items():
        span = 256**tile.level
        first = tile.number * 256
        roots = [naive.mth(ENTRIES[at * span : (at + 1) * span]) for at in range(first, first + tile.width)]
        assert data == b"".join(roots) == ALL[tile]


@given(st.integers(0, 1200))
def test_the_edge_gives_the_root(size: int) -> None:
    found = frontier(size, {tile: ALL[tile] for tile in edge(size)})
    assert (found.size, found.root()) == (size, naive.mth(ENTRIES[:size]))


def test_tiles_that_are_not_as_they_must_be() -> None:
    tiles = {tile: ALL[tile] for tile in edge(700)}
    first = edge(700)[0]
    for broken in ({}, {first: b""}, {first: ALL[first][:-1]}, {first: ALL[first] + b"x"}, {first: bytes(257 * 32)}):
        with pytest.raises(BadTile, match=r"tile/0/002\.p/188"):
            frontier(700, {**tiles, first: b"", **broken})
        with pytest.raises(BadTile):
            grow(700, broken, HASHES[:1])
    wider = {**tiles, first: ALL[Tile(0, 2)]}  # will do
    assert frontier(700, wider).root() == naive.mth(ENTRIES[:700])
    assert grow(700, wider, HASHES[700:710]) == grow(700, tiles, HASHES[700:710])
    for level, number, size in ((0, 3, 700), (1, 0, 255), (0, -1, 700)):
        with pytest.raises(NotInTree):
            tile_at(level, number, size)
    for size in (-1, MAX_TREE):
        with pytest.raises(NotInTree):
            grow(size, {}, HASHES[:1])


# --- proofs --------------------------------------------------------------------------------------
@given(st.integers(1, 1200).flatmap(lambda size: st.tuples(st.just(size), st.lists(st.integers(0, size - 1)))))
def test_proofs_together_are_the_proofs_one_by_one(what: tuple[int, list[int]]) -> None:
    size, indexes = what
    wanted = inclusion_tiles_of(indexes, size)
    assert set(wanted) == {tile for index in indexes for tile in inclusion_tiles(index, size)}
    one_by_one = [inclusion_proof(index, size, ALL) for index in indexes]
    assert inclusion_proofs(indexes, size, {tile: ALL[tile] for tile in wanted}) == one_by_one


@given(st.integers(1, 1200).flatmap(lambda size: st.tuples(st.integers(0, size - 1), st.just(size))))
def test_inclusion_proofs_are_the_naive_ones_and_hold(where: tuple[int, int]) -> None:
    index, size = where
    proof = inclusion_proof(index, size, {tile: ALL[tile] for tile in inclusion_tiles(index, size)})
    assert proof == naive.path(index, ENTRIES[:size])
    verify_inclusion(HASHES[index], index, size, proof, naive.mth(ENTRIES[:size]))


@given(st.integers(0, 1200).flatmap(lambda new: st.tuples(st.integers(0, new), st.just(new))))
def test_consistency_proofs_are_the_naive_ones_and_hold(where: tuple[int, int]) -> None:
    old, new = where
    proof = consistency_proof(old, new, {tile: ALL[tile] for tile in consistency_tiles(old, new)})
    assert proof == (naive.proof(old, ENTRIES[:new]) if old else ())
    verify_consistency(old, new, naive.mth(ENTRIES[:old]), naive.mth(ENTRIES[:new]), proof)


def test_proofs_ask_for_their_tiles() -> None:
    with pytest.raises(BadTile):
        inclusion_proof(5, 700, {})
    with pytest.raises(BadTile):
        consistency_proof(5, 700, {})
    for index, size in ((700, 700), (-1, 5), (0, 0), (0, MAX_TREE + 1)):
        with pytest.raises(NotInTree):
            inclusion_tiles(index, size)
    for old, new in ((6, 5), (-1, 5), (0, MAX_TREE + 1)):
        with pytest.raises(NotInTree):
            consistency_tiles(old, new)
    assert len(inclusion_tiles(0, MAX_TREE)) <= 16


@given(st.integers(0, MANY - 1), st.integers(1, MAX_TREE), st.integers(0, MAX_TREE))
def test_a_proof_reads_two_tiles_a_level_at_most(index: int, size: int, other: int) -> None:
    assert len(inclusion_tiles(index, MANY)) <= 6
    levels = -(-size.bit_length() // 8)
    for tiles in (inclusion_tiles(other % size, size), consistency_tiles(other % size, size)):
        assert len(tiles) <= 2 * levels
        assert all(tile == tile_at(tile.level, tile.number, size) for tile in tiles)


def test_a_log_of_a_million() -> None:
    """Built in three steps; a proof of any entry reads at most six of its 3,924 tiles."""
    hashes = [leaf_hash(b"%d" % number) for number in range(MANY)]
    tiles: dict[Tile, bytes] = {}
    sizes = (0, 999_000, 999_700, MANY)
    for old, new in pairwise(sizes):
        tiles |= grow(old, tiles, hashes[old:new])
    roots = {size: frontier(size, tiles).root() for size in sizes}
    assert len(list(tiles_written(0, MANY))) == 3_924
    for index in (0, 255, 256, 65_535, 65_536, 524_287, 524_288, 999_423, 999_424, 999_935, 999_936, MANY - 1):
        read = {tile: tiles[tile] for tile in inclusion_tiles(index, MANY)}
        assert len(read) <= 6
        verify_inclusion(hashes[index], index, MANY, inclusion_proof(index, MANY, read), roots[MANY])
    for old in sizes:
        read = {tile: tiles[tile] for tile in consistency_tiles(old, MANY)}
        verify_consistency(old, MANY, roots[old], roots[MANY], consistency_proof(old, MANY, read))


# --- entries -------------------------------------------------------------------------------------
@given(st.lists(st.binary(max_size=300), max_size=256))
def test_a_bundle_gives_its_entries_again(entries: list[bytes]) -> None:
    assert decode_bundle(encode_bundle(entries)) == tuple(entries)


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_bundle_or_malformed(data: bytes) -> None:
    try:
        assert encode_bundle(decode_bundle(data)) == data
    except LogError as error:
        assert isinstance(error, Malformed)


def test_bundles_have_bounds() -> None:
    assert encode_bundle([b"", b"ab"]).hex() == "000000026162"
    for entries in ([bytes(MAX_LOG_ENTRY + 1)], [b""] * 257):
        with pytest.raises(Malformed):
            encode_bundle(entries)
    for data in (b"\x00", b"\x00\x02a", bytes(2 * 257)):
        with pytest.raises(Malformed):
            decode_bundle(data)


@given(st.lists(st.integers(0, 1200), min_size=1, max_size=5, unique=True).map(sorted))
def test_bundles_lie_as_the_tiles_of_level_0(sizes: list[int]) -> None:
    bundles: dict[Bundle, bytes] = {}
    for old, new in pairwise((0, *sizes)):
        last = bundles[Bundle(old >> 8, old % 256)] if old % 256 else b""
        written = grow_bundles(old, last, ENTRIES[old:new])
        assert set(written) == set(bundles_written(old, new))
        bundles |= written
    for bundle, data in bundles.items():
        hashes = b"".join(map(leaf_hash, decode_bundle(data)))
        assert hashes == ALL[Tile(0, bundle.number, bundle.width)]
    with pytest.raises(BadTile):
        grow_bundles(5, b"", ENTRIES[:1])
