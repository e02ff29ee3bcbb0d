"""The link protocol: frames however they are cut, garbage, and the table of who may say what."""

from __future__ import annotations

import contextlib
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.linkwire import (
    FAREWELL, TRANSITIONS, VERSION, Answered, Asked, Done, Ended, EphemeralTo, FrameReader, Greeted, HandItem, HandOver,
    HandOverAnswer, Kind, LinkEvent, LinkFault, LinkHello, LinkMachine, LinkMessage, LookUp, Ping, Records, Role, State,
    encode_frame, encode_message,
)
from relay.core.codec import pack
from relay.core.records import HandedAnswer
from relay.errors import PeerError, ProtocolError
from relay.limits import LINK_BYTES, LINK_REQUESTS, MAX_LINK_FRAME, MAX_LINK_HELLO

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
    HandOverAnswer(6, (HandedAnswer(5, 2, 1), HandedAnswer(6, 23, 1))),
    LinkFault(66, "full", 1000),
]


def frame(request: int, message: LinkMessage) -> bytes:
    return encode_frame(request, encode_message(message))


def machine(role: Role, *, greeted: bool = True) -> LinkMachine:
    made = LinkMachine(role)
    if greeted:
        assert made.receive(frame(FAREWELL, HELLO)) == [Greeted(HELLO)]
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


@given(st.sampled_from(list(Role)), st.booleans(), st.lists(st.binary(max_size=200), max_size=5))
def test_garbage_ends_the_link_or_waits_for_more_and_nothing_else(role: Role, greeted: bool, data: list[bytes]) -> None:
    made = machine(role, greeted=greeted)
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


def test_the_table_is_all_there_is() -> None:
    """Every kind of frame, in every state of both roles, is either in the table or the end of the link."""
    frames = {
        Kind.HELLO: frame(FAREWELL, HELLO), Kind.REQUEST: frame(1, LookUp(ID, 0)),
        Kind.ANSWER: frame(1, Done()), Kind.FAREWELL: frame(FAREWELL, LinkFault(26, "no", 0)),
    }  # fmt: skip
    for role, state, kind in product(Role, (State.GREETING, State.OPEN), Kind):
        made = machine(role, greeted=state is State.OPEN)
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
    assert dialer.receive(frame(FAREWELL, fault) + frame(1, Done())) == [Ended(fault)]


@pytest.mark.parametrize(
    "data",
    [
        frame(7, Done()),  # an answer to nothing
        frame(1, HELLO),  # a hello that is a request
        frame(FAREWELL, Done()),  # an answer that is none
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
        machine(Role.LISTENER).receive(frame(FAREWELL, Ping()))


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
        encode_message(HandOver(bytes(16), 0, 1, (item,) * 4))
