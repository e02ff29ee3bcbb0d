"""Making TUF metadata. The time and every key are arguments; nothing here reads or writes a file.

A draft has no, or not all, signatures; `Staged` has what is to be published next beside what is published.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api import metadata as tuf
from tuf.api.metadata import T

from relay.core.codec import encode
from relay.core.trust import RootRegion
from relay.core.trust.root import Parsed, RegionPart, check_region, make_bundle, parse_bundle
from relay.core.trust.statement import encode_statement
from relay.limits import DAY

ROOT_LIFETIME: Final = 365 * DAY  # ms; who signs no more ends some day, or a revoked key would live for ever
TARGETS_LIFETIME: Final = 365 * DAY
REGION_LIFETIME: Final = 365 * DAY
SNAPSHOT_LIFETIME: Final = 60 * DAY  # so long a node that gets nothing newer goes on, loudly
TIMESTAMP_LIFETIME: Final = 14 * DAY  # so old a document may be to be taken in; two weeks of a keeper's holiday
_HASHES: Final = ["sha256"]


@dataclass(frozen=True)
class Holders:
    """Who may sign for a role: a threshold of these keys."""

    keys: tuple[SSlibKey, ...]
    threshold: int

    @classmethod
    def of(cls, signers: Iterable[CryptoSigner], threshold: int | None = None) -> Holders:
        """All of them, unless `threshold` says otherwise."""
        keys = tuple(signer.public_key for signer in signers)
        return cls(keys, len(keys) if threshold is None else threshold)


@dataclass(frozen=True)
class Lifetimes:
    """How long what is published holds, ms."""

    snapshot: int = SNAPSHOT_LIFETIME
    timestamp: int = TIMESTAMP_LIFETIME


@dataclass
class Staged:
    """What is to be published next. `root`, `targets`: None where they stay as they are."""

    root: tuf.Metadata[tuf.Root] | None = None
    targets: tuf.Metadata[tuf.Targets] | None = None
    regions: dict[str, RegionPart] = field(default_factory=dict)


def moment(unix_ms: int) -> datetime:
    """Whole seconds: TUF knows no finer."""
    return datetime.fromtimestamp(unix_ms // 1000, UTC)


def draft_root(
    federation: str, version: int, root: Holders, targets: Holders, online: Holders, expires_ms: int
) -> tuf.Metadata[tuf.Root]:
    """An unsigned version of the root role. `online` signs snapshot and timestamp."""
    holders = {"root": root, "targets": targets, "snapshot": online, "timestamp": online}
    return tuf.Metadata(
        tuf.Root(
            version=version,
            expires=moment(expires_ms),
            keys={key.keyid: key for holder in holders.values() for key in holder.keys},
            roles={
                role: tuf.Role([key.keyid for key in holder.keys], holder.threshold) for role, holder in holders.items()
            },
            consistent_snapshot=True,
            unrecognized_fields={"federation": federation},
        )
    )


def draft_targets(version: int, delegations: Mapping[str, Holders], expires_ms: int) -> tuf.Metadata[tuf.Targets]:
    """Unsigned targets that delegate to one role for each region, for its own statement alone."""
    keys = {key.keyid: key for holder in delegations.values() for key in holder.keys}
    roles = {
        name: tuf.DelegatedRole(
            name, [key.keyid for key in holder.keys], holder.threshold, terminating=True, paths=[f"{name}.region"]
        )
        for name, holder in delegations.items()
    }
    return tuf.Metadata(tuf.Targets(version, None, moment(expires_ms), delegations=tuf.Delegations(dict(keys), roles)))


def holders_of(delegator: tuf.Root | tuf.Targets, role: str) -> Holders:
    """Who may sign for a role now."""
    found = delegator.get_delegated_role(role)
    keys = [delegator.get_key(keyid) for keyid in found.keyids]
    return Holders(tuple(key for key in keys if isinstance(key, SSlibKey)), found.threshold)


def delegations_of(targets: tuf.Targets) -> dict[str, Holders]:
    """Who may speak for which region now."""
    roles = targets.delegations.roles or {} if targets.delegations else {}
    return {name: holders_of(targets, name) for name in roles}


def sign_all(metadata: tuf.Metadata[T], signers: Iterable[CryptoSigner]) -> tuf.Metadata[T]:
    """Add a signature of each; returns the same."""
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata


def region_part(region: RootRegion, signers: Sequence[CryptoSigner], version: int, expires_ms: int) -> RegionPart:
    """A region's statement, signed by its operator. Raises ProtocolError, TrustError for what no reader takes."""
    statement = encode_statement(region)
    path = f"{region.name}.region"
    signed = tuf.Targets(
        version=version,
        expires=moment(expires_ms),
        targets={path: tuf.TargetFile.from_data(path, statement, _HASHES)},
    )
    return RegionPart(region.name, sign_all(tuf.Metadata(signed), signers).to_bytes(), statement)


def publish(
    published: Parsed | None, staged: Staged, online: Sequence[CryptoSigner], now_ms: int, lifetimes: Lifetimes
) -> bytes:
    """The next root document: what is staged, what else is published, a new snapshot and a new timestamp.

    Whether its signatures suffice is for whoever verifies it to say. Raises TrustError and its kinds where a region's
    part is not signed by those to whom the targets delegate."""
    roots = list(published.bundle.roots) if published else []
    if staged.root is not None:
        roots.append(staged.root.to_bytes())
    targets = published.bundle.targets if published else b""
    delegator = published.targets.signed if published else None
    if staged.targets is not None:
        targets, delegator = staged.targets.to_bytes(), staged.targets.signed
    assert delegator is not None, "version 1 has targets"
    parts = {part.name: part for part in published.bundle.regions} if published else {}
    parts |= staged.regions
    regions = [parts[name] for name in delegations_of(delegator)]

    meta = dict(published.snapshot.signed.meta) if published else {}  # what was removed stays listed (TUF 5.5.5)
    meta["targets.json"] = tuf.MetaFile.from_data(delegator.version, targets, _HASHES)
    for part in regions:
        version = check_region(part, delegator).version
        meta[f"{part.name}.json"] = tuf.MetaFile.from_data(version, part.metadata, _HASHES)
    number = published.snapshot.signed.version + 1 if published else 1
    snapshot = _signed(tuf.Snapshot(number, None, moment(now_ms + lifetimes.snapshot), meta), online)
    entry = tuf.MetaFile.from_data(number, snapshot, _HASHES)
    number = published.timestamp.signed.version + 1 if published else 1
    timestamp = _signed(tuf.Timestamp(number, None, moment(now_ms + lifetimes.timestamp), entry), online)
    return encode(make_bundle(roots, timestamp, snapshot, targets, regions))


def _signed(signed: Any, signers: Sequence[CryptoSigner]) -> bytes:
    return sign_all(tuf.Metadata(signed), signers).to_bytes()


# --- all at once ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Keyring:
    """Every key of a federation in one hand: on one machine, and in tests. `regions`: by name."""

    root: tuple[CryptoSigner, ...]
    keepers: tuple[CryptoSigner, ...]
    online: CryptoSigner
    regions: Mapping[str, CryptoSigner]


def make_federation_root(
    federation: str, regions: Sequence[RootRegion], keys: Keyring, now_ms: int, lifetime: int = ROOT_LIFETIME,
    before: bytes | None = None, news: int | None = None,
) -> bytes:  # fmt: skip
    """A root document over `regions`, signed by all of `keys`; everything in it holds for `lifetime` ms, the timestamp
    for `news` ms if that is given. With `before`, the one that follows it."""
    parsed, until = parse_bundle(before) if before else None, now_ms + lifetime
    holders = Holders.of(keys.root), Holders.of(keys.keepers), Holders.of([keys.online])
    root = draft_root(federation, parsed.root.version + 1 if parsed else 1, *holders, until)
    number = parsed.targets.signed.version + 1 if parsed else 1
    targets = draft_targets(number, {region.name: Holders.of([keys.regions[region.name]]) for region in regions}, until)
    staged = Staged(sign_all(root, keys.root), sign_all(targets, keys.keepers))
    listed = parsed.snapshot.signed.meta if parsed else {}
    for region in regions:
        known = listed.get(f"{region.name}.json")
        version = known.version + 1 if known else 1
        staged.regions[region.name] = region_part(region, [keys.regions[region.name]], version, until)
    return publish(parsed, staged, [keys.online], now_ms, Lifetimes(lifetime, lifetime if news is None else news))
