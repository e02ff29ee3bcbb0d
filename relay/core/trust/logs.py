"""The log of a region, as the signed root names it; and the proof that a home record is in it, offline (ADR 27).

A home record travels with its proof: what is handed on is `[record, staple]`, the bytes that its registrar answered.
The record alone is what was signed and what the log has; the staple (c2sp.org/tlog-proof) is a way from it to a
checkpoint, signed by the log and by as many witnesses as the region's policy asks for. It never runs out: what is in a
log stays there. One made later says the same, so two forms of one record are no fork: their digest is one.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from relay.core.codec import Decoder, Struct, encode
from relay.core.tlog import (
    COSIGNATURE, Malformed, NotLogged, Proven, Trust, UnsoundTrust, VerifierKey, verify_staple,
)  # fmt: skip
from relay.core.trust.root import Root
from relay.limits import KIB, MAX_STAPLE

_PAIR: Final = b"\x92"  # how a msgpack array of two begins; a record without its proof has three elements or four
_RECORD: Final = 16 * KIB  # bytes of a signed home record


class HomeEntry(Struct, frozen=True, tag=1):
    """An entry of the log: a home record, as it was signed."""

    signed: bytes


class StapledHome(Struct, frozen=True):
    """A home record with its proof: what a registrar answers, and what travels."""

    signed: Annotated[bytes, Meta(max_length=_RECORD)]
    staple: Annotated[bytes, Meta(min_length=1, max_length=MAX_STAPLE)]


_read_stapled: Decoder[StapledHome] = Decoder(StapledHome, "home record with its proof", _RECORD + MAX_STAPLE + 16)


def split_home(data: bytes) -> tuple[bytes, bytes]:
    """A home record as it was signed, and its staple (empty: it comes without). Raises ProtocolError."""
    if data[:1] != _PAIR:
        return data, b""
    stapled = _read_stapled(data)
    return stapled.signed, stapled.staple


def staple_home(signed: bytes, staple: bytes) -> bytes:
    """The other way round: the bytes that travel. Of a record that has a staple already this is the new one."""
    return encode(StapledHome(split_home(signed)[0], staple))


def same_home(one: bytes, other: bytes) -> bool:
    """Two forms of one record: they may come with different staples, or without."""
    return one == other or split_home(one)[0] == split_home(other)[0]


def home_entry(signed: bytes) -> bytes:
    """The entry that a signed home record, without its staple, is in the log."""
    return encode(HomeEntry(signed))


def trust_of(root: Root, region: str) -> Trust:
    """Whom to believe about a region's log, by the root: its log key, the witnesses' keys of all other regions, and the
    quorum of its policy. Raises UnsoundTrust where the root names no log, or a rule that cannot be kept."""
    own = root.region(region)
    if not own.log_key:
        what = f"the root document names no log of region {region}"
        raise UnsoundTrust(what, "Its operator has it signed: `posthouse init statement --log-key …`")
    log = VerifierKey.parse(own.log_key)
    return Trust(log, tuple(witnesses_of(root, region, log).values()), own.policy.quorum)


def witnesses_of(root: Root, region: str, log: VerifierKey) -> dict[str, VerifierKey]:
    """The witnesses of a region's log by their regions. Whose key is none, or is there already, is left out: what a
    region says wrongly of itself costs its own word, and must not stop the others."""
    found: dict[str, VerifierKey] = {}
    taken = {log.public}
    for other in root.payload.regions:
        if other.name == region or not other.witness_key:
            continue
        try:
            key = VerifierKey.parse(other.witness_key)
        except Malformed:
            continue
        if key.kind == COSIGNATURE and key.public not in taken and key.name != log.name:
            taken.add(key.public)
            found[other.name] = key
    return found


def check_logged(data: bytes, root: Root, region: str) -> Proven | None:
    """The record `data`, whose signatures and chain were verified, is in the log of `region`, by its staple. None: the
    signed root names no log of that region, which is therefore exempt.

    Raises NotLogged (no staple), and what `verify_staple` raises: TooFewWitnesses, UnknownKey (another log's),
    BadSignature, BadProof and NotInTree (another record's), Malformed; UnsoundTrust where the root asks for more than
    can be had."""
    if not root.region(region).log_key:
        return None
    signed, staple = split_home(data)
    if not staple:
        raise NotLogged(
            f"a home record of {region} without the proof that it is in that region's log",
            "Have the region's registrar log it (`posthouse registrar enrol`), and bring what it answers",
        )
    return verify_staple(staple, home_entry(signed), trust_of(root, region))
