"""What a store has to write and to say, gathered between two Outputs. One write is under way at a time; what is said
because of something not yet written waits for its write (rule 2)."""

from __future__ import annotations

from cluster.core.raft.log import Log
from cluster.core.raft.messages import Accepted, Append, Figure, Message
from cluster.core.raft.outputs import HardState, Snapshot, Write

_ALL = 1 << 62  # no bound here: what is unwritten is bounded by who sends it


class Desk:
    """`stored`: the log up to this index is on disk. `hard`: the newest hard state there. `resetting`: a snapshot takes
    the place of everything, and is not on disk yet."""

    def __init__(self, log: Log, hard: HardState) -> None:
        self.stored = log.last
        self.hard = hard
        self.busy = False  # a write is under way
        self.resetting = False
        self._log = log
        self._seq = 0
        self._unwritten = log.last + 1  # the first entry not in any Write yet
        self._truncate_from: int | None = None
        self._reset: Snapshot | None = None
        self._figures_due = False
        self._hard_given = hard
        self._stored_after = log.last
        self._now: dict[tuple[type[Message], bytes], Message] = {}
        self._after: dict[tuple[type[Message], bytes], Message] = {}
        self._accepted: Accepted | None = None  # what was said last

    # --- messages --------------------------------------------------------------------------------
    def say(self, message: Message) -> None:
        """Nothing in it depends on the disk. Of several of one kind to one peer the newest goes."""
        self._now[type(message), message.to] = message

    def say_after(self, message: Message) -> None:
        """When everything until now is on disk. Of several of one kind to one peer the newest goes, of acceptances the
        furthest: a slow disk does not heap them up."""
        key = type(message), message.to
        waiting = self._after.pop(key, None)
        if isinstance(message, Accepted) and isinstance(waiting, Accepted):
            newer = (message.term, message.match) >= (waiting.term, waiting.match)
            message = message if newer else waiting
        self._after[key] = message

    def accept(self, answer: Accepted, to: Append) -> None:
        """`say_after`, but news of a commit, which ask nothing, are not answered by what was said already."""
        if to.entries or to.beat or answer != self._accepted:
            self.say_after(answer)
            self._accepted = answer

    def hush(self) -> None:
        """Nothing more is said."""
        self._now.clear()
        self._after.clear()

    # --- the disk --------------------------------------------------------------------------------
    def truncated(self, first: int) -> None:
        """The log dropped its entries from index `first` on."""
        if first < self._unwritten:
            self._truncate_from = min(first, self._truncate_from or first)
            self._unwritten = first
        self._keeps(first - 1)

    def was_reset(self, snapshot: Snapshot, commit: int) -> None:
        """The log begins anew after `snapshot`; until that is on disk nothing beyond `commit` is."""
        self._reset, self._truncate_from, self.resetting = snapshot, None, True
        self._unwritten = snapshot.end.index + 1
        self._keeps(commit)

    def _keeps(self, index: int) -> None:
        self.stored = min(self.stored, index)
        self._stored_after = min(self._stored_after, index)

    def figures_due(self) -> None:
        """Write the figures although no entry is."""
        self._figures_due = True

    def take_said(self) -> tuple[Message, ...]:
        said = tuple(self._now.values())
        self._now.clear()
        return said

    def take_write(self, hard: HardState, figures: tuple[Figure, ...]) -> Write | None:
        """What has to be written, if anything; `busy` until it is."""
        append = self._log.entries(self._unwritten, _ALL, _ALL) if self._unwritten <= self._log.last else ()
        changed = hard if hard != self._hard_given else None
        if not (append or changed or self._truncate_from or self._reset or self._figures_due):
            return None
        self._seq += 1
        write = Write(self._seq, self._reset, self._truncate_from, append, changed, figures)
        self.busy = True
        self._unwritten = self._stored_after = self._log.last
        self._unwritten += 1
        self._hard_given = hard
        self._reset, self._truncate_from, self._figures_due = None, None, False
        return write

    def take_after(self) -> tuple[Message, ...]:
        """To be sent once the write that was taken with it is on disk."""
        after = tuple(self._after.values())
        self._after.clear()
        return after

    def persisted(self, seq: int) -> None:
        """The write `seq` is on disk."""
        if not self.busy or seq != self._seq:
            raise ValueError(f"write {seq} is not under way")
        self.busy = False
        self.resetting = self._reset is not None
        self.hard = self._hard_given
        self.stored = self._stored_after
        self._log.forget_payloads(self.stored)
