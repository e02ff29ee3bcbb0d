"""The link protocol: frames however they are cut, garbage, and the table of who may say what."""

from __future__ import annotations

import contextlib
from itertools import pairwise, product
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.linkmachine import (
    TRANSITIONS, Answered, Asked, Ended, Greeted, Kind, LinkEvent, LinkMachine, Noted, Role, State,
)
from cluster.core.framereader import FrameReader
from cluster.core.linkwire import (
    CELL_REQUESTS, NO_REQUEST, VERSION, Attest, Attested, AuditHead, BlockBody, BlocksPart, CellAnswer, CellEphemeral,
    CellNote, CellStatus, CheckpointPart, Done, EphemeralTo, Fact, Facts, FetchBlocks, FetchCheckpoint, FetchFacts,
    HandItem, HandOver, HandOverAnswer, Join, LinkFault, LinkHello, LinkMessage, LookUp, NotLeading, Ping,
    ProposalRefused, Propose, Proposed, Records, SnapshotTaken, StateDigest, Status, TakeSnapshot, encode_frame,
    encode_message,
)
from relay.core.codec import pack
from relay.core.receipts import Word
from relay.core.records import HandedAnswer
from relay.errors import PeerError, ProtocolError
from relay.limits import (
    LINK_BYTES, LINK_REQUESTS, MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_LINK_FRAME, MAX_LINK_HELLO, MAX_NOTE,
)

ID = bytes(range(32))
HELLO = LinkHello(VERSION, ID, "norden/1", "n1")
REQUESTS: list[LinkMessage] = [
    Ping(),
    LookUp(ID, 3),
    EphemeralTo(ID, ID, ID, b"typing"),
    HandOver(bytes(16), 4, 5, (HandItem(0, b"", b""), HandItem(1, b"envelope", b""), HandItem(2, b"head", b"part"))),
]
ANSWERS: list[LinkMessage] = [
    Done(),
    Records(1, (b"one", b"two")),
    HandOverAnswer(bytes(16), 6, (HandedAnswer(5, 2, 1), HandedAnswer(6, 23, 1))),
    LinkFault(66, "full", 1000),
]
UUID = bytes(range(16))
NOTE = CellNote(UUID, UUID, 1_700_000_000_000, b"a vote")
CELL_ASKS: list[LinkMessage] = [
    Propose(UUID, (b"one", b"two")),
    Join(UUID), TakeSnapshot(9, 3), FetchCheckpoint(UUID, 9, 0), FetchFacts(UUID, 9, b""),
    FetchBlocks(UUID, 3, 4), CellEphemeral(ID, ID, ID, b"typing"), CellStatus(), StateDigest(UUID, 2, 900, ID),
    Attest(UUID, (3, 5)), AuditHead(b"checkpoint", b"certificate"),
]  # fmt: skip
CELL_ANSWERS: list[LinkMessage] = [
    Proposed(5, ID, 2), ProposalRefused(1, "not at home"), NotLeading("n2"), SnapshotTaken(9),
    CheckpointPart(2, (b"row", b"row")), Facts((Fact(ID, 4, b"sealed"),)),
    BlocksPart((BlockBody(3, 2, ID, 17, ID, (b"record",)),)), Status(b"well"),
    Attested((((3, 5), Word(UUID, b"certificate", 2 * ID, 2 * ID)),)),
]  # fmt: skip


def frame(request: int, message: LinkMessage) -> bytes:
    return encode_frame(request, encode_message(message))


def machine(role: Role, *, greeted: bool = True, inside: bool = False) -> LinkMachine:
    made = LinkMachine(role, inside=inside)
    if greeted:
        assert made.receive(frame(NO_REQUEST, HELLO)) == [Greeted(HELLO)]
    return made


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_frames_arrive_whole_however_they_are_cut(cuts: list[int]) -> None:
    listener, dialer = machine(Role.LISTENER), machine(Role.DIALER)
    sent = b"".join(dialer.request(encode_message(message))[1] for message in REQUESTS)
    asked: list[LinkEvent] = []
    for piece in cut(sent, cuts):
        asked += listener.receive(piece)
    assert asked == [Asked(number, message) for number, message in enumerate(REQUESTS, 1)]
    back = b"".join(listener.answer(number, encode_message(ANSWERS[number - 1])) for number in (3, 1, 4, 2))
    answered: list[LinkEvent] = []
    for piece in cut(back, cuts):
        answered += dialer.receive(piece)
    assert answered == [Answered(number, ANSWERS[number - 1]) for number in (3, 1, 4, 2)]
    assert not dialer.open and not listener.open and dialer.open_bytes == listener.open_bytes == 0


@given(
    st.lists(st.builds(CellNote, *[st.binary(min_size=16, max_size=16)] * 2, st.integers(0, 2**63 - 1), st.binary())),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_notes_arrive_in_order_among_requests_and_nobody_answers_them(notes: list[CellNote], cuts: list[int]) -> None:
    listener, dialer = machine(Role.LISTENER, inside=True), machine(Role.DIALER, inside=True)
    sent, expected = b"", list[LinkEvent]()
    for number, note in enumerate(notes, 1):
        sent += dialer.request(encode_message(Ping()))[1] + dialer.note(encode_message(note))
        expected += [Asked(number, Ping()), Noted(note)]
    arrived: list[LinkEvent] = []
    for piece in cut(sent, cuts):
        try:
            arrived += listener.receive(piece)
        except PeerError:
            assert len(notes) > LINK_REQUESTS
            return
    assert arrived == expected
    assert len(listener.open) == len(dialer.open) == len(notes)


@given(
    st.sampled_from(list(Role)), st.booleans(), st.booleans(), st.lists(st.binary(max_size=200), max_size=5),
)  # fmt: skip
def test_garbage_ends_the_link_or_waits_for_more_and_nothing_else(
    role: Role, greeted: bool, inside: bool, data: list[bytes]
) -> None:
    made = machine(role, greeted=greeted, inside=inside)
    with contextlib.suppress(PeerError):
        for piece in data:
            made.receive(piece)


@given(st.sampled_from(list(Role)), st.binary(max_size=300))
def test_a_frame_of_garbage_is_the_peers_mistake(role: Role, body: bytes) -> None:
    made = machine(role)
    with pytest.raises(PeerError, match="link broken by the peer"):
        made.receive(len(body).to_bytes(4, "big") + body)
    assert made.state is State.ENDED
    assert made.receive(frame(1, Ping())) == []


@given(st.recursive(st.none() | st.integers() | st.binary() | st.text(), lambda inner: st.lists(inner), max_leaves=20))
def test_wrong_shapes_are_the_peers_mistake(value: object) -> None:
    with contextlib.suppress(OverflowError, PeerError):  # msgpack has 64 bits for an integer
        body = pack(value)
        (event,) = machine(Role.LISTENER).receive(len(body).to_bytes(4, "big") + body)
        assert isinstance(event, Asked)  # [1, [2]] is a Ping


def test_a_length_above_the_cap_is_refused_before_the_body_is_there() -> None:
    for role, greeted, cap in ((Role.LISTENER, False, MAX_LINK_HELLO), (Role.DIALER, True, MAX_LINK_FRAME)):
        assert machine(role, greeted=greeted).receive(cap.to_bytes(4, "big")) == []
        with pytest.raises(PeerError, match=f"link frame of {cap + 1} bytes"):
            machine(role, greeted=greeted).receive((cap + 1).to_bytes(4, "big"))


def test_the_reader_holds_one_frame_at_most() -> None:
    reader = FrameReader()
    reader.feed(b"\x00\x00\x00\x05hel")
    assert reader.take(5) is None
    reader.feed(b"lo\x00\x00\x00\x00\x00")
    assert reader.take(5) == b"hello" and reader.take(5) == b"" and reader.take(5) is None
    with pytest.raises(ProtocolError):
        FrameReader.take(_fed(b"\x00\x00\x00\x06"), 5)


def _fed(data: bytes) -> FrameReader:
    reader = FrameReader()
    reader.feed(data)
    return reader


@given(st.data())
def test_a_damaged_note_ends_the_link_or_is_another_note(data: st.DataObject) -> None:
    body = bytearray(frame(NO_REQUEST, NOTE))
    place = data.draw(st.integers(4, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    made = machine(Role.LISTENER, inside=True)
    try:
        events = made.receive(body)
    except PeerError:
        assert made.state is State.ENDED
    else:
        assert all(isinstance(event, Noted) for event in events)


def test_what_nodes_of_a_cell_say_is_a_mistake_between_cells() -> None:
    assert {type(message) for message in CELL_ASKS} == set(CELL_REQUESTS)
    assert {type(message) for message in CELL_ANSWERS} == set(get_args(CellAnswer))
    dialer, listener = machine(Role.DIALER, inside=True), machine(Role.LISTENER, inside=True)
    for number, message in enumerate(CELL_ASKS, 1):
        assert listener.receive(dialer.request(encode_message(message))[1]) == [Asked(number, message)]
        with pytest.raises(PeerError, match="from a node of another cell"):
            machine(Role.LISTENER).receive(frame(1, message))
    for message in CELL_ANSWERS:
        request, _ = dialer.request(encode_message(Ping()))
        assert dialer.receive(frame(request, message)) == [Answered(request, message)]
        outside = machine(Role.DIALER)
        outside.request(encode_message(Ping()))
        with pytest.raises(PeerError, match="from a node of another cell"):
            outside.receive(frame(1, message))
    assert listener.receive(dialer.note(encode_message(NOTE))) == [Noted(NOTE)]
    with pytest.raises(PeerError, match="CellNote from a node of another cell"):
        machine(Role.LISTENER).receive(frame(NO_REQUEST, NOTE))


def test_notes_are_not_counted_as_requests() -> None:
    listener = machine(Role.LISTENER, inside=True)
    for _ in range(3 * LINK_REQUESTS):
        assert listener.receive(frame(NO_REQUEST, NOTE)) == [Noted(NOTE)]
    assert not listener.open and not listener.open_bytes


@pytest.mark.parametrize(
    "wrong",
    [
        CellNote(b"short", UUID, 1, b""),
        CellNote(UUID, UUID + b"x", 1, b""),
        CellNote(UUID, UUID, -1, b""),
        Propose(UUID, ()),
        NotLeading("n" * 65),
        FetchFacts(UUID, 9, ID + b"x"),
    ],
)
def test_fields_out_of_range_are_the_peers_mistake(wrong: LinkMessage) -> None:
    role, request = (Role.DIALER, 1) if isinstance(wrong, NotLeading) else (Role.LISTENER, 1)
    made = machine(role, inside=True)
    if role is Role.DIALER:
        made.request(encode_message(Ping()))
    with pytest.raises(PeerError, match="wrong shape"):
        made.receive(frame(NO_REQUEST if isinstance(wrong, CellNote) else request, wrong))


def test_a_full_block_fits_a_note_a_proposal_and_an_answer() -> None:
    size, rest = divmod(MAX_BLOCK, MAX_BLOCK_RECORDS)
    records = (bytes(size + rest), *[bytes(size)] * (MAX_BLOCK_RECORDS - 1))
    for message in (
        CellNote(UUID, UUID, 1, bytes(MAX_NOTE)), Propose(UUID, records),
        BlocksPart((BlockBody(1, 1, ID, 1, ID, records),)),
    ):  # fmt: skip
        assert len(encode_message(message)) < MAX_LINK_FRAME
    assert len(pack(list(records))) + 1024 < MAX_NOTE


def test_the_table_is_all_there_is() -> None:
    """Every kind of frame, in every state of both roles, is either in the table or the end of the link."""
    frames = {
        Kind.HELLO: frame(NO_REQUEST, HELLO), Kind.REQUEST: frame(1, LookUp(ID, 0)),
        Kind.ANSWER: frame(1, Done()), Kind.FAREWELL: frame(NO_REQUEST, LinkFault(26, "no", 0)),
        Kind.NOTE: frame(NO_REQUEST, NOTE),
    }  # fmt: skip
    for role, state, kind in product(Role, (State.GREETING, State.OPEN), Kind):
        made = machine(role, greeted=state is State.OPEN, inside=True)
        if role is Role.DIALER and state is State.OPEN:
            made.request(encode_message(Ping()))
        if (role, state, kind) in TRANSITIONS:
            assert len(made.receive(frames[kind])) == 1
            assert made.state is TRANSITIONS[role, state, kind]
        else:
            with pytest.raises(PeerError):
                made.receive(frames[kind])
            assert made.state is State.ENDED


def test_a_farewell_is_the_last_word() -> None:
    fault = LinkFault(26, "no", 0)
    dialer = machine(Role.DIALER)
    assert dialer.receive(frame(NO_REQUEST, fault) + frame(1, Done())) == [Ended(fault)]


@pytest.mark.parametrize(
    "data",
    [
        frame(7, Done()),  # an answer to nothing
        frame(1, HELLO),  # a hello that is a request
        frame(NO_REQUEST, Done()),  # an answer that is none
        frame(1, NOTE),  # a note that is a request
        frame(1, Ping()),  # a request to who only asks
    ],
)
def test_a_dialer_takes_only_what_it_asked_for(data: bytes) -> None:
    dialer = machine(Role.DIALER)
    dialer.request(encode_message(Ping()))
    with pytest.raises(PeerError):
        dialer.receive(data)


def test_a_listener_takes_no_id_twice_and_none_of_zero() -> None:
    listener = machine(Role.LISTENER)
    listener.receive(frame(5, Ping()))
    with pytest.raises(PeerError, match="sent twice"):
        listener.receive(frame(5, Ping()))
    with pytest.raises(PeerError, match="under request id 0"):
        machine(Role.LISTENER).receive(frame(NO_REQUEST, Ping()))


def test_a_listener_takes_no_more_at_once_than_a_dialer_sends() -> None:
    large = encode_message(HandOver(bytes(16), 0, 1, (HandItem(1, bytes(1024 * 1024), b""),) * 3))
    for packed in (encode_message(LookUp(ID, 0)), large):
        dialer, listener = machine(Role.DIALER), machine(Role.LISTENER)
        while dialer.room(len(packed)):
            listener.receive(dialer.request(packed)[1])
        listener.receive(dialer.request(encode_message(Ping()))[1])
        assert len(dialer.open) <= LINK_REQUESTS and dialer.open_bytes <= LINK_BYTES
        assert listener.open == dialer.open and listener.open_bytes == dialer.open_bytes
        with pytest.raises(PeerError, match="at once"):
            for _ in range(2):
                listener.receive(dialer.request(packed)[1])


def test_messages_that_fit_no_frame_are_not_made() -> None:
    item = HandItem(1, bytes(1024 * 1024), b"")
    with pytest.raises(ProtocolError, match="link message of"):
        encode_message(HandOver(bytes(16), 0, 1, (item,) * 5))
