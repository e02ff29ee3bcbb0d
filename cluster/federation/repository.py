"""A publication in the layout of a TUF repository with consistent snapshots (specification 1.0, section 6.2), for
any TUF client: metadata/ and targets/ to be served as they are."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

from relay.core.trust.root import parse_bundle


def repository_files(signed: bytes) -> Iterator[tuple[str, bytes]]:
    """(path in the repository, bytes) of everything in a root document; the timestamp last, since it makes the rest
    count. All others have names of their own for each version, and never change."""
    parsed = parse_bundle(signed)
    bundle, versions = parsed.bundle, parsed.snapshot.signed.meta
    for number, data in enumerate(bundle.roots, 1):
        yield f"metadata/{number}.root.json", data
    for part in bundle.regions:
        yield f"targets/{sha256(part.statement).hexdigest()}.{part.name}.region", part.statement
        yield f"metadata/{versions[f'{part.name}.json'].version}.{part.name}.json", part.metadata
    yield f"metadata/{parsed.targets.signed.version}.targets.json", bundle.targets
    yield f"metadata/{parsed.snapshot.signed.version}.snapshot.json", bundle.snapshot
    yield "metadata/timestamp.json", bundle.timestamp
