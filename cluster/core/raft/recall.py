"""Rule 5: has this store forgotten what it once acknowledged?

A *figure* (term T, index i) for a store says: under the leader of term T it acknowledged its log up to i; (T, 0) says
that it took part in the election of T. Figures are learned from what the store says itself (its votes, its
acknowledgements), travel in every Append and are stored with the entries by everybody who takes them.

**Why comparing works.** Let a store's *standing* be (term on its disk, index of its last entry). The term never falls,
and while it stays T nothing that was acknowledged to T's leader is ever dropped (that leader's log only grows). So
every figure is at most the standing that the store had when it spoke, and the standing of a healthy store never falls
below a figure: no false alarm, even where a later leader truncated the log (the term has then risen). A disk that came
back as an older copy of itself has a lower standing than any figure of a later time that says more: caught.

A vote could be forgotten inside one term, with the standing unchanged; so a started store gives no new vote in the term
that it wakes up in.

**Who is asked.** A store starts in doubt. In doubt it is frozen: it answers Recall and does nothing else (writing
anything could lift its standing over a figure and so hide the loss). It asks all voters of the newest members that it
or anyone who answered knows, and is free when all have answered, or a majority, itself included, and the rest had
`patience_ms` to do so. Learners are asked, too, and do not count; but one may have become a voter since. A figure above
its standing, now or in any later Append, is final: this store is done, and a new one takes its place (rule 4).

**What is covered.** The loss is noticed when any store that answers holds a figure above the copy's standing. A
figure is held by the leader as soon as the acknowledgement arrives; by the others with the next Append they get: in
memory at once, on their disks with the next entries or one heartbeat after the log went quiet. Once a majority of the
voters, the store itself not counted, has it on disk, every set of answers that frees the store contains it.

**What is not.** (1) A figure that only its leader holds, and that leader does not answer in time; likewise all others
who hold it. (2) An acknowledgement still under way when the store died: a link must not deliver what an earlier life of
the store sent after it delivered the Recall of a later one. (3) Writes that no message ever spoke of; nobody relied on
them. (4) A cell that was changed so often since the copy was made that nobody whom the copy knows is left to tell. The
mark file of the shell comes before all this and covers 1, 2 and 4 for every loss that spares the mark file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from cluster.core.raft.entry import ORIGIN, Point
from cluster.core.raft.members import Members
from cluster.core.raft.messages import MAX_FIGURES, Append, Figure, Recall, Recollection


def figure_for(store: bytes, append: Append) -> Point:
    """What the leader knows of `store`."""
    return max((figure.upto for figure in append.known if figure.store == store), default=ORIGIN)


class Figures:
    """The highest figure known for each store. `unsaved`: more is known than was last written."""

    def __init__(self, figures: Iterable[Figure]) -> None:
        self._upto: dict[bytes, Point] = {}
        self._told: tuple[Figure, ...] | None = None
        for figure in figures:
            self.note(figure.store, figure.upto)
        self.unsaved = False

    def note(self, store: bytes, upto: Point) -> None:
        """At most MAX_FIGURES stores are remembered."""
        if upto > self.of(store) and (store in self._upto or len(self._upto) < MAX_FIGURES):
            self._upto[store] = upto
            self._told = None
            self.unsaved = True

    def of(self, store: bytes) -> Point:
        """ORIGIN where nothing is known."""
        return self._upto.get(store, ORIGIN)

    def told(self) -> tuple[Figure, ...]:
        """All of them, for an Append or the disk."""
        if self._told is None:
            self._told = tuple(Figure(store, self._upto[store]) for store in sorted(self._upto))
        return self._told

    def keep(self, members: Members, before: Members | None) -> None:
        """Forget stores that are in neither: they never come back (rule 4)."""
        kept = {*members.ids, *(before.ids if before else ())}
        self._upto = {store: upto for store, upto in self._upto.items() if store in kept}
        self._told = None


class Doubt:
    """A store that has started and asks. `standing` is its disk's; `members`, appended at `members_at`, its log's."""

    def __init__(self, me: bytes, standing: Point, members_at: Point, members: Members, nonce: int, now: int) -> None:
        self.standing = standing
        self.figure = ORIGIN  # the highest that anybody told
        self.ask_at = now  # ms; when it asks next
        self._me = me
        self._own = members_at, members
        self._nonce = nonce
        self._since: int | None = None  # ms; when it began to ask
        self._begin()

    def _begin(self) -> None:
        self._members_at, self._members = self._own
        self._answered: set[bytes] = set()

    @property
    def lost(self) -> bool:
        """Somebody remembers more than the disk does."""
        return self.figure > self.standing

    def ask(self, now: int, again_ms: int) -> Iterator[Recall]:
        """To the members that have not answered; in `again_ms` again."""
        if now >= self.ask_at:
            self.ask_at = now + again_ms
            yield from (self._recall(one) for one in self._members.ids if one != self._me and one not in self._answered)

    def hear(self, message: Recollection | Append, now: int) -> Iterator[Recall]:
        """An answer to this start's Recall (others are ignored), or what a leader tells everybody. Whom to ask then: a
        store that knows no cell it is in asks whoever leads it."""
        if isinstance(message, Append):
            self.figure = max(self.figure, figure_for(self._me, message))
            if self._stranger:
                yield self._recall(message.source)
        elif message.nonce == self._nonce:
            self.figure = max(self.figure, message.figure)
            self._answered.add(message.source)
            if message.members_at > self._members_at:
                self._members_at, self._members = message.members_at, message.members
                self.ask_at = now

    def settled(self, now: int, patience_ms: int) -> bool:
        """May the store go on? Never when it is in no cell, or has lost something. Out of patience without an answer it
        begins anew: the members that it was told of may have been withdrawn since."""
        self._since = now if self._since is None else self._since
        patient = now - self._since < patience_ms
        enough = not self._unanswered() or (not patient and self._members.carried_by({*self._answered, self._me}))
        settled = enough and not self.lost and not self._stranger
        if not settled and not patient:
            self._since = now
            self._begin()
        return settled

    @property
    def _stranger(self) -> bool:
        """The newest members known do not have this store: it is to be added yet, or was removed."""
        return self._me not in self._members.ids

    def _unanswered(self) -> tuple[bytes, ...]:
        return tuple(v for v in self._members.voter_ids if v != self._me and v not in self._answered)

    def _recall(self, store: bytes) -> Recall:
        return Recall(self._me, store, self.standing.term, self._nonce)
