"""What applying a block asks of the shells around the mailroom. Structs, of which many are made: they cost little."""

from __future__ import annotations

from msgspec import Struct

from relay.core.mailroom.people import Entry, Notice
from relay.core.wire import ReceiptItem


class Answered(Struct, frozen=True, gc=False):
    """A submit of `device` has this outcome: a receipt, if it is still connected."""

    device: bytes
    item: ReceiptItem


class PassedOn(Struct, frozen=True, gc=False):
    """An envelope that another cell passed on has this outcome."""

    item: ReceiptItem


class Filed(Struct, frozen=True, gc=False):
    """An entry was filed at a mailbox (`roster` False, `address` a user id) or a roster (a group id)."""

    roster: bool
    address: bytes
    entry: Entry


class Noticed(Struct, frozen=True, gc=False):
    """A durable outcome stands in the stream of `device`."""

    device: bytes
    notice: Notice


class SessionStarted(Struct, frozen=True, gc=False):
    """`device` is served under `nonce` from here on; older sessions of it are fenced (rule 18)."""

    device: bytes
    nonce: bytes
    position: int
    cursor: int


class DeviceGone(Struct, frozen=True, gc=False):
    """`device` is no longer enrolled: its connections end. `waited`: envelopes that it did not collect. `rotated`: it
    has new keys, whose all that is now."""

    device: bytes
    waited: int
    rotated: bool = False


class UserMoved(Struct, frozen=True, gc=False):
    """`devices` are at home elsewhere from here on, as `chain` says: their connections end."""

    devices: tuple[bytes, ...]
    chain: tuple[bytes, ...]


class MembershipChanged(Struct, frozen=True, gc=False):
    """`user` joined or left a roster: its sessions listen at other addresses now."""

    user: bytes


class OutboxGrew(Struct, frozen=True, gc=False):
    """There is something new for `cell`."""

    cell: str


class CheckpointDue(Struct, frozen=True, gc=False):
    """A checkpoint is to be taken now, after this block: at the same one on every node (rule 10)."""


Effect = (
    CheckpointDue | Answered | PassedOn | Filed | Noticed | SessionStarted | DeviceGone | UserMoved | MembershipChanged
    | OutboxGrew
)
