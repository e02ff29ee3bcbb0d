"""Rule 5: no store takes part before it is known that it has forgotten nothing it acknowledged."""

from __future__ import annotations

import pytest

from cluster.core.raft import (
    Accepted, Amnesia, Append, Figure, Freed, Member, Members, Point, Raft, Recall, Recollection, Role, Stored,
    VoteReply, VoteRequest,
)
from cluster.core.raft.entry import ORIGIN, Entry
from cluster.core.raft.recall import Figures
from relay.limits import MAX_CELL
from tests.cluster.core.raft.cell import ABC, SETTINGS, Cell, answer, drain, machine, of, sid, stored

ABCDE = of("abcde")


def doubtful(disk: Stored | None = None, members: Members = ABC) -> tuple[Raft, dict[str, Recall]]:
    """`a`, just started, and whom it asks."""
    raft = machine("a", disk or stored([1, 1, 2], members), free=False)
    return raft, {chr(m.to[0]): m for m in drain(raft)[0] if isinstance(m, Recall)}


def test_it_asks_every_voter_and_says_nothing_else():
    raft, asked = doubtful()
    assert sorted(asked) == ["b", "c"]
    entry = Entry(4, 2, 5, None, b"")
    raft.receive(Append(sid("b"), sid("a"), 2, Point(2, 3), (entry,), 4, (), True), 0)
    raft.receive(VoteRequest(sid("b"), sid("a"), 9, Point(9, 9), False, True), 0)
    raft.receive(VoteRequest(sid("b"), sid("a"), 9, Point(9, 9), True, False), 0)
    raft.tick(900)
    messages, events, outputs = drain(raft)
    assert all(isinstance(message, Recall) for message in messages)
    assert (events, [o.write for o in outputs if o.write]) == ([], [])
    assert (raft.term, raft.log.last, raft.role) == (2, 3, Role.DOUBTFUL)


def test_all_answers_free_it_at_once():
    raft, asked = doubtful()
    raft.receive(answer(asked["b"]), 1)
    assert raft.role is Role.DOUBTFUL
    raft.receive(answer(asked["c"], Point(2, 3)), 2)
    assert drain(raft)[1] == [Freed()]


def test_a_majority_frees_it_when_the_rest_had_their_time():
    raft, asked = doubtful()
    raft.receive(answer(asked["b"]), 1)
    raft.tick(SETTINGS.election_ms - 1)
    assert raft.role is Role.DOUBTFUL
    raft.tick(SETTINGS.election_ms)
    assert raft.role is Role.FOLLOWER


def test_a_learner_that_became_a_voter_tells_so():
    """Found by the simulator (seed 163): the promotion of `c` was on the disks of `b` and `c`, and all lost power. `b`
    had lost something; `a`, which waited for `b` alone, was never freed, and without it `c` could not be elected."""
    raft, asked = doubtful(members=of("ab", "c"))
    assert sorted(asked) == ["b", "c"]
    raft.receive(answer(asked["c"], members=ABC, at=Point(2, 4)), 1)
    raft.tick(SETTINGS.election_ms)
    assert raft.role is Role.FOLLOWER


def test_a_learner_frees_nobody():
    raft, asked = doubtful(members=of("ab", "c"))
    for now in range(0, 20_000, 50):
        raft.tick(now)
        raft.receive(answer(asked["c"], members=of("ab", "c")), now)
    assert raft.role is Role.DOUBTFUL


def test_a_minority_never_does():
    raft, asked = doubtful(members=ABCDE)
    for now in range(0, 20_000, 50):
        raft.tick(now)
        raft.receive(answer(asked["b"]), now)
    assert raft.role is Role.DOUBTFUL


@pytest.mark.parametrize("figure", [(2, 4), (3, 0), (3, 1)])
def test_a_higher_figure_silences_it_for_good(figure):
    raft, asked = doubtful()
    raft.receive(answer(asked["b"], Point(*figure)), 1)
    raft.receive(answer(asked["c"]), 2)
    assert drain(raft)[1] == [Amnesia(Point(*figure), Point(2, 3))]
    raft.tick(90_000)
    raft.receive(VoteRequest(sid("b"), sid("a"), 9, Point(9, 9), False, True), 90_000)
    assert raft.take() is None
    raft.receive(Recall(sid("b"), sid("a"), 1, 7), 90_000)  # what it remembers of others is true
    assert isinstance(drain(raft)[0][0], Recollection)


@pytest.mark.parametrize("figure", [(2, 3), (2, 1), (1, 900)])
def test_a_figure_that_its_disk_explains_does_not(figure):
    """(1, 900): acknowledged to the leader of term 1, dropped by that of term 2."""
    raft, asked = doubtful()
    raft.receive(answer(asked["b"], Point(*figure)), 1)
    raft.receive(answer(asked["c"]), 2)
    assert raft.role is Role.FOLLOWER


def test_an_answer_to_an_earlier_start_is_none():
    raft, asked = doubtful()
    for name in "bc":
        raft.receive(answer(Recall(sid("a"), sid(name), 0, asked[name].nonce + 1)), 1)
    assert raft.role is Role.DOUBTFUL


def test_what_a_leader_tells_counts_in_doubt_and_after():
    told = (Figure(sid("a"), Point(2, 4)),)
    message = Append(sid("b"), sid("a"), 2, Point(2, 9), (), 9, told, True)
    raft, _ = doubtful()
    raft.receive(message, 1)
    assert drain(raft)[1] == [Amnesia(Point(2, 4), Point(2, 3))]
    freed = machine("a", stored([1, 1, 2], ABC))
    freed.receive(message, 1)
    messages, events, _ = drain(freed)
    assert (messages, events) == ([], [Amnesia(Point(2, 4), Point(2, 3))])


def test_all_may_start_at_once():
    cell = Cell({name: stored([1, 1], ABC) for name in "abc"})
    assert all(Freed() in cell.events[name] for name in "abc")
    cell.run(4_000)
    assert any(cell[name].role is Role.LEADER for name in "abc")


def test_a_cell_of_one_asks_nobody():
    assert machine("a", stored([1], of("a"))).role is Role.FOLLOWER


def test_an_empty_store_asks_whoever_leads_it_and_then_all():
    raft = machine("d", Stored(), free=False)
    assert drain(raft)[0] == []
    raft.receive(Append(sid("a"), sid("d"), 3, Point(2, 7), (), 7, (), True), 10)
    recall = drain(raft)[0][0]
    assert (recall.to, type(recall)) == (sid("a"), Recall)
    raft.receive(answer(recall, ORIGIN, of("abc", "d"), Point(3, 8)), 20)
    raft.tick(21)
    asked = drain(raft)[0]
    assert [m.to for m in asked] == [sid("b"), sid("c")]
    for message in asked:
        raft.receive(answer(message), 30)
    assert (raft.role, raft.term, raft.log.last) == (Role.FOLLOWER, 0, 0)


def test_who_is_not_a_member_any_more_is_never_freed():
    raft, asked = doubtful()
    raft.receive(answer(asked["b"], ORIGIN, of("bcd"), Point(5, 9)), 1)
    raft.receive(answer(asked["c"]), 2)
    for now in range(0, 10_000, 50):
        raft.tick(now)
        for message in drain(raft)[0]:
            raft.receive(answer(message, ORIGIN, of("bcd"), Point(5, 9)), now)
    assert raft.role is Role.DOUBTFUL


def test_a_removal_that_was_withdrawn_is_forgotten():
    raft, asked = doubtful()
    raft.receive(answer(asked["b"], ORIGIN, of("bc"), Point(5, 9)), 1)
    raft.receive(answer(asked["c"]), 2)
    assert raft.role is Role.DOUBTFUL
    raft.tick(SETTINGS.election_ms)
    raft.tick(SETTINGS.election_ms + SETTINGS.heartbeat_ms)
    for message in drain(raft)[0]:
        raft.receive(answer(message), SETTINGS.election_ms + 200)
    assert raft.role is Role.FOLLOWER


# --- where figures come from and go ------------------------------------------------------------------
def test_everybody_learns_what_was_acknowledged():
    cell = Cell({name: stored([], ABC) for name in "abc"})
    written: dict[str, tuple[Figure, ...]] = {}
    original = Cell.collect

    def collect() -> None:
        for name, raft in cell.rafts.items():
            take = raft.take

            def noting(take=take, name=name):
                output = take()
                if output and output.write:
                    written[name] = output.write.known
                return output

            raft.take = noting  # type: ignore[method-assign]
        original(cell)
        for raft in cell.rafts.values():
            del raft.take

    cell.collect = collect  # type: ignore[method-assign]
    leader = cell.elect("a")
    for _ in range(3):
        leader.propose(b"block", 5)
        cell.settle()
    cell.run(400)  # the log is quiet: one heartbeat later it is on every disk
    assert {name: {f.upto for f in known} for name, known in written.items()} == {n: {Point(1, 4)} for n in "abc"}
    writes = len(written)
    written.clear()
    cell.run(2_000)
    assert (writes, written) == (3, {})  # and then nobody writes any more


def test_a_vote_is_a_figure():
    raft = machine("a", stored([1], ABC))
    raft.tick(10_000)
    raft.receive(VoteReply(sid("b"), sid("a"), 2, True, True), 10_000)
    drain(raft)
    raft.receive(VoteReply(sid("b"), sid("a"), 2, False, True), 10_000)
    raft.receive(VoteRequest(sid("c"), sid("a"), 7, Point(1, 1), False, False), 10_000)
    raft.receive(Accepted(sid("b"), sid("a"), 2, 1), 10_000)
    assert (raft.figures.of(sid("b")), raft.figures.of(sid("c"))) == (Point(2, 1), Point(7, 0))


def test_figures_are_bounded_and_forget_who_left():
    figures = Figures(())
    for number in range(100):
        figures.note(b"%016d" % number, Point(1, number + 1))
    assert len(figures.told()) == 2 * MAX_CELL
    figures.note(b"%016d" % 0, Point(1, 0))
    assert figures.of(b"%016d" % 0) == Point(1, 1)  # they only rise
    figures.keep(Members((Member(b"%016d" % 3, "n"),)), None)
    assert figures.told() == (Figure(b"%016d" % 3, Point(1, 4)),)


def test_an_old_copy_is_caught_after_everybody_restarted():
    """The figures survive on the others' disks."""
    known = (Figure(sid("a"), Point(3, 40)),)
    cell = Cell({
        "a": stored([1] * 20, ABC, term=3),
        "b": stored([1] * 40, ABC, term=3, known=known),
        "c": stored([1] * 40, ABC, term=3),
    })  # fmt: skip
    assert cell.events["a"] == [Amnesia(Point(3, 40), Point(3, 20))]
    cell.run(5_000)
    assert {cell["b"].role, cell["c"].role} == {Role.LEADER, Role.FOLLOWER}
    assert cell["a"].role is Role.SILENT
