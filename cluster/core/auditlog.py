"""The audit log of a node or a registrar: lines of text, one an entry, each signed with all that was before it.

    line      = entry (JSON, one line) ‖ " " ‖ base64 of the signature ‖ "\\n"
    signature = Ed25519 over the C2SP checkpoint (origin, n + 1, root): the RFC 6962 tree of entries 0 to n

So every line carries the log's signed checkpoint at that place (`Place.checkpoint` writes it out as a note), an entry
and what seals it are one write, and no line can be changed, dropped, put in or moved without its signature, or the next
one's, not holding. The tail can be taken away: a log that was cut back to an older end is as whole as it was then, and
only who kept a newer checkpoint can tell (ADR 26). The form is the history tree of Crosby and Wallach (USENIX Security
2009), with a commitment after each entry.

A log is a row of files. Each begins with an entry `log`, which has what it takes to read on from there: the key, who
vouches for it, and the roots of the tree's complete subtrees. So an old file may be let go, and the chain is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from relay.core.tlog import (
    ED25519, Checkpoint, Frontier, Malformed, Note, Signature, SignerKey, VerifierKey, leaf_hash, verify_checkpoint,
    Trust, parse_note,
)  # fmt: skip
from relay.core.tlog.text import base64, unbase64
from relay.errors import BadSignature, TrustError
from relay.limits import MAX_AUDIT_LINE

FORMAT: Final = 1
PREFIX: Final = "posthouse.audit/"
REGISTRAR: Final = "registrar"  # whose log it is, after the region; no cell is called so
OPENING: Final = "log"  # the first entry of each file
LET_GO: Final = "log.let-go"  # older files were let go; `below`: the first entry that is kept
SEEN: Final = "seen"  # another log's checkpoint: what its process cannot take back while this one is kept
CONTRADICTION: Final = "seen.contradiction"  # what is wrong with such a one after the one before it
RUN: Final = "registrar.run"  # a registrar's process began, or ended
BEGUN, DONE, REFUSED, FAILED = "begun", "done", "refused", "failed"
About = dict[str, str | int | list[str]]


class AuditBroken(TrustError):
    """An audit log that is not what was written; the text says where."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who did what, when (UTC), and what came of it. `n` counts from 0; `outcome` is one of the words above, with a
    reason after "refused" and "failed"."""

    n: int
    at: str
    what: str
    who: str
    outcome: str
    about: About


class Opening(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`about` of a file's first entry. `tree`: the complete subtrees of all entries before it, base64, largest first.
    `certificate`: the node's (DER, base64); empty for a registrar, whose key the root document names."""

    format: int
    key: str
    certificate: str
    tree: list[str]


def origin_of(whose: str, log: bytes) -> str:
    """The name of a log, and of the key in its checkpoints. `whose`: REGION/CELL/NODE, or REGION/registrar."""
    return f"{PREFIX}{whose}/{log.hex()}"


def whose_log(origin: str) -> tuple[str, str]:
    """Whose log it is, and its id. Raises Malformed."""
    whose, _, log = origin.removeprefix(PREFIX).rpartition("/")
    if not origin.startswith(PREFIX) or not whose or not log:
        raise Malformed(f"{origin[:80]!r} is not the name of an audit log", f"It begins with {PREFIX}")
    return whose, log


def contradiction(before: Checkpoint, now: Checkpoint) -> str:
    """What is wrong when somebody signs the one after the other; empty where nothing is. That a longer log begins with
    the shorter one is not told by their checkpoints; `posthouse audit verify` looks."""
    if before.origin != now.origin:
        return f"another log, of {now.size} entries, in the place of one of {before.size}: lost, or taken away"
    if now.size < before.size:
        return f"{now.size} entries where there were {before.size}: the newest were taken away"
    return f"two histories of {now.size} entries" if now.size == before.size else ""


# --- writing -------------------------------------------------------------------------------------
def opening(tree: Frontier, key: VerifierKey, certificate: bytes) -> About:
    """What the first entry of a file says, after the entries in `tree`."""
    hashes = [base64(one) for one in tree.hashes]
    return {"format": FORMAT, "key": str(key), "certificate": base64(certificate) if certificate else "",
            "tree": hashes}  # fmt: skip


def write_line(tree: Frontier, entry: Entry, key: SignerKey) -> tuple[Frontier, bytes]:
    """The line of an entry that follows `tree`, and the tree with it. Raises Malformed for one that is too long."""
    data = msgspec.json.encode(entry)
    after = tree.extend([leaf_hash(data)])
    line = data + b" " + base64(key.sign(_text(key.verifier, after))).encode("ascii") + b"\n"
    if len(line) > MAX_AUDIT_LINE:
        raise Malformed(f"an audit entry of {len(line)} bytes", f"At most {MAX_AUDIT_LINE} are taken")
    return after, line


def _text(key: VerifierKey, tree: Frontier) -> bytes:
    return Checkpoint(key.name, tree.size, tree.root()).text()


# --- reading -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Place:
    """How far a log was read: its key, the tree of everything up to here, and the signature of the last line."""

    log: VerifierKey
    tree: Frontier
    signature: bytes = b""

    def checkpoint(self) -> Note:
        """The signed checkpoint at this place, as a note that any implementation of C2SP's verifies."""
        return Note(_text(self.log, self.tree), (Signature(self.log.name, self.log.id, self.signature),))

    def check(self) -> None:
        """The last line's signature holds, and with it everything before. Raises BadSignature."""
        self.log.verify(_text(self.log, self.tree), self.signature)


def read_opening(line: bytes) -> tuple[Place, bytes]:
    """Where the file stands that begins with this line, before it; and the certificate. Nothing is verified yet.
    Raises AuditBroken."""
    entry, _, _ = _parse(line)
    try:
        if entry.what != OPENING:
            raise AuditBroken(f"entry {entry.n} stands where a file of an audit log begins")
        about = msgspec.convert(entry.about, Opening)
        if about.format != FORMAT:
            raise AuditBroken(f"an audit log of format {about.format}", "Install the newer release")
        key = VerifierKey.parse(about.key)
        whose_log(key.name)
        hashes = tuple(unbase64(one, "tree of an audit log") for one in about.tree)
        if key.kind != ED25519 or entry.n.bit_count() != len(hashes) or any(len(one) != 32 for one in hashes):
            raise AuditBroken(f"entry {entry.n} does not say what was before it")
        certificate = unbase64(about.certificate, "certificate") if about.certificate else b""
    except (msgspec.ValidationError, Malformed) as error:
        raise AuditBroken(f"the beginning of a file of an audit log cannot be read: {error}") from None
    return Place(key, Frontier(entry.n, hashes)), certificate


def follow(place: Place, line: bytes, *, verify: bool = True) -> tuple[Place, Entry]:
    """One more line. Raises AuditBroken, in words. Without `verify` the signature is only kept: `Place.check` of the
    last line answers for all."""
    entry, data, signature = _parse(line)
    due = place.tree.size
    if entry.n > due:
        which = f"entry {due} is" if entry.n == due + 1 else f"entries {due} to {entry.n - 1} are"
        raise AuditBroken(f"{which} missing: entry {entry.n} stands in the place")
    if entry.n < due:
        raise AuditBroken(f"entry {entry.n} stands where entry {due} belongs: put in, or in another order")
    after = replace(place, tree=place.tree.extend([leaf_hash(data)]), signature=signature)
    if verify:
        try:
            after.check()
        except BadSignature:
            raise AuditBroken(f"entry {entry.n} is not the one that was signed") from None
    if entry.what == OPENING:
        _check_opening(place, line)
    return after, entry


def _check_opening(place: Place, line: bytes) -> None:
    begins, _ = read_opening(line)
    if (begins.log, begins.tree) != (place.log, place.tree):
        raise AuditBroken(f"the file that begins with entry {begins.tree.size} does not follow the entries before it")


def _parse(line: bytes) -> tuple[Entry, bytes, bytes]:
    data, _, signature = line.removesuffix(b"\n").rpartition(b" ")
    try:
        if len(line) > MAX_AUDIT_LINE or not line.endswith(b"\n"):
            raise Malformed("a line of another length")
        return msgspec.json.decode(data, type=Entry), data, unbase64(signature.decode("ascii"), "signature")
    except (msgspec.DecodeError, UnicodeDecodeError, Malformed) as error:
        raise AuditBroken(f"it cannot be read ({error})") from None


def lines_of(data: bytes) -> Iterator[bytes]:
    """The lines of a file, each with its end; the last one has none where an append was cut short."""
    begin = 0
    while begin < len(data):
        end = data.find(b"\n", begin) + 1 or len(data)
        yield data[begin:end]
        begin = end


# --- what others keep ----------------------------------------------------------------------------
@dataclass(frozen=True)
class Kept:
    """A checkpoint of a log that somebody else has, verified by the log's own key: `by` says who."""

    checkpoint: Checkpoint
    by: str


def verify_kept(data: bytes, log: VerifierKey, by: str) -> Kept:
    """A checkpoint that this log signed. Raises BadSignature, UnknownKey, Malformed."""
    return Kept(verify_checkpoint(parse_note(data), Trust(log, (), 0)).checkpoint, by)
