"""The client protocol `posthouse.v0`: one struct a message, one decoder a direction. docs/PROTOCOL.md is its text.

A message is one binary WebSocket message: a msgpack array whose first element is the tag.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Union

import msgspec
from msgspec import Meta

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.proven import Missing, ProvenBlock, Wants
from relay.core.shapes import (
    CellName, EnvelopeBytes, Hash, Key, LogId, MaybeLogId, Millis, Name, Nonce, Position, Signature, Text, UInt,
)
from relay.limits import MAX_BATCH, MAX_BUNDLE, MAX_CHAIN, MAX_FRAME, MAX_LIFETIME, ROOT_PART

SUBPROTOCOL = "posthouse.v0"
VERSION = 0


class Code(IntEnum):
    """Outcomes of a request. Below 16 it was taken; 16–63 is final; from 64 on it may be tried again."""

    ACCEPTED = 1  # durable in the sender's cell
    STORED = 2  # durable in the recipient's home cell
    STALE = 16  # `created` lies outside the admission window: seal anew under the same counter
    EXPIRED = 17  # past its expiry
    LIFETIME = 18  # expires - created is above a limit, the protocol's or a region's, or not positive
    UNKNOWN_USER = 19  # nobody of that id is at home there
    UNKNOWN_REGION = 20  # no such region or cell in the federation
    UNKNOWN_ROSTER = 21  # no such group here, or it may not wait any longer
    NOT_MEMBER = 22  # the sender is not a member of that roster version
    MAILBOX_FULL = 23
    BAD_ENVELOPE = 24  # header not well formed, or a version nobody has signed
    BAD_RECORD = 25  # a home record or roster that does not verify
    NOT_PERMITTED = 26  # the policy of a region: the sender's, or the recipient's
    UNPROVEN = 27  # no receipt can be made (any more): the cell has not taken it, or does not remember how
    UNKNOWN_CHANNEL = 28  # no such broadcast channel in that cell
    NOT_OWNER = 29  # a channel's terms and posts come from its owner's devices only
    NOT_SUBSCRIBER = 30  # no ticket that the channel's newest terms accept was shown on this connection
    CHANNELS_FULL = 31  # more channels, posts or bytes than one user, or a cell, may keep
    UNREACHABLE = 64  # the home record could not be looked up now
    OUTBOX_FULL = 65
    OVERLOADED = 66

    @property
    def taken(self) -> bool:
        """The envelope is durable somewhere."""
        return self < 16

    @property
    def final(self) -> bool:
        """Trying again with the same bytes gives the same answer."""
        return self < 64


class Fault(IntEnum):
    """Codes of ERROR: why a connection ends."""

    PROTOCOL = 1  # bytes that break the protocol
    AUTH = 2  # the device did not prove its key, or is not (or no longer) enrolled
    NOT_HOME = 3  # the device's user is at home elsewhere
    FENCED = 4  # the device started a newer session
    ROLLED_BACK = 5  # the client's cursor lies beyond this log's tip (rule 13): stop, tell the operator
    TIMEOUT = 6  # handshake or idle deadline
    OVERLOADED = 7  # no room, or no majority, just now; see retry_after
    INTERNAL = 8  # the node is stopping because of its own trouble
    REVOKED = 9  # a newer home record does not list the device any more: stop
    UNREAD = 10  # the client does not read what it is sent


# --- client to server ----------------------------------------------------------------------------
class Hello(Struct, frozen=True, tag=1):
    """First. `log_id` and `cursor` are what the client has (empty and 0 when new). `receive`: start a session that
    is delivered to (and fences the device's older one), or only submit."""

    version: UInt
    log_id: MaybeLogId
    cursor: Position
    receive: bool
    software: Text


class Auth(Struct, frozen=True, tag=2):
    """The answer to CHALLENGE. `records` are home records of `user` that the cell may not have yet, oldest first."""

    user: Hash
    device: Key
    signature: Signature
    records: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class SubmitItem(Struct, frozen=True):
    """One envelope, with the region its address card hints at (empty for a roster)."""

    hint: Text
    envelope: EnvelopeBytes


class Submit(Struct, frozen=True, tag=3):
    """A batch of envelopes, each answered by one receipt."""

    items: Annotated[tuple[SubmitItem, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class Ack(Struct, frozen=True, tag=4):
    """Everything up to `position` is safe with the client."""

    position: Position


class Lookup(Struct, frozen=True, tag=5):
    """Ask for the home records of `user` after version `after`. Answered by RECORD with the same `request`."""

    request: UInt
    user: Hash
    hint: Text
    after: UInt


class Roster(Struct, frozen=True, tag=6):
    """Publish a roster version: signed head, and for each cell its member list. Answered by a receipt whose id is
    the digest of `head`."""

    head: bytes
    parts: tuple[tuple[CellName, bytes], ...]


class Ephemeral(Struct, frozen=True, tag=7):
    """Presence, typing, call signalling: to whoever of `user`'s devices is online, without a record or a receipt."""

    user: Hash
    hint: Text
    payload: Annotated[bytes, Meta(max_length=4096)]


class Prove(Struct, frozen=True, tag=9):
    """Ask for the signed receipts of `cell` for these envelopes. Answered by PROOF with the same `request`."""

    request: UInt
    cell: CellName
    items: Wants


class Subscribe(Struct, frozen=True, tag=10):
    """Show a ticket for a channel of this cell, good for this connection: READ is permitted from then on. `live`: send
    POSTED as posts come. Answered by CHANNEL with the same `request`."""

    request: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    channel: Hash
    ticket: Signature
    live: bool


class Unsubscribe(Struct, frozen=True, tag=11):
    """No more of this channel. Not answered."""

    channel: Hash


class Read(Struct, frozen=True, tag=12):
    """Ask for the posts of a channel past number `after`: the reader's own place. Answered by PAGE."""

    channel: Hash
    after: UInt


class Terms(Struct, frozen=True, tag=13):
    """Publish a version of a channel's signed terms. Answered by a receipt whose id is the digest of `terms`."""

    terms: bytes


class Posts(Struct, frozen=True, tag=14):
    """Post to channels, each answered by one receipt whose id is the digest of the post."""

    posts: Annotated[tuple[EnvelopeBytes, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class SubscribeFar(Struct, frozen=True, tag=15):
    """As SUBSCRIBE, for a channel of another cell: `cell` is what the card says. READ and UNSUBSCRIBE as for others."""

    request: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    channel: Hash
    ticket: Signature
    live: bool
    cell: CellName


class AskRoot(Struct, frozen=True, tag=16):
    """Ask for the root document, from byte `offset` on, if it is newer than the one of these versions (of the root
    role, and of the timestamp). Answered by ROOTPART. A node that does not know the question ends the connection."""

    root_version: UInt
    version: UInt
    offset: Annotated[int, Meta(ge=0, le=MAX_BUNDLE)]


ChannelMessage = Union[Subscribe, Unsubscribe, Read, Terms, Posts, SubscribeFar]
ClientMessage = Union[Hello, Auth, Submit, Ack, Lookup, Roster, Ephemeral, Prove, ChannelMessage, AskRoot]
decode_client: Decoder[ClientMessage] = Decoder(ClientMessage, "client message", MAX_FRAME)


# --- server to client ----------------------------------------------------------------------------
class Challenge(Struct, frozen=True, tag=64):
    """What AUTH signs over: see `challenge_bytes`. `time` is the server's, Unix ms."""

    nonce: Nonce
    region: Name
    cell: CellName
    node: Name
    log_id: LogId
    time: Millis


class Welcome(Struct, frozen=True, tag=65):
    """The device is served. `cursor` is the fold's own; deliveries start after it. Ack every `ack_every` deliveries or
    `ack_ms`. `max_envelope` in bytes, `max_batch` in envelopes, `max_lifetime` in ms: as long as this region keeps
    mail. `time` is the server's, Unix ms."""

    log_id: LogId
    cursor: Position
    time: Millis
    home_version: UInt
    ack_every: UInt
    ack_ms: UInt
    max_envelope: UInt
    max_batch: UInt
    max_lifetime: UInt = MAX_LIFETIME


class ReceiptItem(Struct, frozen=True):
    """One outcome. `position` is where the record stands in the answering cell's log (0 if refused); `newest` the
    newest version of the address known there; `cell` who answered. With LIFETIME `newest` is the longest lifetime that
    is taken, ms, if it is known; with NOT_PERMITTED `cell` may be the one where it may not go."""

    id: Hash
    code: UInt
    position: Position
    newest: UInt
    cell: CellName


class Receipt(Struct, frozen=True, tag=66):
    """Outcomes of submits on this connection, as they become known."""

    items: tuple[ReceiptItem, ...]


class Deliver(Struct, frozen=True, tag=67):
    """One envelope at its position. The same bytes for every recipient."""

    position: Position
    envelope: EnvelopeBytes


class Empty(Struct, frozen=True, tag=68):
    """Everything up to `position`, where the session started, has been sent."""

    position: Position


class Record(Struct, frozen=True, tag=69):
    """The answer to LOOKUP: signed home records, oldest first. `code` is STORED, UNKNOWN_USER, UNKNOWN_REGION or
    UNREACHABLE."""

    request: UInt
    code: UInt
    records: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class Notice(Struct, frozen=True, tag=70):
    """A durable outcome for the sender, at a position of the sender's own stream: acked like a delivery."""

    position: Position
    id: Hash
    code: UInt
    newest: UInt
    cell: CellName


class Drain(Struct, frozen=True, tag=71):
    """The node is going away: finish, and reconnect after about `spread_ms`."""

    spread_ms: UInt


class Error(Struct, frozen=True, tag=72):
    """The connection ends. `code` is a Fault."""

    code: UInt
    text: str
    retry_after_ms: UInt


class EphemeralFrom(Struct, frozen=True, tag=73):
    """An ephemeral payload; its sender as the sender's node vouches for it."""

    user: Hash
    device: Key
    payload: Annotated[bytes, Meta(max_length=4096)]


class Moved(Struct, frozen=True, tag=74):
    """The device's user is at home elsewhere: the signed home records that say so, oldest first. ERROR follows."""

    records: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class Proof(Struct, frozen=True, tag=75):
    """The answer to PROVE: what receipts are made of, and what could not be proven."""

    request: UInt
    blocks: tuple[ProvenBlock, ...]
    missing: tuple[Missing, ...]


class Channel(Struct, frozen=True, tag=76):
    """The answer to SUBSCRIBE; or, with `request` 0, news of a channel that was subscribed to: other terms, posts that
    were not sent live (read on from your place), or, by `code`, that the subscription has ended. `terms` are the newest
    signed ones, `first` and `last` the numbers of the oldest post that is kept and of the newest one (0: none)."""

    request: UInt
    channel: Hash
    code: UInt
    terms: bytes
    first: UInt
    last: UInt


class Page(Struct, frozen=True, tag=77):
    """The answer to READ: posts past `after`, in order, as many as fit; none where there are none. The same bytes for
    everybody who asks for the same."""

    channel: Hash
    after: UInt
    code: UInt
    first: UInt
    last: UInt
    posts: tuple[EnvelopeBytes, ...]


class Posted(Struct, frozen=True, tag=78):
    """A post, as it came. The same bytes for every subscriber."""

    post: EnvelopeBytes


class RootPart(Struct, frozen=True, tag=79):
    """The answer to ASKROOT: which root document the node has, its size in bytes, and ROOT_PART bytes of it from
    `offset` on (the last part: what is left). `size` 0: it is no newer."""

    root_version: UInt
    version: UInt
    size: Annotated[int, Meta(ge=0, le=MAX_BUNDLE)]
    offset: Annotated[int, Meta(ge=0, le=MAX_BUNDLE)]
    part: Annotated[bytes, Meta(max_length=ROOT_PART)]


ServerMessage = Union[
    Challenge, Welcome, Receipt, Deliver, Empty, Record, Notice, Drain, Error, EphemeralFrom, Moved, Proof, Channel,
    Page, Posted, RootPart,
]
decode_server: Decoder[ServerMessage] = Decoder(ServerMessage, "server message", 4 * MAX_FRAME)
encode_message = encode
_encoder = msgspec.msgpack.Encoder()


def encode_deliver(position: int, envelope: bytes) -> bytes:
    """`encode_message(Deliver(…))`, for the hot path."""
    return pack([67, position, envelope])


def encode_proof(proof: Proof) -> bytes:
    """`encode_message(proof)`, for hundreds of envelopes at a time."""
    return _encoder.encode(proof)


def challenge_bytes(challenge: Challenge, user: bytes, device: bytes) -> bytes:
    """What the device key signs: bound to the node, the region, the log and a fresh nonce."""
    fields = [challenge.nonce, challenge.region, challenge.cell, challenge.node, challenge.log_id, user, device]
    return digest(pack(fields), b"posthouse.auth")
