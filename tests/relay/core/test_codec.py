"""Shapes of single values are read without a first pass for the caps: what is taken, and what is not, is the same."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack import unpackb

from relay.core import records
from relay.core.codec import Decoder, Struct, encode, pack
from relay.core.envelope import Header, To, _Envelope, join, read_header
from relay.core.shapes import CellName
from relay.errors import ProtocolError
from relay.limits import MAX_BLOCK, MAX_ENVELOPE

HEADER = Header(1, To.MAILBOX, b"u" * 32, 1, 2, 3, 0)
SUBMIT = records.Submit(b"d" * 32, "norden/1", join(encode(HEADER), b"sealed"))
ENVELOPE = _Envelope(encode(HEADER), b"sealed")
ACK = records.Ack(b"d" * 32, 5 << 20)
FLAT = {
    "header": (Header, HEADER), "submit": (records.Submit, SUBMIT), "envelope": (_Envelope, ENVELOPE),
    "ack": (records.Ack, ACK),
}  # fmt: skip


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


@pytest.mark.parametrize("name", FLAT)
@given(
    st.recursive(
        st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=40) | st.text(max_size=8) | st.none() | st.floats(),
        lambda inner: st.lists(inner, max_size=8) | st.dictionaries(st.integers(0, 9), inner, max_size=2),
        max_leaves=16,
    ),
    st.binary(max_size=2),
)
def test_both_ways_take_the_same_of_any_value(name: str, value: Any, behind: bytes) -> None:
    shape, good = FLAT[name]
    capped, flat = Decoder(shape, name, MAX_BLOCK), Decoder(shape, name, MAX_BLOCK, flat=True)
    fields = unpackb(encode(good))
    for place in range(len(fields)):  # of the right shape but for one field, where a list or a map may stand
        packed = pack([*fields[:place], value, *fields[place + 1 :]]) + behind
        assert outcome(capped, packed) == outcome(flat, packed)
    for packed in (pack(value) + behind, behind):
        assert outcome(capped, packed) == outcome(flat, packed)


@given(st.data())
def test_records_and_headers_are_what_the_shapes_say(data: st.DataObject) -> None:
    """Through the ways that the hot path goes: by the first bytes of a record, and header by header."""
    packed = bytearray(encode(SUBMIT))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(packed)))
        packed[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    whole = bytes(packed)
    slow = outcome(Decoder(records.Record, "log record", MAX_BLOCK), whole)
    if isinstance(slow, records.Submit):
        slow = slow if outcome(Decoder(Named, "name", MAX_BLOCK), encode(Named(slow.dest))) else None
    assert outcome(records.decode_record, whole) == slow
    if slow is not None and isinstance(slow, records.Submit):
        both = outcome(Decoder(_Envelope, "envelope", MAX_ENVELOPE), slow.envelope)
        header = both and outcome(Decoder(Header, "header", 256), both.header)
        assert outcome(read_header, slow.envelope) == header


class Named(Struct, frozen=True):
    """A cell's name, by its own shape."""

    name: CellName


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
