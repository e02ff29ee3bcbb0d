"""The replicated journal: a cell's log on the stores of its nodes.

What peers said, what time it is and what became durable go into the pure core (cluster.core.raft); blocks to write,
messages to send and what is committed come out. That is done by whoever brings something, without waiting; one task
brings the time, and one writes. Nothing is acknowledged before a majority has it on disk, and a follower of this
journal sees nothing before it is committed (rules 1 and 2).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence

import structlog
import trio

from cluster.core import linkwire
from cluster.core.linkwire import CellNote, Peer
from cluster.core.raft import (
    Amnesia, BecameLeader, ChangeRefused, Event, Freed, LeaderIs, LostLeadership, Member, Members, Message,
    NeedSnapshot, NotLeader, Output, Raft, Role, StoreRemoved,
)
from cluster.journal.chain import Chain
from cluster.journal.disk import RaftDisk
from cluster.journal.ends import Rejoin, removed
from cluster.journal.line import Line, Turn
from cluster.journal.post import Post
from cluster.journal.proposals import Placed, Proposals, ask_leader, check_proposal, sift
from cluster.journal.shapes import from_members
from cluster.journal.stamp import CellClock
from cluster.links import Links
from relay.core import records as log_records
from relay.core.block import Block
from relay.errors import (
    DiskFailed, NotPermitted, Overloaded, PeerError, ResidencyError,
)
from relay.journal.disk import held
from relay.journal.tail import Follower, check_checkpoint
from relay.ports import Env, Rows

_log = structlog.get_logger("cluster.journal")


class RaftJournal:
    """relay.ports.Journal over the stores of a cell. Made by `open_raft`; `run` must be running."""

    def __init__(
        self, own: Member, disk: RaftDisk, chain: Chain, raft: Raft, links: Links, env: Env, nodes: Sequence[str],
        is_new: bool,
    ) -> None:
        self.own = own
        self.raft = raft
        self.nodes = tuple(nodes)
        self.clocks = CellClock(env.clock)
        self.disk = self._disk = disk
        self._tail = disk.tail
        self.is_new = is_new  # this node made the log just now
        self._chain = chain
        self._links = links
        self._clock = env.clock
        self._post = Post(own, disk, links, self.clocks)
        self._proposals = Proposals(len(nodes))
        self._line = Line()
        self._stepping = False
        self._due: int | None = None  # when the driver looks by itself, ms
        self._look = trio.Event()  # it is to look now
        self._job: Output | None = None  # the write under way
        self._job_came = trio.Event()
        self._lead = trio.Event()  # set, and renewed, whenever another leads
        self._noop_due = False
        self._fatal: Exception | None = None  # what ends the journal
        self._nursery: trio.Nursery | None = None
        self.need_snapshot: Callable[[bytes], None] = lambda store: None

    # --- relay.ports.Journal ---------------------------------------------------------------------
    @property
    def log_id(self) -> bytes:
        return self._tail.log_id

    @property
    def first(self) -> int:
        return self._tail.first

    @property
    def tip(self) -> int:
        return self._tail.tip

    @property
    def leads(self) -> bool:
        """Is this the node that speaks for the cell: forwards, ticks, carries?"""
        return self.raft.role is Role.LEADER

    @property
    def leader_node(self) -> str:
        """The node that leads, as far as it is known here; empty otherwise."""
        return self.node_of(self.raft.leader) if self.raft.leader else ""

    @property
    def closed(self) -> bool:
        """Is its store closed? Then it answers nobody."""
        return self._tail.ended

    async def leadership(self, leads: bool) -> None:
        while self.leads is not leads:
            await self._lead.wait()

    async def voters(self, count: int) -> None:
        """Wait until the cell has so many voters."""
        while len(self.raft.members.voters) < count:
            await self._tail.reached(self._tail.tip + 1)

    def time_ms(self) -> int:
        return max(self._tail.newest[2], self.clocks.stamp(self._others()))

    async def append(self, records: Sequence[bytes], placed: Callable[[], None] = lambda: None) -> None:
        check_proposal(records)
        await trio.lowlevel.checkpoint_if_cancelled()
        with self._line.joined(placed) as turn:
            while not await self._try_append(records, turn):
                turn.lost()

    async def _try_append(self, records: Sequence[bytes], turn: Turn) -> bool:
        """One try; False: they have no place in the log, and whoever can give them one may be another."""
        term = await turn.term_before()
        self._disk.store.check()
        changed = self._lead
        try:
            place = await self._place_somewhere(records, term, turn)
        except (NotLeader, Overloaded, PeerError) as error:
            _log.debug("append_waits", text=error.text)
            turn.lost()
            with trio.move_on_after(0.05):
                await changed.wait()
            return False
        return await self._settled(place)

    def follow(self, after: int) -> AsyncIterator[Block]:
        self._disk.store.check()
        return Follower(self._tail, self._disk.follow, after)

    async def read(self, index: int) -> Block:
        return await self._disk.read(index)

    async def release(self, below: int) -> None:
        leading = self.raft.leading
        needed = min(leading.matched().values(), default=below) + 1 if leading else below
        below = min(self._disk.may_release(below), needed)  # beyond that a peer would need a snapshot
        if below > self._tail.first:
            await self._disk.release(below, from_members(self.raft.log.members_upto(below - 1)))
            self.raft.compacted(self._tail.first)

    async def save_checkpoint(self, index: int, rows: Rows) -> None:
        check_checkpoint(index, self._disk.checkpoint_index, self.tip)
        block = await self.read(index)
        while (term := self.raft.log.term(index)) is None:  # a snapshot is about to take the place of everything
            await self._tail.reached(self._tail.tip + 1)
        await self._disk.save(index, rows, block, term, self.raft.log.members_upto(index))

    async def load_checkpoint(self, take: Callable[[bytes], None]) -> int | None:
        return await self._disk.load_saved(take)

    # --- appending -------------------------------------------------------------------------------
    async def _place_somewhere(self, records: Sequence[bytes], term: int, turn: Turn) -> Placed:
        """Have the leader put records into a block, in `term` (0: whichever it is). Raises NotLeader, Overloaded,
        PeerError, ResidencyError."""
        if self.leads:
            return await self.place(records, turn.placed, term)
        node = self.leader_node
        if not node or node == self.own.node:
            raise NotLeader(None)
        answer = await ask_leader(self._links, node, linkwire.Propose(self.log_id, tuple(records), term), self._lead)
        match answer:
            case linkwire.Proposed(index, hash_, term):
                turn.placed(term)
                return Placed(index, hash_, term)
            case linkwire.ProposalRefused(ordinal, text, policy):
                kind = NotPermitted if policy else ResidencyError
                raise kind(text, "Nothing of this batch was written", ordinal)
            case linkwire.NotLeading():
                raise NotLeader(None)
            case _:
                raise PeerError(f"{node} answered a proposal with {type(answer).__name__}")

    async def place(
        self, records: Sequence[bytes], queued: Callable[[int], None] = lambda term: None, term: int = 0
    ) -> Placed:
        """Put records into a block of this leader's, in `term` if that is not 0; it is not committed yet. `queued` is
        called with the term when they have their place among what waits for the next block. Raises NotLeader,
        Overloaded, ResidencyError."""
        if not self.leads or term not in (0, self.raft.term):
            raise NotLeader(self.raft.leader)
        proposal = self._proposals.add(records)
        queued(self.raft.term)
        self.wake()
        return await self._proposals.outcome(proposal)

    async def _settled(self, placed: Placed) -> bool:
        """Wait until the place is committed here: with that block, or (False) with another one; or until none can come
        there any more, because what is committed is of a later term already: terms never fall along a log."""
        while (tip := self._tail.tip) < placed.index:
            if (self.raft.log.term(tip) or 0) > placed.term:
                return False
            await self._tail.reached(tip + 1)
        return self.raft.log.term(placed.index) == placed.term  # index and term tell an entry (memory may have let go)

    # --- the driver ------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until cancelled. Raises Rejoin, DiskFailed, StoreDamaged, ResidencyError, OperatorError (removed)."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._write_all)
                self._nursery.start_soon(self._tail.reached, 1 << 62)  # raises what ends the journal, whoever found it
                while True:
                    self._look = trio.Event()
                    self.wake()
                    if self._fatal is not None:
                        raise self._fatal
                    due = self._due = self.raft.next_ms
                    wait = 1.0 if due is None else max(0.0, (due - self._clock.monotonic_ms()) / 1000)
                    with trio.move_on_after(wait):
                        await self._look.wait()
        finally:
            self._nursery = None

    def wake(self) -> None:
        """Something has changed. What follows from it is done now, in whichever task this is: a turn of the driver's
        for each message would cost more than the core does. The driver sees to time, and raises what goes wrong."""
        if self._nursery is None or self._stepping or self._fatal is not None:
            self._look.set()
            return
        self._stepping = True
        try:
            self._tail.check()
            self._step()
        except Exception as error:  # noqa: BLE001  whoever it is that wakes: it is the journal that ends
            self._fatal = self._fatal or error
        finally:
            self._stepping = False
        due = self.raft.next_ms
        if self._fatal is not None or (due is not None and (self._due is None or due < self._due)):
            self._look.set()

    def _step(self) -> None:
        """Feed the core with what came, and do what it says."""
        now = self._clock.monotonic_ms()
        for message in self._post.arrived():
            try:
                self.raft.receive(message, now)
            except PeerError as error:
                _log.error("note_refused", text=error.text)
        self.raft.tick(now)
        self._propose()
        while (output := self.raft.take()) is not None:
            self._do(output)
            self._propose()

    def _do(self, output: Output) -> None:
        if output.commit > self._tail.tip:
            self._commit(output.commit)
        for event in output.events:
            self._on(event)
        for message in output.send_now:
            self._send(message)
        if output.write is not None:
            for entry in output.write.append:
                self._chain.take(entry.payload)
            self._job = output
            self._job_came.set()
        else:
            for message in output.send_after:
                self._send(message)

    def _commit(self, upto: int) -> None:
        for link in self._chain.commit(upto):
            self._disk.residency.learn(link.facts)
            self._tail.commit(link.block)

    def _on(self, event: Event) -> None:
        match event:
            case BecameLeader(term):
                _log.info("leading", term=term)
                self._noop_due = True
            case LostLeadership(term):
                _log.info("leads_no_more", term=term)
                self._noop_due = False
                self._proposals.fail(NotLeader(self.raft.leader))
            case LeaderIs():
                self._lead.set()
                self._lead = trio.Event()
            case NeedSnapshot(to):
                self.need_snapshot(to)
            case Freed():
                _log.info("takes_part", store=self.own.store.hex())
            case Amnesia(known, standing):
                self._disk.doomed = (
                    f"it ends at entry {standing.index} of term {standing.term}, and its peers saw it acknowledge "
                    f"entry {known.index} of term {known.term}: an older copy"
                )
                self._fatal = Rejoin(f"this store has forgotten what it acknowledged: {self._disk.doomed}")
            case StoreRemoved():
                self._disk.removed = True
                self._fatal = removed(self.own.node)

    # --- writing ---------------------------------------------------------------------------------
    async def _write_all(self) -> None:
        while True:
            await self._job_came.wait()
            self._job_came = trio.Event()
            output = self._job
            assert output is not None and output.write is not None
            try:
                await self._disk.put(output.write, self._chain)
            except DiskFailed:
                self.raft.stop_acknowledging()
                raise
            self._job = None
            self.raft.persisted(output.write.seq)
            for message in output.send_after:
                self._send(message)
            self._tail.check()  # it has ended with a snapshot
            self.wake()
            async with held(self._disk.writing):
                await self._disk.store.fold_wal()

    # --- leading ---------------------------------------------------------------------------------
    def _propose(self) -> None:
        """Natural group commit: whatever came while the last block was being written goes into the next one."""
        if not self.leads or self._job is not None:
            return
        self._chain.truncate(self.raft.log.last + 1)
        if self._noop_due:
            self._noop_due = False
            tick = log_records.encode_record(log_records.Tick())
            self._append_block(self._chain.make([tick], self._stamp()), (), None)
        elif self._proposals:
            self._propose_batch()

    def _propose_batch(self) -> None:
        taken, facts = sift(self._proposals.take(), self._chain.check)
        while not taken:  # all refused: what is behind them does not wait until something else happens
            if not self._proposals:
                return
            taken, facts = sift(self._proposals.take(), self._chain.check)
        block = self._chain.make([record for one in taken for record in one.records], self._stamp())
        try:
            self._append_block(block, facts, None)
        except (Overloaded, NotLeader):
            self._proposals.put_back(taken)  # there is room when more is committed
            return
        for proposal in taken:
            proposal.settle(Placed(block.index, block.hash, self.raft.term))

    def _append_block(self, block: Block, facts: tuple[tuple[bytes, bytes], ...], members: Members | None) -> None:
        index = self.raft.propose(block, block.size, members)
        assert index == block.index, "the chain ends where the core's log does"
        self._chain.add(block, facts)

    def change(self, members: Members) -> int:
        """Propose other members; the index of the block. Raises NotLeader, ChangeRefused, Overloaded."""
        self._chain.truncate(self.raft.log.last + 1)
        block = self._chain.make([from_members(members)], self._stamp())
        self._append_block(block, (), members)
        self.wake()
        return block.index

    async def retire(self) -> None:
        """This node stops: have another one lead, if one can. The caller sets the deadline."""
        for store in self._others():
            if not self.leads:
                return
            changed = self._lead
            try:
                self.raft.transfer(store)
            except (ChangeRefused, NotLeader):
                continue
            self.wake()
            with trio.move_on_after(0.5):
                await changed.wait()

    def _stamp(self) -> int:
        return self.clocks.stamp(self._others())

    def _others(self) -> list[bytes]:
        return [store for store in self.raft.members.voter_ids if store != self.own.store]

    # --- peers -----------------------------------------------------------------------------------
    def node_of(self, store: bytes | None) -> str:
        """The node of a store; empty where it is not known."""
        return self._post.node_of(store, self.raft.members)

    def on_note(self, peer: Peer, note: CellNote) -> None:
        """A note came from a node of this cell. Raises PeerError for bytes that are none."""
        self._post.take_in(peer, note, self.raft.members)
        self.wake()

    def _send(self, message: Message) -> None:
        assert self._nursery is not None
        self._post.send(message, self.raft.members, self._nursery)
