"""Who leads: votes, PreVote, CheckQuorum, hand-over; and that nothing is said before it is on disk."""

from __future__ import annotations

import pytest

from cluster.core.raft import (
    Append, BecameLeader, ChangeRefused, HardState, LostLeadership, NotLeader, Point, Role, TimeoutNow, VoteReply,
    VoteRequest,
)
from cluster.core.raft.entry import ORIGIN
from relay.errors import Overloaded
from tests.cluster.core.raft.cell import ABC, Cell, drain, machine, of, sid, stored


def cell_of(names: str) -> Cell:
    return Cell({name: stored([], of(names)) for name in names})


def ask(raft, term: int, tip: Point, source: str = "b", pre: bool = False, transfer: bool = False, now: int = 0):
    """The answer to a vote request: True, False, or None where there is none."""
    raft.receive(VoteRequest(sid(source), raft.me, term, tip, pre, transfer), now)
    replies = [message for message in drain(raft)[0] if isinstance(message, VoteReply)]
    return replies[-1].granted if replies else None


def test_a_cell_of_one_leads_at_once_and_counts_its_own_disk_only():
    raft = machine("a", stored([], of("a")))
    raft.tick(1)
    output = raft.take()
    assert output.write.hard == HardState(1, sid("a"))
    assert raft.role is Role.CANDIDATE  # its own vote is not on disk
    raft.persisted(output.write.seq)
    assert raft.role is Role.LEADER
    assert raft.propose(b"block", 5) == 1
    output = raft.take()
    assert output.commit == 0
    raft.persisted(output.write.seq)
    assert raft.take().commit == 1


@pytest.mark.parametrize(
    ("terms", "tip", "granted"),
    [
        ([], (0, 0), True),
        ([1, 1], (1, 2), True),
        ([1, 1], (1, 3), True),
        ([1, 1], (1, 1), False),  # shorter
        ([1, 1], (2, 1), True),  # shorter, newer term
        ([1, 2], (1, 9), False),  # longer, older term
    ],
)
@pytest.mark.parametrize("pre", [False, True])
def test_votes_go_to_whoever_has_as_much(terms, tip, granted, pre):
    raft = machine("a", stored(terms, ABC, term=2))
    assert ask(raft, 3, Point(*tip), pre=pre) is granted
    assert raft.term == (2 if pre else 3)


def test_one_vote_a_term():
    raft = machine("a", stored([1], ABC))
    assert ask(raft, 2, Point(1, 1), "b") is True
    assert ask(raft, 2, Point(1, 1), "c") is False
    assert ask(raft, 2, Point(1, 1), "b") is True  # its answer may have been lost
    assert ask(raft, 1, Point(1, 1), "c") is False
    assert ask(raft, 3, Point(1, 1), "c") is True


def test_no_new_vote_in_the_term_of_a_start():
    assert ask(machine("a", stored([1], ABC, term=4)), 4, Point(1, 1)) is False
    again = machine("a", stored([1], ABC, term=4, vote="b"))
    assert ask(again, 4, Point(1, 1), "c") is False
    assert ask(again, 4, Point(1, 1), "b") is True


def test_a_vote_waits_for_the_disk():
    raft = machine("a", stored([], ABC))
    raft.receive(VoteRequest(sid("b"), sid("a"), 1, ORIGIN, False, False), 0)
    output = raft.take()
    assert output.send_now == ()
    assert output.write.hard == HardState(1, sid("b"))
    assert output.send_after == (VoteReply(sid("a"), sid("b"), 1, False, True),)
    raft.receive(VoteRequest(sid("c"), sid("a"), 2, ORIGIN, False, False), 0)  # while that is being written
    assert raft.take() is None
    raft.persisted(output.write.seq)
    assert raft.take().write.hard == HardState(2, sid("c"))


def test_three_elect_one_and_a_higher_term_deposes_it():
    cell = cell_of("abc")
    leader = cell.elect("a")
    assert [cell[name].leader for name in "abc"] == [sid("a")] * 3
    assert cell.commit == {"a": 1, "b": 1, "c": 1}
    leader.receive(VoteReply(sid("b"), sid("a"), 9, False, False), cell.now)
    assert (leader.role, leader.term) == (Role.FOLLOWER, 9)
    with pytest.raises(NotLeader):
        leader.propose(b"", 0)


def test_a_flapping_link_deposes_nobody():
    """PreVote and the lease: c hears nothing for a long time, its term stands still, and its return changes nothing."""
    cell = cell_of("abc")
    cell.elect("a")
    for _ in range(5):
        cell.separate("ab", "c")
        cell.run(3_000)
        assert cell["c"].role is Role.ASKING
        cell.cut.clear()
        cell.run(300)
    assert (cell["a"].role, [cell[name].term for name in "abc"]) == (Role.LEADER, [1, 1, 1])


def test_who_hears_only_half_deposes_nobody():
    """c reaches everybody and hears nobody: its requests are ignored as long as the leader is heard."""
    cell = cell_of("abc")
    cell.elect("a")
    cell.cut = {("a", "c"), ("b", "c")}
    cell.run(5_000)
    assert (cell["a"].role, cell["a"].term) == (Role.LEADER, 1)
    assert ask(cell["b"], 7, Point(9, 9), "c", now=cell.now) is None
    assert cell["b"].term == 1


def test_a_leader_without_a_majority_steps_down():
    cell = cell_of("abc")
    cell.elect("a")
    cell.separate("a", "bc")
    cell.run(900)
    assert cell["a"].role is Role.LEADER
    cell.run(2_500)
    assert cell["a"].role is not Role.LEADER
    assert LostLeadership(1) in cell.events["a"]
    assert {cell["b"].role, cell["c"].role} == {Role.LEADER, Role.FOLLOWER}
    cell.cut.clear()
    cell.run(2_000)
    assert len({cell[name].leader for name in "abc"}) == 1


def test_a_store_with_a_higher_term_is_taken_back():
    """It rejects the leader's appends with its own term, the leader steps down, and a new one reaches all."""
    cell = Cell({"a": stored([1], ABC), "b": stored([1], ABC), "c": stored([], ABC, term=7)})
    cell.separate("ab", "c")
    cell.elect("a")
    cell.cut.clear()
    cell.run(5_000)
    leader = cell["a"].leader
    assert leader is not None
    assert all(cell[name].leader == leader and cell[name].term > 7 for name in "abc")


# --- hand-over -----------------------------------------------------------------------------------
def test_leadership_is_handed_over_at_once():
    cell = cell_of("abc")
    leader = cell.elect("a")
    leader.transfer(sid("b"))
    with pytest.raises(Overloaded, match="handed over"):
        leader.propose(b"", 0)
    cell.settle()
    assert (cell["b"].role, cell["b"].term, leader.role) == (Role.LEADER, 2, Role.FOLLOWER)


def test_a_hand_over_waits_for_the_log_and_gives_up():
    cell = cell_of("abc")
    leader = cell.elect("a")
    cell.separate("ac", "b")
    leader.propose(b"block", 5)
    cell.settle()
    leader.transfer(sid("b"))
    cell.settle()
    assert not any(isinstance(message, TimeoutNow) for message in cell.sent)
    cell.run(1_200)
    assert leader.role is Role.LEADER
    assert leader.propose(b"block", 5) == 3
    cell.cut.clear()
    leader.transfer(sid("b"))
    cell.run(400)
    assert cell["b"].role is Role.LEADER


@pytest.mark.parametrize("to", ["a", "d", "x"])
def test_only_another_voter_takes_over(to):
    cell = Cell({name: stored([], of("abc", "d")) for name in "abcd"})
    with pytest.raises(ChangeRefused, match="another voter"):
        cell.elect("a").transfer(sid(to))


def test_timeout_now_counts_from_the_leader_only():
    cell = cell_of("abc")
    cell.elect("a")
    cell["b"].receive(TimeoutNow(sid("c"), sid("b"), 1), cell.now)
    assert cell["b"].role is Role.FOLLOWER


def test_who_steps_down_leaves_it_to_others():
    cell = cell_of("abc")
    cell.elect("a").step_down()
    cell.run(4_000)
    leader = cell["a"].leader
    assert leader in (sid("b"), sid("c"))
    assert cell["a"].term == 2


def test_a_disk_failure_silences():
    cell = cell_of("abc")
    leader = cell.elect("a")
    leader.propose(b"block", 5)
    leader.stop_acknowledging()
    messages, events, _ = drain(leader)
    assert messages == []
    assert LostLeadership(1) in events
    leader.tick(cell.now + 10_000)
    leader.receive(Append(sid("b"), sid("a"), 5, ORIGIN, (), 0, (), True), cell.now)
    assert leader.take() is None
    assert leader.next_ms is None


def test_the_same_inputs_give_the_same_outputs():
    traces = []
    for _ in range(2):
        cell = cell_of("abcde")
        cell.run(5_000)
        traces.append(cell.sent)
    assert traces[0] == traces[1]
    assert any(isinstance(event, BecameLeader) for events in cell.events.values() for event in events)
