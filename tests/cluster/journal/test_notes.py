"""What stores say to each other, as bytes: there and back; and whatever else comes is refused as a peer's mistake."""

from __future__ import annotations

from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.raft import (
    Accepted, Append, Entry, Figure, Member, Members, Message, Point, Recall, Recollection, Rejected, TimeoutNow,
    VoteReply, VoteRequest,
)
from cluster.journal.notes import pack_note, unpack_note
from cluster.journal.shapes import from_members
from relay.core.block import GENESIS, Block, make_block
from relay.core.codec import pack
from relay.errors import PeerError

LOG, A, B = b"L" * 16, b"a" * 16, b"b" * 16
CELL = Members((Member(A, "n1"), Member(B, "n2")), (Member(b"c" * 16, "n3"),))


def blocks() -> list[Block]:
    made = [make_block(LOG, 1, GENESIS, 5, [b"one", b"", b"two"])]
    made.append(make_block(LOG, 2, made[0].hash, 7, [from_members(CELL)]))
    return made


def append(payloads: bool = True) -> Append:
    first, second = blocks()
    entries = (
        Entry(1, 3, first.size, None, first if payloads else None),
        Entry(2, 3, second.size, CELL, second if payloads else None),
    )
    return Append(A, B, 3, Point(0, 0), entries, 1, (Figure(B, Point(3, 1)),), True)


MESSAGES: list[Message] = [
    VoteRequest(A, B, 3, Point(2, 7), True, False), VoteReply(A, B, 3, False, True), append(),
    Append(A, B, 3, Point(2, 7), (), 7, (), True), Accepted(A, B, 3, 7), Rejected(A, B, 3, 7, Point(2, 5)),
    TimeoutNow(A, B, 3), Recall(A, B, 3, 1 << 61), Recollection(A, B, 3, 9, Point(2, 5), Point(1, 1), CELL),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_there_and_back(message: Message) -> None:
    packed = pack_note(message, lambda index: None)
    assert packed is not None and unpack_note(packed, LOG) == message


def test_blocks_that_the_core_no_longer_holds_are_loaded() -> None:
    held = {block.index: block for block in blocks()}
    packed = pack_note(append(payloads=False), held.get)
    assert packed is not None and unpack_note(packed, LOG) == append()
    del held[2]
    assert pack_note(append(payloads=False), held.get) is None  # nothing is sent


def packed() -> Any:
    """The append as plain lists, to be bent."""
    return msgpack.unpackb(pack_note(append(), lambda index: None) or b"")


def entry(note: Any, number: int = 0) -> Any:
    return note[5][number]


def bend(change: Any) -> bytes:
    note = packed()
    change(note)
    return pack(note)


BENT = {
    "another record": lambda note: entry(note)[4][3].__setitem__(0, b"eno"),
    "one record less": lambda note: entry(note)[4][3].pop(),
    "another hash": lambda note: entry(note)[4].__setitem__(2, bytes(32)),
    "another time": lambda note: entry(note)[4].__setitem__(1, 6),
    "another block before": lambda note: entry(note)[4].__setitem__(0, b"x" * 32),
    "another index": lambda note: entry(note).__setitem__(0, 2),
    "another size": lambda note: entry(note).__setitem__(2, 7),
    "no block": lambda note: entry(note).__setitem__(4, None),
    "a block of text": lambda note: entry(note).__setitem__(4, "block"),
    "a block of too many parts": lambda note: entry(note)[4].append(1),
    "a record of text": lambda note: entry(note)[4][3].__setitem__(0, "one"),
    "index 0": lambda note: entry(note).__setitem__(0, 0),
    "term 0": lambda note: entry(note).__setitem__(1, 0),
    "members that the block does not bring": lambda note: entry(note).__setitem__(3, entry(note, 1)[3]),
    "a block whose members the entry hides": lambda note: entry(note, 1).__setitem__(3, None),
    "other members than the block's": lambda note: entry(note, 1)[3][1].clear(),
    "too many members": lambda note: entry(note, 1).__setitem__(3, [[[b"%16d" % n, "n1"] for n in range(50)], []]),
    "a store of 15 bytes": lambda note: note.__setitem__(1, A[:15]),
    "another message": lambda note: note.__setitem__(0, 9),
    "no such message": lambda note: note.__setitem__(0, 99),
    "a term below 0": lambda note: note.__setitem__(3, -1),
    "too many figures": lambda note: note.__setitem__(7, [[b"%16d" % n, [1, 1]] for n in range(100)]),
    "something more": lambda note: note.append(1),
}


@pytest.mark.parametrize("change", BENT.values(), ids=BENT)
def test_what_was_bent_is_refused(change: Any) -> None:
    with pytest.raises(PeerError, match="makes no sense"):
        unpack_note(bend(change), LOG)


def test_blocks_of_another_log_are_refused() -> None:
    with pytest.raises(PeerError):
        unpack_note(pack_note(append(), lambda index: None) or b"", b"M" * 16)


def test_a_record_that_looks_like_members_and_is_none() -> None:
    """Alone in its block it would be taken for a change of the cell after the next start."""
    tag = from_members(CELL)[:2]
    block = make_block(LOG, 1, GENESIS, 5, [tag + b"garbage"])
    note = Append(A, B, 3, Point(0, 0), (Entry(1, 3, block.size, None, block),), 1, (), True)
    with pytest.raises(PeerError):
        unpack_note(pack_note(note, lambda index: None) or b"", LOG)


@given(st.binary(max_size=400))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(PeerError):
        unpack_note(garbage, LOG)


_NUMBERS = st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
_PLAIN = st.recursive(
    st.none() | _NUMBERS | st.binary(max_size=40) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=30,
)


@given(st.integers(0, 10), st.lists(_PLAIN, max_size=9))
def test_well_packed_garbage_is_refused_or_makes_sense(tag: int, rest: list[Any]) -> None:
    try:
        message = unpack_note(pack([tag, *rest]), LOG)
    except PeerError:
        return
    assert isinstance(message, msgspec.Struct) and pack_note(message, lambda index: None)


@given(st.data())
def test_a_note_with_a_part_exchanged_is_refused_or_makes_sense(data: st.DataObject) -> None:
    """One place anywhere in a good one, with anything in it. The blocks that come through are whole."""
    note = packed()
    here, place = note, data.draw(st.integers(0, len(note) - 1))
    while isinstance(here[place], list) and here[place] and data.draw(st.booleans()):
        here = here[place]
        place = data.draw(st.integers(0, len(here) - 1))
    here[place] = data.draw(_PLAIN)
    try:
        message = unpack_note(pack(note), LOG)
    except PeerError:
        return
    if isinstance(message, Append):
        good = [block.hash for block in blocks()]
        assert all(one.payload.hash in good for one in message.entries)


@given(st.integers(0), st.integers(0, 7))
def test_no_flipped_bit_changes_a_block(at: int, bit: int) -> None:
    data = bytearray(pack_note(append(), lambda index: None) or b"")
    data[at % len(data)] ^= 1 << bit
    try:
        message = unpack_note(bytes(data), LOG)
    except PeerError:
        return
    assert isinstance(message, Append)
    assert [one.payload for one in message.entries] == blocks()[: len(message.entries)]
