"""The records of the log. The mailroom folds them; nothing else gives them meaning.

Every record is an array whose first element is its tag. A tag, once used in a release, never changes its meaning.
"""

from __future__ import annotations

from typing import Union

from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import CellName, EnvelopeBytes, Key, LogId, MaybeLogId, Name, Nonce, Position, StoreId, UInt
from relay.limits import MAX_BLOCK


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
    """An envelope from a device of this cell. `dest` is the recipient's cell (mailbox), or this cell (roster)."""

    device: Key
    dest: CellName
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
    at home here (item = signed head). `confirmed`: the origin has recorded our outcomes up to here.
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


class Passed(Struct, frozen=True, tag=13):
    """An envelope that cell `origin` passed on at once, since it may not keep it (`hold`, ADR 25): a first submit, and
    its outcome is the sender's receipt."""

    origin: CellName
    envelope: EnvelopeBytes


Record = Union[FoldVersion, Home, Session, Submit, Ack, Roster, HandIn, Handed, Carry, Tick, Members, Passed]

HANDIN_VOID, HANDIN_ENVELOPE, HANDIN_ROSTER, HANDIN_REFUSED, HANDIN_NOBODY = range(5)

decode_record: Decoder[Record] = Decoder(Record, "log record", MAX_BLOCK)
encode_record = encode
