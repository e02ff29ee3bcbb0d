"""The part of docs/vectors.json about the region's log: home records with their proofs, and a release."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from msgspec import structs
from nacl.signing import SigningKey

from cluster.core.homelog import EpochEntry, release_entry
from relay.core import trust
from relay.core.codec import encode, pack
from relay.core.tlog import (
    COSIGNATURE, ED25519, Checkpoint, Frontier, Note, SignerKey, Staple, grow, inclusion_proof, leaf_hash,
)  # fmt: skip

OTHER_REGISTRAR = SigningKey(bytes([14]) * 32)  # birch's, where amber's user moves to
LOGS: Final = {name: SignerKey(f"{name}.example/log", ED25519, bytes([seed]) * 32)
               for name, seed in (("amber", 15), ("birch", 16))}  # fmt: skip
WITNESSES: Final = [SignerKey(f"{name}.example/witness", COSIGNATURE, bytes([seed]) * 32)
                    for name, seed in (("cedar", 17), ("dune", 18))]  # fmt: skip
QUORUM: Final = 2


def _note(region: str, entries: Sequence[bytes], at: int) -> Note:
    """The checkpoint over these entries, cosigned by both witnesses at `at` (Unix s)."""
    log, tree = LOGS[region], Frontier().extend([leaf_hash(entry) for entry in entries])
    note = Checkpoint(log.name, len(entries), tree.root()).sign(log)
    for later, witness in enumerate(WITNESSES):
        note = note.sign(witness, at + later)
    return note


def _proven(what: str, region: str, entries: Sequence[bytes], index: int, data: bytes, at: int) -> dict[str, Any]:
    """What is at `index`, with its staple: `data` is what travels with it."""
    hashes = [leaf_hash(entry) for entry in entries]
    staple = Staple(index, inclusion_proof(index, len(entries), grow(0, {}, hashes)), _note(region, entries, at))
    stapled = trust.staple_home(data, staple.encode())
    return {
        "what": what, "log": str(LOGS[region].verifier), "witnesses": [str(one.verifier) for one in WITNESSES],
        "quorum": QUORUM, "entries": [entry.hex() for entry in entries], "index": index,
        "leaf_hash": hashes[index].hex(), "signed": data.hex(), "staple": staple.encode().decode(),
        "stapled": stapled.hex(),
    }  # fmt: skip


def moved(last: trust.HomeRecord, user_key: SigningKey, release_key: SigningKey) -> tuple[bytes, bytes]:
    """The version after `last`, to birch/1: the released request, and the signed record."""
    payload = structs.replace(
        last.payload, user=last.user, version=last.version + 1, prev=last.digest, region="birch", cell="birch/1",
        move_epoch=last.payload.move_epoch + 1,
    )  # fmt: skip
    data = encode(payload)
    released = pack([data, trust.ask_home(data, user_key), trust.release_home(data, release_key)])
    return released, trust.sign_home(payload, user_key, OTHER_REGISTRAR, release_key)


def region_logs(signed: bytes, user_key: SigningKey, registrar: SigningKey, now_ms: int) -> list[dict[str, Any]]:
    """A first record in amber's log; the release from there; and the record of the move in the log of birch, which has
    the first one, too. The maps' roots are zeros: a proof of inclusion does not look at them."""
    first, at = trust.read_home(signed), now_ms // 1000
    released, record = moved(first, user_key, registrar)
    epochs = [encode(EpochEntry(number, bytes(32), users, now_ms)) for number, users in ((0, 0), (1, 1), (2, 1))]
    amber = [epochs[0], trust.home_entry(signed), epochs[1], release_entry(released), epochs[2]]
    birch = [epochs[0], trust.home_entry(signed), trust.home_entry(record), epochs[1]]
    return [
        _proven("home record, version 1, in amber's log", "amber", amber[:3], 1, signed, at),
        _proven("released request, in the log of amber, which is left", "amber", amber, 3, released, at + 60),
        _proven("home record, version 2, moved, in the log of birch", "birch", birch, 2, record, at + 120)
        | {"registrar_key_seed": bytes(OTHER_REGISTRAR).hex()},
    ]
