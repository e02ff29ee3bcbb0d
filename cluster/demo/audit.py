"""The address book of the demo, by which the audit judges: made while sending, on no node's word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cluster.audit.look import PIECE, Look, Secret, Seen, make_scanner, stores_below
from cluster.audit.scan import Scanner
from cluster.audit.shelf import Found, Role, Shelf, Verdict
from relay.core.envelope import To, envelope_id, read_header
from relay.journal.files import STORE_FILE
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing

CANARY_RANGE = 256  # bytes at the end of an envelope that are ciphertext for certain: the smallest one has 512


@dataclass(frozen=True, slots=True)
class Posted:
    """What the sender knows of an envelope: its own region, whom it is for, and a piece of its ciphertext."""

    sender: str
    kind: To
    to: bytes
    canary: bytes


@dataclass(slots=True)
class Book:
    """The address book: the demo's own knowledge, made while sending, independent of any node."""

    users: dict[bytes, str] = field(default_factory=dict)  # user → home region
    again: dict[bytes, str] = field(default_factory=dict)  # envelope → where its sender, who moved, submitted it again
    # user → the region that was left, and below which block each of its nodes signed that nothing is left of the user
    left: dict[bytes, tuple[str, dict[str, int]]] = field(default_factory=dict)
    names: dict[bytes, str] = field(default_factory=dict)  # user or group → what people call it
    groups: dict[bytes, frozenset[str]] = field(default_factory=dict)  # group → regions with members
    posted: dict[bytes, Posted] = field(default_factory=dict)  # envelope id → what its sender knows
    plaintexts: list[bytes] = field(default_factory=list)  # a piece of the content of every message

    def post(self, envelope: bytes, sender: str, cut: int) -> None:
        """Note an envelope that is being submitted from region `sender`. Its canary: PIECE bytes of ciphertext, which
        end `cut` bytes (a random number below CANARY_RANGE) before the envelope does."""
        header, end = read_header(envelope), len(envelope) - cut
        posted = Posted(sender, header.kind, header.to, envelope[end - PIECE : end])
        self.posted[envelope_id(envelope)] = posted

    def homes(self, posted: Posted) -> frozenset[str]:
        """The regions where the envelope belongs: its recipients'."""
        if posted.kind is To.ROSTER:
            return self.groups.get(posted.to, frozenset())
        return frozenset({self.users[posted.to]}) if posted.to in self.users else frozenset()

    def name(self, envelope: bytes) -> str:
        """Whose the envelope of this id is."""
        to = self.posted[envelope].to
        return self.names.get(to, to.hex()[:8])

    def role(self, envelope: bytes, region: str) -> Role:
        """Why the envelope of this id rests in `region`."""
        posted = self.posted.get(envelope)
        if posted is None:
            return Role.STRAY
        if region in self.homes(posted):
            return Role.HOME
        left, _ = self.left.get(posted.to, ("", {}))  # what comes there late is sent on (section 5, rule 3)
        return Role.TRANSIT if region in (posted.sender, self.again.get(envelope), left) else Role.FOREIGN

    def is_left_behind(self, found: Found, region: str, node: str) -> bool:
        """Is it for somebody who has left the region, and in a block of which the node has signed that it is gone?"""
        posted = self.posted.get(found.id)
        left, below = self.left.get(posted.to, ("", {})) if posted else ("", {})
        return region == left and found.place.block < below.get(node, 0)

    def leaves(self, user: bytes, region: str, signed: dict[str, int]) -> None:
        """A user has moved to `region`; the stores of the old one have signed that nothing is left below these
        blocks."""
        self.left[user], self.users[user] = (self.users[user], signed), region

    def scanner(self, storage_keys: Iterable[bytes]) -> Scanner[Secret]:
        canaries = ((posted.canary, envelope) for envelope, posted in self.posted.items())
        return make_scanner(canaries, self.plaintexts, storage_keys)


LEFT_BEHIND = "left behind by somebody who moved"


@dataclass(frozen=True, slots=True)
class ByBook:
    """cluster.audit.shelf.Judge: the address book, for one region."""

    book: Book
    region: str
    node: str

    def judge(self, found: Found) -> Verdict:
        role, book = self.book.role(found.id, self.region), self.book
        if book.is_left_behind(found, self.region, self.node):
            return Verdict(Role.FOREIGN, (), LEFT_BEHIND)
        if role is Role.TRANSIT:
            return Verdict(role, tuple(book.homes(book.posted[found.id])))
        return Verdict(role, (book.name(found.id),) if role is Role.HOME else ())

    def may_rest(self, envelope: bytes) -> bool:
        return self.book.role(envelope, self.region) is not Role.FOREIGN


def _noted(shelf: Shelf, found: Found, verdict: Verdict) -> None:
    shelf.left_behind += len(found.envelope) if verdict.why == LEFT_BEHIND else 0


def audit(
    region: str, node_dir: Path, data: Path, ring: StorageRing, book: Book, scanner: Scanner[Secret], node: str = "",
    seen: Seen | None = None,
) -> Shelf:  # fmt: skip
    """Look at everything that a stopped node of `region` left: its store and those it set aside, unsealed, and all
    files as they are. `seen` is kept from one node to the next."""
    shelf = Shelf(region, node)
    look = Look(shelf, ByBook(book, region, node), scanner, seen, _noted)
    for place in stores_below(data) or [data]:
        with open_stopped(place, ring) as store:
            look.store(store, (place / STORE_FILE).relative_to(node_dir).as_posix())
    look.files(node_dir)
    return shelf
