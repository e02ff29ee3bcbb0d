"""The tape: whatever recipients read, in whatever pieces, they get what they would have got without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import tape as tapes
from bench.frames import FrameReader
from bench.peers.nats import NatsLine
from bench.peers.redis import SubscriberLine, command
from bench.pipes import Plan
from bench.receiver import Recipient, Tally
from bench.tape import Run, Tape
from relay.core.frames import server_frame
from relay.errors import ProtocolError
from tests.bench.test_frames import split_up

TOPIC = b"bench"
KINDS: dict[str, tuple[Callable[[], Any], Callable[[bytes], bytes], bytes]] = {
    "posthouse": (FrameReader, server_frame, b"\x89\x02hi"),
    "nats": (NatsLine, lambda body: b"MSG bench 1 %d\r\n%b\r\n" % (len(body), body), b"PING\r\n"),
    "redis": (SubscriberLine, lambda body: command(b"message", TOPIC, body), command(b"pong", b"")),
}
BODIES = st.lists(st.binary(max_size=40), min_size=1, max_size=30)
CUTS = st.lists(st.integers(0, 1 << 16), max_size=12)


def owed(line: Any) -> bytes:
    """What its own bytes made it say."""
    return bytes(line.output) if hasattr(line, "output") else b"".join(line.pongs)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data(), bodies=BODIES, reel=st.sampled_from([0, 100, 1 << 20]))
def test_with_a_tape_everybody_gets_what_he_gets_without(
    kind: str, data: st.DataObject, bodies: list[bytes], reel: int
) -> None:
    """In pieces of his own, in turns of his own, with interruptions of his own, and a byte of his own."""
    make, wrap, interruption = KINDS[kind]
    frames = [wrap(body) for body in bodies]
    tape, queues, readers = Tape(), [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tapes, "_BYTES", reel)
        for number in range(3):
            own = list(frames)
            for place in data.draw(st.lists(st.integers(0, len(own)), max_size=2)):
                own.insert(place, interruption if number else wrap(b"to me"))
            queues.append(split_up(b"".join(own), data.draw(CUTS)))
            readers.append((make(), make()))
            readers[-1][1].follow(tape)
        while left := [number for number, queue in enumerate(queues) if queue]:
            number = data.draw(st.sampled_from(left))
            piece = queues[number].pop(0)
            alone, along = readers[number]
            assert list(along.feed(piece)) == alone.feed(piece)
    for alone, along in readers:
        assert owed(along) == owed(alone)


def test_who_comes_after_the_first_is_compared_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever pieces he reads; and the tape goes on from reel to reel."""
    frames = [server_frame(b"%d" % number * 30) for number in range(50)]
    tape, first, other = Tape(), FrameReader(), FrameReader()
    monkeypatch.setattr(tapes, "_BYTES", 500)
    for reader in (first, other):
        reader.follow(tape)
        reader.feed(frames[0])
    reader_cuts: list[int] = []
    cut = FrameReader.cut
    monkeypatch.setattr(FrameReader, "cut", lambda self, data: (reader_cuts.append(id(self)), cut(self, data))[1])
    stream, got = b"".join(frames[1:]), list[bytes]()
    for at in range(0, len(stream), 70):
        first.feed(stream[at : at + 70])
        got += other.feed(stream[at : at + 70])
    assert got == [b"%d" % number * 30 for number in range(1, 50)]
    assert id(first) in reader_cuts and id(other) not in reader_cuts


def test_a_byte_that_differs_is_seen() -> None:
    good, tape = server_frame(b"a" * 200), Tape()
    readers = [FrameReader(), FrameReader()]
    for reader in readers:
        reader.follow(tape)
        reader.feed(server_frame(b"begin"))
    assert readers[0].feed(good * 5) == [b"a" * 200] * 5
    bad = bytearray(good * 5)
    bad[500] ^= 1
    assert [message != b"a" * 200 for message in readers[1].feed(bytes(bad))] == [False, False, True, False, False]


def test_readers_who_have_nothing_in_common_find_together_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one is gone, or got something else for good: another tape begins."""
    monkeypatch.setattr(tapes, "_ASTRAY", 3)
    tape, readers = Tape(), [FrameReader(), FrameReader(), FrameReader()]
    for number, reader in enumerate(readers):
        reader.follow(tape)
        reader.feed(server_frame(b"hello %d" % number))
    news = [b"".join(server_frame(b"news %d" % (turn * 4 + number)) for number in range(4)) for turn in range(5)]
    for heard in news[:4]:
        for reader in readers[1:]:
            reader.feed(heard)
    assert [type(reader.feed(news[4])) is Run for reader in readers[1:]] == [False, True]


# --- what is counted -----------------------------------------------------------------------------
PLAN = Plan((), (b"one", b"two"), True, 10.0, 0.0, 4.0, 0, 1)  # 40 messages in two streams, four intervals


class Words:
    """Deliveries that say what they are: position, sequence, when they were due. One of the streams is heard."""

    alike, recipients = True, 2

    def stream(self, place: int) -> int:
        return 0

    def client(self, net: object, recipient: Recipient, place: int) -> Any:
        return SimpleNamespace(cursor=0, tape=None)

    def delivers(self, client: object, recipient: Recipient, message: bytes) -> bool:
        return message != b"other"

    def decode(self, message: bytes) -> tuple[int, int, int]:
        try:
            position, sequence = map(int, message.split())
        except ValueError:
            raise ProtocolError("no delivery") from None
        return position, sequence, sequence * 1_000


def seen(words: Sequence[bytes], pieces: list[int], alike: bool) -> list[Any]:
    """Everything that two recipients count, of these messages in these pieces."""
    hearing = Words()
    hearing.alike = alike
    tally = Tally(PLAN, hearing)  # type: ignore[arg-type]
    recipients = [Recipient(None, tally) for _ in range(2)]  # type: ignore[arg-type]
    lines = [FrameReader(), FrameReader()]
    for line in lines if alike else []:
        line.follow(tally.tapes[0])
    returned, now = [], 1_000_000
    for piece in split_up(b"".join(map(server_frame, words)), pieces):
        for line, recipient in zip(lines, recipients, strict=True):
            now += 7_000
            returned.append(recipient.read(line.feed(piece), now))
    tally.settle()
    ledgers = [recipient.ledger for recipient in recipients]
    counted = [tally.deliveries, tally.reads, tally.wire_duplicates, tally.damaged, list(tally.last_ns)]
    counted += [dict(one.counts) for one in tally.latencies]
    counted += [(one.next, one.missing, one.duplicated, one.reordered) for one in ledgers]
    return [returned, counted, [recipient.client.cursor for recipient in recipients]]


@given(
    st.lists(st.integers(0, 24), max_size=30).map(lambda odd: sorted(odd[:20]) + odd[20:]),
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from([b"other", b"bad", b"9 3", b"0 4", b"30 41"])), max_size=3),
    CUTS, st.booleans(),
)  # fmt: skip
def test_runs_are_counted_as_one_by_one(
    numbers: list[int], odd: list[tuple[int, bytes]], pieces: list[int], whole: bool
) -> None:
    """In order or not, with gaps, repeats, other streams, and what is no delivery."""
    words = [b"%d %d" % (number + 1, 2 * number) for number in (range(20) if whole else numbers)]
    for place, word in odd:
        words.insert(place, word)
    assert seen(words, pieces, alike=True) == seen(words, pieces, alike=False)
