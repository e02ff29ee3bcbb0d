"""The protocol between nodes: its messages, and the frames that they travel in. Who may say what when: linkmachine.py.

    frame = length (4 bytes, big-endian) + msgpack [request id, message]

A link has a dialer, who asks, and a listener, who answers; each node dials for its own requests. First both say
LinkHello (request id 0). Then the dialer sends requests under ids that it chooses, from 1 up, several in flight (at
most LINK_REQUESTS, of LINK_BYTES together); the listener answers each once, in any order, under the same id. Between
nodes of one cell the dialer also sends CellNotes, under id 0; nothing answers them. Under id 0 the listener may say a
last LinkFault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Union, get_args

from msgspec import Meta

from relay.core.codec import Decoder, Struct, digest, encode, pack
from relay.core.farposts import Question, Reply
from relay.core.records import HandedAnswer
from relay.core.proven import Missing, ProvenBlock, Wants
from relay.core.receipts import Word
from relay.core.shapes import (
    CellName, EnvelopeBytes, Hash, Key, LogId, MaybeHash, Millis, Name, StoreId, UInt,
)
from relay.core.trust import Root
from relay.core.wire import ReceiptItem
from relay.errors import ProtocolError
from relay.limits import (
    AUDIT_HEAD, LINK_DEADLINE_S, MAX_BATCH, MAX_BLOCK_RECORDS, MAX_CERTIFICATE, MAX_CHAIN, MAX_EPHEMERAL,
    MAX_LINK_FRAME, MAX_NOTE, MIB, PROVE_BLOCKS, SNAPSHOT_DEADLINE_S,
)

VERSION: Final = 1
# LookUp of this "user" is answered by STORED and no records where ReadThere is known. (Who does not know it says
# UNKNOWN_USER, as of any digest; a message that it does not know would end the link, and with it mail's.)
SPEAKS_CHANNELS: Final = digest(b"channels", b"posthouse.speaks")
NO_REQUEST: Final = 0  # the id of LinkHello, CellNote and a last LinkFault


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, as certificate, hello and root agree."""

    region: str
    cell: str
    node: str


# --- messages ------------------------------------------------------------------------------------
class LinkHello(Struct, tag=1):
    """First, both ways. `federation`: see `federation_id`."""

    version: UInt
    federation: Hash
    cell: CellName
    node: Name


class Ping(Struct, tag=2):
    """Are you there? Answered by Done, by the link itself."""


class HandItem(Struct):
    """One entry of an outbox: `what`, `item` and `part` as in records.HandIn; never 3 or 4, which the receiver says."""

    what: Annotated[int, Meta(ge=0, le=8)]
    item: Annotated[bytes, Meta(max_length=MIB)]
    part: Annotated[bytes, Meta(max_length=MIB)]


class HandOver(Struct, tag=3):
    """Numbers `first`, `first` + 1, … of the outbox that the peer's cell keeps for ours (rule 16). `confirmed`: it has
    recorded our outcomes up to here. Answered by HandOverAnswer."""

    origin_log: LogId
    confirmed: UInt
    first: UInt
    items: Annotated[tuple[HandItem, ...], Meta(max_length=MAX_BATCH)]


class HandOverAnswer(Struct, tag=4):
    """`vector`: everything up to here is applied and durable, in the log `log` of the answering cell (rule 13);
    `outcomes` of the numbers that were asked about."""

    log: LogId
    vector: UInt
    outcomes: tuple[HandedAnswer, ...]


class LookUp(Struct, tag=5):
    """Home records of `user`, at home with the peer, after version `after`. Answered by Records."""

    user: Hash
    after: UInt


class Records(Struct, tag=6):
    """Signed home records, oldest first. `code`: STORED (they lead to the newest; none when `after` is the newest) or
    UNKNOWN_USER (relay.core.wire.Code)."""

    code: UInt
    chain: Annotated[tuple[bytes, ...], Meta(max_length=MAX_CHAIN)]


class EphemeralTo(Struct, tag=7):
    """An ephemeral payload for whoever of `user`'s devices is online. Answered by Done, delivered or not."""

    user: Hash
    from_user: Hash
    from_device: Key
    payload: Annotated[bytes, Meta(max_length=MAX_EPHEMERAL)]


class Done(Struct, tag=8):
    """Taken."""


class LinkFault(Struct, tag=9):
    """The request was not served; or, under id 0, the link ends. `code` is a relay.core.wire.Code."""

    code: UInt
    text: str
    retry_after_ms: UInt


class ProveThere(Struct, tag=31):
    """Prove what your cell's fold took (relay.core.receipts). Answered by ProvenThere."""

    items: Wants


class ProvenThere(Struct, tag=32):
    """The parts of receipts, and which envelopes there are none for."""

    blocks: tuple[ProvenBlock, ...]
    missing: tuple[Missing, ...]


class PassOn(Struct, tag=33):
    """Envelopes for users at home with the listener, that the dialer's cell may not keep: take them now (ADR 25).
    Answered by PassedOn."""

    envelopes: Annotated[tuple[EnvelopeBytes, ...], Meta(min_length=1, max_length=MAX_BATCH)]


class PassedOn(Struct, tag=34):
    """What became of them, in their order. Asked about one again, the same."""

    items: Annotated[tuple[ReceiptItem, ...], Meta(max_length=MAX_BATCH)]


class ReadThere(Struct, tag=36):
    """Posts of a broadcast channel of the listener's cell (ADR 36). Only to who SPEAKS_CHANNELS. Answered by
    PageThere."""

    question: Question


class PageThere(Struct, tag=37):
    """What there is, or why nothing is given."""

    reply: Reply


# --- messages inside a cell ----------------------------------------------------------------------
# Only nodes of one cell say them to each other (section 5, rule 1): what is in a log does not leave its region.

class CellNote(Struct, tag=10):
    """What one store's Raft says to another's; it may be lost. `clock_ms`: the time it believes, Unix ms (rule 14)."""

    log_id: LogId
    store: StoreId
    clock_ms: Millis
    payload: Annotated[bytes, Meta(max_length=MAX_NOTE)]


class Propose(Struct, tag=11):
    """Put these records into a block, in `term` if it is not 0. Answered by Proposed, ProposalRefused, NotLeading."""

    log_id: LogId
    records: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_BLOCK_RECORDS)]
    term: UInt = 0


class Proposed(Struct, tag=12):
    """The block that has them. It is not committed yet, and perhaps never."""

    index: UInt
    hash: Hash
    term: UInt


class ProposalRefused(Struct, tag=13):
    """The disk writer has something against record `ordinal` (section 5, rule 2): none was taken. `policy`: it is the
    policy of a region."""

    ordinal: UInt
    text: str
    policy: bool = False


class NotLeading(Struct, tag=14):
    """Ask `leader`, a node; empty: nobody known leads."""

    leader: Annotated[str, Meta(max_length=64)]


class Join(Struct, tag=15):
    """Let `store` of this node in (rule 4). Asked again until it is. Answered by Done."""

    store: StoreId


class TakeSnapshot(Struct, tag=17):
    """You need what this log no longer has: fetch the checkpoint after block `index`, and the blocks from `first` (the
    oldest kept) to `index`, which hold what still waits. Answered by SnapshotTaken, when that is done
    (SNAPSHOT_DEADLINE_S)."""

    index: UInt
    first: UInt


class SnapshotTaken(Struct, tag=18):
    """Fetched, and handed to the core."""

    index: UInt


class FetchCheckpoint(Struct, tag=19):
    """Rows of the checkpoint after block `index`, from `row` (0 is the first) on. Answered by CheckpointPart."""

    log_id: LogId
    index: UInt
    row: UInt


class CheckpointPart(Struct, tag=20):
    """Some rows, none where that checkpoint has been replaced. `count`: how many it has in all."""

    count: UInt
    rows: tuple[bytes, ...]


class FetchFacts(Struct, tag=21):
    """What the residency check knew at the checkpoint after block `index`, after key `after` (empty: from the first).
    Answered by Facts."""

    log_id: LogId
    index: UInt
    after: MaybeHash


class Fact(Struct):
    """One fact of the residency check, and the index of the block that taught it."""

    key: Hash
    index: UInt
    value: bytes


class Facts(Struct, tag=22):
    """Some facts, by key; none after the last."""

    items: tuple[Fact, ...]


class FetchBlocks(Struct, tag=23):
    """Committed blocks `first` to `last`, or as many of them as fit. Answered by BlocksPart."""

    log_id: LogId
    first: UInt
    last: UInt


class BlockBody(Struct):
    """One block of the log that was asked about (relay.core.block.Block), and the term of its entry."""

    index: UInt
    term: UInt
    prev: Hash
    time: Millis
    hash: Hash
    records: Annotated[tuple[bytes, ...], Meta(max_length=MAX_BLOCK_RECORDS)]


class BlocksPart(Struct, tag=24):
    """Blocks, in order; none where the first is not there."""

    blocks: tuple[BlockBody, ...]


class CellEphemeral(Struct, tag=25):
    """As EphemeralTo, for devices that are connected to another node of their cell. Answered by Done."""

    user: Hash
    from_user: Hash
    from_device: Key
    payload: Annotated[bytes, Meta(max_length=MAX_EPHEMERAL)]


class CellStatus(Struct, tag=26):
    """How are you? Answered by Status."""


class Status(Struct, tag=27):
    """What a node tells operators of its cell, in the words of cluster.journal."""

    status: bytes


class StateDigest(Struct, tag=28):
    """The state after block `index` as this node folded it: a digest of its rows, which are of format `form` (rule 10).
    Answered by Done."""

    log_id: LogId
    form: UInt
    index: UInt
    digest: Hash


class Attest(Struct, tag=29):
    """Sign what your fold took in these blocks, for receipts. Answered by Attested."""

    log_id: LogId
    indices: Annotated[tuple[UInt, ...], Meta(min_length=1, max_length=PROVE_BLOCKS)]


class Attested(Struct, tag=30):
    """What this node's store signed, and of which blocks: their indices, in the order of the digests. Others than were
    asked for may be among them; those that are not, it does not have."""

    words: Annotated[tuple[tuple[tuple[UInt, ...], Word], ...], Meta(max_length=PROVE_BLOCKS)]


class AuditHead(Struct, tag=35):
    """The newest signed checkpoint of this node's audit log (a C2SP note), and its certificate (DER): keep it (ADR 26).
    Answered by Done."""

    checkpoint: Annotated[bytes, Meta(max_length=AUDIT_HEAD)]
    certificate: Annotated[bytes, Meta(max_length=MAX_CERTIFICATE)]


# --- who says what -------------------------------------------------------------------------------
CellRequest = Union[
    Propose, Join, TakeSnapshot, FetchCheckpoint, FetchFacts, FetchBlocks, CellEphemeral, CellStatus, StateDigest,
    Attest, AuditHead,
]  # fmt: skip
CELL_REQUESTS: Final = get_args(CellRequest)
CellAnswer = Union[
    Proposed, ProposalRefused, NotLeading, SnapshotTaken, CheckpointPart, Facts, BlocksPart, Status, Attested
]  # fmt: skip
Request = Union[Ping, HandOver, LookUp, EphemeralTo, ProveThere, PassOn, ReadThere, CellRequest]
Answer = Union[HandOverAnswer, Records, Done, LinkFault, ProvenThere, PassedOn, PageThere, CellAnswer]
LinkMessage = Union[LinkHello, CellNote, Request, Answer]


def patience(request: Request) -> float:
    """Seconds that a listener may take for a request."""
    return SNAPSHOT_DEADLINE_S if isinstance(request, TakeSnapshot) else LINK_DEADLINE_S


# --- frames --------------------------------------------------------------------------------------
class Frame(Struct):
    """A frame's body."""

    id: UInt
    message: LinkMessage


decode_frame: Decoder[Frame] = Decoder(Frame, "link frame", MAX_LINK_FRAME)
OVERHEAD: Final = 10  # bytes around a message at most: array of two, 64-bit id


def federation_id(root: Root) -> bytes:
    """What LinkHello calls the federation: the same for every version of its root. It tells mistakes apart; who may
    speak for whom is proved by certificates."""
    return root.federation_id


def encode_message(message: LinkMessage) -> bytes:
    """A message, to be put into a frame. Raises ProtocolError where it is too large for one."""
    packed = encode(message)
    if len(packed) + OVERHEAD > MAX_LINK_FRAME:
        raise ProtocolError(f"link message of {len(packed)} bytes", f"At most {MAX_LINK_FRAME - OVERHEAD} are taken")
    return packed


def encode_frame(request: int, packed: bytes) -> bytes:
    """One frame: length, request id and an encoded message."""
    head = b"\x92" + pack(request)
    return b"".join(((len(head) + len(packed)).to_bytes(4, "big"), head, packed))
