"""Looks at what stopped nodes left on their disks: whose envelopes rest where, and whether anything lies in the open.

Two looks that do not trust each other. The store of each node is unsealed and decoded, and each envelope is judged by
the address book of the demo; and every byte (of the unsealed records, and of all files as they lie there) is scanned
for pieces that only the senders know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cluster.demo.scan import Hit, Scanner, files_below
from relay.core import records
from relay.core.envelope import To, envelope_id, read_header
from relay.journal.files import STORE_FILE
from relay.journal.inspect import StoppedStore, open_stopped
from relay.journal.seal import StorageRing

CANARY = 16  # bytes
CANARY_RANGE = 256  # bytes at the end of an envelope that are ciphertext for certain: the smallest one has 512


class Role(Enum):
    """Why an envelope rests in a region."""

    HOME = "at home"  # a recipient lives here
    TRANSIT = "outbox copy"  # its sender lives here, and the record of the outbox is still in the log
    FOREIGN = "foreign"  # neither: it must not be here
    STRAY = "stray"  # nobody of the demo sent it


class Kind(Enum):
    """What a scan looks for."""

    ENVELOPE = "envelope bytes"
    PLAINTEXT = "plaintext"
    STORAGE_KEY = "storage key"


@dataclass(frozen=True, slots=True)
class Secret:
    """What the scanner carries: the kind, and for an envelope its id."""

    kind: Kind
    envelope: bytes = b""


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
    names: dict[bytes, str] = field(default_factory=dict)  # user or group → what people call it
    groups: dict[bytes, frozenset[str]] = field(default_factory=dict)  # group → regions with members
    posted: dict[bytes, Posted] = field(default_factory=dict)  # envelope id → what its sender knows
    plaintexts: list[bytes] = field(default_factory=list)  # a piece of the content of every message

    def post(self, envelope: bytes, sender: str, cut: int) -> None:
        """Note an envelope that is being submitted from region `sender`. Its canary: CANARY bytes of ciphertext, which
        end `cut` bytes (a random number below CANARY_RANGE) before the envelope does."""
        header, end = read_header(envelope), len(envelope) - cut
        posted = Posted(sender, header.kind, header.to, envelope[end - CANARY : end])
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
        return Role.TRANSIT if region == posted.sender else Role.FOREIGN

    def scanner(self, storage_keys: Iterable[bytes]) -> Scanner[Secret]:
        return Scanner([
            *((posted.canary, Secret(Kind.ENVELOPE, envelope)) for envelope, posted in self.posted.items()),
            *((piece, Secret(Kind.PLAINTEXT)) for piece in self.plaintexts),
            *((key, Secret(Kind.STORAGE_KEY)) for key in storage_keys),
        ])  # fmt: skip


@dataclass(slots=True)
class Shelf:
    """What rests on one node of a region. Counts are of envelopes: `home` by whose they are, `transit` by where they
    go. Every node of a region has a copy of what rests in the region."""

    region: str
    node: str = ""
    blocks: int = 0
    records: int = 0
    home: Counter[str] = field(default_factory=Counter)
    home_bytes: int = 0
    transit: Counter[str] = field(default_factory=Counter)
    transit_bytes: int = 0
    foreign_bytes: int = 0
    in_the_open: int = 0
    files: int = 0
    file_bytes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.foreign_bytes or self.in_the_open or self.findings)


def envelopes_in(record: records.Record) -> Iterator[bytes]:
    """The envelopes that a log record carries, those it carries again included."""
    match record:
        case records.Submit(envelope=envelope):
            yield envelope
        case records.HandIn(what=records.HANDIN_ENVELOPE, item=envelope):
            yield envelope
        case records.Carry(items=items):
            for carried in items:
                yield from envelopes_in(records.decode_record(carried.record))


Seen = dict[bytes, Sequence[Hit[Secret]]]  # a record → what was found in it: the nodes of a region have the same ones


def judge(shelf: Shelf, record: bytes, book: Book, scanner: Scanner[Secret], seen: Seen) -> None:
    """One unsealed record: each envelope in it by its role, and its bytes by the scanner."""
    shelf.records += 1
    for envelope in envelopes_in(records.decode_record(record)):
        place(shelf, envelope, book)
    if record not in seen:
        seen[record] = tuple(scanner.scan_bytes(record))
    scan_unsealed(shelf, "a record", seen[record], book)


def place(shelf: Shelf, envelope: bytes, book: Book) -> None:
    """Count an envelope where it belongs, or report it where it does not."""
    own = envelope_id(envelope)
    role = book.role(own, shelf.region)
    match role:
        case Role.HOME:
            shelf.home[book.name(own)] += 1
            shelf.home_bytes += len(envelope)
        case Role.TRANSIT:
            shelf.transit.update(book.homes(book.posted[own]))
            shelf.transit_bytes += len(envelope)
        case Role.FOREIGN | Role.STRAY:
            shelf.foreign_bytes += len(envelope)
            shelf.findings.append(f"{role.value} envelope {own.hex()[:8]}, {len(envelope)} bytes, in the log")


def scan_unsealed(shelf: Shelf, where: str, hits: Iterable[Hit[Secret]], book: Book) -> None:
    """Hits in unsealed bytes: an envelope's are in their place if they are in the right region, all others are not."""
    for hit in hits:
        if hit.secret.kind is not Kind.ENVELOPE:
            shelf.in_the_open += 1
            shelf.findings.append(f"{hit.secret.kind.value} ({hit.encoding}) in {where}")
        elif book.role(hit.secret.envelope, shelf.region) is Role.FOREIGN:
            shelf.foreign_bytes += hit.length
            shelf.findings.append(f"bytes of the foreign envelope {hit.secret.envelope.hex()[:8]} in {where}")


def scan_files(shelf: Shelf, top: Path, scanner: Scanner[Secret], book: Book) -> None:
    """Every file below `top` as it lies there: none of the secrets may be found in any spelling."""
    for path in files_below(top):
        shelf.files += 1
        shelf.file_bytes += path.stat().st_size
        for hit in scanner.scan_file(path):
            shelf.in_the_open += 1
            where = f"{path.relative_to(top)} at byte {hit.offset}"
            shelf.findings.append(f"{hit.secret.kind.value} ({hit.encoding}) in {where}")
            if hit.secret.kind is Kind.ENVELOPE and book.role(hit.secret.envelope, shelf.region) is Role.FOREIGN:
                shelf.foreign_bytes += hit.length


def audit(
    region: str, node_dir: Path, data: Path, ring: StorageRing, book: Book, scanner: Scanner[Secret], node: str = "",
    seen: Seen | None = None,
) -> Shelf:  # fmt: skip
    """Look at everything that a stopped node of `region` left: its store and those it set aside, unsealed, and all
    files as they are. `seen` is kept from one node to the next."""
    shelf, seen = Shelf(region, node), {} if seen is None else seen
    for place in (data, *sorted(file.parent for file in data.glob(f"quarantine/*/{STORE_FILE}"))):
        with open_stopped(place, ring) as store:
            look_into(shelf, store, book, scanner, seen)
    scan_files(shelf, node_dir, scanner, book)
    return shelf


def look_into(shelf: Shelf, store: StoppedStore, book: Book, scanner: Scanner[Secret], seen: Seen) -> None:
    """A store, record by record and row by row."""
    for block in store.blocks():
        shelf.blocks += 1
        for record in block.records:
            judge(shelf, record, book, scanner, seen)
    checkpoint = store.checkpoint()
    for row in checkpoint[1] if checkpoint else ():
        scan_unsealed(shelf, "the checkpoint", scanner.scan_bytes(row), book)
