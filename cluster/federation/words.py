"""What a keeper is about to sign, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from tuf.api import metadata as tuf

from cluster.federation.keys import key_words, plain, public_bytes
from cluster.federation.making import Holders, delegations_of, holders_of
from cluster.federation.regionfile import SignedRegion, fingerprint
from relay.core.trust import Delegation, Policy, RootRegion
from relay.core.trust.metadata import ends_ms

_ROLES = {
    "root": "the root role (who may change these keys)", "targets": "the keepers (who admit and remove regions)",
    "timestamp": "publishing (snapshot and timestamp)",
}  # fmt: skip


def day(unix_ms: int) -> str:
    """A date, UTC."""
    return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d}"


def policy_words(policy: Policy) -> Iterator[str]:
    """What differs from a policy that allows everything."""
    for what, names in (("sends to", policy.send_to), ("receives from", policy.receive_from)):
        if names is not None:
            yield f"{what} {', '.join(names) or 'no other region'} only"
    if policy.hold == "deny":
        yield "mail bound abroad does not wait on its disks"
    if policy.retention_days is not None:
        yield f"keeps mail for {policy.retention_days} days at most"
    if policy.quorum:
        yield f"its log needs {policy.quorum} witnesses"


def region_words(region: RootRegion) -> Iterator[str]:
    """A region's statement."""
    for cell in region.cells:
        for node in cell.nodes:
            clients = " ".join(map(plain, node.clients))
            yield f"  {cell.name}/{node.name}  links {plain(node.link)}  clients {clients}"
    for what, text in (("log key", region.log_key), ("witness key", region.witness_key)):
        if text:
            yield f"  {what}  {plain(text)}"
    if region.earlier:
        yield f"  registrar's key  {region.registrar_key.hex()[:16]}…"
    for one in region.earlier:
        ends = ", ".join(f"{end} of {name}" for name, end in one.ends)
        yield f"    before it {one.key.hex()[:16]}…, until entry {ends or 'none'}"
    if region.registrar_url:
        yield f"  registrar  {plain(region.registrar_url)}"
    yield from (f"  {line}" for line in policy_words(region.policy))


def signed_region_words(signed: SignedRegion) -> Iterator[str]:
    """A region file."""
    yield f"Statement of region {signed.region.name}, version {signed.version}, valid until {day(signed.ends_ms)}"
    yield f"  fingerprint {fingerprint(signed.file.delegation)}"
    yield from region_words(signed.region)


def metadata_words(metadata: tuf.Metadata[Any], before: tuf.Metadata[Any] | None) -> Iterator[str]:
    """A root or targets draft, and how it differs from what is published."""
    signed = metadata.signed
    earlier = f", after version {before.signed.version}" if before else ""
    if isinstance(signed, tuf.Root):
        name = plain(str(signed.unrecognized_fields.get("federation")))
        yield f"Root role of the federation {name}, version {signed.version}{earlier}, until {day(ends_ms(signed))}"
        for role, what in _ROLES.items():
            old = holders_of(before.signed, role) if before else None
            yield from _holders_words(what, holders_of(signed, role), old)
    elif isinstance(signed, tuf.Targets):
        yield f"Regions of the federation, version {signed.version}{earlier}, until {day(ends_ms(signed))}"
        now, was = delegations_of(signed), delegations_of(before.signed) if before else {}
        for region in dict.fromkeys((*was, *now)):
            yield f"  {_change(now.get(region), was.get(region))} {plain(region)}: {_delegation(region, now, was)}"


def _delegation(region: str, now: dict[str, Holders], was: dict[str, Holders]) -> str:
    holders = now.get(region) or was[region]
    keys = tuple(public_bytes(key) for key in holders.keys)
    delegation = Delegation(region, keys, holders.threshold)
    return f"{holders.threshold} of {len(keys)} keys, fingerprint {fingerprint(delegation)}"


def _change(now: Holders | None, was: Holders | None) -> str:
    if now is None:
        return "REMOVES"
    if was is None:
        return "ADDS"
    same = {key.keyid for key in now.keys} == {key.keyid for key in was.keys} and now.threshold == was.threshold
    return "keeps" if same else "gives OTHER KEYS to"


def _holders_words(what: str, now: Holders, was: Holders | None) -> Iterator[str]:
    known = {key.keyid: key for key in was.keys} if was else {}
    was_threshold = f" (was {was.threshold})" if was and was.threshold != now.threshold else ""
    yield f"  {what}: any {now.threshold}{was_threshold} of {len(now.keys)} keys"
    for key in now.keys:
        yield f"    {'    ' if key.keyid in known or was is None else 'NEW '}{key_words(key)}"
    for keyid, key in known.items():
        if keyid not in {key.keyid for key in now.keys}:
            yield f"    GOES {key_words(key)}"
