"""The proof that a log forked: what whoever has it can show, and everybody can verify offline by the log's key alone.

Two checkpoints that the log signed. Of one size they have two roots. Of two sizes there is a consistency proof beside
them that leads to the newer root and makes another older one than was signed (`tree.contradicts`).
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import Hash
from relay.core.tlog.checkpoint import Trust, check_same_log, fork, parse_checkpoint, verify_checkpoint
from relay.core.tlog.errors import BadProof, Fork, Malformed
from relay.core.tlog.keys import VerifierKey
from relay.core.tlog.note import Note, parse_note
from relay.core.tlog.tree import contradicts
from relay.errors import ProtocolError
from relay.limits import KIB, MAX_FORKS, MAX_PROOF

MAX_FORK: Final = 8 * KIB  # bytes of one proof: two notes with one signature each (1 KiB at most), and 64 hashes
_NoteBytes = Annotated[bytes, Meta(max_length=2 * KIB)]


class ForkProof(Struct, frozen=True):
    """Both notes, the older one first, and, where their sizes differ, the consistency proof."""

    first: _NoteBytes
    second: _NoteBytes
    proof: Annotated[tuple[Hash, ...], Meta(max_length=MAX_PROOF + 1)]


_read: Decoder[ForkProof] = Decoder(ForkProof, "proof of a fork", MAX_FORK)
_read_all: Decoder[tuple[bytes, ...]] = Decoder(tuple[bytes, ...], "proofs of forks", MAX_FORKS * (MAX_FORK + 8))


def encode_fork(found: Fork, log: VerifierKey) -> bytes:
    """What others verify: of the notes the log's own signatures only."""
    notes = (parse_note(note) for note in (found.first, found.second))
    lines = ((note, [one for one in note.signatures if (one.name, one.id) == (log.name, log.id)]) for note in notes)
    first, second = (Note(note.text, tuple(signed)).encode() for note, signed in lines)
    return encode(ForkProof(first, second, found.proof))


def origin_of_fork(data: bytes) -> str:
    """The log that a proof claims to be about. Raises Malformed."""
    return parse_checkpoint(parse_note(_parse(data).first).text).origin


def verify_fork(data: bytes, log: VerifierKey) -> Fork:
    """The log signed two histories: this proves it. Raises Malformed; UnknownKey and BadSignature where it is not that
    log, with that key, that signed; BadProof where the two do not contradict each other."""
    shown = _parse(data)
    first, second = parse_note(shown.first), parse_note(shown.second)
    old, new = (verify_checkpoint(note, Trust(log, (), 0)).checkpoint for note in (first, second))
    if shown.proof and contradicts(old.size, new.size, old.root, new.root, shown.proof):
        return fork(new, first, second, shown.proof)
    if not shown.proof:
        try:
            check_same_log(first, second, log)
        except Fork as found:
            return found
    raise BadProof(f"log {log.name}: checkpoints at {old.size} and {new.size} that do not contradict each other")


def read_forks(data: bytes) -> tuple[bytes, ...]:
    """The proofs that a registrar shows, none of them verified. Raises Malformed."""
    try:
        return _read_all(data)
    except ProtocolError as error:
        raise Malformed(error.text, "Ask again; if it stays so, that registrar is at fault") from None


def _parse(data: bytes) -> ForkProof:
    try:
        return _read(data)
    except ProtocolError as error:
        raise Malformed(error.text, "It proves nothing") from None
