"""Checkpoints: what a log says it is, signed; and whom to believe. (c2sp.org/tlog-checkpoint, c2sp.org/tlog-policy.)

The text of a checkpoint is the log's origin, its size and its root, a line each, and perhaps lines that mean something
to others. The key of one of our logs has the origin as its name, so a signature cannot be used for another log.
"""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.tlog.errors import Fork, Malformed, TooFewWitnesses, UnknownKey, UnsoundTrust
from relay.core.tlog.keys import COSIGNATURE, ED25519, SignerKey, VerifierKey
from relay.core.tlog.note import Note, new_note, parse_note, signers
from relay.core.tlog.text import base64, decimal, is_line, unbase64, utf8
from relay.core.tlog.tree import HASH
from relay.limits import MAX_KEY_NAME, MAX_SIGNED_NOTE, MAX_TREE


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A log's size and root. Raises Malformed when it is built of what cannot be one."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        lines = all(is_line(line, MAX_SIGNED_NOTE) for line in self.extensions) and is_line(self.origin, MAX_KEY_NAME)
        if not lines or not 0 <= self.size <= MAX_TREE or len(self.root) != HASH:
            raise Malformed(
                f"checkpoint of {self.origin[:80]!r}: size {self.size}, root of {len(self.root)} bytes",
                f"It has a size, a root of {HASH} bytes and lines that are neither empty nor more than one",
            )

    def text(self) -> bytes:
        """The note's text: what is signed."""
        lines = (self.origin, str(self.size), base64(self.root), *self.extensions, "")
        return "\n".join(lines).encode("utf-8")

    def sign(self, log: SignerKey) -> Note:
        """Signed by the log, whose key is named after it. Raises UnsoundTrust for another key."""
        if log.name != self.origin or log.kind != ED25519:
            raise UnsoundTrust(f"checkpoint of {self.origin}: {log.name} has not this log's key", "Sign with that")
        return new_note(self.text(), log)


def parse_checkpoint(text: bytes) -> Checkpoint:
    """From a note's text, whoever signed it. Raises Malformed."""
    lines = utf8(text, "checkpoint").split("\n")
    if len(lines) < 4 or lines[-1]:
        raise Malformed(f"checkpoint: {len(lines) - 1} whole lines", "Origin, size and root are a line each")
    origin, size, root, *extensions = lines[:-1]
    what = f"checkpoint of {origin[:80]!r}"
    return Checkpoint(origin, decimal(size, f"{what}, size"), unbase64(root, f"{what}, root"), tuple(extensions))


@dataclass(frozen=True)
class Trust:
    """Whom to believe about one log: its own key, and at least `k` of the witnesses.

    Witnesses count by name, so that one with two keys (it rotates) counts once. Raises UnsoundTrust for a rule that
    says less than it seems to: k out of reach, one key under two names, the log as its own witness."""

    log: VerifierKey
    witnesses: tuple[VerifierKey, ...]
    k: int

    def __post_init__(self) -> None:
        names = {key.name for key in self.witnesses}
        keys = {key.public for key in self.witnesses}
        problem = ""
        if self.log.kind != ED25519 or any(key.kind != COSIGNATURE for key in self.witnesses):
            problem = "a log signs with a key of kind 1, a witness with one of kind 4"
        elif len(keys) != len(self.witnesses):
            problem = "a witness's key is there twice"
        elif self.log.name in names or self.log.public in keys:
            problem = "the log is its own witness"
        elif not 0 <= self.k <= len(names):
            problem = f"{self.k} of {len(names)} witnesses can never be had"
        if problem:
            raise UnsoundTrust(f"trust in {self.log.name}: {problem}", "Correct the log's entry in the root document")


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified checkpoint. `times`: for each witness that stands by it, when it last said so (seconds)."""

    checkpoint: Checkpoint
    note: Note
    times: dict[str, int]


def open_checkpoint(data: bytes, trust: Trust) -> Opened:
    """Verify a signed checkpoint. Raises Malformed, BadSignature, UnknownKey (not this log's), TooFewWitnesses."""
    return verify_checkpoint(parse_note(data), trust)


def verify_checkpoint(note: Note, trust: Trust) -> Opened:
    """The same for a note that is parsed already."""
    found = signers(note, (trust.log, *trust.witnesses))
    if trust.log not in found:
        raise UnknownKey(
            f"checkpoint: not signed by {trust.log.name} ({trust.log.id.hex()})",
            "It belongs to another log, or the log's key has changed; look into the root document",
        )
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != trust.log.name:
        raise UnknownKey(
            f"checkpoint of {checkpoint.origin!r}, signed by {trust.log.name}: that is another log", "Do not use it"
        )
    times: dict[str, int] = {}
    for key, time in found.items():
        if key is not trust.log:
            times[key.name] = max(time, times.get(key.name, 0))
    if len(times) < trust.k:
        raise TooFewWitnesses(
            f"checkpoint of {checkpoint.origin} at {checkpoint.size}: {len(times)} of {trust.k} witnesses",
            "Wait for the other regions to cosign it, or take an older one that they have",
        )
    return Opened(checkpoint, note, times)


def check_same_log(first: Note, second: Note, log: VerifierKey) -> None:
    """Two checkpoints that `log` signed do not contradict each other by themselves. Raises Fork, with both as evidence,
    when they have one size and two roots; what `verify_checkpoint` raises when one of them is not the log's at all.

    Of different sizes only a consistency proof tells; gossip of what others saw needs no more than this."""
    trust = Trust(log, (), 0)
    one, other = (verify_checkpoint(note, trust).checkpoint for note in (first, second))
    if one.size == other.size and one.root != other.root:
        raise fork(one, first, second)


def fork(checkpoint: Checkpoint, first: Note, second: Note, proof: tuple[bytes, ...] = ()) -> Fork:
    """The error that carries the evidence. `proof`: from the first to the second, which contradicts it."""
    what = f"two histories up to size {checkpoint.size}" if proof else f"two roots of size {checkpoint.size}"
    return Fork(
        f"log {checkpoint.origin}: {what}, both signed",
        "Stop federating with that region and show both checkpoints to the others",
        first.encode(),
        second.encode(),
        proof,
    )
