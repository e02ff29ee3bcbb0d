"""Changes of a cell: one at a time, learner first, counted from when they are appended."""

from __future__ import annotations

import pytest

from cluster.core.raft import (
    Accepted, Append, ChangeRefused, Member, Members, Point, Role, Stored, StoreRemoved, VoteReply, VoteRequest,
)
from cluster.core.raft.entry import ORIGIN, Entry
from cluster.core.raft.members import Change, Kind, change_between
from tests.cluster.core.raft.cell import Cell, drain, elected, machine, of, sid, stored


def cell_of(names: str, learners: str = "") -> Cell:
    members = of(names, learners)
    return Cell({name: stored([], members) for name in names + learners})


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (of("abc"), of("abc", "d"), (Kind.ADD, "d")),
        (of("abc", "de"), Members(of("abce").voters, of("", "d").learners), (Kind.PROMOTE, "e")),
        (of("abc", "d"), of("ac", "d"), (Kind.REMOVE, "b")),
        (of("abc", "d"), of("abc"), (Kind.REMOVE, "d")),
        (of("abc"), of("abc"), None),
        (of("abc"), of("abcd"), None),  # a learner first
        (of("abc"), of("abc", "de"), None),
        (of("abc", "d"), of("abd"), None),  # promoted and removed
        (of("abc"), of("ab", "c"), None),  # nobody is demoted
        (of("abc"), of("abc", "a"), None),
        (of("abc"), of("acb"), None),
        (of("abc", "d"), Members(of("abc").voters, (Member(sid("d"), "x"),)), None),  # a store stays with its node
        (of("abcde", "fghi"), of("abcde", "fghij"), None),  # MAX_CELL
    ],
)
def test_what_one_change_is(old, new, change):
    if change is None:
        with pytest.raises(ChangeRefused):
            change_between(old, new)
    else:
        assert change_between(old, new) == Change(change[0], sid(change[1]))


def test_a_node_is_replaced_step_by_step():
    cell = cell_of("abc")
    leader = cell.elect("a")
    cell.run(200)
    del cell.rafts["c"]  # its disk died
    cell.add("d")
    cell.run(300)
    assert cell["d"].role is Role.DOUBTFUL  # it knows nobody
    leader.propose(b"add", 5, leader.members.with_learner(Member(sid("d"), "d")))
    with pytest.raises(ChangeRefused, match="not committed yet") as refused:
        leader.propose(b"promote", 5, leader.members.promoted(sid("d")))
    assert refused.value.passes
    cell.settle()
    with pytest.raises(ChangeRefused, match="has not caught up") as refused:
        leader.propose(b"promote", 5, leader.members.promoted(sid("d")))
    assert refused.value.passes
    cell.run(1_500)  # c never answers: d waits for it an election timeout
    assert cell["d"].log.last == leader.log.last
    leader.propose(b"promote", 5, leader.members.promoted(sid("d")))
    cell.run(300)
    leader.propose(b"remove", 5, leader.members.without(sid("c")))
    cell.run(300)
    assert leader.members == of("abd")
    assert leader.commit == cell.commit["d"] == leader.log.last
    del cell.rafts["b"]
    leader.propose(b"block", 5)
    cell.run(300)
    assert leader.commit == leader.log.last  # d's vote and disk count


def test_a_change_needs_a_commit_of_its_own_term():
    raft = elected([1], of("abcd"))
    with pytest.raises(ChangeRefused, match="nothing of this term is committed") as refused:
        raft.propose(b"remove", 5, raft.members.without(sid("d")))
    assert refused.value.passes
    for name in "bc":
        raft.receive(Accepted(sid(name), sid("a"), 2, 2), 10_000)
    raft.propose(b"remove", 5, raft.members.without(sid("d")))


def test_two_majorities_that_need_not_meet():
    """The error of 2014 in single-server changes: a begins to promote e and is cut off; b commits the removal of a with
    c alone; a comes back and is elected by d and e. b's first block, which d must have, is in the way."""
    cell = cell_of("abcd", "e")
    old = cell.elect("a")
    cell.run(300)
    cell.separate("a", "bcde")
    old.propose(b"promote", 5, old.members.promoted(sid("e")))
    new = cell.elect("b")
    cell.separate("ade", "bc")
    cell.run(300)
    new.propose(b"remove", 5, new.members.without(sid("a")))
    cell.settle()
    assert new.commit == cell["c"].commit == new.log.last
    cell.run(10_000)
    assert old.role is Role.ASKING
    assert old.term == new.term


def test_a_change_counts_at_once_and_is_undone_with_its_entry():
    cell = cell_of("abc", "d")
    leader = cell.elect("a")
    cell.run(300)
    cell.separate("a", "bcd")
    leader.propose(b"promote", 5, leader.members.promoted(sid("d")))
    assert leader.members == of("abcd")
    cell.settle()
    cell.elect("b")
    assert cell["b"].members == of("abc", "d")
    cell.cut.clear()
    cell.run(500)
    assert leader.members == of("abc", "d")


@pytest.mark.parametrize("dead", ["b", "bc"])
def test_nothing_is_removed_while_under_replicated(dead):
    cell = cell_of("abcde")
    leader = cell.elect("a")
    cell.run(300)
    for name in dead:
        del cell.rafts[name]
    cell.run(1_100)
    if dead == "bc":
        with pytest.raises(ChangeRefused, match="only 2 of the 4 voters") as refused:
            leader.propose(b"", 0, leader.members.without(sid("e")))
        assert refused.value.passes
        leader.propose(b"", 0, leader.members.without(sid("b")))  # three of the four that are left are up to date
    else:
        leader.propose(b"", 0, leader.members.without(sid("e")))


def test_three_voters_do_not_become_two():
    cell = cell_of("abc")
    leader = cell.elect("a")
    cell.run(200)
    with pytest.raises(ChangeRefused, match="bear no loss") as refused:
        leader.propose(b"", 0, leader.members.without(sid("c")))
    assert not refused.value.passes


def test_a_leader_does_not_remove_itself():
    cell = cell_of("abc")
    leader = cell.elect("a")
    cell.run(200)
    with pytest.raises(ChangeRefused, match="Hand the leadership over"):
        leader.propose(b"", 0, leader.members.without(sid("a")))


def test_who_is_removed_is_told():
    cell = cell_of("abcd", "e")
    leader = cell.elect("a")
    cell.run(200)
    for name in "de":
        leader.propose(b"remove", 5, leader.members.without(sid(name)))
        cell.settle()
        assert cell.events[name].count(StoreRemoved()) == 1
    assert not any(StoreRemoved() in cell.events[name] for name in "abc")
    cell.run(5_000)
    assert (leader.role, leader.term) == (Role.LEADER, 1)  # d asks for votes no more


def test_learners_do_not_count():
    cell = cell_of("abc", "de")
    leader = cell.elect("a")
    cell.run(200)
    cell.separate("ade", "bc")
    leader.propose(b"block", 5)
    cell.settle()
    assert cell["d"].log.last == leader.log.last
    assert leader.commit == leader.log.last - 1
    cell.run(1_500)
    assert leader.role is not Role.LEADER  # their answers are none (CheckQuorum)
    asked = {m.to for m in cell.sent if isinstance(m, VoteRequest)}
    assert asked <= {sid("a"), sid("b"), sid("c")}
    assert all(cell[name].role is Role.FOLLOWER for name in "de")


def test_a_learner_votes_when_it_is_asked():
    """It may have been promoted without knowing it yet; whoever asks counts it only as a voter."""
    raft = machine("d", stored([1], of("abc", "d")))
    raft.receive(VoteRequest(sid("b"), sid("d"), 2, Point(1, 1), False, False), 0)
    assert drain(raft)[0] == [VoteReply(sid("d"), sid("b"), 2, False, True)]


def test_answers_of_strangers_count_nothing():
    cell = cell_of("abc")
    leader = cell.elect("a")
    cell.separate("a", "b", "c")
    leader.propose(b"block", 5)
    drain(leader)
    for stranger in "xyz":
        leader.receive(Accepted(sid(stranger), sid("a"), leader.term, 2), cell.now)
    assert leader.commit == 1


def test_a_joining_store_takes_its_members_from_the_log():
    raft = machine("d", Stored(), free=False)
    raft.receive(Append(sid("a"), sid("d"), 1, ORIGIN, (Entry(1, 1, 5, of("abc", "d"), b""),), 1, (), True), 0)
    assert raft.log.last == 0  # in doubt nothing is taken
    assert raft.members == Members()
