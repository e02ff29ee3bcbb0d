"""The swarm must find bugs: each defect, planted into the machine, is found within so many seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest

from cluster.core.raft import Accepted, Members, Raft, VoteReply, VoteRequest, machine
from cluster.core.raft.desk import Desk
from cluster.core.raft.entry import Point
from cluster.core.raft.following import Taken, accept
from cluster.core.raft.leading import Leading
from cluster.core.raft.log import Log
from cluster.core.raft.messages import Append
from cluster.core.raft.recall import Doubt
from relay.errors import PosthouseError
from tests.cluster.core.raft import test_raft_log, test_raft_members
from tests.cluster.core.raft.chaos import Swarm

Patch = pytest.MonkeyPatch


def says_at_once(patch: Patch, kind: type) -> None:
    honest = Desk.say_after
    patch.setattr(Desk, "say_after", lambda desk, m: desk.say(m) if isinstance(m, kind) else honest(desk, m))


def votes_before_the_disk(patch: Patch) -> None:
    says_at_once(patch, VoteReply)


def acknowledges_before_the_disk(patch: Patch) -> None:
    says_at_once(patch, Accepted)


def leader_counts_itself_before_the_disk(patch: Patch) -> None:
    honest = Leading.committed
    patch.setattr(Leading, "committed", lambda leading, commit, _: honest(leading, commit, leading._log.last))


def counts_copies_of_older_terms(patch: Patch) -> None:
    honest = Leading.committed

    def committed(leading: Leading, commit: int, stored: int) -> int:
        first, leading._first = leading._first, 0
        try:
            return honest(leading, commit, stored)
        finally:
            leading._first = first

    patch.setattr(Leading, "committed", committed)


def counts_learners(patch: Patch) -> None:
    patch.setattr(Members, "voter_ids", Members.ids)
    patch.setattr(Members, "votes", lambda members, store: store in members.ids)


def stands_without_prevote(patch: Patch) -> None:
    honest = Raft._stand
    patch.setattr(Raft, "_stand", lambda raft, pre, transfer=False: honest(raft, False, transfer))


def leads_without_being_answered(patch: Patch) -> None:
    patch.setattr(Leading, "forsaken", lambda leading: False)


def never_doubts(patch: Patch) -> None:
    patch.setattr(Doubt, "settled", lambda doubt, now, patience: not doubt._stranger)


def doubts_until_the_first_answer(patch: Patch) -> None:
    def settled(doubt: Doubt, now: int, patience: int) -> bool:
        return not doubt.lost and not doubt._stranger and (bool(doubt._answered) or not doubt._unanswered())

    patch.setattr(Doubt, "settled", settled)


def does_not_store_figures(patch: Patch) -> None:
    honest = Desk.take_write
    patch.setattr(Desk, "take_write", lambda desk, hard, figures: honest(desk, hard, ()))


def does_not_tell_figures(patch: Patch) -> None:
    honest = Leading.appends
    patch.setattr(Leading, "appends", lambda leading, commit, known: honest(leading, commit, ()))


def truncates_what_agrees(patch: Patch) -> None:
    def careless(log: Log, commit: int, append: Append) -> Taken | Point:
        if log.has(append.prev) and append.prev.index >= commit and log.last > append.prev.index:
            honest_first = append.prev.index + 1
            log.truncate(honest_first)
            for entry in append.entries:
                log.append(entry)
            return Taken(append.prev.index + len(append.entries), honest_first, True)
        return accept(log, commit, append)

    patch.setattr(machine, "accept", careless)


def acknowledges_its_whole_log(patch: Patch) -> None:
    def careless(log: Log, commit: int, append: Append) -> Taken | Point:
        taken = accept(log, commit, append)
        return taken._replace(match=log.last) if isinstance(taken, Taken) else taken

    patch.setattr(machine, "accept", careless)


def a_truncation_does_not_touch_the_write_under_way(patch: Patch) -> None:
    patch.setattr(Desk, "_keeps", lambda desk, index: None)


def votes_for_anybody(patch: Patch) -> None:
    patch.setattr(Raft, "_may_vote_for", lambda raft, request: raft.vote in (None, request.source))
    honest = Raft._on_request

    def on_request(raft: Raft, request: VoteRequest) -> None:
        honest(raft, VoteRequest(*(getattr(request, f) for f in ("source", "to", "term")), Point(1 << 40, 0),
                                 request.pre, request.transfer))  # fmt: skip

    patch.setattr(Raft, "_on_request", on_request)


def votes_twice_in_a_term(patch: Patch) -> None:
    patch.setattr(Raft, "_may_vote_for", lambda raft, request: request.tip >= raft.log.tip)


def forgets_its_vote(patch: Patch) -> None:
    honest = Desk.take_write

    def take_write(desk: Desk, hard: object, figures: object) -> object:
        write = honest(desk, hard, figures)
        return replace(write, hard=replace(write.hard, vote=None)) if write and write.hard else write

    patch.setattr(Desk, "take_write", take_write)


def a_change_counts_when_committed(patch: Patch) -> None:
    honest_take, honest_members = Raft.take, Log.members.fget

    def members(log: Log) -> Members:
        before = log.members_before
        return before if before and log.members_at.index > getattr(log, "known_commit", 0) else honest_members(log)

    def take(raft: Raft) -> object:
        raft.log.known_commit = raft.commit
        if raft.leading:
            raft.leading.members_changed()
        return honest_take(raft)

    patch.setattr(Log, "members", property(members))
    patch.setattr(Raft, "take", take)


def two_changes_at_a_time(patch: Patch) -> None:
    patch.setattr(Leading, "_check", lambda leading, new, commit: None)


def installs_any_snapshot(patch: Patch) -> None:
    honest = Raft.install

    def install(raft: Raft, end: Point, members: Members) -> bool:
        commit, raft.commit = raft.commit, 0
        try:
            return honest(raft, end, members)
        finally:
            raft.commit = max(raft.commit, commit) if raft.log.last >= commit else raft.commit

    patch.setattr(Raft, "install", install)


def changes_before_its_first_commit(patch: Patch) -> None:
    honest = Leading._check

    def check(leading: Leading, new: Members, commit: int) -> None:
        honest(leading, new, max(commit, leading._first))

    patch.setattr(Leading, "_check", check)


class Planted(NamedTuple):
    """`found`: the first seed that found it when this was written, counted from 0. It is tried first; if the swarm has
    changed since, the seeds below `within` are."""

    defect: Callable[[Patch], None]
    found: int
    within: int = 200


PLANTED = [
    Planted(votes_before_the_disk, 0),
    Planted(acknowledges_before_the_disk, 0),
    Planted(leader_counts_itself_before_the_disk, 0),
    Planted(counts_learners, 6),
    Planted(stands_without_prevote, 20),
    Planted(leads_without_being_answered, 1),
    Planted(never_doubts, 2),
    Planted(doubts_until_the_first_answer, 9),
    Planted(does_not_store_figures, 13),
    Planted(does_not_tell_figures, 41),
    Planted(truncates_what_agrees, 0),
    Planted(acknowledges_its_whole_log, 28),
    Planted(a_truncation_does_not_touch_the_write_under_way, 6),
    Planted(votes_for_anybody, 0),
    Planted(votes_twice_in_a_term, 12),
    Planted(forgets_its_vote, 0),
    Planted(a_change_counts_when_committed, 34),
    Planted(two_changes_at_a_time, 28),
    Planted(installs_any_snapshot, 6),
]
FOUND = (AssertionError, PosthouseError, LookupError, ValueError)


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.defect.__name__)
def test_a_swarm_finds_a_planted_defect(planted: Planted, monkeypatch: Patch) -> None:
    planted.defect(monkeypatch)
    with pytest.raises(FOUND):
        for seed in (planted.found, *range(planted.within)):
            Swarm(seed).run()


@pytest.mark.parametrize(
    ("defect", "scenario"),
    [
        (counts_copies_of_older_terms, test_raft_log.test_copies_of_older_terms_decide_nothing),
        (changes_before_its_first_commit, test_raft_members.test_a_change_needs_a_commit_of_its_own_term),
    ],
    ids=lambda it: it.__name__,
)
def test_what_swarms_seldom_meet_has_a_scenario(defect, scenario, monkeypatch: Patch) -> None:
    """Figure 8 was not met in 250 seeds."""
    scenario()
    defect(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        scenario()
