"""Keys of signed notes and what they sign. (c2sp.org/signed-note, c2sp.org/tlog-cosignature.)

A key has a name and a kind besides its bytes; the key id, four bytes in front of each signature, is a hash over all
three. Two kinds are known here: a log signs the text of a note as it is, a witness signs it after two lines of its
own, which say the time (`cosignature/v1`). Ed25519 (RFC 8032) both times. Signatures of other kinds are passed over in
a note, and refused as keys: nobody can configure a trust that is never checked.

As strings: `name+id+base64(kind, public key)` for who verifies, and, in the manner of Go's sumdb/note,
`PRIVATE+KEY+name+id+base64(kind, seed)` for who signs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Final

from nacl.exceptions import BadSignatureError
from nacl.signing import SigningKey, VerifyKey

from relay.core.tlog.errors import Malformed
from relay.core.tlog.text import base64, is_line, unbase64
from relay.errors import BadSignature
from relay.limits import MAX_KEY_NAME, MAX_TREE

ED25519: Final = 0x01  # signs the note's text: a log
COSIGNATURE: Final = 0x04  # signs the time and the text: a witness
ID_BYTES: Final = 4
_KEY_BYTES, _TIME_BYTES, _SIGNATURE_BYTES = 32, 8, 64
_PRIVATE: Final = "PRIVATE+KEY+"
_NO_NAME: Final = re.compile(r"[\s+]")  # any space that Unicode knows
_KINDS: Final = {ED25519: "Ed25519", COSIGNATURE: "cosignature/v1"}


def check_name(name: str) -> None:
    """A key's name has no spaces, no plus and no control characters. Raises Malformed."""
    if _NO_NAME.search(name) or not is_line(name, MAX_KEY_NAME):
        raise Malformed(
            f"key name {name[:80]!r}: it must have 1 to {MAX_KEY_NAME} bytes, no spaces and no plus",
            "Name a key as a URL without its scheme",
        )


def key_id(name: str, kind: int, public: bytes) -> bytes:
    """Four bytes that, with the name, say which key signed. No protection by itself."""
    return sha256(name.encode("utf-8") + b"\n" + bytes([kind]) + public).digest()[:ID_BYTES]


@dataclass(frozen=True)
class VerifierKey:
    """A public key with its name and kind. Raises Malformed when it is built of anything else."""

    name: str
    kind: int
    public: bytes

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.kind not in _KINDS or len(self.public) != _KEY_BYTES:
            raise Malformed(
                f"key {self.name}: kind {self.kind}, {len(self.public)} bytes",
                f"Known are {' and '.join(_KINDS.values())}, of {_KEY_BYTES} bytes",
            )

    @cached_property
    def id(self) -> bytes:
        """The key id."""
        return key_id(self.name, self.kind, self.public)

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """From its string. Raises Malformed."""
        name, hexadecimal, material = _parts(text, "verifier key")
        key = cls(name, material[0], material[1:])
        if key.id.hex() != hexadecimal:
            raise Malformed(f"verifier key {name}: its id is {key.id.hex()}", "It was miscopied; copy it anew")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64(bytes([self.kind]) + self.public)}"

    def verify(self, text: bytes, signature: bytes) -> int:
        """The signature (without key id) over a note's text holds. Returns the time that a cosignature states, in
        seconds of the Unix epoch, and 0 for a log's signature. Raises BadSignature."""
        timed = self.kind == COSIGNATURE
        begin = _TIME_BYTES if timed else 0
        time = int.from_bytes(signature[:begin])
        try:
            if time > MAX_TREE:
                raise ValueError("a time beyond 2**63 - 1")
            message = cosigned_message(text, time) if timed else text
            VerifyKey(self.public).verify(message, signature[begin:])
        except (BadSignatureError, ValueError):
            raise BadSignature(
                f"signature of {self.name} ({self.id.hex()}): it does not hold",
                "The text was changed, or somebody uses the name; do not use it",
            ) from None
        return time


@dataclass(frozen=True)
class SignerKey:
    """A private key: whoever holds `seed` (32 bytes) signs as `name`."""

    name: str
    kind: int
    seed: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.seed) != _KEY_BYTES:
            raise Malformed(f"signer key {self.name[:80]!r}: a seed of {len(self.seed)} bytes", f"It has {_KEY_BYTES}")
        _ = self.verifier

    @cached_property
    def _key(self) -> SigningKey:
        return SigningKey(self.seed)

    @cached_property
    def verifier(self) -> VerifierKey:
        """The public half."""
        return VerifierKey(self.name, self.kind, bytes(self._key.verify_key))

    @classmethod
    def parse(cls, text: str) -> SignerKey:
        """From the string that `export` gives. Raises Malformed, which never shows the key."""
        if not text.startswith(_PRIVATE):
            raise Malformed("signer key: it does not begin as one", f"It begins with {_PRIVATE}")
        name, hexadecimal, material = _parts(text[len(_PRIVATE) :], "signer key")
        key = cls(name, material[0], material[1:])
        if key.verifier.id.hex() != hexadecimal:
            raise Malformed(f"signer key {name}: its id is {key.verifier.id.hex()}", "It was miscopied")
        return key

    def export(self) -> str:
        """The whole key as a string. Secret."""
        return f"{_PRIVATE}{self.name}+{self.verifier.id.hex()}+{base64(bytes([self.kind]) + self.seed)}"

    def sign(self, text: bytes, time: int = 0) -> bytes:
        """The signature, without key id, over a note's text. A witness's needs the `time`, in seconds."""
        if self.kind == COSIGNATURE:
            if not 0 < time <= MAX_TREE:
                raise Malformed(f"cosignature of {self.name}: time {time}", "State the time in seconds since 1970")
            return time.to_bytes(_TIME_BYTES) + bytes(self._key.sign(cosigned_message(text, time)).signature)
        return bytes(self._key.sign(text).signature)


def cosigned_message(text: bytes, time: int) -> bytes:
    """What a witness signs: that it saw this checkpoint, by the time (seconds), as the newest of a consistent log."""
    return b"cosignature/v1\ntime %d\n" % time + text


def _parts(text: str, what: str) -> tuple[str, str, bytes]:
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise Malformed(f"{what}: not of the form name+id+key", "Copy the whole string")
    name, hexadecimal, encoded = parts
    check_name(name)
    return name, hexadecimal, unbase64(encoded, f"{what} {name}")
