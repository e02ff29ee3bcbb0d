from __future__ import annotations

import random
from base64 import b64encode, urlsafe_b64encode
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.audit.scan import CHUNK, MIN_SECRET, SPELLED, Scanner, files_below, spellings, unmasked

SECRET = bytes(range(0xE0, 0xF0))
OTHER = b"another secret of it"
ENCODINGS = {
    "raw": lambda data: data,
    "hex": lambda data: data.hex().encode(),
    "HEX": lambda data: data.hex().upper().encode(),
    "base64": b64encode,
    "url": urlsafe_b64encode,
}


@given(
    before=st.binary(max_size=40),
    after=st.binary(max_size=40),
    secret=st.binary(min_size=MIN_SECRET, max_size=48),
    encoding=st.sampled_from(sorted(ENCODINGS)),
)
def test_a_secret_is_found_wherever_it_stands_in_what_was_encoded(
    before: bytes, after: bytes, secret: bytes, encoding: str
) -> None:
    haystack = b"~~~" + ENCODINGS[encoding](before + secret + after) + b"~~~"
    assert any(hit.secret == "it" for hit in Scanner([(secret, "it")]).scan_bytes(haystack))


@given(data=st.binary(max_size=400), cuts=st.lists(st.integers(0, 400), max_size=8))
def test_pieces_are_found_exactly_as_the_whole(data: bytes, cuts: list[int]) -> None:
    whole = data[:200] + SECRET + b64encode(b"a" + SECRET) + data[200:] + OTHER.hex().encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[a:b] for a, b in pairwise(edges)]
    scanner = Scanner([(SECRET, "secret"), (OTHER, "other")])
    assert sorted(map(repr, scanner.scan(pieces))) == sorted(map(repr, scanner.scan_bytes(whole)))
    assert {(hit.secret, hit.encoding) for hit in scanner.scan(pieces)} >= {
        ("secret", "raw"), ("secret", "base64"), ("other", "hex"),
    }  # fmt: skip


def test_every_occurrence_counts_and_says_where() -> None:
    hits = list(Scanner([(SECRET, "it")]).scan_bytes(b"x" * 5 + SECRET + SECRET))
    assert [(hit.encoding, hit.offset, hit.length) for hit in hits] == [("raw", 5, 16), ("raw", 21, 16)]


@given(
    mask=st.binary(min_size=4, max_size=4), before=st.binary(max_size=40), cuts=st.lists(st.integers(1, 90), max_size=8)
)
def test_what_a_client_masked_is_found_whatever_the_mask(mask: bytes, before: bytes, cuts: list[int]) -> None:
    said = before + OTHER + bytes(30)
    wire = bytes(byte ^ mask[place % 4] for place, byte in enumerate(said))
    edges = [0, *sorted(cut for cut in cuts if cut < len(wire)), len(wire)]
    scanner = Scanner([(b"".join(unmasked([OTHER])), "it")])
    hits = list(scanner.scan(unmasked(wire[a:b] for a, b in pairwise(edges))))
    assert len(before) in [hit.offset for hit in hits]


def test_nothing_is_found_in_noise() -> None:
    noise = random.Random(1).randbytes(300_000)
    secrets = [(random.Random(seed).randbytes(16), str(seed)) for seed in range(2, 500)]
    assert not list(Scanner(secrets).scan_bytes(noise + b64encode(noise) + noise.hex().encode()))


def test_files_are_read_in_chunks(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "log"
    path.write_bytes(bytes(CHUNK - 7) + SECRET + bytes(CHUNK))
    (tmp_path / "link").symlink_to(path)
    assert files_below(tmp_path) == [path]
    assert [hit.offset for hit in Scanner([(SECRET, "it")]).scan_file(path)] == [CHUNK - 7]


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="by chance"):
        Scanner([(b"short", "it")])


def test_all_spellings_are_long_enough_to_be_looked_up() -> None:
    assert min(len(spelling) for size in range(MIN_SECRET, 40) for _, spelling in spellings(bytes(size))) == SPELLED
