"""The log of a region, pure: a Merkle tree in tiles."""

from __future__ import annotations

from cluster.core.tlog.errors import BadProof, BadTile, LogError, Malformed, NotInTree
from cluster.core.tlog.proofs import consistency_proof, consistency_tiles, inclusion_proof, inclusion_tiles
from cluster.core.tlog.tiles import (
    Bundle, Tile, bundles_written, decode_bundle, edge, encode_bundle, frontier, grow, grow_bundles, parse_path,
    tile_at, tiles_written,
)
from cluster.core.tlog.tree import (
    EMPTY_ROOT, Frontier, leaf_hash, node_hash, root_of_inclusion, verify_consistency, verify_inclusion,
)

__all__ = [
    "EMPTY_ROOT", "Frontier", "leaf_hash", "node_hash", "root_of_inclusion", "verify_inclusion", "verify_consistency",
    "Tile", "Bundle", "parse_path", "tile_at", "edge", "tiles_written", "bundles_written", "grow", "grow_bundles",
    "frontier", "encode_bundle", "decode_bundle",
    "inclusion_tiles", "inclusion_proof", "consistency_tiles", "consistency_proof",
    "LogError", "Malformed", "BadProof", "NotInTree", "BadTile",
]  # fmt: skip
