"""What the app sees of a message, and what is inside the sealed ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Annotated

from msgspec import Meta
from nacl.signing import SigningKey

from relay.client.card import Card
from relay.core.codec import Decoder, Struct, digest
from relay.core.shapes import CellName, Hash, Key, MaybeHash, Text, UInt
from relay.core.trust import HomeRecord, Root
from relay.limits import CHUNK, MAX_ENVELOPE, MIB

MESSAGE, ROSTER_NEWS, KEY_NEWS = 1, 2, 3  # kinds of inner messages; unknown ones are passed over
MAX_CONTENT = 32 * MIB  # bytes of one message: half of what one mailbox may hold
MAX_PARTS = MAX_CONTENT // CHUNK + 1


# --- inside --------------------------------------------------------------------------------------
class Part(Struct):
    """The content of an inner message: part `part` of `parts` (successive counters) of one message to user `to`, or to
    `group`. One of the two is empty."""

    to: MaybeHash
    group: MaybeHash
    name: Text
    part: Annotated[int, Meta(ge=0, lt=MAX_PARTS)]
    parts: Annotated[int, Meta(ge=1, le=MAX_PARTS)]
    data: Annotated[bytes, Meta(max_length=CHUNK)]


class RosterNews(Struct):
    """A group as its members see it: title, signed head, and every cell's member list."""

    title: Text
    head: bytes
    parts: tuple[tuple[CellName, bytes], ...]


class KeyNews(Struct):
    """A sender key of `device` of `user` for one version of a group. Devices of the same user pass on each other's."""

    group: Hash
    version: UInt
    user: Hash
    device: Key
    key: Key


read_part: Decoder[Part] = Decoder(Part, "message", MAX_ENVELOPE)
read_roster_news: Decoder[RosterNews] = Decoder(RosterNews, "roster news", 4 * MIB)
read_key_news: Decoder[KeyNews] = Decoder(KeyNews, "sender key", 1024)


def pair(one: bytes, other: bytes) -> bytes:
    """The conversation of two users."""
    return digest(min(one, other) + max(one, other), b"posthouse.pair")


def control_pair(one: bytes, other: bytes) -> bytes:
    """The conversation in which two users' devices exchange rosters and keys."""
    return digest(min(one, other) + max(one, other), b"posthouse.notes")


def author(user: bytes, stem: bytes) -> bytes:
    """Whose streams they are: a device of this user. The stem alone says nothing, for a home record may name any."""
    return user + stem


def message_id(author: bytes, conversation: bytes, counter: int) -> bytes:
    """16 bytes: the same for the sender and every recipient."""
    return digest(author + conversation + counter.to_bytes(8, "big"), b"posthouse.msgid")[:16]


# --- for the app ---------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Message:
    """A message. `counter` is its first part's; `gap` counters are missing before it; `late`: its gap was marked.
    `to` is the user it was sent to (None in a group): a copy of what another own device sent has `user` = own."""

    id: bytes
    user: bytes
    device: bytes
    group: bytes | None
    conversation: bytes
    counter: int
    content: bytes
    name: str
    sent_ms: int
    gap: int
    late: bool
    to: bytes | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """A message on its way; `id` is what recipients see. `send` names it in `failures`."""

    id: bytes
    conversation: bytes
    counter: int
    send: int


@dataclass(frozen=True, slots=True)
class Group:
    """A group as it is known here. `mine`: this device created it and may change it."""

    id: bytes
    title: str
    version: int
    members: tuple[Card, ...]
    mine: bool


@dataclass(frozen=True, slots=True)
class Failure:
    """A message that was refused after its caller had stopped waiting; send 0: somebody's record that does not hold."""

    send: int
    error: Exception


class MessageHead(Struct):
    """A message in the inbox, without its content."""

    id: bytes
    user: Hash
    device: Key
    group: MaybeHash
    conversation: Hash
    counter: UInt
    name: Text
    sent_ms: UInt
    gap: UInt
    late: bool
    to: MaybeHash

    def message(self, content: bytes) -> Message:
        """The whole."""
        return Message(
            self.id, self.user, self.device, self.group or None, self.conversation, self.counter, content, self.name,
            self.sent_ms, self.gap, self.late, self.to or None,
        )  # fmt: skip


read_message_head: Decoder[MessageHead] = Decoder(MessageHead, "inbox row", 4096)


@dataclass(slots=True)
class Stats:
    """Counts since the client was opened. `unreadable`: envelopes that did not open or verify, dropped."""

    sent: int = 0
    accepted: int = 0
    stored: int = 0
    refused: int = 0
    received: int = 0
    duplicates_dropped: int = 0
    gaps: int = 0
    late: int = 0
    resealed: int = 0
    unreadable: int = 0
    reconnects: int = 0

    def add(self, counts: Counter[str]) -> None:
        for name, count in counts.items():
            setattr(self, name, getattr(self, name) + count)


# --- within the SDK ------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Own:
    """Who this device is: its id, its stem (what stays when keys are rotated), its keys. `older`: (id, X25519 private
    key, empty when it is not needed any more) of keys that were rotated."""

    user: bytes
    device: bytes
    stem: bytes
    signing: SigningKey
    private: bytes
    older: tuple[tuple[bytes, bytes], ...]
    region: str
    cell: str
    root: Root

    @property
    def author(self) -> bytes:
        return author(self.user, self.stem)

    @property
    def ids(self) -> frozenset[bytes]:
        """Every id that this device has had."""
        return frozenset([self.device, *(one for one, _ in self.older)])


@dataclass(slots=True)
class Effects:
    """What a transaction leaves for the tasks to do."""

    touched: set[int] = field(default_factory=set)  # sends whose outcome may have changed
    outcomes: dict[int, tuple[int, int]] = field(default_factory=dict)  # send → (state, code), of those
    wanted: dict[bytes, str] = field(default_factory=dict)  # users to look up → region hint
    mail: bool = False  # the inbox has more
    inbox_bytes: int = 0  # how much more
    post: bool = False  # there may be something to submit
    moved: HomeRecord | None = None  # our own user is at home in another cell by it
    proofs: bool = False  # there are signed receipts to ask for
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)
