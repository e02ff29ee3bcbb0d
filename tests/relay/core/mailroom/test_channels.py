"""Broadcast channels in the fold: who may say what, what the window keeps, and that nothing depends on readers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relay.core import records
from relay.core.codec import digest, encode
from relay.core.mailroom import Mailroom, channels, expiry, reading
from relay.core.mailroom.effects import Answered, ChannelChanged, Posted
from relay.core.mailroom.state import State, split_key
from relay.core.posts import post_id
from relay.core.trust.channels import sign_terms
from relay.core.wire import Code
from relay.limits import CHANNEL_BYTES_LEAST, DAY, MAX_CHANNEL_BYTES, MAX_CHANNEL_POSTS, MAX_CHANNELS_EACH, MINUTE
from tests.channels import Channel
from tests.flipping import flipped
from tests.relay.core.mailroom.conftest import Log, User, device_id, key

CELL = "norden/1"


class Town:
    """A log with an owner, anna (two devices), a stranger, otto, and anna's channel."""

    def __init__(self) -> None:
        self.log = Log(CELL)
        self.anna, self.otto = User("anna", CELL), User("otto", CELL)
        self.log.enrol(self.anna, "a1", "a2")
        self.log.enrol(self.otto, "o1")
        self.channel = Channel(key("a1"), CELL)

    @property
    def state(self) -> State:
        return self.log.room.state

    def kept(self, channel: Channel | None = None) -> list[int]:
        """Numbers in the window."""
        known = self.state.channels[(channel or self.channel).id]
        return [post.number for post in known.window.after(0)]

    def says(self, record: records.Record) -> Code:
        (code,) = self.log.answers(record)
        return Code(code)

    def read(self, number: int) -> bytes:
        """A kept post, through the log."""
        window = self.state.channels[self.channel.id].window
        kept = next(window.after(number - 1))
        source = self.state.sources.find(kept.source)
        assert source is not None and kept.number == number
        return channels.post_of(reading.record_of(self.log.blocks[source.index - 1], source))


@pytest.fixture
def town() -> Town:
    return Town()


# --- terms ---------------------------------------------------------------------------------------
def test_terms_are_kept_and_changed(town: Town) -> None:
    effects = town.log.apply(first := town.channel.publish())
    assert [type(one) for one in effects] == [ChannelChanged, Answered]
    assert town.says(first) == Code.STORED  # again
    old = town.channel.sign(town.channel.draft(keep_ms=5))
    assert town.says(town.channel.publish(keep_ms=MINUTE)) == Code.STORED
    assert town.says(records.Channel(town.channel.device, old)) == Code.BAD_RECORD  # a fork of version 2
    assert town.says(first) == Code.BAD_RECORD  # a rollback
    assert town.state.channels[town.channel.id].terms.version == 2


def test_only_the_owner_speaks_for_a_channel(town: Town) -> None:
    terms = town.channel.publish()
    assert town.says(records.Channel(device_id("o1"), terms.terms)) == Code.NOT_OWNER
    assert town.says(records.Channel(device_id("a2"), terms.terms)) == Code.NOT_OWNER  # the one that signs begins it
    assert town.says(terms) == Code.STORED
    assert town.says(records.Channel(device_id("a1"), flipped(terms.terms))) == Code.BAD_RECORD
    forged = sign_terms(town.channel.draft(), key("o1"))
    assert town.says(records.Channel(device_id("o1"), forged)) == Code.BAD_RECORD
    assert town.log.answers(records.Channel(device_id("nobody"), terms.terms)) == []
    changed = town.channel.publish()
    assert town.says(records.Channel(device_id("o1"), changed.terms)) == Code.NOT_OWNER
    assert town.says(records.Channel(device_id("a2"), changed.terms)) == Code.STORED


def test_a_channel_of_another_cell_does_not_rest_here(town: Town) -> None:
    assert town.says(Channel(key("a1"), "sauda/1").publish()) == Code.BAD_RECORD
    assert not town.state.channels


def test_what_a_users_channels_may_keep_is_bounded(town: Town) -> None:
    half = {"keep_bytes": MAX_CHANNEL_BYTES // 2}
    one, two, three = (Channel(key("a1"), CELL, bytes([n]) * 32) for n in range(3))
    assert [town.says(channel.publish(**half)) for channel in (one, two)] == [Code.STORED] * 2
    assert town.says(three.publish()) == Code.CHANNELS_FULL
    assert town.says(two.publish(keep_bytes=CHANNEL_BYTES_LEAST)) == Code.STORED
    three.terms = None
    assert town.says(three.publish(keep_posts=MAX_CHANNEL_POSTS)) == Code.CHANNELS_FULL
    three.terms = None
    assert town.says(three.publish()) == Code.STORED
    more = [Channel(key("a1"), CELL, bytes([n]) * 32) for n in range(3, MAX_CHANNELS_EACH + 1)]
    said = [town.says(channel.publish(keep_posts=1)) for channel in more]
    assert said == [Code.STORED] * (MAX_CHANNELS_EACH - 3) + [Code.CHANNELS_FULL]
    assert town.says(one.publish(keep_ms=0)) == Code.STORED  # closed
    more[-1].terms = None
    assert town.says(more[-1].publish(keep_posts=1)) == Code.STORED


def test_what_others_keep_counts_for_the_cell_only(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    most = {"keep_bytes": MAX_CHANNEL_BYTES, "keep_posts": MAX_CHANNEL_POSTS}
    others = Channel(key("o1"), CELL)
    assert town.says(town.channel.publish(**most)) == Code.STORED  # all that one may have
    assert town.says(others.publish(**most)) == Code.STORED
    monkeypatch.setattr(channels, "MAX_CHANNELS", 2)
    assert town.says(town.channel.publish(keep_posts=1, keep_bytes=CHANNEL_BYTES_LEAST)) == Code.STORED
    another = Channel(key("a1"), CELL, b"\x05" * 32)
    assert town.says(another.publish()) == Code.CHANNELS_FULL
    town.anna.move("sauda/1")
    town.log.apply(records.Move(tuple(town.anna.chain)))
    assert list(town.state.channels) == [others.id]  # who stays keeps what is there


# --- posts ---------------------------------------------------------------------------------------
def test_a_post_is_one_record_and_one_row(town: Town) -> None:
    town.log.apply(town.channel.publish())
    record = town.channel.post(b"hello")
    posted, answered = town.log.apply(record)
    assert isinstance(posted, Posted) and posted.number == 1
    assert isinstance(answered, Answered)
    assert (answered.item.code, answered.item.id) == (Code.STORED, post_id(record.post))
    assert town.kept() == [1] and town.read(1) == record.post
    assert town.says(record) == Code.STORED and town.kept() == [1]  # again: what a client sends after a lost receipt


def test_what_is_no_post_of_the_owner(town: Town) -> None:
    assert town.says(town.channel.post(b"early", 1, 1)) == Code.UNKNOWN_CHANNEL
    town.log.apply(town.channel.publish())
    good = town.channel.post(b"good")
    assert town.says(records.Post(device_id("o1"), good.post)) == Code.NOT_OWNER
    assert town.log.answers(records.Post(device_id("nobody"), good.post)) == []
    assert town.says(records.Post(device_id("a1"), flipped(good.post))) == Code.BAD_ENVELOPE
    assert town.says(records.Post(device_id("a1"), b"no post")) == Code.BAD_ENVELOPE
    assert town.says(town.channel.post(b"ahead", 1, version=2)) == Code.BAD_ENVELOPE
    assert town.says(records.Post(device_id("a2"), good.post)) == Code.STORED  # passed on by the owner's other device
    assert town.says(town.channel.post(b"other words", 1)) == Code.STALE
    town.log.apply(town.channel.publish(reader_key=b"\x07" * 32))
    assert town.says(town.channel.post(b"by old terms", 2, version=1)) == Code.STALE
    assert town.says(town.channel.post(b"far ahead", 9)) == Code.STORED
    assert town.kept() == [1, 9]


# --- the window ----------------------------------------------------------------------------------
def test_count_and_age(town: Town) -> None:
    town.log.apply(town.channel.publish(keep_posts=3, keep_ms=MINUTE))
    for text in (b"1", b"2", b"3", b"4"):
        town.log.apply(town.channel.post(text), after_ms=10_000)
    assert town.kept() == [2, 3, 4]
    town.log.apply(records.Tick(), after_ms=40_000)
    assert town.kept() == [3, 4]
    town.log.apply(records.Tick(), after_ms=DAY)
    assert town.kept() == [] and not len(town.state.sources)
    assert town.says(town.channel.post(b"old number", 4)) == Code.STALE  # what it had is remembered


def test_bytes(town: Town) -> None:
    town.log.apply(town.channel.publish())
    for _ in range(6):
        town.log.apply(town.channel.post(bytes(60_000)))
    known = town.state.channels[town.channel.id]
    assert known.bytes <= CHANNEL_BYTES_LEAST and town.kept() == [3, 4, 5, 6]
    assert town.state.blocks.live_bytes == known.bytes


def test_new_terms_count_for_what_is_kept_already(town: Town) -> None:
    town.log.apply(town.channel.publish())
    for text in (b"1", b"2", b"3"):
        town.log.apply(town.channel.post(text), after_ms=MINUTE)
    town.log.apply(town.channel.publish(keep_ms=2 * MINUTE))
    assert town.kept() == [2, 3]
    town.log.apply(town.channel.publish(keep_ms=DAY))
    town.log.apply(records.Tick(), after_ms=30 * MINUTE)
    assert town.kept() == [2, 3]
    town.log.apply(town.channel.publish(keep_posts=1))
    assert town.kept() == [3]


def test_shorter_terms_count_while_nothing_is_posted(town: Town) -> None:
    town.log.apply(town.channel.publish())
    town.log.apply(town.channel.post(b"1"))
    town.log.apply(town.channel.publish(keep_ms=10 * MINUTE), after_ms=MINUTE)
    assert town.kept() == [1]
    town.log.apply(records.Tick(), after_ms=9 * MINUTE)
    assert town.kept() == []


def test_a_block_lets_go_a_bounded_number(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.log.apply(town.channel.publish(keep_ms=MINUTE))
    town.log.apply(*(town.channel.post(text) for text in (b"1", b"2", b"3", b"4", b"5")))
    monkeypatch.setattr(expiry, "MAX_EXPIRIES", 2)
    town.log.apply(records.Tick(), after_ms=DAY)
    assert town.kept() == [3, 4, 5]
    town.log.apply(records.Tick())
    assert town.kept() == [5]


def test_a_checkpoint_has_what_comes_again_and_what_runs_out(town: Town) -> None:
    town.log.apply(town.channel.publish(keep_ms=MINUTE))
    town.log.apply(record := town.channel.post(b"hello"))
    size = town.state.channels[town.channel.id].bytes
    town.log.room = Mailroom.from_checkpoint(list(town.log.room.checkpoint()))
    assert town.state.channels[town.channel.id].bytes == size > 0
    assert town.says(record) == Code.STORED and town.kept() == [1]
    town.log.apply(records.Tick(), after_ms=MINUTE)
    assert town.kept() == [] and not len(town.state.sources)


def test_an_owner_who_leaves_leaves_nothing(town: Town) -> None:
    town.log.apply(town.channel.publish())
    town.log.apply(town.channel.post(b"hello"))
    town.anna.move("sauda/1")
    effects = town.log.apply(records.Move(tuple(town.anna.chain)))
    assert ChannelChanged(town.channel.id) in effects
    assert not town.state.channels and not len(town.state.sources)


def test_a_channel_ends_with_the_device_that_made_it(town: Town) -> None:
    """Nobody could close it any more, and it would count against its owner for ever. Rotated: it is the same device."""
    other = Channel(key("a2"), CELL, b"\x05" * 32)
    for record in (town.channel.publish(), town.channel.post(b"hello"), other.publish(), other.post(b"hello")):
        town.log.apply(record)
    town.log.apply(records.Home(town.anna.rotate("a1", "a1'")))
    post = town.channel.post(b"by the old key")
    assert town.says(records.Post(device_id("a1'"), post.post)) == Code.STORED and town.kept() == [1, 2]
    effects = town.log.apply(records.Home(town.anna.record("a1'")))
    assert ChannelChanged(other.id) in effects and list(town.state.channels) == [town.channel.id]
    assert len(town.state.sources) == 2


# --- whatever happens ----------------------------------------------------------------------------
steps = st.one_of(
    st.tuples(st.just("post"), st.integers(0, 1), st.integers(-1, 2), st.sampled_from((1, 2_000, 90_000))),
    st.tuples(st.just("terms"), st.integers(0, 1), st.sampled_from((MINUTE, 5 * MINUTE, DAY)), st.integers(1, 4)),
    st.tuples(st.just("time"), st.sampled_from((1, 20_000, MINUTE, 10 * MINUTE))),
    st.tuples(st.just("close"), st.integers(0, 1)),
    st.tuples(st.just("carry")),
    st.tuples(st.just("idle"), st.integers(1, 70)),
)


class Model:
    """What a channel keeps, said plainly."""

    def __init__(self) -> None:
        self.posts: list[tuple[int, int, int]] = []  # number, time, size
        self.last = 0

    def trim(self, channel: Channel, now: int) -> None:
        terms = channel.terms
        assert terms is not None
        while self.posts and (
            len(self.posts) > terms.keep_posts
            or sum(size for *_, size in self.posts) > terms.keep_bytes
            or self.posts[0][1] + terms.keep_ms <= now
        ):
            self.posts.pop(0)


class Story(Town):
    def __init__(self) -> None:
        super().__init__()
        self.all = [Channel(key("a1"), CELL, bytes([n]) * 32) for n in (1, 2)]
        self.models = [Model(), Model()]
        self.effects: list[str] = []

    def play(self, step: tuple[str, *tuple[int, ...]]) -> None:
        kind, *rest = step
        for record in getattr(self, kind)(*rest):
            self.effects.append(repr(self.log.apply(record)))
        for channel, model in zip(self.all, self.models, strict=True):
            if channel.id in self.state.channels:
                model.trim(channel, self.log.time)
                assert self.kept(channel) == [number for number, *_ in model.posts]
                assert self.state.channels[channel.id].bytes == sum(size for *_, size in model.posts)
                assert self.state.channels[channel.id].last == model.last

    def post(self, which: int, ahead: int, size: int) -> Iterator[records.Record]:
        channel, model = self.all[which], self.models[which]
        if channel.id not in self.state.channels:
            return
        number = max(1, model.last + ahead)
        record = channel.post(bytes(size), number)
        if number > model.last:
            model.last = number
            model.posts.append((number, self.log.time, len(encode(record))))
        yield record

    def terms(self, which: int, keep_ms: int, keep_posts: int) -> Iterator[records.Record]:
        if self.all[which].id not in self.state.channels:
            self.all[which].terms, self.models[which] = None, Model()
        yield self.all[which].publish(keep_ms=keep_ms, keep_posts=keep_posts)

    def close(self, which: int) -> Iterator[records.Record]:
        if self.all[which].id in self.state.channels:
            yield self.all[which].publish(keep_ms=0)

    def time(self, span: int) -> Iterator[records.Record]:
        self.log.time += span
        yield records.Tick()

    def idle(self, blocks: int) -> Iterator[records.Record]:
        yield from [records.Tick()] * blocks

    def carry(self) -> Iterator[records.Record]:
        carried = []
        for source in reading.to_carry(self.state, self.state.index + 1)[:5]:
            record = reading.record_of(self.log.blocks[source.index - 1], source)
            carried.append(records.Carried(*split_key(source.key), records.encode_record(record)))
        if carried:
            yield records.Carry(tuple(carried))


@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(played=st.lists(steps, max_size=40), at=st.integers(0, 60))
def test_the_window_is_what_the_terms_say_also_from_a_checkpoint(
    played: list[tuple[str, *tuple[int, ...]]], at: int
) -> None:
    story = Story()
    begun = len(story.log.blocks)
    for step in played:
        story.play(step)
    for channel in story.all:
        if channel.id in story.state.channels:
            for kept in story.state.channels[channel.id].window.after(0):
                source = story.state.sources.find(kept.source)
                assert source is not None  # it can be read, wherever a carry put it
                channels.post_of(reading.record_of(story.log.blocks[source.index - 1], source))
    again, loaded = Mailroom(CELL, story.log.log_id), None
    effects: list[str] = []
    for number, block in enumerate(story.log.blocks):
        if number == min(at, len(story.log.blocks) - 1):
            loaded = Mailroom.from_checkpoint(list(again.checkpoint()))
        effects.append(repr(again.apply(block)))
        if loaded is not None:
            assert repr(loaded.apply(block)) == effects[-1]
    assert effects[begun:] == story.effects
    assert loaded is not None and loaded.digest() == again.digest() == story.log.room.digest()


def test_the_digest_of_a_state_with_channels_differs(town: Town) -> None:
    before = town.log.room.digest()
    town.log.apply(town.channel.publish())
    assert digest(before) != digest(town.log.room.digest())
