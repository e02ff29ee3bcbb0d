"""Whatever happens: the fold applied again, or from any checkpoint, gives the same state and effects."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nacl.signing import SigningKey

from relay.core import records
from relay.core.codec import digest
from relay.core.mailroom import Mailroom, reading, resting
from relay.core.mailroom.state import WAITING_OVERHEAD, split_key
from relay.core.wire import Code
from relay.limits import MAX_BATCH, MINUTE, PARKED_RETRY_MAX

ABROAD, FAR = "sauda/1", "vest/1"
HOUR = 60 * MINUTE
DEVICES = ("a1", "b1", "b2", "c1")
ANSWERS = (Code.STORED, Code.MAILBOX_FULL, Code.UNKNOWN_ROSTER, 3, 77, 1 << 40)


def device_id(name):
    return bytes(SigningKey(digest(name.encode())).verify_key)


who = st.sampled_from(DEVICES)
cells = st.sampled_from((ABROAD, FAR))
steps = st.one_of(
    st.tuples(st.just("mail"), who, st.sampled_from(("alice", "bob", "carol")), st.integers(0, 3)),
    st.tuples(st.just("group"), who, st.sampled_from((0, 0, 0, -1, 1)), st.integers(0, 9)),
    st.tuples(st.just("roster"), st.sets(st.sampled_from(("alice", "bob", "carol")), min_size=1), st.sets(cells)),
    st.tuples(st.just("abroad"), who, st.integers(0, 3)),
    st.tuples(st.just("handed"), cells, st.integers(1, 5), st.sampled_from(ANSWERS)),
    st.tuples(st.just("handed"), cells, st.integers(1, 5), st.just(Code.UNKNOWN_ROSTER)),
    st.tuples(st.just("handin_roster"), st.integers(1, 8), st.integers(1, 6), st.booleans()),
    st.tuples(st.just("refused"), st.integers(1, 8), st.sampled_from((Code.UNKNOWN_ROSTER, Code.STORED))),
    st.tuples(st.just("squat"), st.sampled_from(("a1", "b2"))),
    st.tuples(st.just("handin"), st.integers(1, 8), st.integers(0, 4), st.sampled_from(("alice", "bob", "group"))),
    st.tuples(st.just("ack"), who, st.integers(0, 5)),
    st.tuples(st.just("session"), who, st.binary(min_size=16, max_size=16)),
    st.tuples(st.just("device"), st.booleans()),
    st.tuples(st.just("carry")),
    st.tuples(st.just("time"), st.sampled_from((1, 1_000, MINUTE, 5 * MINUTE, 20 * MINUTE))),
    st.tuples(st.just("idle"), st.integers(1, 70)),
)

group_steps = st.one_of(  # of a group with members in three cells: what is parked, tried, released, out of time
    st.tuples(st.just("group"), who, st.sampled_from((0, 0, 0, -1, 1)), st.integers(0, 9)),
    st.tuples(st.just("handed"), cells, st.integers(1, 5), st.just(Code.UNKNOWN_ROSTER)),
    st.tuples(st.just("handed"), cells, st.integers(1, 5), st.sampled_from(ANSWERS)),
    st.tuples(st.just("roster"), st.sets(st.sampled_from(("alice", "bob", "carol")), min_size=1), st.sets(cells)),
    st.tuples(st.just("device"), st.booleans()),
    st.tuples(st.just("carry")),
    st.tuples(st.just("time"), st.sampled_from((1, 1_000, 3_000, MINUTE, 20 * MINUTE))),
)


class Story:
    """Turns steps into records of one log."""

    def __init__(self, log, make_user, make_group):
        self.log = log
        self.users = {name: make_user(name, log.cell) for name in ("alice", "bob", "carol")}
        log.enrol(self.users["alice"], "a1")
        log.enrol(self.users["bob"], "b1", "b2")
        log.enrol(self.users["carol"], "c1")
        self.crew, self.foreign = make_group("a1"), make_group("z1")
        self.squatter = make_user("mallory", log.cell)
        log.apply(self.roster(self.users, (ABROAD, FAR)))
        self.effects = []

    def play(self, step):
        kind, *rest = step
        made = getattr(self, kind)(*rest)
        if made is not None:
            self.effects.append(repr(self.log.apply(made)))  # entries change later

    def mail(self, device, name, body):
        user = self.users[name]
        return self.log.submit(device, self.log.seal(user.id, len(user.chain), body=bytes([body])))

    def group(self, device, ahead, body):
        version = max(1, self.crew.version + ahead)
        life = HOUR if body % 2 else MINUTE
        return self.log.submit(device, self.log.seal(self.crew.id, version, roster=True, body=bytes([body]), life=life))

    def roster(self, names, abroad):
        members = {self.log.cell: sorted(self.users[name].id for name in names)}
        for cell in abroad:
            members[cell] = [b"\x09" * 32]
        return self.crew.publish(members)

    def abroad(self, device, body):
        return self.log.submit(device, self.log.seal(b"\x07" * 32, body=bytes([body]), life=10 * MINUTE), ABROAD)

    def handed(self, cell, count, code):
        outbox = self.log.room.state.outboxes.get(cell)
        if outbox is None or outbox.done == outbox.last:
            return None
        upto = min(outbox.done + count, outbox.last)
        answers = tuple(records.HandedAnswer(n, code, 1) for n in range(outbox.done + 1, upto + 1))
        return records.Handed(cell, upto, answers, bytes(16), outbox.log)

    def handin(self, number, confirmed, to):
        if to == "group":
            item = self.log.seal(self.crew.id, 2, roster=True, body=bytes([number]))
        else:
            item = self.log.seal(self.users[to].id, 1, body=bytes([number]), life=15 * MINUTE)
        return records.HandIn(ABROAD, b"o" * 16, number, confirmed, records.HANDIN_ENVELOPE, item, b"")

    def handin_roster(self, number, version, gone):
        foreign = self.foreign
        foreign.version = version - 1
        foreign.last = b"" if version == 1 else bytes(32)
        members = {ABROAD: [b"\x09" * 32]}
        if not gone:
            members[self.log.cell] = sorted([self.users["alice"].id, b"\x08" * 32])
        made = foreign.publish(members)
        part = dict(made.parts).get(self.log.cell, b"")
        what = records.HANDIN_NOBODY if gone else records.HANDIN_ROSTER
        return records.HandIn(ABROAD, b"o" * 16, number, 0, what, made.head, part)

    def refused(self, number, code):
        return records.HandIn(ABROAD, b"o" * 16, number, 0, records.HANDIN_REFUSED, b"", b"", code)

    def squat(self, device):
        """Another user's record that lists a device which is not its own."""
        return records.Home(self.squatter.record("s1", device))

    def ack(self, device, place):
        known = self.log.room.state.devices.get(device_id(device))
        waiting = self.log.pending(device) if known else []
        return records.Ack(device_id(device), waiting[min(place, len(waiting) - 1)]) if waiting else None

    def session(self, device, nonce):
        return records.Session(device_id(device), "n1", nonce, 0)

    def device(self, both):
        return records.Home(self.users["bob"].record(*(("b1", "b2") if both else ("b1",))))

    def carry(self):
        state = self.log.room.state
        carried = []
        for source in reading.to_carry(state, state.index + 1)[:5]:
            record = reading.record_of(self.log.blocks[source.index - 1], source)
            carried.append(records.Carried(*split_key(source.key), records.encode_record(record)))
        return records.Carry(tuple(carried)) if carried else None

    def time(self, span):
        self.log.time += span
        return records.Tick()

    def idle(self, blocks):
        for _ in range(blocks):
            self.effects.append(repr(self.log.apply(records.Tick())))


    def settle_abroad(self):
        """Every other cell takes everything; what waits for a version here runs out."""
        state = self.log.room.state
        for _ in range(3):
            for cell, outbox in state.outboxes.items():
                while outbox.done < outbox.last:
                    self.play(("handed", cell, MAX_BATCH, Code.STORED))
            self.play(("time", PARKED_RETRY_MAX))


def check_nobody_waits_abroad(story):
    """Every envelope has had its last answer from every other cell, and its sender heard of it once."""
    story.settle_abroad()
    state = story.log.room.state
    assert not state.pending
    assert not any(outbox.parked or outbox.bytes for outbox in state.outboxes.values())
    for device in state.devices.values():
        told = Counter((notice.id, notice.code) for notice in device.notices.values())
        assert all(count == 1 for (_, code), count in told.items() if code == Code.STORED)


def check_books(state):
    """What the sources say is exactly what refers to them."""
    refs, waiting = Counter(), Counter()
    for user in state.users.values():
        refs.update(entry.source for entry in user.box.after(-1))
        assert user.box.bytes == sum(state.sources.find(entry.source).size for entry in user.box.after(-1))
    for roster in state.rosters.values():
        refs.update(entry.source for entry in roster.box.after(-1))
        refs.update(entry.source for entry in roster.waiting)
        for entry in roster.waiting:
            waiting[entry.device] += entry.size + WAITING_OVERHEAD
    for outbox in state.outboxes.values():
        refs.update(item.source for item in outbox.items.values() if item.source)
        assert list(outbox.items) == list(range(outbox.done + 1, outbox.last + 1))
        parked = [item for group in outbox.parked.values() for item in group.items.values()]
        assert outbox.bytes == sum(item.size for item in [*outbox.items.values(), *parked])
        refs.update(item.source for item in parked)
        assert all(item.waits for item in parked)
        for item in [*outbox.items.values(), *parked]:
            if item.waits:
                waiting[state.pending[item.id].device] += item.size + WAITING_OVERHEAD
    assert waiting == state.waiting_bytes
    assert refs == {key: refs for key, _, _, refs in state.sources.since(0)}
    live = state.sources.below(state.index + 1)
    assert Counter(source.index for source in live) == {index: use.live for index, use in state.blocks if use.live}
    assert state.blocks.live_bytes == sum(source.size for source in live)
    assert state.blocks.bytes == sum(use.size for _, use in state.blocks)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])  # they are classes
@given(
    played=st.one_of(st.lists(steps, max_size=40), st.lists(group_steps, min_size=10, max_size=60)), data=st.data()
)
def test_replay_and_checkpoints_give_the_same(played, data, make_log, make_user, make_group):
    story = Story(make_log("norden/1"), make_user, make_group)
    enrolled = len(story.log.blocks)
    for step in played:
        story.play(step)
        check_books(story.log.room.state)
    check_nobody_waits_abroad(story)
    check_books(story.log.room.state)
    for device in DEVICES:
        if device_id(device) in story.log.room.state.devices:
            waiting = story.log.pending(device)
            assert waiting == sorted(set(waiting))
    story.log.ids("a1")  # every body that is still waited for can be read

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resting, "MAX_AWAKE", data.draw(st.sampled_from([0, 2, resting.MAX_AWAKE])))
        replay(story, enrolled, data)


def replay(story: Story, enrolled: int, data: st.DataObject) -> None:
    """The same blocks again, with other users at rest, and from a checkpoint somewhere: the same comes of it."""
    again = Mailroom("norden/1", story.log.log_id)
    at = data.draw(st.integers(0, len(story.log.blocks)))
    from_checkpoint = None
    for number, block in enumerate(story.log.blocks):
        if number == at:
            from_checkpoint = Mailroom.from_checkpoint(list(again.checkpoint()))
            assert from_checkpoint.digest() == again.digest()
        effects = repr(again.apply(block))
        if number >= enrolled:
            assert effects == story.effects[number - enrolled]
        if from_checkpoint is not None:
            assert repr(from_checkpoint.apply(block)) == effects
    assert again.digest() == story.log.room.digest()
    if from_checkpoint is not None:
        assert from_checkpoint.digest() == again.digest()
        check_books(from_checkpoint.state)
