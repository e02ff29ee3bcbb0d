"""Users who move between cells: logs, and a line between them that hands over as forwarders do, in any order."""

from __future__ import annotations


import pytest

from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom, reading
from relay.core.mailroom.effects import UserMoved
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.wire import Code
from relay.limits import MAX_MAILBOX
from tests.relay.core.mailroom.conftest import Group, Log, User, device_id

A, B, C = "norden/1", "sauda/1", "ostland/1"


class World:
    """Three cells. `hand` is what a forwarder and the other cell's reception do."""

    def __init__(self) -> None:
        self.logs = {cell: Log(cell) for cell in (A, B, C)}
        for log in self.logs.values():
            log.apply(records.FoldVersion(FOLD_VERSION))

    def state(self, cell: str):
        return self.logs[cell].room.state

    def items(self, origin: str, to: str, count: int = 1_000):
        """What goes over the line next: records for the other log, moves ahead of them."""
        state, log = self.state(origin), self.logs[origin]
        outbox = state.outboxes.get(to)
        moves, hands = [], []
        for number, item in reading.outbox_batch(outbox, outbox.done, count, 1 << 30) if outbox else ():
            what, data, part = item.what, item.beside, b""
            known = state.moved.get(item.user) or state.users.get(item.user)
            if what == records.HANDIN_MOVE:
                data = encode(records.Chain(tuple(known.chain)))
            elif item.source is not None:
                source = state.sources.find(item.source)
                record = reading.record_of(log.blocks[source.index - 1], source)
                if isinstance(record, records.Roster):
                    data, part = record.head, dict(record.parts).get(to, b"")
                else:
                    data = reading.envelope_of(record)
            if what == records.HANDIN_FORWARD:
                part = encode(records.Forward(item.user, len(known.chain)))
                moves.append(records.Move(tuple(known.chain)))
            hands.append(records.HandIn(origin, log.log_id, number, outbox.done, what, data, part))
        return moves, hands

    def hand(self, origin: str, to: str, count: int = 1_000, *, answered: bool = True) -> int:
        moves, hands = self.items(origin, to, count)
        if not hands:
            return 0
        there = self.logs[to]
        there.apply(*moves, *hands)
        if answered:
            self.answer(origin, to)
        return len(hands)

    def answer(self, origin: str, to: str) -> None:
        here, there = self.state(origin), self.state(to)
        known, outbox = there.origins[origin, here.log_id], here.outboxes[to]
        given = tuple(
            records.HandedAnswer(number, *known.outcomes[number])
            for number in range(outbox.done + 1, known.vector + 1) if number in known.outcomes
        )
        self.logs[origin].apply(records.Handed(to, known.vector, given, there.log_id, outbox.log))

    def settle(self) -> None:
        for _ in range(200):
            if not sum(self.hand(one, other) for one in self.logs for other in self.logs if one != other):
                return
        raise AssertionError("it goes round in circles")

    def move(self, user: User, cell: str, *, tell: str) -> None:
        """The record reaches the log of `tell` first."""
        user.move(cell)
        self.logs[tell].apply(records.Move(tuple(user.chain)))


@pytest.fixture
def world() -> World:
    return World()


def enrolled(world: World, name: str, cell: str, *devices: str) -> User:
    user = User(name, cell)
    world.logs[cell].enrol(user, *(devices or (name[0] + "1",)))
    return user


def test_what_waits_follows_and_what_comes_later_too(world: World) -> None:
    _alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here, there = world.logs[A], world.logs[B]
    before = here.seal(bob.id, body=b"before")
    assert here.answers(here.submit("a1", before)) == [Code.STORED]
    world.move(bob, B, tell=A)
    assert bob.id not in here.room.state.users and device_id("b1") not in here.room.state.devices
    later = here.seal(bob.id, body=b"later")
    assert here.answers(here.submit("a1", later)) == [Code.ACCEPTED]  # not stored: that is for the new home to say
    assert here.answers(here.submit("a1", later)) == [Code.ACCEPTED]
    assert not here.room.state.moved[bob.id].confirmed
    world.settle()
    assert there.ids("b1") == [envelope_id(before), envelope_id(later)]
    assert here.ids("a1") == [bytes([Code.STORED]) + envelope_id(later)]
    moved = here.room.state.moved[bob.id]
    assert (moved.confirmed, moved.items, moved.bytes) == (True, 0, 0)
    assert not here.room.state.sources and not here.room.state.pending


def test_the_devices_of_who_left_are_told_with_the_records(world: World) -> None:
    bob = enrolled(world, "bob", A, "b1", "b2")
    bob.move(B)
    effects = world.logs[A].apply(records.Move(tuple(bob.chain)))
    told = [effect for effect in effects if isinstance(effect, UserMoved)]
    assert told == [UserMoved((device_id("b1"), device_id("b2")), tuple(bob.chain))]
    assert world.logs[A].apply(records.Move(tuple(bob.chain))) == []  # a repeat


def test_the_new_home_may_know_first(world: World) -> None:
    _alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here, there = world.logs[A], world.logs[B]
    world.move(bob, B, tell=B)
    assert there.room.state.users[bob.id].record.version == 2
    sent = here.seal(bob.id)
    assert here.answers(here.submit("a1", sent)) == [Code.STORED]  # the old cell does not know yet
    world.settle()
    assert there.ids("b1") == [envelope_id(sent)] and here.room.state.moved[bob.id].confirmed


def test_a_third_cell_that_does_not_know_is_told_the_outcome_later(world: World) -> None:
    bob, carol = enrolled(world, "bob", A), enrolled(world, "carol", C)
    far = world.logs[C]
    sent = far.seal(bob.id)
    assert far.answers(far.submit("c1", sent, A)) == [Code.ACCEPTED]
    world.move(bob, B, tell=A)
    world.hand(C, A)
    outbox = far.room.state.outboxes[A]
    assert outbox.done == 1 and not far.room.state.sources and len(outbox.taken_over) == 1
    assert far.ids("c1") == [] and far.room.state.pending
    world.settle()
    assert world.logs[B].ids("b1") == [envelope_id(sent)]
    assert far.ids("c1") == [bytes([Code.STORED]) + envelope_id(sent)]
    assert not outbox.taken_over and not far.room.state.pending and carol


def test_the_outcome_may_come_before_the_answer(world: World) -> None:
    bob, _ = enrolled(world, "bob", A), enrolled(world, "carol", C)
    far = world.logs[C]
    sent = far.seal(bob.id)
    far.apply(far.submit("c1", sent, A))
    world.move(bob, B, tell=A)
    world.hand(C, A, answered=False)
    world.hand(A, B)
    world.hand(B, A)
    world.hand(A, C)  # TOLD, and the answer to number 1 is still under way
    assert far.ids("c1") == []
    world.answer(C, A)
    assert far.ids("c1") == [bytes([Code.STORED]) + envelope_id(sent)]
    assert not far.room.state.outboxes[A].taken_over and not far.room.state.pending


def test_on_and_back_again_before_everything_was_forwarded(world: World) -> None:
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here = world.logs[A]
    sent = [here.seal(bob.id, body=bytes([n])) for n in range(4)]
    here.apply(here.submit("a1", sent[0]))
    world.move(bob, B, tell=A)
    here.apply(here.submit("a1", sent[1]))
    world.move(bob, C, tell=B)  # B hears of both at once
    here.apply(here.submit("a1", sent[2]))
    world.move(bob, A, tell=A)  # A never heard of C
    here.apply(here.submit("a1", sent[3]))
    assert here.ids("b1") == [envelope_id(sent[3])]
    world.settle()
    assert sorted(here.ids("b1")) == sorted(map(envelope_id, sent))
    assert [code_of(one) for one in here.ids("a1")] == [Code.STORED] * 2  # of what it had not stored itself
    assert not any(log.room.state.pending for log in world.logs.values()) and alice
    for cell in (B, C):
        assert not world.state(cell).sources and world.state(cell).moved[bob.id].record.cell == A


def code_of(notice: bytes) -> int:
    return notice[0]


def test_notices_that_wait_reach_the_devices_at_the_new_home(world: World) -> None:
    alice, bob, carol = enrolled(world, "alice", A), enrolled(world, "bob", B), enrolled(world, "carol", C)
    here = world.logs[A]
    kept, open_ = here.seal(bob.id, body=b"1"), here.seal(carol.id, body=b"2")
    here.apply(here.submit("a1", kept, B))
    world.hand(A, B)
    assert len(here.ids("a1")) == 1  # a notice waits
    here.apply(here.submit("a1", open_, C))  # and one is still to come
    world.move(alice, B, tell=A)
    world.settle()
    stored = bytes([Code.STORED])
    assert sorted(world.logs[B].ids("a1")) == sorted([stored + envelope_id(kept), stored + envelope_id(open_)])


def test_a_refusal_reaches_a_sender_who_moved(world: World) -> None:
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", B)
    here = world.logs[A]
    bad = here.seal(bob.id, version=9)
    here.apply(here.submit("a1", bad, B))
    world.move(alice, C, tell=C)
    world.settle()
    assert world.logs[C].ids("a1") == [bytes([Code.BAD_ENVELOPE]) + envelope_id(bad)]


@pytest.mark.parametrize("reload", [False, True])
def test_an_outcome_finds_the_device_whose_keys_were_rotated_since(world: World, reload: bool) -> None:
    """Found by the simulator, seed 148: the old home names the device by the id with which it submitted."""
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", B)
    here, there = world.logs[A], world.logs[C]
    sent = here.seal(bob.id)
    here.apply(here.submit("a1", sent, B))
    world.move(alice, C, tell=C)
    there.apply(records.Home(alice.rotate("a1", "a2")))
    if reload:
        there.room = Mailroom.from_checkpoint(list(there.room.checkpoint()))
    world.settle()
    assert there.ids("a2") == [bytes([Code.STORED]) + envelope_id(sent)]


def test_group_mail_follows_who_moved_and_stays_with_who_stayed(world: World) -> None:
    alice, bob, carol = enrolled(world, "alice", A), enrolled(world, "bob", A), enrolled(world, "carol", C)
    here, far = world.logs[A], world.logs[C]
    group = Group("a1")
    here.apply(group.publish({A: sorted([alice.id, bob.id]), C: [carol.id]}))
    world.settle()
    first = here.seal(group.id, roster=True, body=b"1")
    here.apply(here.submit("a1", first))
    world.move(bob, B, tell=A)
    second, third = (log.seal(group.id, roster=True, body=b"2" * n) for n, log in ((1, here), (2, far)))
    assert here.answers(here.submit("a1", second)) == [Code.ACCEPTED]
    assert far.answers(far.submit("c1", third)) == [Code.ACCEPTED]
    world.settle()
    assert world.logs[B].ids("b1") == [envelope_id(one) for one in (first, second, third)]
    assert {envelope_id(third)} <= set(here.ids("a1"))
    assert {one for one in far.ids("c1") if one[0] == Code.STORED} >= {bytes([Code.STORED]) + envelope_id(third)}
    assert not here.room.state.pending and not far.room.state.pending


def test_group_mail_reaches_a_device_that_was_enrolled_in_the_new_home(world: World) -> None:
    """The old home does not know of it, and sends on by the version that it knows (found by the simulator)."""
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here = world.logs[A]
    group = Group("a1")
    here.apply(group.publish({A: sorted([alice.id, bob.id])}))
    world.move(bob, B, tell=A)
    world.settle()
    world.logs[B].enrol(bob, "b1", "b2")
    sent = here.seal(group.id, roster=True)
    here.apply(here.submit("a1", sent))
    world.settle()
    assert world.logs[B].ids("b1") == world.logs[B].ids("b2") == [envelope_id(sent)]


def test_group_mail_reaches_a_device_enrolled_in_a_stay_that_this_home_never_heard_of(world: World) -> None:
    """There, and back again: the records of both moves come at once (found by the simulator, seed 423)."""
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here = world.logs[A]
    group = Group("a1")
    here.apply(group.publish({A: sorted([alice.id, bob.id])}))
    world.move(bob, B, tell=B)
    world.logs[B].enrol(bob, "b1", "b2")
    sent, alone = here.seal(group.id, roster=True), here.seal(bob.id)
    here.apply(here.submit("a1", sent), here.submit("a1", alone))
    world.move(bob, A, tell=A)
    world.settle()
    assert here.ids("b1") == [envelope_id(sent), envelope_id(alone)]
    assert here.ids("b2") == [envelope_id(sent)]  # what was sealed for its user's first device is not for it


def test_forwards_are_taken_late_and_into_a_full_mailbox(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    alice, bob = enrolled(world, "alice", A), enrolled(world, "bob", A)
    here, there = world.logs[A], world.logs[B]
    sent = here.seal(bob.id)
    here.apply(here.submit("a1", sent))
    world.move(bob, B, tell=A)
    monkeypatch.setattr("relay.core.mailroom.admission.MAX_MAILBOX", 1)
    there.time += 3_600_000
    world.settle()
    assert there.ids("b1") == [envelope_id(sent)] and alice


def test_what_comes_for_who_left_counts_as_left_behind_also_where_it_is_refused_or_known(world: World) -> None:
    """ADR 22: its bytes lie in the block, whatever came of it."""
    enrolled(world, "alice", A)
    bob = enrolled(world, "bob", A)
    here = world.logs[A]
    world.move(bob, B, tell=A)
    world.settle()
    moved = here.room.state.moved[bob.id]
    sent = here.submit("a1", here.seal(bob.id))
    here.apply(sent)
    world.settle()
    old = here.seal(bob.id, life=1)
    late = records.HandIn(C, b"l" * 16, 1, 0, records.HANDIN_ENVELOPE, old, b"")
    here.time += 1_000
    for record in (sent, here.submit("a1", old), records.Passed(B, old), late):
        here.apply(record)
        assert moved.last == here.room.state.index and not moved.items
    to_the_new_home = records.Submit(device_id("a1"), B, here.seal(bob.id))
    here.apply(to_the_new_home)  # as all that people here write abroad
    assert moved.last < here.room.state.index


def test_what_waits_for_who_left_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    enrolled(world, "alice", A)
    bob = enrolled(world, "bob", A)
    here = world.logs[A]
    world.move(bob, B, tell=A)
    monkeypatch.setattr("relay.core.mailroom.moving.MAX_MAILBOX", 3_000)
    codes = here.answers(*(here.submit("a1", here.seal(bob.id, body=bytes([n]) * 400)) for n in range(8)))
    assert codes[0] == Code.ACCEPTED and codes[-1] == Code.MAILBOX_FULL and MAX_MAILBOX > 3_000


def test_what_runs_out_on_the_way_is_told(world: World) -> None:
    bob, _ = enrolled(world, "bob", A), enrolled(world, "carol", C)
    far, here = world.logs[C], world.logs[A]
    sent = far.seal(bob.id, life=60_000)
    far.apply(far.submit("c1", sent, A))
    world.move(bob, B, tell=A)
    world.hand(C, A)
    here.apply(records.Tick(), after_ms=120_000)
    world.settle()
    assert far.ids("c1") == [bytes([Code.EXPIRED]) + envelope_id(sent)]
    assert world.logs[B].ids("b1") == [] and not here.room.state.sources


def test_who_left_is_forgotten_when_the_record_has_run_out(world: World) -> None:
    bob = enrolled(world, "bob", A)
    world.move(bob, B, tell=A)
    world.settle()
    here = world.logs[A]
    here.apply(records.Tick(), after_ms=here.time)  # FAR
    assert not here.room.state.moved and not here.room.state.moved_devices
    enrolled(world, "alice", A)
    assert here.answers(here.submit("a1", here.seal(bob.id))) == [Code.UNKNOWN_USER]


def test_the_first_record_of_who_left_brings_nobody_back(world: World) -> None:
    bob = enrolled(world, "bob", A)
    world.move(bob, B, tell=A)
    world.logs[A].apply(records.Home(bob.chain[0]))
    world.logs[A].apply(records.Move((bob.chain[0],)))
    assert bob.id not in world.state(A).users and world.state(A).moved[bob.id].record.version == 2


def test_whoever_never_was_at_home_here_is_unknown(world: World) -> None:
    bob = enrolled(world, "bob", A)
    world.move(bob, B, tell=C)
    assert bob.id not in world.state(C).moved and bob.id not in world.state(C).users
