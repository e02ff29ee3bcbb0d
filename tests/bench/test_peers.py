"""What peers say, cut up anywhere: deliveries come out whole, and what is owed for them goes back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.envelopes import body
from bench.peers.api import Peer
from bench.peers.jetstream import PublisherLine as JetPublisher
from bench.peers.lines import MAX_HEAD
from bench.peers.mosquitto import connect, packet, publish
from bench.peers.mosquitto import PublisherLine as MqttPublisher
from bench.peers.nats import NatsLine
from bench.peers.redis import PublisherLine as RedisPublisher
from bench.peers.redis import command
from bench.peers.registry import PEERS
from bench.sockets import Line
from relay.errors import ProtocolError
from tests.bench.test_frames import split_up

CUTS = st.lists(st.integers(0, 1 << 20), max_size=12)
SIZES = st.lists(st.sampled_from([32, 100, 118, 119, 256, 16_500]), min_size=1, max_size=5)
INFO = b'INFO {"server_id":"x","max_payload":1048576}\r\n'
# what a server says before subscriber 0 is live, and what it may say between deliveries
GREETINGS = {
    "nats": (INFO + b"PONG\r\n", b"PING\r\n"),
    "jetstream": (INFO + b'PONG\r\nMSG i.0 2 29\r\n{"type":"create","name":"r0"}\r\n', b"PING\r\n"),
    "redis": (b"*3\r\n$9\r\nsubscribe\r\n$5\r\nbench\r\n:1\r\n", command(b"pong", b"")),
    "mosquitto": (b"\x20\x02\x00\x00" b"\x90\x03\x00\x01\x01", b"\xd0\x00"),
}


def fed(line: Line, data: bytes, cuts: list[int]) -> list[bytes]:
    return [message for piece in split_up(data, cuts) for message in line.feed(piece)]


def greeted(peer: Peer) -> Line:
    line = peer.subscriber(0)
    assert not line.live and line.feed(GREETINGS[peer.name][0]) == [] and line.live
    line.output.clear()
    return line


@pytest.mark.parametrize("name", PEERS)
@given(sizes=SIZES, cuts=CUTS)
def test_deliveries_come_out_however_they_are_split(name: str, sizes: list[int], cuts: list[int]) -> None:
    peer = PEERS[name]
    greeting, between = GREETINGS[name]
    payloads = [body(1, number, 7, size) for number, size in enumerate(sizes)]
    stream = b"".join(peer.delivery(number, payload) + between for number, payload in enumerate(payloads))
    line = peer.subscriber(0)
    assert fed(line, greeting + stream, cuts) == payloads
    assert line.live and not line.ended


@pytest.mark.parametrize("name", PEERS)
def test_one_byte_at_a_time(name: str) -> None:
    peer, payload = PEERS[name], body(1, 1, 7, 300)
    line, found = peer.subscriber(0), []
    for byte in GREETINGS[name][0] + peer.delivery(1, payload) + peer.delivery(2, payload):
        found += line.feed(bytes([byte]))
    assert found == [payload, payload]


@pytest.mark.parametrize("name", PEERS)
@given(data=st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_nothing(name: str, data: bytes) -> None:
    for line in (PEERS[name].subscriber(0), PEERS[name].publisher()):
        with suppress(ProtocolError):
            line.feed(data)
    with suppress(ProtocolError):
        assert b"posthouse" not in b"".join(greeted(PEERS[name]).feed(data))


# --- what is owed --------------------------------------------------------------------------------
def test_a_read_of_jetstream_is_acknowledged_once_by_its_last_delivery() -> None:
    peer = PEERS["jetstream"]
    line, payload = greeted(peer), body(1, 1, 7, 64)
    three = b"".join(peer.delivery(number, payload) for number in range(3))
    assert len(line.feed(three + peer.delivery(3, payload)[:-3])) == 3
    assert bytes(line.output) == b"PUB $JS.ACK.bench.r0.1.3.3.1700000000000000000.0 0\r\n\r\n"
    line.output.clear()
    assert len(line.feed(peer.delivery(3, payload)[-3:])) == 1
    assert b".1.4.4." in line.output


def test_jetstream_makes_a_durable_consumer_or_says_why_not() -> None:
    line = PEERS["jetstream"].subscriber(7)
    assert b"SUB d.7 1\r\nSUB i.7 2\r\n" in line.output
    assert b"PUB $JS.API.CONSUMER.DURABLE.CREATE.bench.r7 i.7 " in line.output
    refusal = b'{"error":{"code":503,"description":"no quorum"}}'
    with pytest.raises(ProtocolError, match="made no consumer: no quorum"):
        line.feed(b"MSG i.7 2 %d\r\n%b\r\n" % (len(refusal), refusal))


def test_every_delivery_of_mqtt_is_acknowledged_by_its_own_identifier() -> None:
    line = greeted(PEERS["mosquitto"])
    assert line.feed(publish(0x1234, b"a") + packet(0x3A, publish(0x1235, b"b")[2:])) == [b"a", b"b"]  # again: DUP
    assert bytes(line.output) == b"\x40\x02\x12\x34\x40\x02\x12\x35"


def test_the_mqtt_subscription_is_asked_for_with_qos_1() -> None:
    line = PEERS["mosquitto"].subscriber(3)
    assert bytes(line.output) == connect(b"r3", keep=True) == b"\x10\x0e\x00\x04MQTT\x04\x00\x00\x00\x00\x02r3"
    line.output.clear()
    line.feed(b"\x20\x02\x00\x00")
    assert bytes(line.output) == b"\x82\x0a\x00\x01\x00\x05bench\x01" and not line.live
    with pytest.raises(ProtocolError, match="did not grant QoS 1"):
        line.feed(b"\x90\x03\x00\x01\x00")


# --- what answers --------------------------------------------------------------------------------
@given(cuts=CUTS)
def test_redis_answers_in_order(cuts: list[int]) -> None:
    line, peer = RedisPublisher(), PEERS["redis"]
    for sequence in range(3):
        line.publish(*peer.message(sequence, b"x"))
    assert line.output.endswith(b"*3\r\n$7\r\nPUBLISH\r\n$5\r\nbench\r\n$1\r\nx\r\n")
    answers = fed(line, b"+PONG\r\n:5\r\n:0\r\n:5\r\n", cuts)
    assert line.live and [line.answer(answer) for answer in answers] == [(0, True), (1, True), (2, True)]
    with pytest.raises(ProtocolError, match="not asked"):
        line.answer(b"5")


@given(cuts=CUTS)
def test_jetstream_answers_on_a_subject_for_each_message(cuts: list[int]) -> None:
    line = JetPublisher()
    key, message = PEERS["jetstream"].message(17, b"xy")
    assert (key, message) == (17, b"PUB bench a.17 2\r\nxy\r\n")
    refused = b'{"error":{"code":503}}'
    taken = b'{"stream":"bench","seq":1}'
    said = b"PONG\r\n" + b"".join(
        b"MSG a.%d 1 %d\r\n%b\r\n" % (key, len(answer), answer) for key, answer in ((18, taken), (17, refused))
    )
    answers = fed(line, said, cuts)
    assert line.live and [line.answer(answer) for answer in answers] == [(18, True), (17, False)]


@given(cuts=CUTS)
def test_mqtt_answers_by_identifier_which_begin_anew(cuts: list[int]) -> None:
    line, peer = MqttPublisher(), PEERS["mosquitto"]
    assert [peer.message(sequence, b"x")[0] for sequence in (0, 65_534, 65_535)] == [1, 65_535, 1]
    answers = fed(line, b"\x20\x02\x00\x00\x40\x02\x00\x01\x40\x02\xff\xff", cuts)
    assert [line.answer(answer) for answer in answers] == [(1, True), (65_535, True)]


# --- what a server must not say ------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "said", "why"),
    [
        ("nats", b"-ERR 'Slow Consumer'\r\n", "Slow Consumer"),
        ("nats", b"HELLO\r\n", "begins with b'HELLO'"),
        ("nats", b"MSG bench 1 99999999\r\n", "a payload of"),
        ("nats", b"MSG bench 1 -5\r\n", "a payload of"),
        ("nats", b"I" * MAX_HEAD, "without an end"),
        ("redis", b"-NOAUTH Authentication required.\r\n", "NOAUTH"),
        ("mosquitto", b"\x20\x02\x00\x05", "refused the connection: code 05"),
        ("mosquitto", b"\x30\x05\x00\x03abc", "begins with 0x30"),
        ("mosquitto", b"\x32\xff\xff\xff\xff\x01", "too many bytes"),
        ("jetstream", b"MSG i.0 2 4\r\nnope\r\n", "answered b'nope'"),
    ],
)
def test_surprises_end_the_connection(name: str, said: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        PEERS[name].subscriber(0).feed(said)


def test_a_ping_is_answered() -> None:
    line = NatsLine()
    line.output.clear()
    line.feed(b"PING\r\n")
    assert bytes(line.output) == b"PONG\r\n"


def test_what_a_peer_promises_fits_its_place() -> None:
    for name, peer in PEERS.items():
        assert peer.name == name and len(peer.promises.brief) <= 20 and peer.program.install
