"""The session machine: whatever comes in, one effect comes out, and only the one way leads to LIVE."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from relay.core import wire
from relay.core.proven import question
from relay.core.session import TRANSITIONS, Admit, Ask, Begun, Close, Send, Session, State
from relay.core.trust import Root, RootRegion
from relay.core.wire import Code, Fault
from relay.errors import AuthError, BadSignature, DiskFailed, Overloaded, ProtocolError, Refused, RolledBack
from relay.limits import MAX_FRAME, MAX_ROOT_PARTS, MAX_WANTED
from tests.roots import verified_root

KEY = SigningKey(b"k" * 32)
DEVICE, USER = bytes(KEY.verify_key), b"u" * 32
LOG_ID = b"l" * 16
BEGUN = Begun(LOG_ID, 5, 2, 1_700_000_000_001)
CHALLENGE = wire.Challenge(b"n" * 32, "norden", "norden/1", "n1", LOG_ID, 1_700_000_000_000)


ROOT = verified_root([RootRegion("norden", b"", bytes(32), ())], 10**13)


def hello(**changes: Any) -> wire.Hello:
    fields = {"version": wire.VERSION, "log_id": LOG_ID, "cursor": 5, "receive": True, "software": "test"} | changes
    return wire.Hello(**fields)


def auth(key: SigningKey = KEY, challenge: wire.Challenge = CHALLENGE, user: bytes = USER) -> wire.Auth:
    signature = key.sign(wire.challenge_bytes(challenge, user, DEVICE)).signature
    return wire.Auth(USER, DEVICE, signature, (b"record",))


REQUESTS: list[wire.ClientMessage] = [
    wire.Submit((wire.SubmitItem("norden", b"envelope"),)),
    wire.Ack(3),
    wire.Lookup(1, USER, "norden", 0),
    wire.Roster(b"head", (("norden/1", b"part"),)),
    wire.Ephemeral(USER, "norden", b"typing"),
    wire.Subscribe(1, b"c" * 32, bytes(64), True),
    wire.SubscribeFar(1, b"c" * 32, bytes(64), True, "norden/1"),
    wire.Unsubscribe(b"c" * 32),
    wire.Read(b"c" * 32, 7),
    wire.Terms(b"terms"),
    wire.Posts((b"post",)),
]
GOOD: list[wire.ClientMessage] = [hello(), auth(), *REQUESTS]


def fresh(root: Root = ROOT) -> Session:
    return Session(CHALLENGE, lambda: root)


def live(**changes: Any) -> Session:
    session = fresh()
    session.receive(wire.encode_message(hello(**changes)))
    session.receive(wire.encode_message(auth()))
    session.begun(BEGUN)
    assert session.state is State.LIVE
    return session


def test_the_one_way_in() -> None:
    session = fresh()
    assert session.receive(wire.encode_message(hello())) == Send(CHALLENGE)
    assert session.receive(wire.encode_message(auth())) == Admit(USER, DEVICE, (b"record",))
    effect = session.begun(BEGUN)
    assert isinstance(effect, Send) and isinstance(effect.message, wire.Welcome)
    assert (effect.message.log_id, effect.message.cursor, effect.message.home_version) == (LOG_ID, 5, 2)
    assert (session.hello, session.nonce) == (hello(), CHALLENGE.nonce)
    for request in REQUESTS:
        assert session.receive(wire.encode_message(request)) == Ask(request)


@pytest.mark.parametrize(
    "wrong",
    [
        auth(key=SigningKey(b"x" * 32)),
        auth(user=b"v" * 32),
        auth(challenge=wire.Challenge(b"m" * 32, "norden", "norden/1", "n1", LOG_ID, CHALLENGE.time)),
        auth(challenge=wire.Challenge(b"n" * 32, "suden", "norden/1", "n1", LOG_ID, CHALLENGE.time)),
        auth(challenge=wire.Challenge(b"n" * 32, "norden", "norden/1", "n1", b"o" * 16, CHALLENGE.time)),
        wire.Auth(USER, b"\xff" * 32, bytes(64), ()),
        wire.Auth(USER, bytes(32), bytes(64), ()),
    ],
)
def test_a_proof_for_another_key_user_nonce_region_or_log_does_not_hold(wrong: wire.Auth) -> None:
    session = fresh()
    session.receive(wire.encode_message(hello()))
    effect = session.receive(wire.encode_message(wrong))
    assert isinstance(effect, Close) and effect.fault is Fault.AUTH
    assert session.state is State.CLOSED


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": 7}, "version 7"),
        ({"log_id": b"short"}, "log id of 5 bytes"),
        ({"log_id": b"", "cursor": 5}, "cursor without a log id"),
    ],
)
def test_a_hello_that_makes_no_sense(changes: dict[str, Any], says: str) -> None:
    effect = fresh().receive(wire.encode_message(hello(**changes)))
    assert isinstance(effect, Close) and effect.fault is Fault.PROTOCOL and says in effect.text


def test_a_new_device_has_neither_log_id_nor_cursor() -> None:
    assert fresh().receive(wire.encode_message(hello(log_id=b"", cursor=0))) == Send(CHALLENGE)


def test_an_ack_needs_a_connection_that_receives() -> None:
    effect = live(receive=False).receive(wire.encode_message(wire.Ack(1)))
    assert isinstance(effect, Close) and effect.fault is Fault.PROTOCOL


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("message", [*GOOD, BEGUN], ids=lambda m: type(m).__name__)
def test_what_the_table_does_not_have_closes_the_session(state: State, message: Any) -> None:
    session = live()
    session.state = state
    effect = session.begun(message) if message is BEGUN else session.receive(wire.encode_message(message))
    allowed = type(message) in TRANSITIONS[state]
    assert isinstance(effect, Close) != allowed
    assert session.state is (TRANSITIONS[state][type(message)][1] if allowed else State.CLOSED)
    if isinstance(effect, Close):
        assert effect.fault is Fault.PROTOCOL and ". " in effect.text  # what, and what to do


def test_too_large_is_said_before_anything_is_decoded() -> None:
    effect = fresh().receive(bytes(MAX_FRAME + 1))
    assert isinstance(effect, Close) and str(MAX_FRAME) in effect.text


@given(data=st.binary(max_size=300))
@pytest.mark.parametrize("is_live", [False, True])
def test_garbage_gets_an_error_and_nothing_is_raised(data: bytes, is_live: bool) -> None:
    session = live() if is_live else fresh()
    effect = session.receive(data)
    if isinstance(effect, Close):
        assert effect.fault is Fault.PROTOCOL and effect.text and session.state is State.CLOSED
    else:
        assert type(wire.decode_client(data)) in {wire.Hello, *TRANSITIONS[State.LIVE]}


@given(position=st.integers(0, 2000), bit=st.integers(0, 7), which=st.sampled_from(GOOD))
def test_a_flipped_bit_is_another_message_or_an_error(position: int, bit: int, which: wire.ClientMessage) -> None:
    data = bytearray(wire.encode_message(which))
    data[position % len(data)] ^= 1 << bit
    session = live()
    assert isinstance(session.receive(bytes(data)), Ask | Close)


@given(steps=st.lists(st.sampled_from([*GOOD, BEGUN, b"\xc1"]), max_size=12))
def test_only_hello_proof_and_the_office_in_this_order_lead_to_live(steps: list[Any]) -> None:
    session, taken = fresh(), []
    for step in steps:
        before = session.state
        if step is BEGUN:
            effect = session.begun(BEGUN)
        else:
            effect = session.receive(step if isinstance(step, bytes) else wire.encode_message(step))
        if isinstance(effect, Close):
            assert session.state is State.CLOSED
        else:
            assert before is not State.CLOSED
            taken.append(type(step))
        if isinstance(effect, Ask):
            assert taken[:3] == [wire.Hello, wire.Auth, Begun]
    assert (session.state is State.LIVE) <= (taken[:3] == [wire.Hello, wire.Auth, Begun])


@pytest.mark.parametrize(
    ("error", "fault", "retry"),
    [
        (ProtocolError("p"), Fault.PROTOCOL, 0),
        (AuthError("a"), Fault.AUTH, 0),
        (BadSignature("b"), Fault.AUTH, 0),
        (Refused(Code.UNKNOWN_USER, "r"), Fault.NOT_HOME, 0),
        (Refused(Code.UNREACHABLE, "r", retry_after_ms=9), Fault.OVERLOADED, 9),
        (Overloaded("o", 8), Fault.OVERLOADED, 8),
        (RolledBack("r"), Fault.ROLLED_BACK, 0),
        (DiskFailed("/secret/path: EIO"), Fault.INTERNAL, 0),
        (KeyError("secret"), Fault.INTERNAL, 0),
    ],
)
def test_what_the_office_raises_becomes_a_fault(error: Exception, fault: Fault, retry: int) -> None:
    session = fresh()
    session.state = State.STARTING
    close = session.failed(error)
    assert (close.fault, close.retry_after_ms, session.state) == (fault, retry, State.CLOSED)
    assert "secret" not in close.text


def test_hello_is_asked_for_too_early() -> None:
    with pytest.raises(LookupError):
        _ = fresh().hello


@pytest.mark.parametrize(("count", "asked"), [(MAX_WANTED, True), (MAX_WANTED + 1, False)])
def test_a_question_for_receipts_is_bounded_as_a_whole(count: int, asked: bool) -> None:
    session = fresh()
    session.state = State.LIVE
    wanted = question((at % 9, bytes(33)) for at in range(count))
    effect = session.receive(wire.encode_message(wire.Prove(1, "c/1", wanted)))
    assert isinstance(effect, Ask) if asked else isinstance(effect, Close) and effect.fault is Fault.PROTOCOL


def test_the_root_document_is_given_to_who_has_an_older_one() -> None:
    session, ask = live(), wire.encode_message
    assert session.receive(ask(wire.AskRoot(1, 0, 0))) == Send(wire.RootPart(1, 1, len(ROOT.signed), 0, ROOT.signed))
    assert session.receive(ask(wire.AskRoot(1, 1, 0))) == Send(wire.RootPart(1, 1, 0, 0, b""))
    early = fresh()
    assert isinstance(early.receive(ask(wire.AskRoot(1, 0, 0))), Close), "nobody is given anything before WELCOME"


def test_what_one_connection_is_given_of_root_documents_is_bounded() -> None:
    session = live()
    nothing, something = (wire.encode_message(wire.AskRoot(1, version, 0)) for version in (1, 0))
    for data in [nothing] * (MAX_ROOT_PARTS + 1) + [something] * MAX_ROOT_PARTS:
        assert isinstance(session.receive(data), Send)
    effect = session.receive(something)
    assert isinstance(effect, Close) and effect.fault is Fault.PROTOCOL and "ASKROOT" in effect.text
