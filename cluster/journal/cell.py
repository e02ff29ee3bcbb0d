"""One node's part in its cell beside the log itself: it answers what other nodes of the cell ask, asks them to let it
in, gives and takes snapshots, and, while it leads, sees to the members."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.core.raft import ChangeRefused, NotLeader, Role
from cluster.journal.digests import Digests
from cluster.journal.journal import RaftJournal
from cluster.journal.memberships import next_members
from cluster.journal.shapes import Standing, read_standing
from cluster.journal.snapshots import Snapshots
from cluster.links import Links
from relay.core.codec import encode
from relay.errors import (
    NotPermitted, Overloaded, PeerError, ProtocolError, Refused, ResidencyError, StoreForeign,
)
from relay.limits import LINK_DEADLINE_S

_log = structlog.get_logger("cluster.cell")
_LOOK_S = 0.2  # seconds between two looks at the members
_JOIN_S = 0.5  # seconds between two requests of a store that is not in the cell yet
_OTHER_LOG_S = 2.0  # seconds between two looks whether the cell has another log
_DOUBT_S, _DOUBT_AGAIN_S = 30.0, 60.0  # seconds in doubt before that is said, and until it is said again
_JOIN_KEPT_S = 3.0  # seconds that a request to join counts


class Cell:
    """The handler of what comes over the links of the cell."""

    def __init__(self, journal: RaftJournal, snapshots: Snapshots, digests: Digests, links: Links) -> None:
        self.journal = journal
        self._snapshots = snapshots
        self._digests = digests
        self._links = links
        self._joining: dict[str, tuple[bytes, float]] = {}  # node → its store, and when it last asked (trio's clock)

    async def run(self) -> None:
        """Until cancelled; raises what RaftJournal.run raises."""
        async with trio.open_nursery() as nursery:
            self._snapshots.start(nursery)
            nursery.start_soon(self.journal.run)
            nursery.start_soon(self._digests.run)
            nursery.start_soon(self._see_to_members)
            nursery.start_soon(self._ask_to_join)
            nursery.start_soon(self._watch_for_other_logs)
            nursery.start_soon(self._tell_of_doubt)

    # --- answering -------------------------------------------------------------------------------
    async def answer(self, peer: Peer, message: linkwire.Request) -> linkwire.Answer:
        """Answer a node of this cell. Raises PosthouseError, which the link turns into a LinkFault."""
        journal = self.journal
        if journal.closed:
            raise Overloaded("this node starts anew")
        match message:
            case linkwire.Propose():
                return await self._propose(message)
            case linkwire.Join():
                if not journal.raft.log.had(message.store, journal.raft.log.last):
                    self._joining[peer.node] = (message.store, trio.current_time())
                return linkwire.Done()
            case linkwire.FetchCheckpoint() | linkwire.FetchFacts() | linkwire.FetchBlocks():
                return await self._snapshots.give(message)
            case linkwire.TakeSnapshot():
                return await self._snapshots.take(peer.node, message.index, message.first)
            case linkwire.StateDigest():
                self._digests.heard(peer.node, message)
                return linkwire.Done()
            case linkwire.CellStatus():
                return linkwire.Status(encode(Standing(journal.log_id, journal.leader_node)))
            case _:
                raise PeerError(f"{peer.node} asked for {type(message).__name__}, which is not served here")

    async def _propose(self, message: linkwire.Propose) -> linkwire.Answer:
        if message.log_id != self.journal.log_id:
            raise PeerError("a proposal for another log", "Start the node that sent it again")
        try:
            with trio.fail_after(LINK_DEADLINE_S / 2):
                placed = await self.journal.place(message.records, term=message.term)
        except NotLeader as error:
            return linkwire.NotLeading(self.journal.node_of(error.leader))
        except ResidencyError as error:
            return linkwire.ProposalRefused(error.ordinal, error.text, isinstance(error, NotPermitted))
        except ValueError as error:
            raise PeerError(f"no batch: {error}") from None
        except trio.TooSlowError:
            raise Overloaded("the leader could not place it in time") from None
        return linkwire.Proposed(placed.index, placed.hash, placed.term)

    # --- members ---------------------------------------------------------------------------------
    async def _ask_to_join(self) -> None:
        """As long as this store has never been in the cell: once it was, it does not come back (rule 4). What is not
        committed does not count: who let it in may have been deposed."""
        journal, own = self.journal, self.journal.own
        while not journal.raft.log.had(own.store, journal.tip):
            await ask_to_join(self._links, own.store, _JOIN_S)
            await trio.sleep(_JOIN_S)

    async def _watch_for_other_logs(self) -> None:
        """As long as a majority does not vote here, or nobody has told that this store is whole. Raises StoreForeign
        where the cell goes on with another log than this store's."""
        journal, told = self.journal, False
        while journal.raft.role is Role.DOUBTFUL or len(journal.raft.members.voters) < majority_of(journal.nodes):
            await trio.sleep(_OTHER_LOG_S)
            others = [log for log in (await logs_led(self._links, _JOIN_S)).values() if log != journal.log_id]
            if others and journal.raft.role is Role.DOUBTFUL:
                raise StoreForeign(
                    f"this store is of log {journal.log_id.hex()}, and its cell goes on with log {others[0].hex()}",
                    "Check [paths] data. To have the node join with a new store run `posthouse journal repair` there",
                )
            if others and not told:
                told = True
                remedy = "One node is to start a cell's log: move the data directory of the other away"
                _log.error("two_logs", own=journal.log_id.hex(), other=others[0].hex(), remedy=remedy)

    async def _tell_of_doubt(self) -> None:
        """A store that nobody frees would wait in silence."""
        wait = _DOUBT_S
        while self.journal.raft.role is Role.DOUBTFUL:
            await trio.sleep(wait)
            wait = _DOUBT_AGAIN_S
            if self.journal.raft.role is Role.DOUBTFUL:
                text = "too few nodes answer what they remember of this store, or the cell does not list it (any more)"
                remedy = "See `posthouse cell status` on another node. If the cell goes on without this store, stop"
                remedy += " this node and run `posthouse journal repair` here: it joins with a new one"
                _log.warning("in_doubt", store=self.journal.own.store.hex(), text=text, remedy=remedy)

    async def _see_to_members(self) -> None:
        journal = self.journal
        while True:
            await trio.sleep(_LOOK_S)
            raft = journal.raft
            for node in [node for node, (store, _) in self._joining.items() if raft.log.had(store, raft.log.last)]:
                del self._joining[node]  # granted, once: a store that was removed, too, does not come back
            others = [store for store in raft.members.voter_ids if store != journal.own.store]
            journal.clocks.keep(raft.members.ids)
            journal.clocks.mend(others)
            if raft.role is not Role.LEADER:
                continue
            apart = journal.clocks.apart(others)
            if apart:
                _log.error("clock_apart", ahead_ms=apart, remedy="mend this node's clock: it does not lead meanwhile")
                raft.step_down()
                journal.wake()
                continue
            self._try_changes()

    def _try_changes(self) -> None:
        now = trio.current_time()
        joining = {
            node: store for node, (store, asked) in self._joining.items()
            if now - asked < _JOIN_KEPT_S and node in self.journal.nodes
        }  # fmt: skip
        for members in next_members(self.journal.raft.members, joining):
            try:
                index = self.journal.change(members)
            except (ChangeRefused, NotLeader, Overloaded) as error:
                _log.debug("change_waits", text=error.text)
                continue
            _log.info("members", index=index, voters=[member.node for member in members.voters])
            return


async def ask_all(links: Links, message: linkwire.Request, deadline_s: float) -> dict[str, linkwire.Answer]:
    """Ask all other nodes of the cell. What those answered that did, by node."""
    answers: dict[str, linkwire.Answer] = {}

    async def ask(node: str) -> None:
        with suppress(Refused, PeerError):
            answers[node] = await links.ask(node, message, deadline_s)

    async with trio.open_nursery() as nursery:
        for node in links.peers():
            nursery.start_soon(ask, node)
    return answers


async def ask_to_join(links: Links, store: bytes, deadline_s: float) -> None:
    """Ask all other nodes to let `store` in, which is on the disk. What it asks for counts for _JOIN_KEPT_S."""
    await ask_all(links, linkwire.Join(store), deadline_s)


async def standings(links: Links, deadline_s: float) -> dict[str, Standing]:
    """What the other nodes of the cell have: their log, and who leads it; by node, each by its own word."""
    said = {}
    for node, answer in (await ask_all(links, linkwire.CellStatus(), deadline_s)).items():
        with suppress(ProtocolError):
            if isinstance(answer, linkwire.Status):
                said[node] = read_standing(answer.status)
    return said


async def logs_led(links: Links, deadline_s: float) -> dict[str, bytes]:
    """The other nodes that lead, each by its own word, and the ids of their logs."""
    return {node: said.log_id for node, said in (await standings(links, deadline_s)).items() if said.leader == node}


def majority_of(nodes: Sequence[str]) -> int:
    """How many voters a cell of these nodes must have before it serves clients."""
    return len(nodes) // 2 + 1
