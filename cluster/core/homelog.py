"""What a region logs, and what can be proven of a user by it, offline. ([ADR 19](../../docs/adr/0019-registrars.md).)

    an entry      a home record, as it was signed; a release: the region lets a user go, with that request and no
                  other; or an epoch: the root of the map that the records before it make
    every batch   records and releases, then one epoch. So the last entry of every checkpoint is an epoch
    logged        a record's staple                                              `verify_stapled_home`
    latest        a map proof, the epoch's entry, and the epoch's staple         `verify_newest`
    absent        the same                                                       `verify_unknown`

The epoch of a proof must be the last entry of its checkpoint: an older one is logged there, too, and would prove what
was true then. How old the checkpoint itself may be is the asker's rule; what counts is when k witnesses last stood by
it, because the log's own clock is the log's own word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final

from msgspec import Meta

from cluster.core.epochmap import MAX_MAP_PROOF, parse_map_proof, verify_absent, verify_latest
from relay.core.tlog import BadProof, Malformed, OldEpoch, Proven, StaleCheckpoint, Trust, verify_staple
from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import Hash, Millis, UInt
from relay.core.trust import (
    HomeEntry, HomeRecord, Root, Spot, StapledHome, check_current, check_endorsed, home_entry, staple_home, verify_home,
)  # fmt: skip
from relay.errors import OperatorError, ProtocolError
from relay.limits import KIB, MIB, MAX_CHAIN, MAX_LOG_ENTRY, MAX_REQUESTS, MAX_STAPLE, REGISTRAR_BATCH


class EpochEntry(Struct, frozen=True, tag=2):
    """The map over all records before this entry: its root, how many users it has. `number` counts epochs from 0;
    `time`: Unix ms, never before that of the epoch before."""

    number: UInt
    root: Hash
    users: UInt
    time: Millis


class ReleaseEntry(Struct, frozen=True, tag=3):
    """The region lets a user go: the request to move, with the release (`[payload, signature, release]`). No other
    version of that number follows in this log. The map says what it said: the user's newest record here."""

    released: bytes


Entry = HomeEntry | EpochEntry | ReleaseEntry
_read_entry: Decoder[Entry] = Decoder(Entry, "log entry", MAX_LOG_ENTRY)


def release_entry(released: bytes) -> bytes:
    """The entry that a released request is in the log of the region that is left."""
    return encode(ReleaseEntry(released))


def read_entry(data: bytes) -> Entry:
    """An entry's content. Raises Malformed."""
    try:
        entry = _read_entry(data)
    except ProtocolError as error:
        raise Malformed(error.text, "The log is not one of ours, or its registrar is at fault") from None
    if encode(entry) != data:
        raise Malformed("a log entry in another form than its one", "Its registrar is at fault")
    return entry


class Evidence(Struct, frozen=True):
    """That something is so in the newest map: the epoch's entry, its staple, and the map proof."""

    epoch: bytes
    staple: bytes
    proof: bytes


class Arrival(Struct, frozen=True):
    """What the registrar of the region that is entered is asked by a user who moves: the released request, the user's
    records so far, oldest first, the newest with its staple; and the staple of the release (empty where the region that
    is left has no log)."""

    request: bytes
    before: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=MAX_CHAIN)]
    release: Annotated[bytes, Meta(max_length=MAX_STAPLE)] = b""


class Answer(Struct, frozen=True):
    """What a registrar answers to one of many requests: as one, or, where it refuses, why (else empty): the
    error's name, its text and what to do, a line each."""

    signed: bytes
    staple: bytes
    refusal: bytes


class Standing(Struct, frozen=True):
    """What a registrar says of a user: all records after the version that was asked for, stapled, oldest first (none:
    the user is not there, or has no newer one), and the evidence about the newest one or the absence."""

    records: tuple[bytes, ...]
    evidence: Evidence


_read_enrolled: Decoder[StapledHome] = Decoder(StapledHome, "registrar's answer", 17 * KIB + MAX_STAPLE)
_read_requests: Decoder[tuple[bytes, ...]] = Decoder(tuple[bytes, ...], "enrolment requests", MAX_REQUESTS)
MAX_ANSWERS = MAX_REQUESTS + REGISTRAR_BATCH * (MAX_STAPLE + KIB)  # bytes
_read_answers: Decoder[tuple[Answer, ...]] = Decoder(tuple[Answer, ...], "registrar's answers", MAX_ANSWERS)
MAX_ARRIVAL: Final = MIB  # bytes; what a block takes of a chain, too
_read_arrival: Decoder[Arrival] = Decoder(Arrival, "request of a user who comes", MAX_ARRIVAL)
MAX_STANDING = MAX_CHAIN * (17 * KIB + MAX_STAPLE) + MAX_STAPLE + MAX_MAP_PROOF + KIB  # bytes
_read_standing: Decoder[Standing] = Decoder(Standing, "registrar's answer", MAX_STANDING)


def read_enrolled(data: bytes) -> StapledHome:
    """A record and its staple, which a registrar answers to a request. Parsed, not verified. Raises Malformed."""
    try:
        return _read_enrolled(data)
    except ProtocolError as error:
        raise Malformed(error.text, "Ask again; if it stays so, the registrar is at fault") from None


def read_arrival(data: bytes) -> Arrival:
    """Parsed, not verified. Raises Malformed."""
    try:
        return _read_arrival(data)
    except ProtocolError as error:
        raise Malformed(error.text, "Ask as docs/PROTOCOL.md, section 5, says") from None


def read_requests(data: bytes) -> tuple[bytes, ...]:
    """The requests of one body, as many as fit into a batch. Raises OperatorError."""
    try:
        requests = _read_requests(data)
    except ProtocolError as error:
        raise OperatorError(error.text, "Send a msgpack array of requests") from None
    if len(requests) > REGISTRAR_BATCH:
        raise OperatorError(f"{len(requests)} requests at once", f"At most {REGISTRAR_BATCH} are taken")
    return requests


def read_answers(data: bytes) -> tuple[Answer, ...]:
    """Parsed, not verified. Raises Malformed."""
    try:
        return _read_answers(data)
    except ProtocolError as error:
        raise Malformed(error.text, "Ask again; if it stays so, the registrar is at fault") from None


def read_standing(data: bytes) -> Standing:
    """Parsed, not verified. Raises Malformed."""
    try:
        return _read_standing(data)
    except ProtocolError as error:
        raise Malformed(error.text, "Ask again; if it stays so, the registrar is at fault") from None


@dataclass(frozen=True)
class Freshness:
    """The rule about age: at `now` (Unix s) the k-th newest cosignature is at most `age` seconds old."""

    now: int
    age: int


def verify_stapled_home(
    signed: bytes, staple: bytes, root: Root, trust: Trust, prev: HomeRecord | None, now_ms: int
) -> tuple[HomeRecord, Proven]:
    """A home record that follows `prev` (None: version 1), is valid now, and is in its region's log, which `trust` is
    about, by k witnesses. Offline.

    Raises what `verify_home`, `check_current` and `verify_staple` raise: BadSignature (user's key or registrar's alone,
    a checkpoint's), RetiredKey, BrokenChain, NotValidNow, TooFewWitnesses, UnknownKey, BadProof, Malformed."""
    record = verify_home(staple_home(signed, staple), root, prev)
    check_current(record, now_ms)
    proven = verify_staple(staple, home_entry(signed), trust)
    check_endorsed(record, root, Spot(record.payload.region, proven.index))
    return record, proven


def verify_newest(record: HomeRecord, evidence: Evidence, trust: Trust, fresh: Freshness | None) -> EpochEntry:
    """The user's newest record is this one, by the newest epoch of a checkpoint that k witnesses stand by. `record` is
    verified already. `fresh` None: of any age. Offline.

    Raises BadProof (there is a newer one, or another), OldEpoch, StaleCheckpoint, and what `verify_staple` raises."""
    epoch = _open_epoch(evidence, trust, fresh)
    verify_latest(record.user, record.version, record.digest, parse_map_proof(evidence.proof), epoch.root)
    return epoch


def verify_unknown(user: bytes, evidence: Evidence, trust: Trust, fresh: Freshness | None) -> EpochEntry:
    """The region has no such user, by the same evidence. Raises the same."""
    epoch = _open_epoch(evidence, trust, fresh)
    verify_absent(user, parse_map_proof(evidence.proof), epoch.root)
    return epoch


def _open_epoch(evidence: Evidence, trust: Trust, fresh: Freshness | None) -> EpochEntry:
    proven = verify_staple(evidence.staple, evidence.epoch, trust)
    entry = read_entry(evidence.epoch)
    if not isinstance(entry, EpochEntry):
        raise BadProof("a home record in place of an epoch", "Ask for the proof anew")
    if proven.index != proven.checkpoint.size - 1:
        raise OldEpoch(
            f"epoch {entry.number}: entry {proven.index} of a log of {proven.checkpoint.size} is not its last",
            "Newer records may be missing in it; ask for the newest epoch",
        )
    if fresh is not None:
        check_fresh(proven, trust, fresh)
    return entry


def check_fresh(proven: Proven, trust: Trust, fresh: Freshness) -> None:
    """At least k witnesses (one, where k is 0) stood by the checkpoint within the rule. Raises StaleCheckpoint."""
    times = sorted(proven.times.values(), reverse=True)
    k = max(trust.k, 1)
    if len(times) < k or times[k - 1] < fresh.now - fresh.age:
        age = f"{fresh.now - times[k - 1]} s ago" if len(times) >= k else "never"
        raise StaleCheckpoint(
            f"log {proven.checkpoint.origin} at {proven.checkpoint.size}: {k} witnesses last stood by it {age}",
            f"At most {fresh.age} s are allowed: ask for a newer one; if there is none, somebody holds it back",
        )
