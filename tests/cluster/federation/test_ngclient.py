"""python-tuf's own client, which we did not write, takes what we publish, and refuses what we refuse.

It reads the repository as `posthouse federation publish` lays it out, from a directory, and the wall clock itself."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tuf.api.exceptions import (
    BadVersionNumberError, DownloadHTTPError, ExpiredMetadataError, LengthOrHashMismatchError, RepositoryError,
    UnsignedMetadataError,
)  # fmt: skip
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from cluster.federation.making import Lifetimes, Staged, sign_all
from cluster.federation.repository import repository_files
from relay.core.trust import verify_root
from relay.core.trust.root import parse_bundle
from relay.core.trust.statement import decode_statement
from relay.errors import TrustError
from relay.limits import DAY
from tests.relay.core.trust.keepers import Keepers, region, resigned, signers, swapped


class Directory(FetcherInterface):
    """Fetches from a directory; its URLs are paths."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url)
        if not path.is_file():
            raise DownloadHTTPError("no such file", 404)
        return iter([path.read_bytes()])


class Reader:
    """A TUF client that begins with version 1 of the root role, and keeps what it trusts."""

    def __init__(self, folder: Path) -> None:
        self.repository, self.kept, self.got = (folder / name for name in ("repository", "kept", "got"))
        for path in (self.repository, self.kept, self.got):
            path.mkdir()
        self.first = b""

    def serve(self, signed: bytes) -> None:
        for name, data in repository_files(signed):
            path = self.repository / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        self.first = self.first or parse_bundle(signed).bundle.roots[0]

    def read(self, name: str) -> bytes:
        """What the region says, as this client sees it."""
        updater = Updater(
            str(self.kept), f"{self.repository}/metadata/", str(self.got), f"{self.repository}/targets/", Directory(),
            UpdaterConfig(), bootstrap=self.first,
        )  # fmt: skip
        found = updater.get_targetinfo(f"{name}.region")
        assert found is not None, "no such target"
        return Path(updater.download_target(found)).read_bytes()


@pytest.fixture
def keepers() -> Keepers:
    made = Keepers(now=int(time.time() * 1000))
    made.begin()
    return made


@pytest.fixture
def reader(tmp_path: Path, keepers: Keepers) -> Reader:
    made = Reader(tmp_path)
    made.serve(keepers.bundle)
    return made


def test_it_reads_what_regions_say(keepers: Keepers, reader: Reader) -> None:
    for name in ("norden", "sauda"):
        assert decode_statement(reader.read(name)) == region(name)
    keepers.publish(Staged(regions={"norden": keepers.part(region("norden", "new:1"), 2)}))
    keepers.publish(keepers.rotate(("a", "b"), ("root-1", "root-2", "a", "b"), online="another"))
    reader.serve(keepers.bundle)
    assert decode_statement(reader.read("norden")) == region("norden", "new:1")
    targets = sign_all(keepers.delegate(2, "norden"), signers("keeper-1", "keeper-2"))
    reader.serve(keepers.publish(Staged(targets=targets)))
    assert decode_statement(reader.read("norden")) == region("norden", "new:1")
    with pytest.raises(AssertionError, match="no such target"):
        reader.read("sauda")


def rolled_back(keepers: Keepers) -> bytes:
    return Keepers(now=keepers.now).begin()


def frozen(keepers: Keepers) -> bytes:
    keepers.now -= 20 * DAY
    return keepers.publish()


def too_few(keepers: Keepers) -> bytes:
    return keepers.publish(keepers.rotate(("a", "b"), ("root-1", "a", "b")))


def anothers_region(keepers: Keepers) -> bytes:
    before, part = parse_bundle(keepers.bundle), keepers.part(region("norden", "evil:1"), 9, "region sauda")
    snapshot, timestamp = resigned(before, {"norden": (9, part.metadata)})
    return swapped(keepers.bundle, regions=(part, before.bundle.regions[1]), snapshot=snapshot, timestamp=timestamp)


def mixed(keepers: Keepers) -> bytes:
    """A newer timestamp over the older snapshot's bytes."""
    old = parse_bundle(keepers.bundle).bundle.snapshot
    new = parse_bundle(keepers.publish())
    return swapped(keepers.bundle, snapshot=edited_version(old, new.timestamp.signed.snapshot_meta.version))


def edited_version(data: bytes, version: int) -> bytes:
    tree = json.loads(data)
    tree["signed"]["version"] = version
    return json.dumps(tree, separators=(",", ":")).encode()


@pytest.mark.parametrize(("attack", "error"), [
    (rolled_back, BadVersionNumberError), (frozen, ExpiredMetadataError), (too_few, UnsignedMetadataError),
    (anothers_region, UnsignedMetadataError), (mixed, LengthOrHashMismatchError),
])  # fmt: skip
def test_both_refuse_the_same(
    keepers: Keepers, reader: Reader, attack: Callable[[Keepers], bytes], error: type[RepositoryError]
) -> None:
    reader.serve(keepers.publish())
    assert decode_statement(reader.read("norden")) == region("norden")
    trusted, now = verify_root(keepers.bundle, keepers.now), keepers.now
    attacked = attack(keepers)
    with pytest.raises(TrustError):
        verify_root(attacked, now, prev=trusted)
    reader.serve(attacked)
    with pytest.raises(error):
        reader.read("norden")


def test_a_statement_that_was_swapped(keepers: Keepers, reader: Reader) -> None:
    (path,) = (reader.repository / "targets").glob("*.norden.region")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(LengthOrHashMismatchError):
        reader.read("norden")


def test_the_lifetimes_are_those_that_were_asked_for(keepers: Keepers) -> None:
    payload = verify_root(keepers.bundle, keepers.now).payload
    assert payload.fresh_until // 1000 == (keepers.now + Lifetimes().timestamp) // 1000
