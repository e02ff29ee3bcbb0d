"""Looks at everything that a stopped node left: its stores, unsealed and decoded, and all its files as they lie there.

Two looks that do not trust each other. Each envelope in a store is judged by whoever knows who is at home where; and
every byte (of the unsealed records and checkpoints, and of all files) is scanned for pieces that must not be there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from cluster.audit.scan import Hit, Scanner, files_below
from cluster.audit.shelf import Found, Judge, Place, Role, Shelf, Verdict, held_in
from cluster.stopped import without_head
from relay.core import records
from relay.core.block import Block
from relay.core.envelope import envelope_id
from relay.core.mailroom import Mailroom
from relay.errors import DiskFailed, PosthouseError, ProtocolError, StoreDamaged, StoreError, TrustError
from relay.journal.files import STORE_FILE
from relay.journal.inspect import Saved, StoppedStore

PIECE = 16  # bytes of an envelope that are looked for


class Kind(Enum):
    """What a scan looks for."""

    ENVELOPE = "envelope bytes"
    PLAINTEXT = "plaintext"
    STORAGE_KEY = "storage key"


@dataclass(frozen=True, slots=True)
class Secret:
    """What the scanner carries: the kind, for an envelope its id, and what people call the message."""

    kind: Kind
    envelope: bytes = b""
    name: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} of {self.name}" if self.name else self.kind.value


def make_scanner(
    pieces: Iterable[tuple[bytes, bytes]], plaintexts: Iterable[bytes], keys: Iterable[bytes]
) -> Scanner[Secret]:
    """`pieces`: (PIECE bytes of ciphertext, the envelope's id)."""
    return Scanner([
        *((piece, Secret(Kind.ENVELOPE, envelope)) for piece, envelope in pieces),
        *((piece, Secret(Kind.PLAINTEXT)) for piece in plaintexts),
        *((key, Secret(Kind.STORAGE_KEY)) for key in keys),
    ])  # fmt: skip


def storage_keys(path: Path) -> list[bytes]:
    """The keys in a file that StorageRing loads."""
    return [bytes.fromhex(line) for line in path.read_text("ascii").split()]


def stores_below(top: Path) -> list[Path]:
    """The directories below `top` with a store: a node's data, and what was set aside."""
    return [path.parent for path in files_below(top) if path.name == STORE_FILE]


def _unheard(shelf: Shelf, found: Found, verdict: Verdict) -> None:
    pass


Seen = dict[bytes, Sequence[Hit[Secret]]]  # a record → what was found in it: the nodes of a region have the same ones


@dataclass
class Look:
    """A look at one node of a region; what it finds goes to the shelf. `seen` is kept from one node to the next,
    `note` hears of each envelope."""

    shelf: Shelf
    judge: Judge
    scanner: Scanner[Secret]
    seen: Seen | None = None
    note: Callable[[Shelf, Found, Verdict], None] = field(default=_unheard)

    def store(self, store: StoppedStore, file: str) -> None:
        """A store: its blocks and those of a snapshot that was being fetched, all generations of its checkpoint, and
        what the disk writer knows. `file` names it in findings; so does what cannot be read."""
        self.shelf.stores += 1
        try:
            for block in store.blocks(self.told):
                self._block(block, file, False)
            for block in store.staged(self.told):
                self._block(block, file, True)
            for saved in store.checkpoints(self.told):
                self._checkpoint(saved, file)
            for _, value in store.facts(self.told):
                self._scan_unsealed(f"a fact of {file}", self.scanner.scan_bytes(value))
        except (StoreDamaged, DiskFailed) as error:  # the database itself
            self.told(error)

    def told(self, error: PosthouseError) -> None:
        """Something cannot be read: nobody knows what it is."""
        self.shelf.findings.append(error.text)

    def files(self, top: Path, but: frozenset[Path] = frozenset()) -> None:
        """Every file below `top` as it lies there, less those of `but`: no secret may be found in any spelling."""
        shelf = self.shelf
        for path in files_below(top):
            if path.resolve() in but:
                continue
            try:
                size, hits = path.stat().st_size, list(self.scanner.scan_file(path))
            except FileNotFoundError:  # the node runs, and took it away
                continue
            shelf.files += 1
            shelf.file_bytes += size
            for hit in hits:
                shelf.in_the_open += 1
                where = f"{path.relative_to(top)} at byte {hit.offset}"
                shelf.findings.append(f"{hit.secret} ({hit.encoding}) in {where}")
                if hit.secret.kind is Kind.ENVELOPE and not self.judge.may_rest(hit.secret.envelope):
                    shelf.foreign += 1
                    shelf.foreign_bytes += hit.length

    # --- a store ---------------------------------------------------------------------------------
    def _block(self, block: Block, file: str, staged: bool) -> None:
        self.shelf.blocks += 1
        for ordinal, record in enumerate(block.records):
            place = Place(file, block.index, ordinal, staged)
            self.shelf.records += 1
            with self._reading(str(place)):
                for holder, envelope, carried in held_in(records.decode_record(record)):
                    self._place(Found(envelope_id(envelope), envelope, holder, place, block.time, carried))
            self._scan_unsealed(str(place), self._hits(record))

    def _hits(self, record: bytes) -> Sequence[Hit[Secret]]:
        if self.seen is None or record not in self.seen:
            hits = tuple(self.scanner.scan_bytes(record))
            if self.seen is None:
                return hits
            self.seen[record] = hits
        return self.seen[record]

    def _checkpoint(self, saved: Saved, file: str) -> None:
        where = f"{file}, the {saved.name}"
        everything = [*saved.rows, *saved.rest]
        self.shelf.rows += len(everything)
        for row in everything:
            self._scan_unsealed(where, self.scanner.scan_bytes(row))
        if saved.current or saved.rows:  # else nothing says what the rest is of
            with self._reading(where):
                Mailroom.from_checkpoint(without_head(saved.rows))

    @contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        try:
            yield
        except (ProtocolError, TrustError, StoreError) as error:
            self.shelf.findings.append(f"{where}: it cannot be read: {error.text}")

    def _place(self, found: Found) -> None:
        """Count an envelope where it belongs, or report it where it does not."""
        shelf, verdict, size = self.shelf, self.judge.judge(found), len(found.envelope)
        match verdict.role:
            case Role.HOME:
                shelf.home.update(verdict.whose)
                shelf.home_bytes += size
            case Role.TRANSIT:
                shelf.transit.update(verdict.whose)
                shelf.transit_bytes += size
            case Role.FOREIGN | Role.STRAY:
                shelf.foreign += 1
                shelf.foreign_bytes += size
                what = f"{verdict.role.value} envelope {found.id.hex()[:8]}, {size} bytes, in {found.place}"
                shelf.findings.append(f"{what}: {verdict.why}" if verdict.why else what)
        self.note(shelf, found, verdict)

    def _scan_unsealed(self, where: str, hits: Iterable[Hit[Secret]]) -> None:
        """Hits in unsealed bytes: an envelope's are in their place if they are in the right region, all others are
        not."""
        for hit in hits:
            if hit.secret.kind is not Kind.ENVELOPE:
                self.shelf.in_the_open += 1
                self.shelf.findings.append(f"{hit.secret} ({hit.encoding}) in {where}")
            elif not self.judge.may_rest(hit.secret.envelope):
                self.shelf.foreign += 1
                self.shelf.foreign_bytes += hit.length
                whose = f" of {hit.secret.name}" if hit.secret.name else ""
                what = f"bytes of the foreign envelope {hit.secret.envelope.hex()[:8]}{whose} in {where}"
                self.shelf.findings.append(what)
