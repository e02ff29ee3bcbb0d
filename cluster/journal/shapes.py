"""The core's members and the log's record of them; what a node says of its log to the others."""

from __future__ import annotations

from cluster.core.raft import Member, Members
from relay.core import records
from relay.core.block import Block
from relay.core.codec import Decoder, Struct
from relay.core.shapes import LogId
from relay.errors import StoreDamaged
from relay.limits import KIB

_TAG = records.encode_record(records.Members((), ()))[:2]  # how such a record begins: an array of three, its tag


def to_members(encoded: bytes) -> Members:
    """The core's members from their record. None in a new log."""
    if not encoded:
        return Members()
    record = records.decode_record(encoded)
    if not isinstance(record, records.Members):
        raise StoreDamaged("a record of members was expected")
    return Members(*(tuple(Member(*one) for one in group) for group in (record.voters, record.learners)))


def from_members(members: Members) -> bytes:
    """The record of the core's members."""
    groups = (members.voters, members.learners)
    return records.encode_record(records.Members(*(tuple((one.store, one.node) for one in group) for group in groups)))


def is_members(record: bytes) -> bool:
    """Is it one that only the log's own leader makes, alone in its block?"""
    return record.startswith(_TAG)


def members_in(block: Block) -> Members | None:
    """The members that a block brings; None where it brings none."""
    alone = len(block.records) == 1 and is_members(block.records[0])
    return to_members(block.records[0]) if alone else None


class Standing(Struct):
    """Answers linkwire.CellStatus: which log a node has, and which node leads, as far as it knows (or empty)."""

    log_id: LogId
    leader: str


read_standing: Decoder[Standing] = Decoder(Standing, "standing", KIB)
