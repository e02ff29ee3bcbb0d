"""What the leader does about the cell's members, unaided (rules 4 and 8): one change at a time, learner first, promoted
when it has caught up, and a node's old store goes after its new one votes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.core.raft import Member, Members


def next_members(now: Members, joining: Mapping[str, bytes]) -> Iterable[Members]:
    """Changes that are worth trying, the most urgent first. `joining`: node → the store that it asks to bring in.

    A node has one store. A store of a node that asks with another one is gone for good."""
    newest = {member.node: member.store for member in now.voters}  # of two voters the later one is the newer
    for member in now.voters:
        if newest[member.node] != member.store:
            yield now.without(member.store)
    for learner in now.learners:
        if joining.get(learner.node, learner.store) != learner.store:
            yield now.without(learner.store)
        else:
            yield now.promoted(learner.store)
    known = {member.store for member in (*now.voters, *now.learners)}
    learning = {member.node for member in now.learners}
    for node, store in sorted(joining.items()):
        if store not in known and node not in learning:
            yield now.with_learner(Member(store, node))
