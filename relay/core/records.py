"""The records of the log. The mailroom folds them; nothing else gives them meaning.

Every record is an array whose first element is its tag. A tag, once used in a release, never changes its meaning.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated, Union

from msgspec import Meta, ValidationError, convert

from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import (
    CellName, EnvelopeBytes, Hash, Key, LogId, MaybeLogId, Name, Nonce, Position, StoreId, UInt,
)
from relay.errors import ProtocolError
from relay.limits import KIB, MAX_BLOCK, MAX_CHAIN, MIB


class FoldVersion(Struct, frozen=True, tag=1):
    """The rules that the fold follows from here on (rule 10)."""

    version: UInt


class Home(Struct, frozen=True, tag=2):
    """One version of a user's home record, signed; verified before it was appended (rule 17)."""

    signed: bytes


class Session(Struct, frozen=True, tag=3):
    """A device's session starts and fences its older one (rule 18). `cursor` is what the device already has."""

    device: Key
    node: Name
    nonce: Nonce
    cursor: Position


class Submit(Struct, frozen=True, tag=4):
    """An envelope from a device of this cell. `dest` is the recipient's cell (mailbox), or this cell (roster): a
    CellName, which `decode_record` sees to."""

    device: Key
    dest: Annotated[str, Meta(max_length=96)]
    envelope: EnvelopeBytes


class Ack(Struct, frozen=True, tag=5):
    """Everything up to `position` reached the device."""

    device: Key
    position: Position


class Roster(Struct, frozen=True, tag=6):
    """A roster version from a device of this cell: the signed head and the member list of each cell."""

    device: Key
    head: bytes
    parts: tuple[tuple[CellName, bytes], ...]


class HandIn(Struct, frozen=True, tag=7):
    """Number `number` of the outbox that `origin` (under its log id) keeps for this cell (rule 16).

    `what`: 0 void, 1 envelope (item = envelope), 2 roster version (item = signed head, part = our member list),
    3 refused with `code`, and its bytes never written (section 5, rule 2), 4 a roster version that lists nobody who is
    at home here (item = signed head). Of users who move (ADR 21): 5 the chain of one (item = Chain), 6 an envelope
    for one (item = envelope, part = Forward), 7 a notice for a device of one (item = ForDevice), 8 the outcome of an
    envelope that was taken over (item = Told). `confirmed`: the origin has recorded our outcomes up to here.
    """

    origin: CellName
    origin_log: LogId
    number: UInt
    confirmed: UInt
    what: UInt
    item: bytes
    part: bytes
    code: UInt = 0


class HandedAnswer(Struct, frozen=True):
    """One outcome that the destination gave: its code, and the newest version of the address it knows."""

    number: UInt
    code: UInt
    newest: UInt


class Handed(Struct, frozen=True, tag=8):
    """`dest` has applied everything up to `upto` and answered; numbers it does not list were void. Its log is `log`;
    when it was asked, the newest of its logs known here was `known` (rule 13; empty: none yet)."""

    dest: CellName
    upto: UInt
    answers: tuple[HandedAnswer, ...]
    log: LogId
    known: MaybeLogId


class Carried(Struct, frozen=True):
    """A record that still waits, with the source (index, ordinal) it had."""

    index: UInt
    ordinal: UInt
    record: bytes


class Carry(Struct, frozen=True, tag=9):
    """What still waits in the oldest stretch, appended again so that the prefix can go."""

    items: tuple[Carried, ...]


class Tick(Struct, frozen=True, tag=10):
    """Nothing but a block's time: a due expiry must be applied even when nobody writes (rule 14)."""


MemberStore = tuple[StoreId, Name]  # a store of the cell, and the node that it belongs to


class Members(Struct, frozen=True, tag=11):
    """The stores of the cell from this block on (rule 4); alone in its block. It says nothing to the fold."""

    voters: tuple[MemberStore, ...]
    learners: tuple[MemberStore, ...]


class Move(Struct, frozen=True, tag=12):
    """A user moves: all of the signed home records, from the first one on. In the log of the cell that the last one
    names it means HOMED, in that of any other one that they name MOVED."""

    chain: tuple[bytes, ...]


class Passed(Struct, frozen=True, tag=13):
    """An envelope that cell `origin` passed on at once, since it may not keep it (`hold`, ADR 25): a first submit, and
    its outcome is the sender's receipt."""

    origin: CellName
    envelope: EnvelopeBytes


class Channel(Struct, frozen=True, tag=14):
    """A version of a broadcast channel's signed terms, from a device of its owner."""

    device: Key
    terms: bytes


class Post(Struct, frozen=True, tag=15):
    """A post to a broadcast channel of this cell, from a device of its owner."""

    device: Key
    post: EnvelopeBytes


Record = Union[
    FoldVersion, Home, Session, Submit, Ack, Roster, HandIn, Handed, Carry, Tick, Members, Move, Passed, Channel, Post
]

(
    HANDIN_VOID, HANDIN_ENVELOPE, HANDIN_ROSTER, HANDIN_REFUSED, HANDIN_NOBODY, HANDIN_MOVE, HANDIN_FORWARD,
    HANDIN_NOTICE, HANDIN_TOLD,
) = range(9)  # fmt: skip


# --- what a hand-over says of users who move ------------------------------------------------------
class Chain(Struct, frozen=True):
    """The signed home records of a user, from the first one on."""

    signed: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class Forward(Struct, frozen=True):
    """Whom a forwarded envelope is for, and the home version that it was sent on by (rule 17). `chain`: the records up
    to it, on the way only; in the log it is empty."""

    user: Hash
    version: UInt
    chain: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)] = ()


class ForDevice(Struct, frozen=True):
    """A notice for a device that was at home with us: what became of envelope `id`."""

    device: Key
    id: Hash
    code: UInt
    newest: UInt
    cell: CellName


class Told(Struct, frozen=True):
    """What became of number `number` of your outbox for us, under your log id `log`: we had taken it over."""

    log: LogId
    number: UInt
    code: UInt
    newest: UInt
    cell: CellName


read_chain: Decoder[Chain] = Decoder(Chain, "home records", MIB)
read_forward: Decoder[Forward] = Decoder(Forward, "forward", MIB)
read_for_device: Decoder[ForDevice] = Decoder(ForDevice, "forwarded notice", KIB)
read_told: Decoder[Told] = Decoder(Told, "outcome", KIB)

_record: Decoder[Record] = Decoder(Record, "log record", MAX_BLOCK)
_submit: Decoder[Submit] = Decoder(Submit, "log record", MAX_BLOCK, flat=True)
_ack: Decoder[Ack] = Decoder(Ack, "log record", KIB, flat=True)
_NAMES = 1_024  # of cells, that were looked at
_A_SUBMIT = b"\x94\x04"  # how one begins: an array of four, the first of which is the tag
_AN_ACK = b"\x93\x05"
encode_record = encode


def decode_record(data: bytes) -> Record:
    """Raises ProtocolError. Most of what comes is submits and acks: they have ways of their own."""
    if data[:2] == _A_SUBMIT:
        record: Record = _submit(data)
    elif data[:2] == _AN_ACK:
        return _ack(data)
    else:
        record = _record(data)
    if isinstance(record, Submit):
        _check_cell_name(record.dest)
    return record


@lru_cache(_NAMES)
def _check_cell_name(name: str) -> None:
    """What the shape says of other names: to look at a name takes longer than the rest of a submit."""
    try:
        convert(name, CellName)
    except ValidationError as error:
        raise ProtocolError(f"log record has the wrong shape: {error}") from None
