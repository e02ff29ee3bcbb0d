"""Raft, pure: messages, time and what became durable go in; Outputs come out. No clock, no randomness, no I/O.

After Ongaro, "Consensus: Bridging Theory and Practice" (2014), with PreVote (9.6), CheckQuorum (6.2), leadership
transfer (3.10), single-server changes (4.1) as corrected in 2015, learners (4.2.1); the shape (ready, persist, advance;
progress of peers) in the manner of etcd's raft. What it adds, doubt after every start, is in recall.py.
"""

from __future__ import annotations

from typing import Any

from cluster.core.raft.desk import Desk
from cluster.core.raft.entry import ORIGIN, Point
from cluster.core.raft.following import accept
from cluster.core.raft.leading import Leading
from cluster.core.raft.log import Log
from cluster.core.raft.members import Members
from cluster.core.raft.messages import (
    Accepted, Append, Message, Recall, Recollection, Rejected, TimeoutNow, VoteReply, VoteRequest,
)
from cluster.core.raft.outputs import (
    Amnesia, BecameLeader, Event, Freed, HardState, LeaderIs, LostLeadership, NeedSnapshot, Output, Role, Settings,
    Snapshot, Stored, StoreRemoved, Write,
)
from cluster.core.raft.recall import Doubt, Figures, figure_for
from cluster.core.raft.refusals import NotLeader
from cluster.core.raft.timer import Timer
from relay.errors import StoreDamaged

_DAMAGED = "Start this node with an empty store: it joins its cell anew (rule 4)"
_STEPPED_DOWN = 2  # election timeouts that a store which gave up leading leaves to others


class Raft:
    """One store of a cell. `seed`: fresh random bytes at every start; same inputs, same outputs."""

    def __init__(self, me: bytes, stored: Stored, settings: Settings, seed: bytes, now_ms: int) -> None:
        self.me = me
        self.settings = settings
        self.role = Role.DOUBTFUL
        self.term = stored.hard.term
        self.vote = stored.hard.vote
        self.leader: bytes | None = None
        self.log = Log(stored.start, stored.members, stored.entries, settings.recent_bytes)
        self.commit = max(stored.start.index, stored.committed)
        if self.commit > self.log.last:
            raise StoreDamaged(f"the log ends at entry {self.log.last}, and {self.commit} are applied", _DAMAGED)
        self.figures = Figures(stored.known)
        self._now = now_ms
        self._timer = Timer(seed, settings.election_ms)
        self._desk = Desk(self.log, stored.hard)
        self._events: list[Event] = []
        self._told = self.commit  # the commit index in the last Output
        self.leading: Leading | None = None
        self._votes: set[bytes] = set()
        self._woke_in = self.term
        self._belonged = self.log.had(me, self.log.last)
        self._heard = now_ms  # when the leader last spoke
        standing = Point(self.term, self.log.last)
        nonce = self._timer.draw(1 << 62)
        self._doubt = Doubt(me, standing, self.log.members_at, self.log.members, nonce, now_ms)

    # --- what the shell may look at --------------------------------------------------------------
    @property
    def members(self) -> Members:
        """The newest in the log, committed or not."""
        return self.log.members

    @property
    def _frozen(self) -> bool:
        return self.role in (Role.DOUBTFUL, Role.SILENT, Role.STOPPED)

    @property
    def next_ms(self) -> int | None:
        """When `tick` is due, on the clock that `now_ms` comes from; None: nothing is waited for."""
        if self.role is Role.DOUBTFUL:
            return self._doubt.ask_at
        if self._frozen:
            return None
        return self.leading.next_ms if self.leading else self._timer.at

    # --- time ------------------------------------------------------------------------------------
    def tick(self, now_ms: int) -> None:
        """Time has passed. `now_ms` is monotonic; a value below an earlier one counts as that one."""
        now = self._now = max(self._now, now_ms)
        if self.role is Role.DOUBTFUL:
            for recall in self._doubt.ask(now, self.settings.heartbeat_ms):
                self._desk.say(recall)
            self._judge()
        elif self.leading:
            if self.leading.tick(now, self.commit):
                self._keep_figures()
            if self.leading.forsaken():
                self._follow(self.term, None)
        elif not self._frozen and now >= self._timer.at:
            self._stand(pre=True)

    # --- doubt (rule 5) --------------------------------------------------------------------------
    def _in_doubt(self, message: Message) -> None:
        """Frozen: nothing is taken. But a figure tells."""
        if isinstance(message, Recollection | Append):
            for recall in self._doubt.hear(message, self._now):
                self._desk.say(recall)
        self._judge()

    def _judge(self) -> None:
        if self._doubt.lost:
            self._forget(self._doubt.figure, self._doubt.standing)
        elif self._doubt.settled(self._now, self.settings.election_ms):
            self.role = Role.FOLLOWER
            self._timer.wait(self._now)
            if self.members.voter_ids == (self.me,):
                self._timer.at = self._now  # there is nobody to wait for
            self._events.append(Freed())

    def _forget(self, known: Point, standing: Point) -> None:
        self._fall_silent(Role.SILENT)
        self._events.append(Amnesia(known, standing))

    def _remind(self, message: Recall) -> None:
        figure = self.figures.of(message.source)
        at, members = self.log.members_at, self.log.members
        self._desk.say(Recollection(self.me, message.source, self.term, message.nonce, figure, at, members))

    def _fall_silent(self, role: Role) -> None:
        if self.leading:
            self._follow(self.term, None)
        self._votes.clear()
        self.role = role
        self._desk.hush()

    # --- messages --------------------------------------------------------------------------------
    def receive(self, message: Message, now_ms: int) -> None:
        """A message arrived; the shell has checked that `message.source` is who sent it. Raises RolledBack where it
        proves that committed history has forked, PeerError where it makes no sense."""
        self._now = max(self._now, now_ms)
        if message.to != self.me or message.source == self.me or self.role is Role.STOPPED or self._desk.resetting:
            return
        if isinstance(message, Recall):
            self._remind(message)
        elif self.role is Role.DOUBTFUL:
            self._in_doubt(message)
        elif self.role is Role.SILENT or isinstance(message, Recollection):
            return
        elif isinstance(message, VoteRequest):
            self._on_request(message)
        elif isinstance(message, VoteReply):
            self._on_vote(message)
        elif isinstance(message, Append):
            figure, standing = figure_for(self.me, message), Point(self.term, self.log.last)
            if figure > standing:  # it was freed without whoever knew
                self._forget(figure, standing)
            else:
                self._on_append(message)
        elif message.term > self.term:
            self._follow(message.term, None)
        elif message.term == self.term:
            self._on_answer(message)

    def _on_answer(self, message: Accepted | Rejected | TimeoutNow) -> None:
        """An answer of this term to a leader, or a leader's wish to go."""
        if isinstance(message, TimeoutNow):
            if message.source == self.leader and self.members.votes(self.me):
                self._stand(pre=False, transfer=True)
        elif self.leading and isinstance(message, Rejected):
            self.leading.rejected(message.source, message.prev, message.hint, self._now)
        elif self.leading and isinstance(message, Accepted):
            self.leading.accepted(message.source, message.match, self._now)
            self.figures.note(message.source, Point(self.term, message.match))
            self._count()
            self._hand_over(message.source)

    # --- elections -------------------------------------------------------------------------------
    def _follow(self, term: int, leader: bytes | None) -> None:
        """Be a follower in `term`, which is not below the present one."""
        if term > self.term:
            self.term, self.vote = term, None
        if self.leading:
            self.leading = None
            self._events.append(LostLeadership(self.term))
            self._timer.wait(self._now)
        self.role = Role.FOLLOWER
        self._votes.clear()
        self._lead_by(leader)

    def _lead_by(self, leader: bytes | None) -> None:
        if leader != self.leader:
            self.leader = leader
            self._events.append(LeaderIs(leader))

    def _stand(self, pre: bool, transfer: bool = False) -> None:
        """Ask for votes, or first whether there would be any (PreVote). Only a voter of its own newest members does."""
        self._timer.wait(self._now)
        if not self.members.votes(self.me):
            return
        self._follow(self.term if pre else self.term + 1, None)
        if pre:
            self.role = Role.ASKING
            self._votes.add(self.me)
        else:
            self.role = Role.CANDIDATE
            self.vote = self.me  # counts when it is on disk: see persisted()
        say = self._desk.say if pre else self._desk.say_after
        for store in self.members.voter_ids:
            if store != self.me:
                term = self.term + 1 if pre else self.term
                say(VoteRequest(self.me, store, term, self.log.tip, pre, transfer))
        self._tally()

    def _on_request(self, message: VoteRequest) -> None:
        """A vote is given whatever this store believes itself to be: a learner that does not know yet that it was
        promoted may be needed. Who may not vote is not asked, and not counted."""
        if not message.pre:
            self.figures.note(message.source, Point(message.term, 0))
        if self._hears_leader() and not message.transfer:
            return  # nobody deposes a leader that is heard (dissertation 4.2.3)
        if message.pre:
            granted = message.term > self.term and message.tip >= self.log.tip
            term = message.term if granted else self.term
            self._desk.say_after(VoteReply(self.me, message.source, term, True, granted))
            return
        if message.term > self.term:
            self._follow(message.term, None)
        granted = message.term == self.term and self._may_vote_for(message)
        if granted:
            self.vote = message.source
            self._timer.wait(self._now)
        self._desk.say_after(VoteReply(self.me, message.source, self.term, False, granted))

    def _may_vote_for(self, message: VoteRequest) -> bool:
        # in the term it woke up in it may have voted and forgotten: recall.py
        free = self.vote is None and self.leader is None and self.term != self._woke_in
        return (free or self.vote == message.source) and message.tip >= self.log.tip

    def _hears_leader(self) -> bool:
        recently = self._now - self._heard < self.settings.election_ms
        return self.leading is not None or (self.leader is not None and recently)

    def _on_vote(self, message: VoteReply) -> None:
        asked = self.role is Role.ASKING and message.pre and message.term == self.term + 1
        voted = self.role is Role.CANDIDATE and not message.pre and message.term == self.term
        if message.granted and not message.pre:
            self.figures.note(message.source, Point(message.term, 0))
        if message.granted and (asked or voted):
            self._votes.add(message.source)
            self._tally()
        elif not message.granted and message.term > self.term:
            self._follow(message.term, None)

    def _tally(self) -> None:
        if not self.members.carried_by(self._votes):
            return
        if self.role is Role.ASKING:
            self._stand(pre=False)
        elif self.role is Role.CANDIDATE:
            self.role = Role.LEADER
            self._votes.clear()
            self.leading = Leading(self.me, self.term, self.log, self.settings, self._now)
            self._events.append(BecameLeader(self.term))
            self._lead_by(self.me)

    # --- following -------------------------------------------------------------------------------
    def _on_append(self, message: Append) -> None:
        if message.term < self.term:
            self._desk.say_after(Rejected(self.me, message.source, self.term, message.prev.index, ORIGIN))
            return
        if message.term > self.term or self.role is not Role.FOLLOWER or self.leader != message.source:
            if self.leading and message.term == self.term:
                return  # two leaders of one term cannot be; nothing good comes of listening
            self._follow(message.term, message.source)
        self._heard = self._now
        self._timer.wait(self._now)
        taken = accept(self.log, self.commit, message)
        if isinstance(taken, Point):
            self._desk.say_after(Rejected(self.me, message.source, self.term, message.prev.index, taken))
            return
        if taken.truncate_from is not None:
            self._desk.truncated(taken.truncate_from)
        self.commit = max(self.commit, min(message.commit, taken.match))
        if taken.changed:
            self._members_changed()
        for figure in message.known:
            self.figures.note(figure.store, figure.upto)
        if message.beat:
            self._keep_figures()
        self._desk.accept(Accepted(self.me, message.source, self.term, taken.match), message)

    def _keep_figures(self) -> None:
        """When the log is quiet no entry takes them to the disk."""
        if self.figures.unsaved and self.commit == self.log.last:
            self._desk.figures_due()

    def _members_changed(self) -> None:
        self.figures.keep(self.log.members, self.log.members_before)
        self._belonged = self._belonged or self.me in self.members.ids
        if self.leading:
            self.leading.members_changed()

    def install(self, end: Point, members: Members) -> bool:
        """A snapshot that ends at `end` is staged, durable but not in effect. True: the next write resets to it. False:
        it is not wanted (any more); drop it."""
        if self._frozen or self.leading or end.index <= self.commit:
            return False
        if self.log.has(end):
            self.commit = end.index  # a snapshot holds committed state only
            return False
        self._desk.was_reset(Snapshot(end, members), self._told)
        self.log.reset(end, members)
        self.commit = end.index
        self._members_changed()
        if self.leader:
            self._desk.say_after(Accepted(self.me, self.leader, self.term, end.index))
        return True

    # --- leading ---------------------------------------------------------------------------------
    def propose(self, payload: Any, size: int, members: Members | None = None) -> int:
        """Append an entry, and with `members` a change of the cell, and return its index (always `log.last` + 1).

        Raises NotLeader, ChangeRefused, Overloaded (the uncommitted tail is full, or leadership is being handed over).
        """
        self._led().propose(payload, size, members, self.commit)
        if members is not None:
            self._members_changed()
        return self.log.last

    def transfer(self, to: bytes) -> None:
        """Hand the leadership over to a voter; given up after an election timeout. Raises NotLeader, ChangeRefused."""
        self._led().hand_over(to)
        self._hand_over(to)

    def _hand_over(self, to: bytes) -> None:
        if self._led().ready_for_transfer(to):
            self._desk.say(TimeoutNow(self.me, to, self.term))

    def step_down(self) -> None:
        """Stop leading (rule 14: this node's clock is not to be trusted), and leave two election timeouts to others."""
        if self.leading:
            self._follow(self.term, None)
            self._timer.wait(self._now, _STEPPED_DOWN)

    def snapshot_sent(self, to: bytes, index: int) -> None:
        """The peer of a NeedSnapshot was given one that ends at `index`; 0: that failed, try again."""
        if self.leading and (peer := self.leading.peer(to)):
            peer.snapshot_sent(index)

    def _led(self) -> Leading:
        if self.leading is None:
            raise NotLeader(self.leader)
        return self.leading

    def _count(self) -> None:
        if self.leading:
            self.commit = self.leading.committed(self.commit, self._desk.stored)

    # --- the disk --------------------------------------------------------------------------------
    def persisted(self, seq: int) -> None:
        """The write `seq` is durable. Raises ValueError where it is not the one under way."""
        self._desk.persisted(seq)
        if self.role is Role.CANDIDATE and self._desk.hard == HardState(self.term, self.me):
            self._votes.add(self.me)
            self._tally()
        if self.leading:
            self.figures.note(self.me, Point(self.term, self._desk.stored))
            self._count()

    def compacted(self, first: int) -> None:
        """The shell has dropped the entries below index `first`, all of them applied."""
        if first - 1 > self._told:
            raise ValueError(f"entry {first - 1} may not be dropped, only {self._told} are committed")
        self.log.compact(first)

    def stop_acknowledging(self) -> None:
        """The disk failed (rule 7): say nothing more, ever. What was already taken is the shell's to drop."""
        self._fall_silent(Role.STOPPED)

    # --- out -------------------------------------------------------------------------------------
    def take(self) -> Output | None:
        """What is to be done now; None when there is nothing. See the module's text for the order."""
        desk, figures = self._desk, self.figures.told()
        appends: tuple[Append, ...] = ()
        if self.leading:
            self._events += map(NeedSnapshot, self.leading.in_need())
            appends = tuple(self.leading.appends(self.commit, figures))
        commit = min(self.commit, desk.stored)
        removed = self._belonged and self.me not in self.members.ids and self.log.members_at.index <= commit
        if removed:
            self._events.append(StoreRemoved())
            self._belonged = False
        write: Write | None = None
        after: tuple[Message, ...] = ()
        if not desk.busy and not self._frozen:
            write = desk.take_write(HardState(self.term, self.vote), figures)
            after = desk.take_after()
            self.figures.unsaved = self.figures.unsaved and write is None
        send_now = desk.take_said() + appends
        if not (send_now or write or after or self._events or commit > self._told):
            return None
        self._told = max(commit, self._told)
        events, self._events = tuple(self._events), []
        return Output(self._told, send_now, write, after, events)
