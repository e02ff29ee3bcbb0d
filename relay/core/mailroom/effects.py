"""What applying a block asks of the shells around the mailroom."""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.mailroom.people import Entry, Notice
from relay.core.wire import ReceiptItem


@dataclass(frozen=True, slots=True)
class Answered:
    """A submit of `device` has this outcome: a receipt, if it is still connected."""

    device: bytes
    item: ReceiptItem


@dataclass(frozen=True, slots=True)
class PassedOn:
    """An envelope that another cell passed on has this outcome."""

    item: ReceiptItem


@dataclass(frozen=True, slots=True)
class Filed:
    """An entry was filed at a mailbox (`roster` False, `address` a user id) or a roster (a group id)."""

    roster: bool
    address: bytes
    entry: Entry


@dataclass(frozen=True, slots=True)
class Noticed:
    """A durable outcome stands in the stream of `device`."""

    device: bytes
    notice: Notice


@dataclass(frozen=True, slots=True)
class SessionStarted:
    """`device` is served under `nonce` from here on; older sessions of it are fenced (rule 18)."""

    device: bytes
    nonce: bytes
    position: int
    cursor: int


@dataclass(frozen=True, slots=True)
class DeviceGone:
    """`device` is no longer enrolled: its connections end. `waited`: envelopes that it did not collect. `rotated`: it
    has new keys, whose all that is now."""

    device: bytes
    waited: int
    rotated: bool = False


@dataclass(frozen=True, slots=True)
class UserMoved:
    """`devices` are at home elsewhere from here on, as `chain` says: their connections end."""

    devices: tuple[bytes, ...]
    chain: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class MembershipChanged:
    """`user` joined or left a roster: its sessions listen at other addresses now."""

    user: bytes


@dataclass(frozen=True, slots=True)
class Posted:
    """A channel has a new post: its number, and the key of its source."""

    channel: bytes
    number: int
    source: int


@dataclass(frozen=True, slots=True)
class ChannelChanged:
    """A channel has other terms, or has ended."""

    channel: bytes


@dataclass(frozen=True, slots=True)
class OutboxGrew:
    """There is something new for `cell`."""

    cell: str


@dataclass(frozen=True, slots=True)
class CheckpointDue:
    """A checkpoint is to be taken now, after this block: at the same one on every node (rule 10)."""


Effect = (
    CheckpointDue | Answered | PassedOn | Filed | Noticed | SessionStarted | DeviceGone | UserMoved | MembershipChanged
    | OutboxGrew | Posted | ChannelChanged
)
