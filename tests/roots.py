"""Signed root documents for tests: every key follows from a name, so that they are the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from securesystemslib.signer import CryptoSigner

from cluster.federation.keys import new_signer
from cluster.federation.making import Keyring, make_federation_root
from relay.core.codec import digest
from relay.core.trust import Root, RootRegion, verify_root


@cache
def signer(name: str) -> CryptoSigner:
    """The key of that name."""
    return new_signer(digest(name.encode(), b"test key"))


def keyring(regions: Sequence[RootRegion], keepers: str = "root") -> Keyring:
    """All keys of a federation whose keepers are called `keepers`."""
    return Keyring(
        (signer(keepers),), (signer(f"{keepers}/keeper"),), signer(f"{keepers}/online"),
        {region.name: signer(f"{keepers}/{region.name}") for region in regions},
    )  # fmt: skip


def signed_root(
    regions: Sequence[RootRegion], until_ms: int, *, name: str = "test", before: bytes | None = None,
    keepers: str = "root", news_ms: int | None = None,
) -> bytes:  # fmt: skip
    """A root document that holds until `until_ms` (its timestamp until `news_ms`); the one after `before`, if given."""
    return make_federation_root(name, regions, keyring(regions, keepers), 0, until_ms, before, news_ms)


def verified_root(regions: Sequence[RootRegion], until_ms: int, *, name: str = "test") -> Root:
    """What it says."""
    return verify_root(signed_root(regions, until_ms, name=name), 0)
