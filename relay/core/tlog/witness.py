"""A witness: when one region stands by the log of another. (c2sp.org/tlog-witness, c2sp.org/tlog-cosignature.)

A witness remembers the newest checkpoint of each log and cosigns a further one only if that contains the remembered
one. So among honest witnesses a log has one history, and whoever asks for k cosignatures sees that one.

`consider` is the whole rule: what was seen, what is asked and the time go in; what is to be remembered and the
cosignature come out. The shell makes the first durable before it sends the second, and considers one request of a log
at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from relay.core.tlog.checkpoint import Checkpoint, Trust, fork, verify_checkpoint
from relay.core.tlog.errors import BadProof, Malformed, StaleProof, UnknownKey, UnsoundTrust
from relay.core.tlog.keys import COSIGNATURE, SignerKey, VerifierKey
from relay.core.tlog.note import Note, Signature, parse_note
from relay.core.tlog.text import base64, decimal, unbase64, utf8
from relay.core.tlog.tree import EMPTY_ROOT, contradicts, verify_consistency
from relay.errors import Rollback
from relay.limits import MAX_PROOF, MAX_SIGNED_NOTE

_OLD: Final = "old "
_FORM: Final = "Ask as c2sp.org/tlog-witness says"
_HEAD: Final = 4 * 1024  # bytes: `old`, a number and 63 hashes in base64 take 2,869


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """What a log asks of a witness: the size that it believes the witness saw last, the proof from there, and the new
    checkpoint. Its bytes are the body of tlog-witness's add-checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: Note

    def encode(self) -> bytes:
        """The request's bytes."""
        lines = [f"{_OLD}{self.old}", *map(base64, self.proof), "", ""]
        return "\n".join(lines).encode("ascii") + self.note.encode()


def parse_add_checkpoint(data: bytes) -> AddCheckpoint:
    """The parts of a request, of which nothing is verified. Raises Malformed."""
    end = data.find(b"\n\n")
    if not 0 <= end <= _HEAD or len(data) > _HEAD + MAX_SIGNED_NOTE:
        raise Malformed(f"add-checkpoint of {len(data)} bytes: too long, or without an empty line", _FORM)
    first, *proof = utf8(data[:end], "add-checkpoint").split("\n")
    if not first.startswith(_OLD) or len(proof) > MAX_PROOF:
        raise Malformed(f"add-checkpoint: no old size, or {len(proof)} proof lines", _FORM)
    old = decimal(first.removeprefix(_OLD), "old size of add-checkpoint")
    hashes = tuple(unbase64(line, "proof of add-checkpoint") for line in proof)
    return AddCheckpoint(old, hashes, parse_note(data[end + 2 :]))


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest checkpoint of a log that a witness stands by, the note as evidence, and when it said so (seconds)."""

    size: int
    root: bytes
    note: bytes
    time: int


def consider(
    seen: Seen | None, request: AddCheckpoint, log: VerifierKey | None, witness: SignerKey, now: int
) -> tuple[Seen, Signature]:
    """Cosign or refuse. `seen`: None before the first checkpoint. `log`: the key that we have for the log, None when it
    is unknown. `now` in seconds; a clock that went back does not make a cosignature older than the one before.

    Raises UnknownKey, BadSignature, Malformed: not a checkpoint of that log.
    Raises Fork: another root for the size that was seen, or a proof that the history before it changed; with evidence.
    Raises Rollback: a smaller tree than the one that was seen.
    Raises StaleProof: the proof starts elsewhere; `size` of it says where it must start. The log asks again.
    Raises BadProof: the proof does not connect the two trees. Either it is wrong or the log is."""
    if log is None:
        raise UnknownKey("checkpoint of a log that we have no key of", "Use the logs that the root document names")
    if witness.kind != COSIGNATURE or witness.verifier.public == log.public:
        raise UnsoundTrust(f"witness {witness.name}: the key of a log", "Make a key for cosignatures alone")
    checkpoint = verify_checkpoint(request.note, Trust(log, (), 0)).checkpoint
    size, root = (seen.size, seen.root) if seen else (0, EMPTY_ROOT)
    if seen and checkpoint.size == size and checkpoint.root != root:
        raise fork(checkpoint, parse_note(seen.note), request.note)
    if checkpoint.size < size:
        raise Rollback(
            f"log {log.name}: a checkpoint of {checkpoint.size} after one of {size}",
            "An old one sent late does no harm; if the log has no newer one, it was set back: stop federating with it",
        )
    if request.old != size:
        raise StaleProof(
            f"log {log.name}: a proof from {request.old}, the witness saw {size}", f"Ask with a proof from {size}", size
        )
    _check_history(seen, checkpoint, request)
    time = max(now, seen.time if seen else 0)
    cosigned = Signature(witness.name, witness.verifier.id, witness.sign(request.note.text, time))
    return Seen(checkpoint.size, checkpoint.root, _evidence(request.note, log).encode(), time), cosigned


def _check_history(seen: Seen | None, checkpoint: Checkpoint, request: AddCheckpoint) -> None:
    """Raises BadProof; Fork where the proof itself shows that the log has another history now."""
    size, root = (seen.size, seen.root) if seen else (0, EMPTY_ROOT)
    try:
        verify_consistency(size, checkpoint.size, root, checkpoint.root, request.proof)
    except BadProof:
        if seen and contradicts(size, checkpoint.size, root, checkpoint.root, request.proof):
            raise fork(checkpoint, parse_note(seen.note), request.note, request.proof) from None
        raise


def _evidence(note: Note, log: VerifierKey) -> Note:
    """The note with the log's own signature alone: what others added is not worth keeping."""
    return Note(note.text, tuple(line for line in note.signatures if (line.name, line.id) == (log.name, log.id)))
