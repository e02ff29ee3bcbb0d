"""A log with its keys and witnesses, small enough to be built anew in each test."""

from __future__ import annotations

from hashlib import sha256

from hypothesis import strategies as st

from relay.core.tlog import (
    COSIGNATURE,
    ED25519,
    AddCheckpoint,
    Checkpoint,
    Frontier,
    Note,
    SignerKey,
    Staple,
    Tile,
    Trust,
    consistency_proof,
    grow,
    inclusion_proof,
    leaf_hash,
)
from tests.relay.core.tlog import naive

ORIGIN = "norden.posthouse.example/log"
NOW = 1_790_000_000  # seconds


def key(name: str, kind: int = ED25519) -> SignerKey:
    """A key that its name determines."""
    return SignerKey(name, kind, sha256(name.encode()).digest())


LOG = key(ORIGIN)
WITNESSES = tuple(key(f"{region}.posthouse.example/witness", COSIGNATURE) for region in ("sauda", "vika", "lund"))


def trust(k: int, log: SignerKey = LOG, witnesses: tuple[SignerKey, ...] = WITNESSES) -> Trust:
    return Trust(log.verifier, tuple(witness.verifier for witness in witnesses), k)


class Book:
    """A log of these entries."""

    def __init__(self, entries: naive.Leaves, log: SignerKey = LOG) -> None:
        self.entries, self.log = entries, log
        self.hashes = [leaf_hash(entry) for entry in entries]

    def _at(self, size: int) -> dict[Tile, bytes]:
        return grow(0, {}, self.hashes[:size])

    def root(self, size: int) -> bytes:
        return Frontier().extend(self.hashes[:size]).root()

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(self.log.name, size, self.root(size))

    def note(self, size: int, witnesses: tuple[SignerKey, ...] = ()) -> Note:
        """Signed by the log and these witnesses."""
        note = self.checkpoint(size).sign(self.log)
        for number, witness in enumerate(witnesses):
            note = note.sign(witness, NOW + number)
        return note

    def request(self, old: int, new: int) -> AddCheckpoint:
        return AddCheckpoint(old, consistency_proof(old, new, self._at(new)), self.note(new))

    def staple(self, index: int, size: int, witnesses: tuple[SignerKey, ...] = WITNESSES) -> Staple:
        return Staple(index, inclusion_proof(index, size, self._at(size)), self.note(size, witnesses))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` with a stretch replaced by any bytes, or by another stretch of itself."""
    begin = draw(st.integers(0, len(data)))
    end = draw(st.integers(begin, min(len(data), begin + 60)))
    other = draw(st.integers(0, len(data)))
    stretch = draw(st.binary(max_size=8) | st.just(data[other : other + 100]) | st.sampled_from([b"\n", b"\n\n", b" "]))
    return data[:begin] + stretch + data[end:]
