"""The keepers of a federation in memory, and what somebody does who has some of their keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api import metadata as tuf

from cluster.federation.making import (
    Holders, Lifetimes, Staged, draft_root, draft_targets, publish, region_part, sign_all,
)  # fmt: skip
from relay.core.codec import encode
from relay.core.trust import Root, RootCell, RootNode, RootRegion, verify_root
from relay.core.trust.root import RegionPart, parse_bundle
from relay.limits import DAY
from tests.roots import signer

NOW = 1_900_000_000_000
YEAR = 365 * DAY
NAMES = ("norden", "sauda")


def region(name: str, link: str = "127.0.0.1:1", **more: Any) -> RootRegion:
    return RootRegion(name, b"", b"r" * 32, (RootCell(f"{name}/1", (RootNode("n1", link, ("ws://x:1",)),)),), **more)


def signers(*names: str) -> list[CryptoSigner]:
    return [signer(name) for name in names]


@dataclass
class Keepers:
    """The federation's keepers, at their table: 2 of 3 root keys, 2 of 3 keepers' keys, one online key."""

    root: tuple[str, ...] = ("root-1", "root-2", "root-3")
    keepers: tuple[str, ...] = ("keeper-1", "keeper-2", "keeper-3")
    online: str = "online"
    now: int = NOW
    bundle: bytes = b""

    def draft(self, version: int) -> tuf.Metadata[tuf.Root]:
        holders = Holders.of(signers(*self.root), 2), Holders.of(signers(*self.keepers), 2)
        return draft_root("test", version, *holders, Holders.of(signers(self.online)), self.now + YEAR)

    def delegate(self, version: int, *names: str) -> tuf.Metadata[tuf.Targets]:
        return draft_targets(version, {name: Holders.of(signers(f"region {name}")) for name in names}, self.now + YEAR)

    def begin(self) -> bytes:
        staged = Staged(
            sign_all(self.draft(1), signers(*self.root[:2])),
            sign_all(self.delegate(1, *NAMES), signers(*self.keepers[1:])),
            {name: self.part(region(name), 1) for name in NAMES},
        )
        return self.publish(staged)

    def part(self, entry: RootRegion, version: int, *keys: str) -> RegionPart:
        return region_part(entry, signers(*(keys or (f"region {entry.name}",))), version, self.now + YEAR)

    def publish(self, staged: Staged | None = None, online: str = "") -> bytes:
        before = parse_bundle(self.bundle) if self.bundle else None
        self.bundle = publish(before, staged or Staged(), signers(online or self.online), self.now, Lifetimes())
        return self.bundle

    def rotate(self, root: Sequence[str], by: Sequence[str], online: str = "") -> Staged:
        """Another root role with these keys, signed `by`."""
        version = parse_bundle(self.bundle).root.version + 1
        self.root, self.online = tuple(root), online or self.online
        return Staged(sign_all(self.draft(version), signers(*by)))


def check(signed: bytes, now: int = NOW, **more: Any) -> Root:
    return verify_root(signed, now, **more)


def swapped(signed: bytes, **parts: Any) -> bytes:
    """The bundle with other bytes for some of its parts."""
    return encode(msgspec.structs.replace(parse_bundle(signed).bundle, **parts))


def edited(data: bytes, change: Callable[[dict[str, Any]], None], *keys: str) -> bytes:
    """Metadata with another content, signed anew with `keys` (without them, under the old signatures)."""
    tree = json.loads(data)
    change(tree["signed"])
    metadata: tuf.Metadata[Any] = tuf.Metadata.from_dict(tree)
    if keys:
        metadata.signatures.clear()
        sign_all(metadata, signers(*keys))
    return metadata.to_bytes()


def resigned(before: Any, files: dict[str, tuple[int, bytes]]) -> tuple[bytes, bytes]:
    """Snapshot and timestamp over other files, by somebody who has the online key."""
    meta = dict(before.snapshot.signed.meta)
    for name, (version, data) in files.items():
        meta[f"{name}.json"] = tuf.MetaFile.from_data(version, data, ["sha256"])
    version, ends = before.snapshot.signed.version + 1, before.snapshot.signed.expires
    snapshot = sign_all(tuf.Metadata(tuf.Snapshot(version, None, ends, meta)), signers("online")).to_bytes()
    entry = tuf.MetaFile.from_data(version, snapshot, ["sha256"])
    timestamp = tuf.Timestamp(before.timestamp.signed.version + 1, None, ends, entry)
    return snapshot, sign_all(tuf.Metadata(timestamp), signers("online")).to_bytes()


