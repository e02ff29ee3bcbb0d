"""What a store does as long as it leads: replicate, count, watch that a majority still answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.core.raft.entry import ORIGIN, Entry, Point
from cluster.core.raft.log import Log
from cluster.core.raft.members import Kind, Members, change_between
from cluster.core.raft.messages import Append, Figure
from cluster.core.raft.outputs import Settings
from cluster.core.raft.progress import Progress, Stage
from cluster.core.raft.refusals import ChangeRefused
from relay.errors import Overloaded

_REPLACE = "A replacement is added and promoted before the old store is removed"


class Leading:
    """One store's leadership in one term. `transfer_to`: who is to take over, while that is tried."""

    def __init__(self, me: bytes, term: int, log: Log, settings: Settings, now: int) -> None:
        self.transfer_to: bytes | None = None
        self._transfer_until = 0  # ms
        self._me = me
        self._term = term
        self._log = log
        self._settings = settings
        self._first = log.last + 1  # of this term
        self._beat_at = now
        self._goal = self._first  # who has caught up has this: what was committed one heartbeat ago
        self._now = now
        self._peers: dict[bytes, Progress] = {}
        self.members_changed()

    # --- members ---------------------------------------------------------------------------------
    def members_changed(self) -> None:
        """Follow the log's members. Who leaves is served until that is committed, so that it learns of it."""
        old = self._peers
        self._peers = {
            store: old.get(store) or Progress(self._log.last + 1, self._now)
            for store in self._log.members.ids
            if store != self._me
        }
        self._leaving = {store: peer for store, peer in old.items() if store not in self._peers}

    def _check(self, new: Members, commit: int) -> None:
        """May the cell change to `new` now? Raises ChangeRefused, which says why not (rule 8)."""
        change = change_between(self._log.members, new)
        if self._log.members_at.index > commit:
            raise ChangeRefused("the change before is not committed yet", "One at a time: try again soon", passes=True)
        if commit < self._first:
            # a change of an older term could be revived beside this one (Ongaro, raft-dev, July 2015)
            text = "nothing of this term is committed yet"
            raise ChangeRefused(text, "Try again when its first block is", passes=True)
        if change.kind is Kind.PROMOTE and not self._caught_up(change.store):
            text = f"store {change.store.hex()} has not caught up"
            raise ChangeRefused(text, "It votes once it has the whole log", passes=True)
        if change.kind is Kind.REMOVE and change.store == self._me:
            raise ChangeRefused("a leader does not remove itself", "Hand the leadership over first")
        if change.kind is Kind.REMOVE and self._log.members.votes(change.store):
            if len(new.voters) == 2:
                raise ChangeRefused("two voters would be left, and bear no loss", _REPLACE)
            ready = [store for store in new.voter_ids if self._caught_up(store)]
            if not new.carried_by(ready):
                left = f"only {len(ready)} of the {len(new.voters)} voters that would be left are up to date"
                raise ChangeRefused(left, _REPLACE, passes=True)

    def _caught_up(self, store: bytes) -> bool:
        """Has it what was committed one heartbeat ago, and did it answer lately?"""
        if store == self._me:
            return True
        peer = self._peers[store]
        answers = self._now - peer.heard < self._settings.election_ms
        return peer.stage is Stage.REPLICATE and answers and peer.match >= self._goal

    # --- what the shell asks for -----------------------------------------------------------------
    def propose(self, payload: Any, size: int, members: Members | None, commit: int) -> None:
        """Append an entry. Raises Overloaded, ChangeRefused; then nothing was."""
        wait = self._settings.heartbeat_ms
        if self.transfer_to is not None:
            raise Overloaded("leadership is being handed over", wait)
        tail = self._log.bytes_between(commit, self._log.last)
        begun = self._log.last >= self._first  # the first entry of a term always goes in: nothing commits before it
        if begun and tail and tail + size > self._settings.tail_bytes:
            raise Overloaded(f"{tail} bytes are waiting for a majority", wait)
        if members is not None:
            self._check(members, commit)
        self._log.append(Entry(self._log.last + 1, self._term, size, members, payload))

    def hand_over(self, to: bytes) -> None:
        """Let the voter `to` take over when it has the whole log, within an election timeout. Raises ChangeRefused."""
        if to == self._me or not self._log.members.votes(to):
            raise ChangeRefused(f"store {to.hex()} cannot take over", "Name another voter of the cell")
        self.transfer_to, self._transfer_until = to, self._now + self._settings.election_ms

    # --- answers ---------------------------------------------------------------------------------
    def peer(self, store: bytes) -> Progress | None:
        return self._peers.get(store) or self._leaving.get(store)

    def accepted(self, store: bytes, match: int, now: int) -> None:
        if (peer := self.peer(store)) and match <= self._log.last:
            peer.heard = self._now = now
            peer.accepted(match, self._log.start.index)

    def rejected(self, store: bytes, prev: int, hint: Point, now: int) -> None:
        if peer := self.peer(store):
            peer.heard = self._now = now
            peer.rejected(prev, self._log.meeting(hint).index)

    def committed(self, commit: int, stored: int) -> int:
        """The commit index, given the one before and that the leader itself has `stored` on its disk. Copies of entries
        of older terms decide nothing (Raft 3.6.2)."""
        match = {store: peer.match for store, peer in self._peers.items()} | {self._me: stored}
        reached = self._log.members.reached_by_majority(lambda store: match[store])
        return reached if reached > commit and reached >= self._first else commit

    def ready_for_transfer(self, store: bytes) -> bool:
        return store == self.transfer_to and self._peers[store].match == self._log.last

    # --- time ------------------------------------------------------------------------------------
    @property
    def next_ms(self) -> int:
        return self._beat_at

    def tick(self, now: int, commit: int) -> bool:
        """True when signs of life are due."""
        self._now = now
        if now < self._beat_at:
            return False
        self._beat_at = now + self._settings.heartbeat_ms
        self._goal = max(commit, self._first)
        for peer in (*self._peers.values(), *self._leaving.values()):
            peer.heartbeat()
        if self.transfer_to is not None and now >= self._transfer_until:
            self.transfer_to = None
        return True

    def forsaken(self) -> bool:
        """Has no majority answered for an election timeout (CheckQuorum, dissertation 6.2)?"""
        since = self._now - self._settings.election_ms
        heard = [store for store, peer in self._peers.items() if peer.heard > since]
        return not self._log.members.carried_by([*heard, self._me])

    # --- sending ---------------------------------------------------------------------------------
    def appends(self, commit: int, known: tuple[Figure, ...]) -> Iterator[Append]:
        """Everything that may leave now."""
        for store, peer in self._peers.items():
            yield from self._appends_to(store, peer, commit, known)
        for store, peer in self._leaving.items():
            yield from self._appends_to(store, peer, commit, known)
        if self._leaving and commit >= self._log.members_at.index:
            self._leaving = {}

    def matched(self) -> dict[bytes, int]:
        """How far the log of each peer that answered lately is known to be this one, on its disk."""
        since = self._now - self._settings.election_ms
        return {store: peer.match for store, peer in self._peers.items() if peer.heard > since}

    def in_need(self) -> Iterator[bytes]:
        """Peers that answer and need what the log no longer has: from now on in SNAPSHOT."""
        for store, peer in self._peers.items():
            if (
                peer.stage is not Stage.SNAPSHOT
                and not peer.waiting  # it failed: not before the next heartbeat
                and self._log.term(peer.next - 1) is None
                and self._now - peer.heard < self._settings.election_ms
            ):
                peer.needs_snapshot()
                yield store

    def _appends_to(self, store: bytes, peer: Progress, commit: int, known: tuple[Figure, ...]) -> Iterator[Append]:
        log, settings, idle = self._log, self._settings, True
        prev_term = log.term(peer.next - 1)
        if prev_term is not None and peer.stage is not Stage.SNAPSHOT:
            while peer.may_send(settings.inflight_bytes, settings.inflight_appends) and peer.next <= log.last:
                prev = Point(log.term(peer.next - 1) or 0, peer.next - 1)
                entries = log.entries(peer.next, settings.append_bytes, settings.append_entries)
                yield Append(self._me, store, self._term, prev, entries, commit, known, peer.beat)
                peer.sent(entries[-1].index, sum(entry.size for entry in entries))
                peer.beat, peer.told_commit, idle = False, commit, False
        news = peer.stage is Stage.REPLICATE and peer.told_commit < commit
        if idle and (peer.beat or news):
            reachable = prev_term is not None and peer.stage is not Stage.SNAPSHOT
            prev = Point(prev_term or 0, peer.next - 1) if reachable else ORIGIN
            yield Append(self._me, store, self._term, prev, (), commit if reachable else 0, known, peer.beat)
            peer.beat, peer.told_commit = False, commit
