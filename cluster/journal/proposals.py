"""What waits at the leader to be put into a block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from cluster.core import linkwire
from cluster.journal.chain import Fact
from cluster.journal.shapes import is_members
from cluster.links import Links
from relay.errors import Overloaded, PeerError, PosthouseError, Refused, ResidencyError
from relay.journal.tail import check_batch
from relay.limits import LINK_DEADLINE_S, MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_INTAKE


@dataclass(frozen=True, slots=True)
class Placed:
    """The block that took a proposal in: not committed yet, and perhaps never."""

    index: int
    hash: bytes
    term: int


@dataclass(slots=True, eq=False)
class Proposal:
    """Records that stay together, in order. `outcome` is set once `done` is."""

    records: tuple[bytes, ...]
    size: int
    done: trio.Event = field(default_factory=trio.Event)
    outcome: Placed | PosthouseError | None = None

    def settle(self, outcome: Placed | PosthouseError) -> None:
        self.outcome = outcome
        self.done.set()


class Proposals:
    """First come, first placed; at most MAX_INTAKE bytes of each node wait, of which its intake sees to."""

    def __init__(self, nodes: int) -> None:
        self._queue: deque[Proposal] = deque()
        self._bytes = 0
        self._most = MAX_INTAKE * nodes

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, records: Sequence[bytes]) -> Proposal:
        """Raises Overloaded, ValueError."""
        check_proposal(records)
        size = sum(map(len, records))
        if self._bytes + size > self._most:
            raise Overloaded("the cell has more to write than its disks take")
        proposal = Proposal(tuple(records), size)
        self._queue.append(proposal)
        self._bytes += size
        return proposal

    async def outcome(self, proposal: Proposal) -> Placed:
        """Wait for it. Raises what it was refused for. Who is cancelled withdraws it: he would propose it again."""
        try:
            await proposal.done.wait()
        finally:
            if not proposal.done.is_set() and proposal in self._queue:  # else the driver failed over its block
                self._queue.remove(proposal)
                self._bytes -= proposal.size
        assert proposal.outcome is not None
        if isinstance(proposal.outcome, Placed):
            return proposal.outcome
        raise proposal.outcome

    def take(self) -> list[Proposal]:
        """As many as fit into one block."""
        taken: list[Proposal] = []
        size = count = 0
        while self._queue:
            proposal = self._queue[0]
            full = size + proposal.size > MAX_BLOCK or count + len(proposal.records) > MAX_BLOCK_RECORDS
            if full:  # never the first one: see `check_proposal`
                break
            taken.append(self._queue.popleft())
            size += proposal.size
            count += len(proposal.records)
        self._bytes -= size
        return taken

    def put_back(self, taken: Sequence[Proposal]) -> None:
        """They could not be placed now."""
        self._queue.extendleft(reversed(taken))
        self._bytes += sum(proposal.size for proposal in taken)

    def fail(self, error: PosthouseError) -> None:
        """Nobody here will place what waits."""
        while self._queue:
            self._queue.popleft().settle(error)
        self._bytes = 0


def check_proposal(records: Sequence[bytes]) -> None:
    """Raises ValueError beyond the bounds of a block, and for a change of members: those are not for the asking."""
    check_batch(records)
    if any(map(is_members, records)):
        raise ValueError("a change of the cell's members is no record of a batch")


def sift(
    taken: list[Proposal], check: Callable[[Sequence[bytes]], tuple[Fact, ...]]
) -> tuple[list[Proposal], tuple[Fact, ...]]:
    """Refuse the proposals that must not rest here (`check` raises ResidencyError, with the ordinal of the record); the
    others stay together, with the facts that they teach."""
    while taken:
        try:
            return taken, check([record for one in taken for record in one.records])
        except ResidencyError as error:
            at = error.ordinal
            for place, proposal in enumerate(taken):
                if at < len(proposal.records):
                    proposal.settle(type(error)(error.text, error.remedy, at))
                    del taken[place]
                    break
                at -= len(proposal.records)
    return [], ()


async def ask_leader(links: Links, node: str, message: linkwire.Propose, changed: trio.Event) -> linkwire.Answer:
    """The answer of `node`; NotLeading where there is none, or as soon as `changed`: another one leads."""
    answer: linkwire.Answer = linkwire.NotLeading("")

    async def give_up(scope: trio.CancelScope) -> None:
        await changed.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(give_up, nursery.cancel_scope)
        with suppress(Refused, PeerError):
            answer = await links.ask(node, message, LINK_DEADLINE_S)
        nursery.cancel_scope.cancel()
    return answer
