"""Proves by the records that every envelope at rest belongs where it lies: `posthouse audit residency`.

Three passes over the same stores, which are held all the while, so that no node starts on one. The first learns what
is signed, and what the fold says still waits in outboxes. The second judges each envelope by that. And all bytes are
scanned for pieces of the envelopes that the first one saw, and for the storage keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from cluster.audit.look import PIECE, Look, make_scanner, storage_keys, stores_below
from cluster.audit.register import Register, short
from cluster.audit.shelf import Found, Holder, Place, Role, Shelf, Verdict, held_in
from cluster.audit.sites import NothingHere, Site, newest_root
from cluster.core.linkwire import federation_id
from cluster.stopped import without_head
from relay.core import posts, records
from relay.core.block import Block
from relay.core.envelope import Header, To, envelope_id, read_header
from relay.core.mailroom import Mailroom
from relay.core.trust import Root
from relay.errors import DiskFailed, PosthouseError, ProtocolError, StoreDamaged, StoreForeign, TrustError
from relay.journal.files import STORE_FILE
from relay.journal.inspect import StoppedStore, open_stopped
from relay.journal.seal import StorageRing

MAX_PIECES = 10_000  # envelopes of which a piece is looked for, about 5 KiB each; ids are hashes: the lowest are any
PLAIN = 8  # different bytes that a piece has at least: what has fewer is no ciphertext


class Foreign(NamedTuple):
    """An envelope that must not be where it is. `home`: the region it belongs to, where a record says so."""

    place: Place
    envelope: bytes
    size: int
    whose: str
    home: str
    why: str


class Proof(NamedTuple):
    """Why envelopes rest on a node: whose they are (or where they are bound), and by what."""

    role: Role
    whose: str
    why: str


@dataclass(slots=True)
class NodeReport:
    """One node: what rests on it, by what right, and since when (Unix ms) the oldest of each kind is there."""

    site: Site
    shelf: Shelf
    files: list[str] = field(default_factory=list)  # its stores
    proofs: Counter[Proof] = field(default_factory=Counter)
    since: dict[Proof, int] = field(default_factory=dict)
    foreign: list[Foreign] = field(default_factory=list)


@dataclass(slots=True)
class Report:
    """Everything. `findings` are of no single node."""

    root: Root
    nodes: list[NodeReport]
    pieces: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings and all(node.shelf.clean for node in self.nodes)


@dataclass(frozen=True, slots=True)
class Piece:
    """Some bytes of an envelope, to be looked for; its address, the devices that submitted it, and the users whom it
    was sent on for."""

    ciphertext: bytes
    header: Header
    senders: set[bytes]
    movers: set[bytes]


@dataclass(slots=True)
class Opened:
    """A store that is held. `waiting`: by the cell they are bound for, the envelopes that the fold says still wait
    (for a roster version: under the own cell); None where it cannot be applied."""

    store: StoppedStore
    node: NodeReport
    file: str
    waiting: dict[str, set[bytes]] | None = None


Note = Callable[[Shelf, Found, Verdict], None]


def audit_residency(sites: list[Site], note: Note | None = None) -> Report:
    """Look at the disks of all sites. `note` hears of each envelope. Raises StoreLocked where a node runs on one,
    OperatorError, TrustError (a root document that does not hold)."""
    root = newest_root(sites)
    report = Report(root, [NodeReport(site, Shelf(site.region, site.node)) for site in sites])
    register, pieces = Register(root), Pieces()
    with ExitStack() as stack:
        opened = [one for node in report.nodes for one in _open(node, root, stack)]
        if not opened and not any(node.shelf.findings for node in report.nodes):
            what = f"{', '.join(str(site.data) for site in sites[:3])}: no store in the data of {len(sites)} node(s)"
            raise NothingHere(what, "They never started, or their disks were emptied: nothing was looked at")
        for one in opened:
            _learn(one, register, pieces)
        report.findings += [*register.findings, *register.unproven()]
        kept = pieces.kept()
        report.pieces = len(kept)
        key_files = {site.storage_key.resolve() for site in sites}
        keys = {key for path in key_files for key in storage_keys(path)}
        scanner = make_scanner(((piece.ciphertext, own) for own, piece in kept.items()), (), sorted(keys))
        for one in opened:
            judge = ByRecords(register, one.node.site, kept, one.waiting)
            Look(one.node.shelf, judge, scanner, note=_noting(one.node, judge, note)).store(one.store, one.file)
        for node in report.nodes:
            judge = ByRecords(register, node.site, kept, None)
            Look(node.shelf, judge, scanner).files(node.site.top, frozenset(key_files))
    return report


def _open(node: NodeReport, root: Root, stack: ExitStack) -> Iterator[Opened]:
    """Every store of a node: its own, copies of it, and those that were set aside."""
    site, findings = node.site, node.shelf.findings
    cell = root.cell(site.cell)
    if cell is None or not site.cell.startswith(site.region + "/"):
        findings.append(f"the root document has no cell {site.cell} in region {site.region}, as {site.config} says")
    ring = StorageRing.load(site.storage_key)
    for directory in stores_below(site.top):
        file = site.name(directory / STORE_FILE)
        try:
            store = stack.enter_context(open_stopped(directory, ring))
        except (StoreForeign, StoreDamaged, DiskFailed) as error:
            findings.append(f"{file} cannot be looked into: {error.text}")
            continue
        node.files.append(file)
        if store.cell != site.cell or store.federation != federation_id(root):
            findings.append(f"{file} is the store of cell {store.cell}, or of another federation; here is {site.cell}")
        yield Opened(store, node, file)


# --- the first pass ------------------------------------------------------------------------------
class Pieces:
    """Pieces of the envelopes that were seen: of the MAX_PIECES with the lowest ids."""

    def __init__(self) -> None:
        self._pieces: dict[bytes, Piece] = {}

    def add(self, envelope: bytes, record: records.Record) -> None:
        own, piece = envelope_id(envelope), envelope[-PIECE:]
        if own not in self._pieces:
            if len(set(piece)) < PLAIN:
                return
            try:
                self._pieces[own] = Piece(piece, read_header(envelope), set(), set())
            except ProtocolError:
                return  # the judge says what that is
        if isinstance(record, records.Submit):
            self._pieces[own].senders.add(record.device)
        elif user := forwarded_for(record):
            self._pieces[own].movers.add(user)
        if len(self._pieces) >= 2 * MAX_PIECES:
            self._pieces = self.kept()

    def kept(self) -> dict[bytes, Piece]:
        return {own: self._pieces[own] for own in sorted(self._pieces)[:MAX_PIECES]}


def _unheard(error: PosthouseError) -> None:
    """The second pass tells."""


def _learn(one: Opened, register: Register, pieces: Pieces) -> None:
    """What a store has of signed records, and what waits in its outboxes."""
    where = f"{one.node.shelf.label}: {one.file}"
    try:
        room = _learn_checkpoints(one.store, where, register)
        for block in one.store.blocks(_unheard):
            _learn_records(block.records, f"{where}, block {block.index}", register, pieces)
            if room is not None and block.index > room.state.index:
                room = _applied(room, block)
        for block in one.store.staged(_unheard):
            _learn_records(block.records, f"{where}, staged block {block.index}", register, pieces)
    except (StoreDamaged, DiskFailed):
        return  # the second pass tells
    one.waiting = _waiting(room) if room else None


def _learn_checkpoints(store: StoppedStore, where: str, register: Register) -> Mailroom | None:
    """The fold as of the current checkpoint, or of the beginning; None where neither is there."""
    room = Mailroom(store.cell, store.log_id) if store.first == 1 else None
    for saved in store.checkpoints(_unheard):
        try:
            loaded = Mailroom.from_checkpoint(without_head(saved.rows))
        except (StoreDamaged, StoreForeign, TrustError, ProtocolError):
            continue
        register.checkpoint(loaded.state, f"{where}, the {saved.name}")
        room = loaded if saved.current else room
    return room


def _applied(room: Mailroom, block: Block) -> Mailroom | None:
    """None where the block cannot be applied: a log that somebody has tampered with may break any rule of the fold."""
    try:
        room.apply(block)
    except (PosthouseError, AssertionError, LookupError, ValueError):
        return None
    return room


def _learn_records(encoded: tuple[bytes, ...], where: str, register: Register, pieces: Pieces) -> None:
    for each in encoded:
        try:
            record = records.decode_record(each)
            register.record(record, where)
            for holder, envelope, _ in held_in(record):
                pieces.add(envelope, holder)
        except ProtocolError:
            continue


def _waiting(room: Mailroom) -> dict[str, set[bytes]]:
    state = room.state
    waiting = {state.cell: {entry.id for roster in state.rosters.values() for entry in roster.waiting}}
    for cell, box in state.outboxes.items():
        items = [*box.items.values(), *(item for parked in box.parked.values() for item in parked.items.values())]
        waiting[cell] = {item.id for item in items if item.what == records.HANDIN_ENVELOPE}
    return waiting


# --- the second pass -----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class ByRecords:
    """cluster.audit.shelf.Judge: signed records, for one store of a region."""

    register: Register
    site: Site
    pieces: dict[bytes, Piece]
    waiting: dict[str, set[bytes]] | None

    def judge(self, found: Found) -> Verdict:
        record = found.record
        if isinstance(record, records.Post):
            return self._judge_post(record.post)
        try:
            header = read_header(found.envelope)
        except ProtocolError as error:
            return Verdict(Role.FOREIGN, ("nobody",), f"bytes without an address ({error.text})")
        if why := self._at_home(header) or self._sent_on(record):
            return Verdict(Role.HOME, (self.whose(header),), why)
        if isinstance(record, records.Submit) and (why := self._in_transit(header, found, record)):
            return Verdict(Role.TRANSIT, (record.dest if header.kind is To.MAILBOX else self.whose(header),), why)
        if why := self._left(header, record):
            return Verdict(Role.TRANSIT, (self.whose(header),), why)
        return Verdict(Role.FOREIGN, (self.whose(header),), self._elsewhere(header, record))

    def _judge_post(self, post: bytes) -> Verdict:
        """A channel rests where its owner is at home, until that user has moved: then it goes with the prefix."""
        try:
            channel = posts.read_header(post).channel
            owner = self.register.owner(channel, self.site.cell)
            home = self.register.sender(owner, self.site.region)
            whose = (f"channel {short(channel)}",)
            if home is None:
                why = f"of {whose[0]}: no terms name this cell that somebody who is at home here has signed"
                return Verdict(Role.FOREIGN, whose, why)
            posts.verify_post(post, owner)
        except ProtocolError as error:
            return Verdict(Role.FOREIGN, ("nobody",), f"bytes without a channel ({error.text})")
        except TrustError as error:
            return Verdict(Role.FOREIGN, whose, f"of {whose[0]}: {error.text}")
        if home.region == self.site.region:
            return Verdict(Role.HOME, whose, f"by terms of user {short(home.user)}, at home here by {home}")
        return Verdict(Role.TRANSIT, whose, f"by terms of user {short(home.user)}, who left for {home.cell} by {home}")

    def may_rest(self, envelope: bytes) -> bool:
        piece = self.pieces[envelope]
        region, register = self.site.region, self.register
        return (
            bool(self._at_home(piece.header) or self._left(piece.header, None))
            or any(self._sender(device) for device in piece.senders)
            or any(register.resident(user, region) or register.left(user, region) for user in piece.movers)
        )

    def whose(self, header: Header) -> str:
        """Whom an envelope is for."""
        return f"{'group' if header.kind is To.ROSTER else 'user'} {short(header.to)}"

    def home_of(self, header: Header) -> str:
        """The region where the recipient is at home; empty where no record says so."""
        home = self.register.homes.get(header.to)
        return home.region if home else ""

    def _at_home(self, header: Header) -> str:
        if header.kind is To.ROSTER:
            return self.register.member(header.to, self.site.region)
        home = self.register.resident(header.to, self.site.region)
        return f"by {home}" if home else ""

    def _sent_on(self, record: Holder) -> str:
        """By what an envelope that was sent on to somebody's home rests there."""
        user = forwarded_for(record)
        home = self.register.resident(user, self.site.region)
        return f"sent on to user {short(user)}, at home here by {home}" if home else ""

    def _left(self, header: Header, record: Holder | None) -> str:
        """For somebody who was at home here, until it is sent on (section 5, rule 3), or after: it goes with the
        prefix."""
        register, region = self.register, self.site.region
        whom = register.left_member(header.to, region) if header.kind is To.ROSTER else register.left(header.to, region)
        whom = whom or (register.left(forwarded_for(record), region) if record is not None else None)
        return f"for user {short(whom.user)}, who left for {whom.cell} by {whom}" if whom else ""

    def _sender(self, device: bytes) -> str:
        """By what the device's user is at home here."""
        home = self.register.sender(device, self.site.region)
        if home is None:
            return ""
        here = "at home" if home.region == self.site.region else "who was at home"
        return f"user {short(home.user)}, {here} here by {home}"

    def _in_transit(self, header: Header, found: Found, record: records.Submit) -> str:
        """An outbox copy: its sender is at home here, and it is bound for the cell where the recipient is at home or
        was: the sender's node may not have heard of a move yet, and that cell sends it on."""
        home = self.register.homes.get(header.to)
        if header.kind is To.MAILBOX and (record.dest == self.site.cell or (home and record.dest not in home.cells)):
            return ""
        sender = self._sender(record.device)
        return f"sent by {sender}; {self._outbox(header, found, record)}" if sender else ""

    def _outbox(self, header: Header, found: Found, record: records.Submit) -> str:
        if self.waiting is None or found.place.staged:
            return "whether it still waits is not known"
        boxes = [record.dest] if header.kind is To.MAILBOX else list(self.waiting)
        waits = any(found.id in self.waiting.get(cell, ()) for cell in boxes)
        return "it waits" if waits else "settled: it goes with this stretch of the log"

    def _elsewhere(self, header: Header, record: Holder) -> str:
        home = self.register.homes.get(header.to)
        if home is not None:
            why = f"for {self.whose(header)}, who is at home in {home.region} by {home}"
        else:
            missing = "no member at home here" if header.kind is To.ROSTER else "no home record"
            why = f"for {self.whose(header)}, of whom {missing} was found"
        if not isinstance(record, records.Submit):
            return f"{why}; handed in by {record.origin}"
        sender = self._sender(record.device) or "a device of nobody who is at home here"
        return f"{why}; submitted for {record.dest} by {sender}"


def forwarded_for(record: records.Record) -> bytes:
    """For whom an envelope was sent on; nobody's id where it was not."""
    if isinstance(record, records.HandIn) and record.what == records.HANDIN_FORWARD:
        with suppress(ProtocolError):
            return records.read_forward(record.part).user
    return b""


def since(found: Found) -> int:
    """Since when an envelope is here, Unix ms: the time of its block, or where a carry wrote it again, the time that
    its sender stamped (within minutes of its admission)."""
    if not found.carried:
        return found.time
    read = posts.read_header if isinstance(found.record, records.Post) else read_header
    return read(found.envelope).created


def _noting(node: NodeReport, judge: ByRecords, note: Note | None) -> Note:
    def noted(shelf: Shelf, found: Found, verdict: Verdict) -> None:
        (whose,) = verdict.whose
        if verdict.role is Role.FOREIGN:
            try:
                home = judge.home_of(read_header(found.envelope))
            except ProtocolError:
                home = ""
            node.foreign.append(Foreign(found.place, found.id, len(found.envelope), whose, home, verdict.why))
        else:
            proof = Proof(verdict.role, whose, verdict.why)
            node.proofs[proof] += 1
            node.since[proof] = min(since(found), node.since.get(proof, since(found)))
        if note is not None:
            note(shelf, found, verdict)

    return noted
