"""Shapes of single values are read without a first pass for the caps: what is taken, and what is not, is the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core import records
from relay.core.codec import Decoder, encode
from relay.core.envelope import Header, To, join
from relay.errors import ProtocolError
from relay.limits import MAX_BLOCK

HEADER = Header(1, To.MAILBOX, b"u" * 32, 1, 2, 3, 0)
SUBMIT = records.Submit(b"d" * 32, "norden/1", join(encode(HEADER), b"sealed"))
FLAT = {"header": (Header, HEADER), "submit": (records.Submit, SUBMIT)}


def outcome(decoder: Decoder[Any], data: bytes) -> Any:
    try:
        return decoder(data)
    except ProtocolError:
        return None


@pytest.mark.parametrize("name", FLAT)
@given(st.data())
def test_both_ways_take_the_same(name: str, data: st.DataObject) -> None:
    shape, value = FLAT[name]
    capped, flat = Decoder(shape, name, MAX_BLOCK), Decoder(shape, name, MAX_BLOCK, flat=True)
    packed = bytearray(encode(value))
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(packed)))
        new = data.draw(st.binary(max_size=3))
        packed[at : at + data.draw(st.integers(0, 3))] = new
    assert outcome(capped, bytes(packed)) == outcome(flat, bytes(packed))


ODD = (
    b"", b"\x94", b"\xdd\xff\xff\xff\xff", b"\x94\x04\xc6\xff\xff\xff\xff", b"\x94" * 5_000,
    b"\x94\x04\xdf\xff\xff\xff\xff", b"\x94\x04\xc9\xff\xff\xff\xff\x01",
)  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
def test_what_claims_to_be_large_is_refused(odd: bytes) -> None:
    with pytest.raises(ProtocolError):
        records.decode_record(odd)


def test_a_submit_is_a_record_like_others() -> None:
    assert records.decode_record(encode(SUBMIT)) == SUBMIT
    assert encode(SUBMIT)[:2] == b"\x94\x04", "that is how the short way knows it"
    assert records.decode_record(b"\xdc\x00\x04" + encode(SUBMIT)[1:]) == SUBMIT, "written less tersely"


@pytest.mark.parametrize("name", ["", "norden", "Norden/1", "norden/1\n", "norden/1/1", "n" * 97 + "/1", "nörden/1"])
def test_a_submit_names_a_cell(name: str) -> None:
    packed = encode(records.Submit(SUBMIT.device, name, SUBMIT.envelope))
    for data in (packed, b"\xdc\x00\x04" + packed[1:]):
        with pytest.raises(ProtocolError, match="log record has the wrong shape"):
            records.decode_record(data)
