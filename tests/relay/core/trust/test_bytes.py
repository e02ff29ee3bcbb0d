"""Bytes of any kind in place of a root document, of metadata, of a statement."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.codec import encode
from relay.core.trust import Policy, RootCell, RootNode, RootRegion
from relay.core.trust.metadata import MAX_METADATA
from relay.core.trust.root import MAX_BUNDLE, MAX_ROOTS, parse_bundle
from relay.core.trust.statement import encode_statement
from relay.errors import (
    BadSignature, ProtocolError, TrustError,
)  # fmt: skip

from tests.relay.core.trust.keepers import Keepers, check, region


# --- bytes of any kind ---------------------------------------------------------------------------
def version(value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda signed: signed.update(version=value)


@pytest.mark.parametrize("make", [
    lambda data: b"", lambda data: b"hello", lambda data: b"[" * 100_000, lambda data: b"{}", lambda data: data[:-1],
    lambda data: b'{"signatures":' + b"[" * 40 + b"]" * 40 + b',"signed":{}}',
    lambda data: data + b" " * MAX_METADATA,
    lambda data: data.replace(b'"version":1', b'"version":true', 1), lambda data: data.replace(b"ed25519", b"rsa", 1),
    lambda data: data.replace(b'"version":1', b'"version":1.5', 1),
    lambda data: data.replace(b'"version":1', b'"version":0'),
    lambda data: data.replace(b'"threshold":2', b'"threshold":0'), lambda data: data.replace(b"-", b"x"),
    lambda data: data.replace(b'"_type":"root"', b'"_type":"targets"'), lambda data: data.replace(b"test", b"t\\ud800"),
    lambda data: data.replace(b'"consistent_snapshot":true', b'"consistent_snapshot":true,"x":1e400'),
    lambda data: data.replace(b'"consistent_snapshot":true', b'"consistent_snapshot":true,"x":1.5'),
    lambda data: data.replace(b'"spec_version":"1.', b'"spec_version":"2.'),
    lambda data: data.replace(b'"expires":"20', b'"expires":"9999-99-99T99:99:99Z","y":"20'),
])  # fmt: skip
def test_what_is_no_metadata(keepers: Keepers, make: Callable[[bytes], bytes]) -> None:
    (first,) = parse_bundle(keepers.bundle).bundle.roots
    broken = make(first)
    assert broken != first
    bundle = parse_bundle(keepers.bundle).bundle
    with pytest.raises((ProtocolError, BadSignature)):
        check(encode(msgspec.structs.replace(bundle, roots=(broken,))))


def test_caps(keepers: Keepers) -> None:
    bundle = parse_bundle(keepers.bundle).bundle
    with pytest.raises(ProtocolError, match="At most"):
        check(bytes(MAX_BUNDLE + 1))
    with pytest.raises(ProtocolError, match="wrong shape"):
        check(encode(msgspec.structs.replace(bundle, roots=bundle.roots * (MAX_ROOTS + 1))))
    with pytest.raises(ProtocolError, match="format 1"):
        check(encode(msgspec.structs.replace(bundle, format=1)))
    with pytest.raises(ProtocolError):
        check(encode(msgspec.structs.replace(bundle, regions=bundle.regions * 200)))


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    with pytest.raises((ProtocolError, TrustError)):
        check(data)


_SAMPLE = Keepers().begin()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(_SAMPLE) - 1), st.integers(1, 255))
def test_no_flipped_byte_passes_unseen(place: int, flip: int) -> None:
    """It is refused, or it says the same: a signature beyond the threshold may rot."""
    data = bytearray(_SAMPLE)
    data[place] ^= flip
    try:
        root = check(bytes(data))
    except (ProtocolError, TrustError):
        return
    assert root.payload == check(_SAMPLE).payload


def test_a_statement_that_contradicts_itself() -> None:
    for wrong, what in (
        (replace_cells("norden", "sauda/1"), "not named after it"),
        (replace_cells("norden", "norden/1", "norden/1"), "stands there twice"),
        (replace_nodes("norden", "n1", "n2", "n1"), "node norden/1/n1 stands in the root document 2 times"),
        (region("norden", policy=Policy(send_to=("sauda", "sauda"))), "names a region twice"),
    ):
        with pytest.raises(TrustError, match=what):
            encode_statement(wrong)
    for policy in (Policy(retention_days=0), Policy(quorum=-1), Policy(hold="maybe"), Policy(receive_from=("No",))):  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="wrong shape"):
            encode_statement(region("norden", policy=policy))


def replace_nodes(name: str, *nodes: str) -> RootRegion:
    cell = RootCell(f"{name}/1", tuple(RootNode(node, f"{node}.example:1", ()) for node in nodes))
    return msgspec.structs.replace(region(name), cells=(cell,))


def replace_cells(name: str, *cells: str) -> RootRegion:
    return msgspec.structs.replace(region(name), cells=tuple(RootCell(cell, ()) for cell in cells))
