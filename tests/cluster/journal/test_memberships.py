"""What the leader does about the cell's members: step by step, and in the end each node has one store, a voter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.core.raft import Member, Members
from cluster.core.raft.members import change_between
from cluster.journal.memberships import next_members


def member(name: str) -> Member:
    """b2 is the second store of node nb."""
    return Member(name.encode().ljust(16, b"."), f"n{name[0]}")


def members(voters: str, learners: str = "") -> Members:
    return Members(tuple(map(member, voters.split())), tuple(map(member, learners.split())))


def joining(*names: str) -> dict[str, bytes]:
    return {f"n{name[0]}": member(name).store for name in names}


def steps(now: Members, *asking: str) -> list[Members]:
    return list(next_members(now, joining(*asking)))


WHOLE = members("a1 b1 c1")


def test_a_whole_cell_stays_as_it_is() -> None:
    assert steps(WHOLE) == [] == steps(WHOLE, "b1", "c1")


def test_a_node_joins_as_a_learner_and_is_promoted() -> None:
    assert steps(members("a1"), "b1", "c1") == [members("a1", "b1"), members("a1", "c1")]
    assert steps(members("a1", "b1"), "b1", "c1") == [members("a1 b1"), members("a1", "b1 c1")]
    assert steps(members("a1 b1"), "b1") == []


def test_the_old_store_goes_when_the_new_one_votes_and_not_before() -> None:
    assert steps(WHOLE, "b2") == [members("a1 b1 c1", "b2")]
    assert steps(members("a1 b1 c1", "b2"), "b2") == [members("a1 b1 c1 b2")]
    assert steps(members("a1 b1 c1 b2")) == [members("a1 c1 b2")]
    assert steps(members("a1 c1 b2")) == []


def test_a_learner_whose_node_is_quiet_is_promoted_all_the_same() -> None:
    """It asks no more once it is in."""
    assert steps(members("a1 b1 c1", "b2")) == [members("a1 b1 c1 b2")]


def test_two_nodes_are_replaced_at_once() -> None:
    now = members("a1 b1 c1 d1 e1")
    assert steps(now, "d2", "e2") == [members("a1 b1 c1 d1 e1", "d2"), members("a1 b1 c1 d1 e1", "e2")]
    both = members("a1 b1 c1 d1 e1", "d2 e2")
    assert steps(both) == [members("a1 b1 c1 d1 e1 d2", "e2"), members("a1 b1 c1 d1 e1 e2", "d2")]
    assert steps(members("a1 b1 c1 d1 e1 d2", "e2"))[0] == members("a1 b1 c1 e1 d2", "e2")  # first one is done with
    assert steps(members("a1 b1 c1 d1 e1 d2 e2"))[:2] == [members("a1 b1 c1 e1 d2 e2"), members("a1 b1 c1 d1 d2 e2")]


def test_a_third_store_asks_while_the_second_is_learning() -> None:
    """The second is gone for good: it goes before the third comes in."""
    now = members("a1 b1 c1", "b2")
    assert steps(now, "b3") == [WHOLE]
    assert steps(WHOLE, "b3") == [members("a1 b1 c1", "b3")]


def test_a_third_store_asks_while_the_second_is_a_new_voter() -> None:
    now = members("a1 b1 c1 b2")
    assert steps(now, "b3") == [members("a1 c1 b2"), members("a1 b1 c1 b2", "b3")]
    assert steps(members("a1 c1 b2"), "b3") == [members("a1 c1 b2", "b3")]
    assert steps(members("a1 c1 b2 b3"), "b3") == [members("a1 c1 b3")]


def test_other_nodes_are_not_kept_waiting_by_one_that_cannot_be_promoted_yet() -> None:
    assert members("a1", "b1 c1") in steps(members("a1", "b1"), "c1")


@pytest.mark.parametrize("asking", [("b1",), ("a1", "b1", "c1")])
def test_who_is_in_already_changes_nothing(asking: tuple[str, ...]) -> None:
    assert steps(WHOLE, *asking) == []


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(1, 4)), max_size=12), st.randoms(use_true_random=False))
def test_whoever_asks_in_whatever_order_each_node_ends_with_one_store(asked: list[tuple[str, int]], random) -> None:
    """Each step is one change; when nobody new asks it comes to rest with one voter a node, the last it asked with."""
    now, newest = members("a1 b1 c1"), {f"n{name}": member(f"{name}1").store for name in "abc"}
    seen = {f"{name}1" for name in "abc"}
    for name, count in [*asked, ("a", 0)]:
        if count:
            fresh = f"{name}{count}"
            if fresh in seen:  # a store that was replaced never asks again (rule 4)
                continue
            seen.add(fresh)
            newest[f"n{name}"] = member(fresh).store
        for _ in range(random.randrange(4) if count else 60):
            options = list(next_members(now, newest))
            if not options:
                break
            change_between(now, options[0])  # raises where it is not one change
            now = options[0]
    assert not now.learners
    assert sorted((one.node, one.store) for one in now.voters) == sorted(newest.items())
