"""The bench's side of the handshake, its users and its envelopes, against what the relay verifies and reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey, VerifyKey

from bench.enrol import Home, enrol, make_group
from bench.envelopes import body, make_envelope, read_envelope
from bench.frames import read_upgrade
from bench.session import Session, State
from relay.core import wire
from relay.core.envelope import read_header
from relay.core.frames import server_frame
from relay.core.trust import read_home, verify_part, verify_roster
from relay.errors import ProtocolError
from tests.bench.test_frames import NONCE, answer

HOME = Home("norden", "norden/1", SigningKey(b"r" * 32))
NOW = 1_700_000_000_000
ALICE = enrol(HOME, 1, 0, NOW)
CHALLENGE = wire.Challenge(b"n" * 16, "norden", "norden/1", "n1", b"l" * 16, NOW)
WELCOME = wire.Welcome(b"l" * 16, 5, NOW, 1, 64, 50, 1 << 17, 256)


def sent(session: Session) -> wire.ClientMessage:
    """The one message in the output, and empty it."""
    frame = bytes(session.output)
    session.output.clear()
    start = {126: 8, 127: 14}.get(frame[1] & 0x7F, 6)
    return wire.decode_client(frame[start:])


def say(message: wire.ServerMessage) -> bytes:
    return server_frame(wire.encode_message(message))


def opened() -> Session:
    session = Session(ALICE, "localhost:1", NONCE, b"l" * 16, 7)
    assert read_upgrade(answer(), NONCE)
    session.output.clear()
    return session


def test_from_upgrade_to_live_in_one_piece_and_in_many() -> None:
    session = opened()
    assert session.feed(answer()) == []
    assert sent(session) == wire.Hello(0, b"l" * 16, 7, True, "posthouse-bench")
    session.feed(say(CHALLENGE))
    auth = sent(session)
    assert isinstance(auth, wire.Auth)
    VerifyKey(auth.device).verify(wire.challenge_bytes(CHALLENGE, ALICE.user, auth.device), auth.signature)
    assert auth.records == (ALICE.record,)
    rest = session.feed(say(WELCOME) + say(wire.Empty(5)))
    assert (session.state, session.welcome) == (State.LIVE, WELCOME)
    assert rest == [wire.encode_message(wire.Empty(5))]
    slow = opened()
    for byte in answer() + say(CHALLENGE) + say(WELCOME):
        slow.feed(bytes([byte]))
    assert slow.state is State.LIVE


def test_an_error_ends_it_and_a_surprise_is_an_error() -> None:
    session = opened()
    session.feed(answer() + say(wire.Error(wire.Fault.OVERLOADED, "later", 500)))
    assert (session.state, session.error) == (State.ENDED, wire.Error(wire.Fault.OVERLOADED, "later", 500))
    with pytest.raises(ProtocolError, match="Welcome while challenge was due"):
        opened().feed(answer() + say(WELCOME))
    closed = opened()
    closed.feed(answer() + b"\x88\x00")
    assert closed.state is State.ENDED


def test_users_of_a_seed_are_the_same_again_and_verify() -> None:
    assert enrol(HOME, 1, 0, NOW) == ALICE
    assert len({enrol(HOME, seed, number, NOW).user for seed in range(3) for number in range(3)}) == 9
    record = read_home(ALICE.record)
    assert (record.cell, record.devices[0].id) == ("norden/1", bytes(ALICE.key.verify_key))


def test_the_group_is_one_that_the_relay_takes() -> None:
    members = [enrol(HOME, 1, number, NOW) for number in range(4)]
    group = make_group(members[0], [(HOME, member.user) for member in members])
    head = verify_roster(group.head)
    assert head.group == group.id
    part = verify_part(group.parts[0][1], head, "norden/1")
    assert {member.user for member in part.members} == {member.user for member in members}


@given(st.integers(0, 1 << 32), st.integers(0, 1 << 62), st.integers(32, 1000))
def test_a_body_has_exactly_its_size_and_comes_back(sequence: int, scheduled_ns: int, size: int) -> None:
    assert len(body(3, sequence, scheduled_ns, size)) == size
    envelope = make_envelope(b"g" * 32, 3, sequence, scheduled_ns, size, NOW)
    assert read_envelope(envelope, [b"g" * 32], 3) == (sequence, scheduled_ns)
    assert read_header(envelope).to == b"g" * 32


@given(st.integers(0, 400), st.integers(1, 255))
def test_one_changed_byte_is_seen(place: int, flip: int) -> None:
    envelope = bytearray(make_envelope(b"g" * 32, 3, 9, 12345, 256, NOW))
    place = len(envelope) - 1 - place % 230  # within the padding
    envelope[place] ^= flip
    with pytest.raises(ProtocolError):
        read_envelope(bytes(envelope), [b"g" * 32], 3)


def test_a_body_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="no body of 5 bytes"):
        body(1, 1, 1, 5)
