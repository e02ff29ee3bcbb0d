"""What an audit finds on one node, and who judges it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, Protocol

from relay.core import records
from relay.core.codec import Decoder
from relay.errors import ProtocolError

Holder = records.Submit | records.HandIn | records.Passed  # the records that hold bytes of envelopes
Held = Holder | records.Post  # and of what counts as one


class Role(Enum):
    """Why an envelope rests in a region."""

    HOME = "at home"  # a recipient lives here
    TRANSIT = "outbox copy"  # its sender lives here, and the record of the outbox is still in the log
    FOREIGN = "foreign"  # neither: it must not be here
    STRAY = "stray"  # nobody of the demo sent it
    OTHER = "not looked for"  # no canary, in a look for canaries


class Place(NamedTuple):
    """Where a record lies: in which file (below what is audited), in which block of it, as the how-manieth."""

    file: str
    block: int
    record: int
    staged: bool = False

    def __str__(self) -> str:
        return f"{self.file}, {'staged ' if self.staged else ''}block {self.block}, record {self.record}"


@dataclass(frozen=True, slots=True)
class Found:
    """An envelope at rest, in the record that holds it. `time`: of the block, Unix ms; what a carry wrote again is
    older."""

    id: bytes
    envelope: bytes
    record: Held
    place: Place
    time: int
    carried: bool


class Verdict(NamedTuple):
    """What an envelope does here. `whose`: whom it is for (at home), or which regions or cells (in transit)."""

    role: Role
    whose: tuple[str, ...] = ()
    why: str = ""


class Judge(Protocol):
    """Knows who is at home where; one for each region."""

    def judge(self, found: Found) -> Verdict:
        """Why this envelope rests in the region."""

    def may_rest(self, envelope: bytes) -> bool:
        """Whether bytes of the envelope of this id may be in the region."""


@dataclass(slots=True)
class Shelf:
    """What rests on one node of a region. Counts are of envelopes: `home` by whose they are, `transit` by where they
    go. Every node of a region has a copy of what rests in the region."""

    region: str
    node: str = ""
    stores: int = 0
    blocks: int = 0
    records: int = 0
    rows: int = 0  # of checkpoints
    home: Counter[str] = field(default_factory=Counter)
    home_bytes: int = 0
    transit: Counter[str] = field(default_factory=Counter)
    transit_bytes: int = 0
    foreign: int = 0
    foreign_bytes: int = 0
    left_behind: int = 0  # bytes of it, of users who have moved away
    in_the_open: int = 0
    files: int = 0
    file_bytes: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.foreign_bytes or self.in_the_open or self.findings)

    @property
    def label(self) -> str:
        """What people call the node."""
        return f"{self.region}-{self.node}" if self.node else self.region


def _is_of_a_move(what: int, item: bytes) -> bool:
    """Is it what that kind of hand-over holds, and so no envelope?"""
    readers: dict[int, Decoder[Any]] = {
        records.HANDIN_MOVE: records.read_chain, records.HANDIN_NOTICE: records.read_for_device,
        records.HANDIN_TOLD: records.read_told,
    }  # fmt: skip
    try:
        readers[what](item)
    except ProtocolError:
        return False
    return True


def held_in(record: records.Record, carried: bool = False) -> Iterator[tuple[Held, bytes, bool]]:
    """(record, bytes, carried) of everything in a log record that is an envelope, or lies where only one may: what it
    carries again, and what a hand-over holds beside its envelope, included. A channel's post counts as one."""
    match record:
        case records.Submit(envelope=envelope) | records.Passed(envelope=envelope):
            yield record, envelope, carried
        case records.Post(post=post):
            yield record, post, carried
        case records.HandIn(what=records.HANDIN_FORWARD, item=item):
            yield record, item, carried
        case records.HandIn(what=records.HANDIN_MOVE | records.HANDIN_NOTICE | records.HANDIN_TOLD as what, item=item):
            if not _is_of_a_move(what, item):
                yield record, item, carried
        case records.HandIn(what=what, item=item, part=part):
            roster = what in (records.HANDIN_ROSTER, records.HANDIN_NOBODY)
            beside = () if what == records.HANDIN_ROSTER else (part,)
            for held in beside if roster else (item, *beside):
                if held:
                    yield record, held, carried
        case records.Carry(items=items):
            for again in items:
                yield from held_in(records.decode_record(again.record), True)
