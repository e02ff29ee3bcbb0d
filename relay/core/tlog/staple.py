"""Stapled proofs: that an entry is in a log which k witnesses stand by, verified offline. (c2sp.org/tlog-proof, v1.)

A staple is an index, the inclusion proof and the signed, cosigned checkpoint. It travels with the record; the entry's
bytes are the record, so they are not in it. With 1,000,000 entries and three witnesses it has about 1.6 KiB.

The optional `extra` line of the format is not signed by anybody and we have no use for it: it is refused, so that a
staple has one form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.core.tlog.checkpoint import Checkpoint, Trust, verify_checkpoint
from relay.core.tlog.errors import Malformed
from relay.core.tlog.note import Note, parse_note
from relay.core.tlog.text import base64, decimal, unbase64, utf8
from relay.core.tlog.tree import HASH, leaf_hash, verify_inclusion
from relay.limits import MAX_PROOF, MAX_STAPLE

_FIRST: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = "index "
_AGAIN: Final = "Ask the record's region for it anew"


@dataclass(frozen=True, slots=True)
class Staple:
    """A proof that travels with a record. Parsed, not verified."""

    index: int
    proof: tuple[bytes, ...]
    note: Note

    def encode(self) -> bytes:
        """The staple's bytes. Raises Malformed when they are more than MAX_STAPLE."""
        lines = [_FIRST, f"{_INDEX}{self.index}", *map(base64, self.proof), "", ""]
        data = "\n".join(lines).encode("ascii") + self.note.encode()
        if len(data) > MAX_STAPLE:
            raise Malformed(f"a staple of {len(data)} bytes: {MAX_STAPLE} is the most", "Leave out cosignatures")
        return data


def parse_staple(data: bytes) -> Staple:
    """The parts of a staple; `encode` gives the same bytes again. Raises Malformed."""
    end = data.find(b"\n\n")
    if len(data) > MAX_STAPLE or end < 0:
        raise Malformed(f"a staple of {len(data)} bytes: too long, or without an empty line", _AGAIN)
    first, *lines = utf8(data[:end], "staple").split("\n")
    if first != _FIRST or not lines or not lines[0].startswith(_INDEX) or len(lines) > 1 + MAX_PROOF:
        raise Malformed("a staple of another form or version", _AGAIN)
    index = decimal(lines[0].removeprefix(_INDEX), "index of a staple")
    proof = tuple(unbase64(line, "proof of a staple") for line in lines[1:])
    if any(len(part) != HASH for part in proof):
        raise Malformed("proof of a staple: a hash of another length", _AGAIN)
    return Staple(index, proof, parse_note(data[end + 2 :]))


@dataclass(frozen=True, slots=True)
class Proven:
    """An entry stands at `index` of the log, at `checkpoint`; `times`: when each witness said so (seconds)."""

    index: int
    checkpoint: Checkpoint
    times: dict[str, int]


def verify_staple(data: bytes, entry: bytes, trust: Trust) -> Proven:
    """Verify that `entry` is in the log that `trust` is about, by k witnesses. Offline; nothing else is asked.

    Raises Malformed, BadSignature, UnknownKey, TooFewWitnesses, NotInTree, BadProof. How old a checkpoint may be is the
    caller's rule: it has the `times`."""
    staple = parse_staple(data)
    opened = verify_checkpoint(staple.note, trust)
    checkpoint = opened.checkpoint
    verify_inclusion(leaf_hash(entry), staple.index, checkpoint.size, staple.proof, checkpoint.root)
    return Proven(staple.index, checkpoint, opened.times)
