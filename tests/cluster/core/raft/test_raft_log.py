"""Replication: conflicts (figure 7 of the Raft paper), what commits (figure 8), windows, bounds, snapshots."""

from __future__ import annotations

import random

import pytest

from cluster.core.raft import (
    Accepted, Append, Entry, Members, NeedSnapshot, Point, Rejected, Role, Settings, Stored, Stub,
)
from cluster.core.raft.entry import ORIGIN
from cluster.core.raft.log import Log
from relay.errors import Overloaded, PeerError, RolledBack, StoreDamaged
from tests.cluster.core.raft.cell import ABC, SETTINGS, Cell, drain, elected, machine, of, sid, stored


def entry(index: int, term: int, size: int = 10, members: Members | None = None) -> Entry:
    return Entry(index, term, size, members, b"%d.%d" % (index, term))


def append(
    term: int, prev: tuple[int, int], *entries: Entry, commit: int = 0, source: str = "b", beat: bool = False
) -> Append:
    return Append(sid(source), sid("a"), term, Point(*prev), entries, commit, (), beat)


# --- figure 7 --------------------------------------------------------------------------------------
LEADER = [1, 1, 1, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize(
    "follower",
    [
        [1, 1, 1, 4, 4, 5, 5, 6, 6],
        [1, 1, 1, 4],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6],
        [1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7],
        [1, 1, 1, 4, 4, 4, 4],
        [1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3],
    ],
    ids="abcdef",
)
def test_a_leader_brings_every_log_of_figure_7_to_its_own(follower):
    cell = Cell({"l": stored(LEADER, of("lfx"), 7), "f": stored(follower, of("lfx"), 7), "x": stored([], of("lfx"), 7)})
    for name in "lfx":
        for index in range(1, cell[name].log.last + 1):
            cell[name].log._payloads.append(b"%d" % index)  # as read from its disk
    cell.elect("l")
    cell.run(200)
    assert cell.terms("f") == cell.terms("x") == cell.terms("l") == [*LEADER, 8]
    assert cell.commit == {"l": 11, "f": 11, "x": 11}
    assert sum(isinstance(m, Rejected) and m.source == sid("f") for m in cell.sent) <= 3  # one a term, not one an entry


def test_what_is_committed_never_changes():
    raft = machine("a", stored([1, 1, 2], ABC, committed=2))
    with pytest.raises(RolledBack, match="entry 2 is committed here"):
        raft.receive(append(3, (1, 1), entry(2, 3)), 0)
    assert raft.log.tip == Point(2, 3)


def test_gaps_are_refused():
    with pytest.raises(PeerError, match="with gaps"):
        machine("a", stored([1], ABC)).receive(append(1, (1, 1), entry(3, 1)), 0)


@pytest.mark.parametrize(
    ("prev", "new", "terms", "match"),
    [
        ((1, 3), [], [1, 1, 1, 2], 3),  # a sign of life confirms, and drops nothing
        ((1, 2), [(3, 1)], [1, 1, 1, 2], 3),  # an old append, late: what follows stays
        ((1, 3), [(4, 3), (5, 3)], [1, 1, 1, 3, 3], 5),  # conflict
        ((2, 4), [(5, 3)], [1, 1, 1, 2, 3], 5),
        ((0, 0), [(1, 1), (2, 1), (3, 3)], [1, 1, 3], 3),
    ],
)
def test_an_append_drops_only_what_disagrees(prev, new, terms, match):
    raft = machine("a", stored([1, 1, 1, 2], ABC, committed=1))
    raft.receive(append(3, prev, *(entry(*at) for at in new)), 0)
    assert [raft.log.term(index) for index in range(1, raft.log.last + 1)] == terms
    assert drain(raft)[0] == [Accepted(sid("a"), sid("b"), 3, match)]


def test_a_truncation_meets_the_write_under_way():
    raft = machine("a", stored([1], ABC))
    raft.receive(append(2, (1, 1), entry(2, 2), entry(3, 2), commit=1), 0)
    first = raft.take()
    raft.receive(append(3, (1, 1), entry(2, 3), commit=2, source="c"), 0)
    raft.persisted(first.write.seq)
    second = raft.take()
    assert second.commit == 1  # entry 2 of term 3 is not on disk, whatever was
    assert (second.write.truncate_from, second.write.append) == (2, (entry(2, 3),))
    raft.persisted(second.write.seq)
    assert raft.take().commit == 2


def test_a_follower_commits_what_it_shares_and_has_on_disk():
    raft = machine("a", stored([1, 1, 1], ABC, 1))
    raft.receive(append(2, (1, 1), commit=3), 0)
    assert [o.commit for o in drain(raft)[2]] == [1]  # entries 2 and 3 may be others'
    raft.receive(append(2, (1, 3), entry(4, 2), commit=4), 0)
    assert raft.take().commit == 3


# --- figure 8 --------------------------------------------------------------------------------------
def test_copies_of_older_terms_decide_nothing():
    raft = elected([1, 2], of("abcde"), 3)  # elected for term 4, entry 2 is of term 2
    assert raft.term == 4
    for source in "bc":
        raft.receive(Accepted(sid(source), sid("a"), 4, 2), 10_000)
    assert raft.commit == 0  # on three of five disks, and yet another leader may drop it (figure 8c, d)
    for source in "bc":
        raft.receive(Accepted(sid(source), sid("a"), 4, 3), 10_000)
    assert raft.commit == 3  # with an entry of its own term on top, no more (figure 8e)


def test_a_leader_counts_itself_when_it_has_written():
    raft = elected([])
    raft.propose(b"block", 10)
    output = raft.take()
    raft.receive(Accepted(sid("b"), sid("a"), raft.term, 2), 10_000)
    assert raft.commit == 1
    raft.persisted(output.write.seq)
    assert raft.commit == 2


def test_followers_may_commit_before_their_leader_has_written():
    raft = elected([])
    raft.propose(b"block", 10)
    output = raft.take()
    for source in "bc":
        raft.receive(Accepted(sid(source), sid("a"), raft.term, 2), 10_000)
    assert raft.commit == 2  # b and c are told at once
    told = raft.take()
    assert [m.commit for m in told.send_now] == [2, 2]
    assert told.commit == 1  # its own shell is not
    raft.persisted(output.write.seq)
    assert raft.take().commit == 2


# --- windows and bounds ----------------------------------------------------------------------------
def test_appends_leave_ahead_of_their_answers_within_bounds():
    raft = elected([])
    raft.receive(Accepted(sid("b"), sid("a"), raft.term, 1), 10_000)
    drain(raft)
    for _ in range(9):
        raft.propose(b"block", 500)
    to_b = [m for m in drain(raft)[0] if m.to == sid("b")]
    assert [len(m.entries) for m in to_b] == [2, 2]  # 1,000 bytes each, 2,000 under way
    raft.receive(Accepted(sid("b"), sid("a"), raft.term, 3), 10_000)
    assert [len(m.entries) for m in drain(raft)[0] if m.to == sid("b")] == [2]


def test_what_is_lost_under_way_is_found_by_the_next_sign_of_life():
    cell = Cell({name: stored([], ABC) for name in "abc"})
    raft = cell.elect("a")
    cell.separate("ac", "b")
    for _ in range(3):
        raft.propose(b"block", 10)
        cell.settle()
    cell.cut.clear()
    cell.run(200)
    assert cell["b"].log.last == 4
    assert cell.commit == {"a": 4, "b": 4, "c": 4}


def test_whoever_does_not_answer_is_sent_no_entries_again_and_again():
    """Found by the simulator (seed 174): a member that was gone for good got the same megabyte ten times a second, by
    the link to its node, and the new store of that node never got a word."""
    raft = elected([])
    again = []
    for now in range(10_100, 10_900, 100):
        raft.receive(Accepted(sid("b"), sid("a"), raft.term, 1), now)
        raft.tick(now)
        again += [m for m in drain(raft)[0] if m.to == sid("c")]
    assert len(again) == 8
    assert {(m.prev, m.entries) for m in again} == {(ORIGIN, ())}
    raft.receive(Accepted(sid("c"), sid("a"), raft.term, 0), 10_900)
    assert [len(m.entries) for m in drain(raft)[0] if m.to == sid("c")] == [1]


def test_the_uncommitted_tail_is_bounded():
    raft = elected([])
    with pytest.raises(Overloaded, match="waiting for a majority"):
        for _ in range(100):
            raft.propose(b"block", 1_000)
    assert raft.log.bytes_between(raft.commit, raft.log.last) <= SETTINGS.tail_bytes
    raft.receive(Accepted(sid("b"), sid("a"), raft.term, raft.log.last), 10_000)
    drain(raft)
    raft.propose(b"block", 9_000)  # one goes into an empty tail, whatever its size


def test_a_slow_disk_heaps_nothing_up():
    raft = machine("a", stored([], ABC))
    raft.receive(append(1, (0, 0), entry(1, 1)), 0)
    output = raft.take()
    for _ in range(1_000):
        raft.receive(append(1, (1, 1), commit=1, beat=True), 0)
    raft.persisted(output.write.seq)
    assert raft.take().send_after == (Accepted(sid("a"), sid("b"), 1, 1),)


def test_news_of_a_commit_need_no_answer_but_signs_of_life_do():
    raft = machine("a", stored([], ABC))
    raft.receive(append(1, (0, 0), entry(1, 1)), 0)
    output = raft.take()
    raft.persisted(output.write.seq)
    accepted = (Accepted(sid("a"), sid("b"), 1, 1),)
    assert output.send_after == accepted
    raft.receive(append(1, (1, 1), commit=1), 0)
    assert raft.take().send_after == ()
    raft.receive(append(1, (1, 1), commit=1, beat=True), 0)
    assert raft.take().send_after == accepted
    raft.receive(append(1, (0, 0), entry(1, 1)), 0)  # sent again: the answer was lost
    assert raft.take().send_after == accepted
    raft.receive(append(2, (1, 1), source="c"), 0)  # another leader, who has not heard it yet
    output = raft.take()
    assert output.send_after == (Accepted(sid("a"), sid("c"), 2, 1),)


def test_payloads_beyond_the_recent_are_left_to_the_disk():
    raft = elected([])
    for _ in range(4):
        raft.propose(b"block", 400)
        drain(raft)
    held = [e.payload for e in raft.log.entries(1, 1 << 30, 99)]
    assert held == [None, None, None, b"block", b"block"]


# --- snapshots -------------------------------------------------------------------------------------
def compacted_cell() -> Cell:
    """c missed what a and b no longer have."""
    cell = Cell({name: stored([], ABC) for name in "abc"})
    raft = cell.elect("a")
    cell.separate("ab", "c")
    for _ in range(5):
        raft.propose(b"block", 10)
        cell.settle()
    for name in "ab":
        cell[name].compacted(6)
    return cell


def test_who_fell_behind_gets_a_snapshot():
    cell = compacted_cell()
    cell.run(1_500)
    assert NeedSnapshot(sid("c")) not in cell.events["a"]  # it does not answer
    cell.cut.clear()
    cell.run(2_000)
    leading = next(name for name in "ab" if cell[name].role is Role.LEADER)
    assert cell.events[leading].count(NeedSnapshot(sid("c"))) == 1
    term = cell[leading].term
    cell[leading].snapshot_sent(sid("c"), 0)  # that failed
    cell.run(300)
    assert cell.events[leading].count(NeedSnapshot(sid("c"))) == 2
    assert cell["c"].install(Point(cell[leading].log.term(6), 6), ABC)
    output = cell["c"].take()
    assert (output.write.reset.end.index, output.commit) == (6, cell.commit["c"])  # nothing is given out before
    cell["c"].persisted(output.write.seq)
    assert cell["c"].take().commit == 6
    cell[leading].snapshot_sent(sid("c"), 6)
    cell[leading].propose(b"block", 10)
    cell.run(300)
    assert cell["c"].log.last == cell[leading].log.last
    assert cell[leading].term == term


def test_a_snapshot_that_failed_is_offered_again_at_the_next_heartbeat_not_at_once():
    """Who refuses one (it takes another just now) would be asked as often as the machines can."""
    cell = compacted_cell()
    cell.cut.clear()
    cell.run(2_000)
    leading = next(name for name in "ab" if cell[name].role is Role.LEADER)
    for _ in range(5):
        cell[leading].snapshot_sent(sid("c"), 0)
        cell.settle()
    assert cell.events[leading].count(NeedSnapshot(sid("c"))) == 1
    cell.run(150)
    assert cell.events[leading].count(NeedSnapshot(sid("c"))) == 2


def test_a_snapshot_that_is_behind_is_not_wanted():
    raft = machine("a", stored([1, 1, 1], ABC, committed=2))
    assert not raft.install(Point(1, 2), ABC)
    assert not raft.install(Point(1, 3), ABC)  # the log has it: committed without
    assert raft.commit == 3
    assert not machine("a", stored([], ABC), free=False).install(Point(1, 9), ABC)


def test_nobody_is_heard_while_a_snapshot_takes_the_place_of_everything():
    """What follows it would be taken for what follows the old log, by who still has that."""
    raft = machine("a", stored([1, 1], ABC, committed=1))
    raft.receive(Append(sid("b"), sid("a"), 1, Point(1, 2), (entry(3, 1, 10),), 1, (), False), 0)
    under_way = raft.take().write
    assert raft.install(Point(2, 9), ABC)
    follows = Append(sid("b"), sid("a"), 2, Point(2, 9), (entry(10, 2, 10),), 9, (), False)
    raft.receive(follows, 0)
    raft.persisted(under_way.seq)
    raft.receive(follows, 0)
    reset = raft.take().write
    assert (reset.reset.end, reset.append) == (Point(2, 9), ())
    raft.receive(follows, 0)
    assert raft.log.last == 9
    raft.persisted(reset.seq)
    raft.receive(follows, 0)
    assert raft.log.last == 10


def test_only_what_was_given_out_may_go():
    raft = machine("a", stored([1, 1, 1], ABC, committed=2))
    with pytest.raises(ValueError, match="only 2 are committed"):
        raft.compacted(4)
    raft.compacted(3)
    assert raft.log.start == Point(1, 2)


def test_a_checkpoint_beyond_the_log_is_damage():
    with pytest.raises(StoreDamaged, match="ends at entry 2, and 3 are applied"):
        machine("a", stored([1, 1], ABC, committed=3))


# --- the log alone ---------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(30))
def test_the_log_agrees_with_a_plain_list(seed):
    rng = random.Random(seed)
    log, plain, start, term = Log(ORIGIN, ABC, (), recent=200), [], 0, 1
    for _ in range(150):
        action = rng.random()
        if action < 0.7:
            term += rng.random() < 0.2
            members = of("abc", "d" * rng.randrange(2)) if rng.random() < 0.1 else None
            made = entry(start + len(plain) + 1, term, rng.randrange(60), members)
            log.append(made)
            plain.append(made)
        elif action < 0.8 and plain:
            first = rng.randrange(start + 1, start + len(plain) + 1)
            log.truncate(first)
            del plain[first - start - 1 :]
        elif action < 0.85:
            first = rng.randrange(start + 1, start + len(plain) + 2)
            log.compact(first)
            del plain[: first - start - 1]
            start = first - 1
        else:
            log.forget_payloads(rng.randrange(start, start + len(plain) + 1))
        assert log.last == start + len(plain)
        assert [log.term(e.index) for e in plain] == [e.term for e in plain]
        assert log.term(log.last + 1) is log.term(start - 1) is None
        kept = log.entries(start + 1, 1 << 30, 1_000) if plain else ()
        assert [(e.point, e.size, e.members) for e in kept] == [(e.point, e.size, e.members) for e in plain]
        assert all(k.payload in (None, e.payload) for k, e in zip(kept, plain, strict=True))
        limit = Point(rng.randrange(term + 1), rng.randrange(start, log.last + 3))
        agree = [e.point for e in plain if e.index <= limit.index and e.term <= limit.term]
        assert log.meeting(limit) == (agree[-1] if agree else log.start)
        if plain:
            first = rng.choice(plain).index
            some = log.entries(first, 100, 3)
            assert some[0].index == first
            assert len(some) <= 3
            assert sum(e.size for e in some) <= 100 or len(some) == 1


def test_a_restart_finds_the_members():
    stubs = [Stub(1, 10), Stub(1, 10, of("abc", "d")), Stub(2, 10)]
    log = Log(Point(1, 4), ABC, stubs, Settings().recent_bytes)
    assert (log.members, log.members_at, log.members_before) == (of("abc", "d"), Point(1, 6), ABC)
    log.truncate(6)
    assert log.members == ABC
    assert machine("a", Stored(members=of("a"))).members == of("a")
