"""The root document: a bundle of TUF metadata, verified whole, and what it says (ADR 18).

What a client does with it is the client workflow of the TUF specification (1.0, section 5), step by step and in its
order: the root chain from the pinned version 1, timestamp, snapshot, targets, then one delegation for each region. What
was trusted before and the time come as arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from msgspec import Meta
from tuf.api import metadata as tuf

from relay.core.codec import Decoder, Struct, digest
from relay.core.shapes import Hash, Key, Millis, Name, Text, UInt
from relay.core.trust.metadata import MAX_METADATA, check_file, check_signed, ends_ms, key_values, parse
from relay.core.trust.statement import MAX_REGIONS, MAX_STATEMENT, RootCell, RootRegion, decode_statement
from relay.errors import BrokenChain, FastForward, Frozen, MixAndMatch, NotValidNow, ProtocolError, Rollback, TrustError
from relay.limits import MAX_BUNDLE

MAX_STEP: Final = 10_000  # versions of a region between two publications: beyond it no operator has signed them in turn
MAX_ROOTS: Final = 512  # versions of the root role; a rotation each month for 42 years
_FORMAT: Final = 2
_MetadataBytes = Annotated[bytes, Meta(max_length=MAX_METADATA)]
_NEWER: Final = "Get the newest root document from the federation's keepers"


class RegionPart(Struct, frozen=True):
    """A region's delegated TUF metadata, and its statement: the one target that these name."""

    name: Name
    metadata: _MetadataBytes
    statement: Annotated[bytes, Meta(max_length=MAX_STATEMENT)]


class Bundle(Struct, frozen=True):
    """Everything that a verifier needs, in one file: the bytes of the TUF files, of the root role all versions."""

    format: UInt
    roots: Annotated[tuple[_MetadataBytes, ...], Meta(min_length=1, max_length=MAX_ROOTS)]
    timestamp: _MetadataBytes
    snapshot: _MetadataBytes
    targets: _MetadataBytes
    regions: Annotated[tuple[RegionPart, ...], Meta(max_length=MAX_REGIONS)]


class Delegation(Struct, frozen=True):
    """Who may speak for a region: a threshold of these keys (Ed25519), as the federation's keepers signed."""

    name: Name
    keys: tuple[Key, ...]
    threshold: UInt


class RootPayload(Struct, frozen=True):
    """What a verified root document says.

    `version` counts publications (the TUF timestamp's version), `root_version` the versions of the root role, whose
    `keys` and `threshold` these are. `expires`: when the first of root, snapshot and targets ends; `fresh_until`: when
    the timestamp does. `lapsed`: regions whose own statement has run out, and which are therefore not in `regions`."""

    federation: Text
    version: UInt
    root_version: UInt
    expires: Millis
    fresh_until: Millis
    keys: tuple[Key, ...]
    threshold: UInt
    regions: tuple[RootRegion, ...]
    lapsed: tuple[Name, ...] = ()
    delegations: tuple[Delegation, ...] = ()


class Root(Struct, frozen=True):
    """A verified root document. `federation_id` is the digest of version 1 of the root role: the pin, which no rotation
    changes. `digest` names this publication. `signed`: the bundle's bytes."""

    federation_id: Hash
    digest: Hash
    payload: RootPayload
    signed: bytes

    @property
    def rank(self) -> tuple[int, int]:
        """Of two root documents of one federation the newer one has the higher rank."""
        return self.payload.root_version, self.payload.version

    def region(self, name: str) -> RootRegion:
        """Raises TrustError for a region that the federation does not have, NotValidNow for one that has run out."""
        for region in self.payload.regions:
            if region.name == name:
                return region
        if name in self.payload.lapsed:
            remedy = "Its operator signs it again: posthouse init statement"
            raise NotValidNow(f"the statement of region {name} has expired", remedy)
        raise TrustError(f"the federation has no region {name!r}")

    def cell(self, name: str) -> RootCell | None:
        for region in self.payload.regions:
            for cell in region.cells:
                if cell.name == name:
                    return cell
        return None

    def cells(self) -> list[str]:
        return [cell.name for region in self.payload.regions for cell in region.cells]


_bundle: Decoder[Bundle] = Decoder(Bundle, "root document", MAX_BUNDLE)


@dataclass(frozen=True)
class Parsed:
    """A bundle, parsed; what of it is verified depends on who holds it."""

    bundle: Bundle
    roots: list[tuf.Metadata[tuf.Root]]
    timestamp: tuf.Metadata[tuf.Timestamp]
    snapshot: tuf.Metadata[tuf.Snapshot]
    targets: tuf.Metadata[tuf.Targets]

    @property
    def root(self) -> tuf.Root:
        return self.roots[-1].signed


def parse_bundle(signed: bytes) -> Parsed:
    """Raises ProtocolError; TrustError where one key stands under two ids. Verifies nothing."""
    bundle = _bundle(signed)
    if bundle.format != _FORMAT:
        raise ProtocolError(f"root document of format {bundle.format}", "Install the release that fits it")
    return Parsed(
        bundle,
        [parse(data, tuf.Root, f"root version {number}") for number, data in enumerate(bundle.roots, 1)],
        parse(bundle.timestamp, tuf.Timestamp, "timestamp"),
        parse(bundle.snapshot, tuf.Snapshot, "snapshot"),
        parse(bundle.targets, tuf.Targets, "targets"),
    )


def make_bundle(
    roots: Sequence[bytes], timestamp: bytes, snapshot: bytes, targets: bytes, regions: Sequence[RegionPart]
) -> Bundle:
    """For whoever publishes."""
    return Bundle(_FORMAT, tuple(roots), timestamp, snapshot, targets, tuple(regions))


def federation_id_of(first: tuf.Metadata[tuf.Root]) -> bytes:
    """The pin: digest of the canonical signed bytes of version 1 of the root role. Who signed it does not matter."""
    return digest(first.signed_bytes, b"posthouse.pin")


def verify_root(signed: bytes, now_ms: int, pinned: bytes | None = None, prev: Root | None = None) -> Root:
    """Verify a root document at Unix time `now_ms`. `pinned`: the federation id that it must have. `prev`: what was
    trusted before, which it must follow or be.

    Without both, the bundle's own version 1 is believed. Raises BadSignature (threshold not met), BrokenChain (another
    federation, a missing version, a fork), Rollback, MixAndMatch, NotValidNow (expired), Frozen (its timestamp is),
    ProtocolError (no root document)."""
    return _verify(signed, now_ms, pinned, prev, fresh=True)


def reopen_root(signed: bytes, now_ms: int, pinned: bytes | None = None) -> Root:
    """As verify_root, for a document that was verified, then kept: that its timestamp has run out since is no reason
    not to use it until the snapshot does (ADR 18). Whoever asks says so loudly."""
    return _verify(signed, now_ms, pinned, None, fresh=False)


def follow_root(signed: bytes, kept: bytes | None, now_ms: int, pinned: bytes | None = None) -> Root:
    """What somebody who trusted `kept` (None: nothing yet) makes of `signed`: the same again, or what follows it.

    Raises as verify_root. Whoever keeps the result writes it down before using it."""
    if kept is None:
        return verify_root(signed, now_ms, pinned)
    if signed == kept:
        return reopen_root(signed, now_ms, pinned)
    return verify_root(signed, now_ms, pinned, verify_root(kept, 0, pinned))  # what ran out says who may follow it


def _verify(signed: bytes, now_ms: int, pinned: bytes | None, prev: Root | None, fresh: bool) -> Root:
    new, old = parse_bundle(signed), parse_bundle(prev.signed) if prev else None
    pin = federation_id_of(new.roots[0])
    wanted = prev.federation_id if prev else pinned
    if (wanted is not None and pin != wanted) or (pinned is not None and pin != pinned):
        raise BrokenChain("the root document is another federation's, not the pinned one", "Ask the keepers for theirs")
    _check_roots(new, old, now_ms)
    _check_timestamp(new, _remembered(new, old), now_ms, fresh)
    _check_snapshot(new, _remembered(new, old), now_ms)
    _check_targets(new, now_ms)
    regions, lapsed = _check_regions(new, now_ms)
    return _view(new, pin, regions, lapsed, signed)


def _check_roots(new: Parsed, old: Parsed | None, now_ms: int) -> None:
    """5.3: each version signed by thresholds of its own keys and of those of the one before."""
    for number, metadata in enumerate(new.roots, 1):
        what = f"root version {number}"
        if metadata.signed.version != number:
            raise BrokenChain(f"{what} calls itself version {metadata.signed.version}")
        if number > 1:
            check_signed(new.roots[number - 2].signed, "root", metadata, f"{what}, by the keys of version {number - 1}")
        check_signed(metadata.signed, "root", metadata, what)
    for mine, theirs in zip(old.roots if old else (), new.roots, strict=False):
        if mine.signed_bytes != theirs.signed_bytes:
            raise BrokenChain(f"two different root roles of version {mine.signed.version}: a fork", _FORK)
    if old and len(new.roots) < len(old.roots):
        raise Rollback(f"root version {len(new.roots)} after {len(old.roots)}", _NEWER)
    if now_ms >= ends_ms(new.root):
        remedy = "The keepers sign a new one: posthouse federation rotate"
        raise NotValidNow(f"root version {new.root.version} has expired", remedy)


_FORK: Final = "Somebody signs two histories: keep both files, and ask the keepers"


def _remembered(new: Parsed, old: Parsed | None) -> Parsed | None:
    """5.3.11: whose keys were replaced may have signed any version, however high: forget what they said."""
    if old is None:
        return None
    for role in ("timestamp", "snapshot"):
        if set(key_values(old.root, role)) != set(key_values(new.root, role)):
            return None
    return old


def _check_timestamp(new: Parsed, old: Parsed | None, now_ms: int, fresh: bool) -> None:
    """5.4."""
    check_signed(new.root, "timestamp", new.timestamp, "timestamp")
    signed = new.timestamp.signed
    if old is not None:
        before = old.timestamp.signed
        if signed.version < before.version:
            raise Rollback(f"timestamp version {signed.version} after {before.version}", _NEWER)
        if signed.version == before.version and new.timestamp.signed_bytes != old.timestamp.signed_bytes:
            raise BrokenChain(f"two different timestamps of version {signed.version}: a fork", _FORK)
        _check_step("snapshot", before.snapshot_meta, signed.snapshot_meta)
    if fresh and now_ms >= ends_ms(signed):
        text = f"timestamp version {signed.version} has expired: there is a newer root document, or should be"
        raise Frozen(text, f"{_NEWER}; if it is the newest, they run: posthouse federation publish")


def _check_snapshot(new: Parsed, old: Parsed | None, now_ms: int) -> None:
    """5.5."""
    entry, signed = new.timestamp.signed.snapshot_meta, new.snapshot.signed
    check_file(entry, new.bundle.snapshot, "snapshot")
    check_signed(new.root, "snapshot", new.snapshot, "snapshot")
    if signed.version != entry.version:
        raise MixAndMatch(f"snapshot version {signed.version} where the timestamp says {entry.version}")
    for name, before in old.snapshot.signed.meta.items() if old else ():
        if name not in signed.meta:
            raise Rollback(f"the snapshot does not list {name} any more", _NEWER)
        _check_step(name.removesuffix(".json"), before, signed.meta[name])
    for name, entry in signed.meta.items():
        known = old.snapshot.signed.meta.get(name) if old else None
        if old is not None and name != "targets.json":
            check_jump(name.removesuffix(".json"), known.version if known else 0, entry.version)
    if now_ms >= ends_ms(signed):
        raise NotValidNow(f"snapshot version {signed.version} has expired", _NEWER)


def _check_step(what: str, before: tuf.MetaFile, now: tuf.MetaFile) -> None:
    """A file that was listed is the same, or of a higher version."""
    if now.version < before.version:
        raise Rollback(f"{what} version {now.version} after {before.version}", _NEWER)
    if now.version == before.version and now.hashes != before.hashes:
        raise BrokenChain(f"two different files of {what} version {now.version}: a fork", _FORK)


def region_ends(root: Root) -> dict[str, int]:
    """Unix ms from which on what each region says of itself is not valid any more: also after the document was
    verified. Who holds it for long asks again."""
    parts = parse_bundle(root.signed).bundle.regions
    return {part.name: ends_ms(parse(part.metadata, tuf.Targets, part.name).signed) for part in parts}


def check_jump(region: str, before: int, now: int) -> None:
    """Raises FastForward: with the highest version of all, a stolen region key would leave its operator none to follow,
    also not with another key."""
    if now > before + MAX_STEP:
        what = f"the statement of region {region} is version {now} after {before}: at most {MAX_STEP} are taken at once"
        raise FastForward(what, "Whoever has its key wants no other to follow: ask its operator")


def _check_targets(new: Parsed, now_ms: int) -> None:
    """5.6."""
    _check_listed(new, "targets", new.bundle.targets, new.targets)
    check_signed(new.root, "targets", new.targets, "targets")
    if new.targets.signed.targets:
        raise TrustError("targets: the federation's keepers speak for no region themselves")
    if now_ms >= ends_ms(new.targets.signed):
        remedy = "The keepers sign it again: posthouse federation rotate --targets"
        raise NotValidNow(f"targets version {new.targets.signed.version} has expired", remedy)


def _check_listed(new: Parsed, role: str, data: bytes, metadata: tuf.Metadata[Any]) -> None:
    """It is the file that the snapshot lists."""
    entry = new.snapshot.signed.meta.get(f"{role}.json")
    if entry is None:
        raise MixAndMatch(f"the snapshot does not list {role}")
    check_file(entry, data, role)
    if metadata.signed.version != entry.version:
        raise MixAndMatch(f"{role} version {metadata.signed.version} where the snapshot says {entry.version}")


def delegated(targets: tuf.Targets) -> tuple[Delegation, ...]:
    """The delegations to regions. Raises TrustError for one that is no region's, or where two have a key in common."""
    roles = targets.delegations.roles or {} if targets.delegations else {}
    owners: dict[bytes, str] = {}
    found = []
    for name, role in roles.items():
        if role.paths != [f"{name}.region"] or not role.terminating:
            raise TrustError(f"targets: the delegation to {name} is not for its own statement alone")
        keys = key_values(targets, name)
        for key in keys:
            if (other := owners.setdefault(key, name)) != name:
                raise TrustError(f"targets: one key may sign for {other} and for {name}", "Each region has its own")
        found.append(Delegation(name, keys, role.threshold))
    return tuple(found)


def _check_regions(new: Parsed, now_ms: int) -> tuple[list[RootRegion], list[str]]:
    """5.6.7: the statements of all delegated regions; and those whose operator let it run out."""
    wanted = [delegation.name for delegation in delegated(new.targets.signed)]
    if wanted != [part.name for part in new.bundle.regions]:
        raise MixAndMatch("the root document does not hold just the regions that were delegated to, in their order")
    regions, lapsed = [], []
    for part in new.bundle.regions:
        signed = check_region(part, new.targets.signed, new)
        if now_ms >= ends_ms(signed):
            lapsed.append(part.name)
        else:
            regions.append(decode_statement(part.statement))
    return regions, lapsed


def check_region(part: RegionPart, targets: tuf.Targets, new: Parsed | None = None) -> tuf.Targets:
    """The region's metadata, signed by those to whom `targets` delegates, with the very statement (and listed in the
    snapshot of `new`). Expiry is the caller's business. Raises TrustError and its kinds, ProtocolError."""
    what, path = f"region {part.name}", f"{part.name}.region"
    metadata: tuf.Metadata[tuf.Targets] = parse(part.metadata, tuf.Targets, what)
    if new is not None:
        _check_listed(new, part.name, part.metadata, metadata)
    check_signed(targets, part.name, metadata, what)
    signed = metadata.signed
    if signed.delegations is not None or list(signed.targets) != [path]:
        raise TrustError(f"{what} signs something else than {path}")
    check_file(signed.targets[path], part.statement, f"{what}: its statement")
    if decode_statement(part.statement).name != part.name:
        raise TrustError(f"{what} signs the statement of another region")
    return signed


def _view(new: Parsed, pin: bytes, regions: list[RootRegion], lapsed: list[str], signed: bytes) -> Root:
    ends = min(ends_ms(part) for part in (new.root, new.snapshot.signed, new.targets.signed))
    payload = RootPayload(
        federation=str(new.roots[0].signed.unrecognized_fields["federation"]),
        version=new.timestamp.signed.version,
        root_version=new.root.version,
        expires=ends,
        fresh_until=ends_ms(new.timestamp.signed),
        keys=key_values(new.root, "root"),
        threshold=new.root.get_delegated_role("root").threshold,
        regions=tuple(regions),
        lapsed=tuple(lapsed),
        delegations=delegated(new.targets.signed),
    )
    named = digest(new.roots[-1].signed_bytes + new.timestamp.signed_bytes, b"posthouse.root")
    return Root(pin, named, payload, signed)
