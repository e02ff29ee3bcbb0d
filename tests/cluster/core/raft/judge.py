"""What must hold after every event of a swarm, said from outside the machine: from disks, messages and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from cluster.core.raft import (
    ORIGIN, Accepted, Append, Entry, Message, Output, Point, Recall, Recollection, Role, VoteReply, VoteRequest,
)

if TYPE_CHECKING:
    from tests.cluster.core.raft.world import Node, World


class Violation(AssertionError):
    """An invariant did not hold."""


def insist(held: bool, text: str) -> None:
    if not held:
        raise Violation(text)


class Judge:
    def __init__(self, world: World) -> None:
        self.world = world
        self.leaders: dict[int, bytes] = {}  # term → who led it
        self.content: dict[Point, tuple[object, object, Point]] = {}  # place → what stands there, and before it
        self.committed: dict[int, int] = {}  # index → term
        self.highest = 0
        self.votes: dict[tuple[bytes, int], bytes] = {}

    # --- the log -------------------------------------------------------------------------------------
    def written(self, entry: Entry, prev: Point) -> None:
        """Log matching: one content, and one predecessor, per (term, index)."""
        told = (entry.payload, entry.members, prev)
        insist(self.content.setdefault(entry.point, told) == told, f"two entries at {entry.point}")

    def snapshot(self, end: Point) -> None:
        insist(self.committed.get(end.index) == end.term, f"a snapshot ends at {end}, which is not committed")

    def led(self, node: Node) -> None:
        """One leader a term; and it has every entry that was ever committed."""
        raft = node.raft
        insist(self.leaders.setdefault(raft.term, node.id) == node.id, f"two leaders in term {raft.term}")
        for index in range(raft.log.start.index + 1, self.highest + 1):
            insist(raft.log.term(index) == self.committed[index], f"the leader of term {raft.term} lacks entry {index}")

    def counted(self, node: Node) -> None:
        """Rule 1: what a leader calls committed is on the disks of a majority. A disk that was lost since counts: its
        store stays silent."""
        raft = node.raft
        if raft.role is not Role.LEADER or raft.commit <= node.seen_commit:
            return
        node.seen_commit = raft.commit
        term = raft.log.term(raft.commit)
        insist(term is not None, "a leader commits what it does not have")
        disks = (self.world.nodes[voter] for voter in raft.members.voter_ids)
        on = sum(d.rolled_back or d.gone or d.disk.holds(raft.commit, term) for d in disks)
        insist(on >= raft.members.majority, f"entry {raft.commit} is called committed and is on {on} disks")

    def output(self, node: Node, output: Output) -> None:
        insist(output.commit >= node.applied, "the commit index falls")
        insist(output.commit <= node.disk.last, f"{output.commit} is given out, the disk ends at {node.disk.last}")
        for index in range(max(node.applied, node.disk.start.index) + 1, output.commit + 1):
            entry = node.disk.entry(index)
            insist(entry is not None, f"entry {index} is to be applied and is not on the disk")
            term = self.committed.setdefault(index, entry.term)
            insist(term == entry.term, f"entry {index} of term {entry.term} is applied, elsewhere one of {term}")
            self.highest = max(self.highest, index)

    # --- messages ------------------------------------------------------------------------------------
    def sent(self, node: Node, messages: Iterable[Message]) -> None:
        """Rule 2: persist before send. Rule 4: no word in doubt."""
        disk = node.disk
        for message in messages:
            insist(message.source == node.id, "a message in another's name")
            if node.raft.role is Role.DOUBTFUL or node.rolled_back:
                insist(isinstance(message, Recall | Recollection), f"{message} from a store in doubt")
            if isinstance(message, VoteReply) and message.granted and not message.pre:
                voted = (disk.hard.term, disk.hard.vote) == (message.term, message.to) or disk.hard.term > message.term
                insist(voted, f"a vote in term {message.term} that is not on disk")
                self._voted(node.id, message.term, message.to)
            elif isinstance(message, VoteRequest) and not message.pre:
                insist(disk.hard.term >= message.term, f"a candidacy in term {message.term} that is not on disk")
                self._voted(node.id, message.term, node.id)
            elif isinstance(message, Accepted):
                insist(disk.last >= message.match, f"{message.match} is acknowledged, the disk ends at {disk.last}")
                insist(disk.hard.term >= message.term, "an acknowledgement in a term that is not on disk")

    def _voted(self, store: bytes, term: int, choice: bytes) -> None:
        insist(self.votes.setdefault((store, term), choice) == choice, f"a second vote in term {term}")

    # --- memory (rule 5) -----------------------------------------------------------------------------
    def carried(self, node: Node, message: Message) -> dict[bytes, Point]:
        """What an Append must tell about others, from what its sender was told."""
        return dict(node.heard) if isinstance(message, Append) else {}

    def delivered(self, node: Node, message: Message, carried: dict[bytes, Point]) -> None:
        raft = node.raft
        if isinstance(message, Accepted) and raft.role is Role.LEADER and message.term == raft.term:
            if message.source in raft.members.ids:
                self.remember(node.heard, {message.source: Point(message.term, message.match)})
        elif isinstance(message, Append) and raft.leader == message.source and raft.term == message.term:
            self.remember(node.heard, carried)

    @staticmethod
    def remember(memory: dict[bytes, Point], told: dict[bytes, Point]) -> None:
        for store, upto in told.items():
            memory[store] = max(upto, memory.get(store, ORIGIN))

    def freed(self, node: Node) -> None:
        insist(not node.rolled_back, "a rolled-back store was freed, and somebody knew")

    def amnesiac(self, node: Node) -> None:
        insist(node.rolled_back, "a healthy store was told that it has forgotten something")
