"""The log of a region, pure: a Merkle tree in tiles, signed checkpoints, witnesses, proofs that travel with a record.

    read, then append   tiles = {tile: stored for tile in edge(size)}
                        write grow(size, tiles, leaves) and grow_bundles(size, last, entries)
                        frontier(size, tiles).extend(leaves).root() is the new root
    publish             Checkpoint(origin, size, root).sign(log_key), to each witness as AddCheckpoint
    witness             consider(seen, request, log, witness, now): remember, then answer
    prove               Staple(index, inclusion_proof(…), note with cosignatures)
    verify, offline     verify_staple(data, entry, trust)

All formats are published ones: RFC 6962 and C2SP's signed-note, tlog-checkpoint, tlog-cosignature, tlog-tiles,
tlog-witness and tlog-proof ([ADR 17](../../../docs/adr/0017-region-logs-in-c2sp-formats.md)). Whatever the bytes, what
is raised is of errors.py.
"""

from __future__ import annotations

from relay.core.tlog.checkpoint import (
    Checkpoint,
    Opened,
    Trust,
    check_same_log,
    open_checkpoint,
    parse_checkpoint,
    verify_checkpoint,
)
from relay.core.tlog.errors import (
    BadProof,
    BadTile,
    Fork,
    LogError,
    Malformed,
    NotInTree,
    NotLogged,
    OldEpoch,
    StaleCheckpoint,
    StaleProof,
    TooFewWitnesses,
    UnknownKey,
    UnsoundTrust,
)
from relay.core.tlog.forks import encode_fork, origin_of_fork, read_forks, verify_fork
from relay.core.tlog.keys import COSIGNATURE, ED25519, SignerKey, VerifierKey
from relay.core.tlog.note import Note, Signature, new_note, open_note, parse_note, parse_signatures, signers
from relay.core.tlog.proofs import (
    consistency_proof,
    consistency_tiles,
    contradiction_proof,
    contradiction_tiles,
    inclusion_proof,
    inclusion_proofs,
    inclusion_tiles,
    inclusion_tiles_of,
)
from relay.core.tlog.staple import Proven, Staple, parse_staple, verify_staple
from relay.core.tlog.tiles import (
    Bundle,
    Tile,
    bundles_written,
    decode_bundle,
    edge,
    encode_bundle,
    frontier,
    grow,
    grow_bundles,
    parse_path,
    tile_at,
    tiles_written,
)
from relay.core.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    contradicts,
    leaf_hash,
    node_hash,
    root_of_inclusion,
    verify_consistency,
    verify_inclusion,
)
from relay.core.tlog.witness import AddCheckpoint, Seen, consider, parse_add_checkpoint

__all__ = [
    "EMPTY_ROOT", "Frontier", "leaf_hash", "node_hash", "root_of_inclusion", "verify_inclusion", "verify_consistency",
    "contradicts",
    "Tile", "Bundle", "parse_path", "tile_at", "edge", "tiles_written", "bundles_written", "grow", "grow_bundles",
    "frontier", "encode_bundle", "decode_bundle",
    "inclusion_tiles", "inclusion_tiles_of", "inclusion_proof", "inclusion_proofs", "consistency_tiles",
    "consistency_proof",
    "contradiction_tiles", "contradiction_proof",
    "ED25519", "COSIGNATURE", "SignerKey", "VerifierKey",
    "Note", "Signature", "new_note", "parse_note", "parse_signatures", "open_note", "signers",
    "Checkpoint", "Opened", "Trust", "parse_checkpoint", "open_checkpoint", "verify_checkpoint", "check_same_log",
    "AddCheckpoint", "Seen", "consider", "parse_add_checkpoint",
    "encode_fork", "verify_fork", "origin_of_fork", "read_forks",
    "Staple", "Proven", "parse_staple", "verify_staple",
    "LogError", "Malformed", "UnknownKey", "TooFewWitnesses", "BadProof", "Fork", "StaleProof", "NotInTree", "BadTile",
    "UnsoundTrust", "StaleCheckpoint", "OldEpoch", "NotLogged",
]  # fmt: skip
