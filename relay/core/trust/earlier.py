"""What a registrar signed with a key that it has no more (ADR 42).

Its region's statement lists the key, and where it ends: for each log the first entry that it may not have signed. The
place of a record in a log is proven by the record's staple, and nobody can put another one below an end that the log
has passed: who has stolen the key afterwards makes signatures that hold, of records that have no such place.

    the registrar's signature    under a newest record: its own place. Under one that others follow: theirs, which the
                                 registrar signed, or let go, by what it had logged
    a release                    the place of the record that has it, in the log of the region that was entered
    what is asked for now        the key of now, and no other
"""

from __future__ import annotations

from contextlib import suppress
from typing import NamedTuple

from relay.core.tlog import VerifierKey, parse_checkpoint, parse_staple, verify_staple
from relay.core.trust.logs import home_entry, split_home, trust_of
from relay.core.trust.root import Root
from relay.core.trust.signing import verify
from relay.core.trust.statement import EarlierKey, RootRegion
from relay.errors import BadSignature, RetiredKey, TrustError


class Spot(NamedTuple):
    """Entry `number` of the log of `region`: that a record is there was proven."""

    region: str
    number: int


def verify_endorsed(
    region: RootRegion, domain: bytes, payload: bytes, signature: bytes, what: str
) -> EarlierKey | None:
    """The registrar of `region` signed this: with its key (None), or with the one of before that is returned, which
    says nothing yet of when. Raises BadSignature."""
    try:
        verify(region.registrar_key, domain, payload, signature, what)
    except BadSignature:
        for one in region.earlier:
            with suppress(BadSignature):
                verify(one.key, domain, payload, signature, what)
                return one
        raise
    return None


def check_spot(used: EarlierKey, spot: Spot | None, what: str) -> None:
    """What is at `spot` (None: nowhere that was proven) was signed with the key `used` before it was replaced. Raises
    RetiredKey."""
    if spot is None:
        raise RetiredKey(f"{what}: by a key that was replaced", "The registrar signs it anew, with the key of now")
    end = dict(used.ends).get(spot.region, 0)
    if spot.number >= end:
        text = f"{what}: by a key that was replaced at entry {end} of the log of {spot.region}, in entry {spot.number}"
        raise RetiredKey(text, "Somebody uses the old key. Ask the registrar for what it signed itself")


def spot_of(data: bytes, root: Root, used: EarlierKey) -> Spot | None:
    """Where the record `data` is, by the staple that it came with, in one of the logs in which the key ends; None where
    it has none of these. Raises what `verify_staple` raises."""
    signed, staple = split_home(data)
    if not staple:
        return None
    origin = parse_checkpoint(parse_staple(staple).note.text).origin
    for name, _ in used.ends:
        with suppress(TrustError):  # a region that went, or whose statement ran out: its log proves nothing now
            log_key = root.region(name).log_key
            if log_key and VerifierKey.parse(log_key).name == origin:
                break
    else:
        return None
    return Spot(name, verify_staple(staple, home_entry(signed), trust_of(root, name)).index)
