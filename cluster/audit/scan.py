"""Finds secrets in bytes, however they were written down: raw, hex, base64.

A secret is looked for in every spelling at once. Base64 puts three bytes into four characters, so the same secret is
spelled in three ways, depending on where it begins; only the characters that it alone decides are looked for. One
pass over the bytes finds all spellings of all secrets: a spelling is long enough to hold a whole one of the words into
which the bytes fall, wherever it stands, and each of these is looked up in one set.
"""

from __future__ import annotations

from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")

WORD = 8  # bytes that are looked up
SPELLED = 2 * WORD - 1  # bytes of the shortest spelling: wherever it begins, it holds a word that begins at a multiple
MASK = 4  # bytes after which a WebSocket mask comes again
CHUNK = 1 << 20  # bytes read from a file at a time
MIN_SECRET = SPELLED  # bytes; the raw spelling is the shortest

_URL_SAFE = bytes.maketrans(b"+/", b"-_")


@dataclass(frozen=True, slots=True)
class Hit(Generic[T]):
    """A spelling of a secret: whose, in which encoding, at which byte offset, how many bytes long."""

    secret: T
    encoding: str
    offset: int
    length: int


def spellings(secret: bytes) -> Iterator[tuple[str, bytes]]:
    """(encoding, bytes) of every way in which `secret` is looked for."""
    yield "raw", secret
    yield "hex", secret.hex().encode()
    yield "hex", secret.hex().upper().encode()
    for before in range(3):
        text = b64encode(bytes(before) + secret)
        # the first characters also hold bits of what stands before, the last ones bits of what follows
        first, whole = -(-before * 8 // 6), (before + len(secret)) * 8 // 6
        kept = text[first:whole]
        yield "base64", kept
        if kept.translate(_URL_SAFE) != kept:
            yield "base64", kept.translate(_URL_SAFE)


class Scanner(Generic[T]):
    """Looks for many secrets at once. `secrets`: (bytes, what a hit shall carry)."""

    def __init__(self, secrets: Iterable[tuple[bytes, T]]) -> None:
        self._spellings: list[tuple[bytes, str, T]] = []
        self._by_word: dict[int, list[int]] = defaultdict(list)  # a word → the spellings that hold it, by number
        self._longest = SPELLED
        for secret, name in secrets:
            if len(secret) < MIN_SECRET:
                raise ValueError(f"a secret of {len(secret)} bytes is found by chance; at least {MIN_SECRET}")
            for encoding, spelling in dict.fromkeys(spellings(secret)):
                for word in _words(spelling):
                    self._by_word[word].append(len(self._spellings))
                self._spellings.append((spelling, encoding, name))
                self._longest = max(self._longest, len(spelling))
        self._known = frozenset(self._by_word)

    def scan(self, chunks: Iterable[bytes]) -> Iterator[Hit[T]]:
        """Every hit in a stream that comes in pieces; one that lies across pieces is found once."""
        tail, start = b"", 0
        for chunk in chunks:
            data = tail + chunk
            keep = min(len(data), self._longest - 1)
            for hit in self._find(data):
                if hit.offset + hit.length > len(tail):  # else it was found in the piece before
                    yield Hit(hit.secret, hit.encoding, start + hit.offset, hit.length)
            tail, start = data[len(data) - keep :], start + len(data) - keep

    def scan_bytes(self, data: bytes) -> Iterator[Hit[T]]:
        return self.scan([data])

    def scan_file(self, path: Path, form: Callable[[Iterable[bytes]], Iterable[bytes]] = iter) -> Iterator[Hit[T]]:
        """Every hit in a file, or in what `form` makes of it."""
        with path.open("rb") as file:
            yield from self.scan(form(iter(lambda: file.read(CHUNK), b"")))

    def _find(self, data: bytes) -> Iterator[Hit[T]]:
        whole = memoryview(data)[: len(data) // WORD * WORD].cast("Q")
        found = self._known.intersection(whole)  # the loop over the bytes runs in C
        for number in sorted({number for word in found for number in self._by_word[word]}):
            spelling, encoding, name = self._spellings[number]
            offset = data.find(spelling)
            while offset >= 0:
                yield Hit(name, encoding, offset, len(spelling))
                offset = data.find(spelling, offset + 1)


def unmasked(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Each byte XOR the one MASK before it: what a WebSocket client says, whichever mask (RFC 6455, 5.3) lies over it.
    A secret is found in that where it was masked, if it is put into the same form."""
    tail = b""
    for chunk in chunks:
        data = tail + chunk
        if (size := len(data) - MASK) > 0:
            yield (int.from_bytes(data[MASK:], "big") ^ int.from_bytes(data[:-MASK], "big")).to_bytes(size, "big")
        tail = data[-MASK:]


def _words(spelling: bytes) -> Iterator[int]:
    """The words at the first WORD offsets: one of them begins at a multiple of WORD, wherever the spelling stands."""
    for first in range(WORD):
        yield memoryview(spelling[first : first + WORD]).cast("Q")[0]


def files_below(top: Path) -> list[Path]:
    """Every regular file below `top`, in a settled order; links are not followed."""
    return sorted(path for path in top.rglob("*") if path.is_file() and not path.is_symlink())
