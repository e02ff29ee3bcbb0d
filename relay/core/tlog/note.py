"""Signed notes: a text, an empty line, and a line for each signature. (c2sp.org/signed-note.)

Nothing of the text may be believed before a trusted key's signature was verified. Signatures of keys that we do not
know are passed over: that is how a log rotates its key, and how anybody may add a cosignature. A signature under the
name and id of a key that we know must hold, or the note is refused whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from relay.core.tlog.errors import Malformed, UnknownKey
from relay.core.tlog.keys import ID_BYTES, SignerKey, VerifierKey, check_name
from relay.core.tlog.text import base64, unbase64, utf8
from relay.limits import MAX_SIGNATURES, MAX_SIGNED_NOTE

_DASH: Final = "— "
_AGAIN: Final = "Fetch it anew; if it stays so, whoever made it is at fault"


@dataclass(frozen=True, slots=True)
class Signature:
    """One line: who says to have signed (name, key id), and the signature."""

    name: str
    id: bytes
    value: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {base64(self.id + self.value)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note. Parsed, not verified."""

    text: bytes
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """The note's bytes."""
        return self.text + b"\n" + encode_signatures(self.signatures)

    def sign(self, key: SignerKey, time: int = 0) -> Note:
        """With one more signature. `time` (seconds): for a witness's key."""
        return self.add([Signature(key.name, key.verifier.id, key.sign(self.text, time))])

    def add(self, signatures: Iterable[Signature]) -> Note:
        """With these signatures, too; one of the same name and key id takes the place of the one before."""
        by_key = {(signature.name, signature.id): signature for signature in (*self.signatures, *signatures)}
        return Note(self.text, tuple(by_key.values()))


def new_note(text: bytes, key: SignerKey) -> Note:
    """Sign a text, which ends with a newline. Raises Malformed when it cannot be a note's."""
    note = Note(text, ()).sign(key)
    if parse_note(note.encode()) != note:
        raise Malformed("a text that is not a note's", "It has to end with a newline")
    return note


def encode_signatures(signatures: Iterable[Signature]) -> bytes:
    """Signature lines, as a note ends with them and a witness answers."""
    return "".join(map(str, signatures)).encode("utf-8")


def parse_signatures(data: bytes) -> tuple[Signature, ...]:
    """One or more signature lines. Raises Malformed."""
    text = utf8(data[: MAX_SIGNED_NOTE + 1], "signatures")
    if len(data) > MAX_SIGNED_NOTE or not text.endswith("\n") or text.count("\n") > MAX_SIGNATURES:
        raise Malformed(
            f"signatures: {len(data)} bytes, {text.count(chr(10))} lines",
            f"1 to {MAX_SIGNATURES} whole lines and {MAX_SIGNED_NOTE} bytes are the most",
        )
    return tuple(_parse_line(line) for line in text[:-1].split("\n"))


def _parse_line(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH):
        raise Malformed("a signature line that does not begin with a dash", _AGAIN)
    check_name(name)
    data = unbase64(encoded, f"signature of {name}")
    if len(data) <= ID_BYTES:
        raise Malformed(f"signature of {name}: only {len(data)} bytes", _AGAIN)
    return Signature(name, data[:ID_BYTES], data[ID_BYTES:])


def parse_note(data: bytes) -> Note:
    """The parts of a note; `encode` gives the same bytes again. Raises Malformed."""
    end = data.rfind(b"\n\n")
    if len(data) > MAX_SIGNED_NOTE or end < 0:
        raise Malformed(f"a signed note of {len(data)} bytes: too long, or without an empty line", _AGAIN)
    utf8(data[: end + 1], "signed note")
    return Note(data[: end + 1], parse_signatures(data[end + 2 :]))


def signers(note: Note, keys: Iterable[VerifierKey]) -> dict[VerifierKey, int]:
    """Who of `keys` signed, each with the time that a cosignature states (0: a plain signature).

    Raises BadSignature when a line under one of these keys does not hold, even beside one that does. A key that signed
    more than once counts once, with the latest time."""
    known = {(key.name, key.id): key for key in keys}
    found: dict[VerifierKey, int] = {}
    for signature in note.signatures:
        if key := known.get((signature.name, signature.id)):
            found[key] = max(found.get(key, 0), key.verify(note.text, signature.value))
    return found


def open_note(data: bytes, keys: Iterable[VerifierKey]) -> tuple[Note, dict[VerifierKey, int]]:
    """Parse and verify: the note, and who of `keys` signed it. Raises Malformed, BadSignature; UnknownKey when none."""
    note = parse_note(data)
    found = signers(note, keys)
    if not found:
        names = ", ".join(sorted({signature.name for signature in note.signatures}))[:200]
        raise UnknownKey(f"a note signed by {names}: no key of ours", "Use the keys that the root document names")
    return note, found
