"""The keepers' table: a directory with what is published, and with what lies there to be signed.

    root.bin                 the published root document, as everybody gets it
    staged/root.json         the next version of the root role, being signed
    staged/targets.json      the next version of who speaks for which region, being signed
    staged/before.bin        what is published, for whoever signs on another machine (`published_before`)
    staged/NAME.region       what regions say anew
    repository/              the same publication as a TUF repository
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tuf.api import metadata as tuf
from tuf.api.metadata import T

from cluster.federation.keys import key_words
from cluster.federation.making import Holders, Staged, delegations_of
from cluster.federation.regionfile import SignedRegion, load_region_file, log_keys
from relay.certificates import parse_certificate
from relay.core.trust import Root, RootRegion, addresses, verify_root
from relay.core.trust.metadata import check_file, parse
from relay.core.trust.root import Parsed, check_jump, parse_bundle
from relay.errors import MinorityQuorum, MixAndMatch, OperatorError, ProtocolError, TrustError

ROOT: Final = "root.json"
TARGETS: Final = "targets.json"
BEFORE: Final = "before.bin"


class Table:
    """What lies there, read once."""

    def __init__(self, directory: Path) -> None:
        """Raises OperatorError for what cannot be read."""
        self.directory = directory
        self.staged_dir, self.bundle_path = directory / "staged", directory / "root.bin"
        self.published: Parsed | None = None
        self.view: Root | None = None
        if self.bundle_path.exists():
            self.published, self.view = self._published()
        self.root = read_draft(self.staged_dir / ROOT, tuf.Root)
        self.targets = read_draft(self.staged_dir / TARGETS, tuf.Targets)
        if self.published is not None:  # a publication that was cut short had not cleared them away yet
            if self.root is not None and self.root.to_bytes() == self.published.bundle.roots[-1]:
                self.root = None
            if self.targets is not None and self.targets.to_bytes() == self.published.bundle.targets:
                self.targets = None
        self.regions = {path.stem: load_region_file(path) for path in sorted(self.staged_dir.glob("*.region"))}
        if self.published is None and (self.root is None or self.targets is None):
            remedy = "Begin with `posthouse federation init`, or give the --dir where that was done"
            raise OperatorError(f"{directory} holds no federation", remedy)

    def _published(self) -> tuple[Parsed, Root]:
        try:
            data = self.bundle_path.read_bytes()
            return parse_bundle(data), verify_root(data, 0)
        except (ProtocolError, TrustError) as error:
            remedy = "Put back the root document that was published last"
            raise OperatorError(f"{self.bundle_path}: {error.text}", remedy) from None

    @property
    def newest_root(self) -> tuf.Root:
        """The root role as it will be: staged, or published."""
        if self.root is not None:
            return self.root.signed
        assert self.published is not None, "looked at when it was read"
        return self.published.root

    @property
    def newest_targets(self) -> tuf.Targets:
        """The targets role as it will be."""
        if self.targets is not None:
            return self.targets.signed
        assert self.published is not None, "looked at when it was read"
        return self.published.targets.signed

    @property
    def next_targets(self) -> int:
        """The version of targets that can be published next."""
        return self.published.targets.signed.version + 1 if self.published else 1

    @property
    def staged(self) -> Staged:
        """What `making.publish` takes."""
        return Staged(self.root, self.targets, {name: one.file.part for name, one in self.regions.items()})

    def delegations_with(self, signed: SignedRegion) -> dict[str, Holders] | None:
        """The delegations once this region is taken in; None where they stay as they are. Raises OperatorError for what
        does not fit: a key, authority or address that another region has, an older statement than the published one."""
        name, now = signed.region.name, delegations_of(self.newest_targets)
        log_keys(signed.region)
        _check_authority(signed.region)
        for other, holders in now.items():
            if other != name and _ids(holders) & _ids(signed.holders):
                what = f"a key that signs for {name} signs for region {other} already"
                raise OperatorError(what, "Each region has keys of its own: `posthouse init region` makes them")
        for region in self._neighbours(name):
            _check_apart(signed.region, region)
        self._check_newer(signed)
        if name in now and (_ids(now[name]), now[name].threshold) == (_ids(signed.holders), signed.holders.threshold):
            return None
        return {**now, name: signed.holders}

    def _neighbours(self, name: str) -> list[RootRegion]:
        """What the other regions that stay say of themselves."""
        known = {region.name: region for region in (self.view.payload.regions if self.view else ())}
        known |= {one.region.name: one.region for one in self.regions.values()}
        return [known[other] for other in delegations_of(self.newest_targets) if other != name and other in known]

    def _check_newer(self, signed: SignedRegion) -> None:
        name = signed.region.name
        listed = self.published.snapshot.signed.meta.get(f"{name}.json") if self.published else None
        check_jump(name, listed.version if listed else 0, signed.version)
        if listed is None:
            return
        if signed.version < listed.version:
            what = f"the statement of {name} is version {signed.version}, and version {listed.version} is published"
            raise OperatorError(what, "Ask its operator for the newest one")
        try:
            if signed.version == listed.version:
                check_file(listed, signed.file.part.metadata, name)
        except MixAndMatch:
            what = f"another statement of {name} was published as version {signed.version}"
            raise OperatorError(what, "Its operator signs it once more: posthouse init statement") from None

    def missing(self) -> Iterator[str]:
        """Which signatures what is staged lacks, in words."""
        if self.root is not None:
            before = self.published.root if self.published else None
            if self.root.signed.version != (before.version + 1 if before else 1):
                what = f"{self.staged_dir / ROOT} is version {self.root.signed.version}, which is not the next one"
                raise OperatorError(what, "Stage it again: posthouse federation rotate")
            found = self.root.signed.get_root_verification_result(before, self.root.signed_bytes, self.root.signatures)
            halves = {"the keys so far": found.first, "the new keys": found.second} if before else {"": found.first}
            for whose, half in halves.items():
                yield from _lacks(self.staged_dir / ROOT, half, whose)
        if self.targets is not None:
            data, signatures = self.targets.signed_bytes, self.targets.signatures
            result = self.newest_root.get_verification_result("targets", data, signatures)
            yield from _lacks(self.staged_dir / TARGETS, result, "")
        for name in delegations_of(self.newest_targets):
            known = {part.name for part in self.published.bundle.regions} if self.published else set()
            if name not in self.regions and name not in known:
                yield f"{self.staged_dir / name}.region is missing"


def _lacks(path: Path, result: Any, whose: str) -> Iterator[str]:
    if result.missing:
        names = ", ".join(key_words(key) for key in result.unsigned.values())
        of = f" of {whose}" if whose else ""
        yield f"{path} lacks {result.missing} of {result.threshold} signatures{of}: any of {names}"


def _ids(holders: Holders) -> frozenset[str]:
    return frozenset(key.keyid for key in holders.keys)


def _check_authority(region: RootRegion) -> None:
    """Raises OperatorError for what nobody could believe: then nodes of no region would meet its own."""
    try:
        parse_certificate(region.authority, der=True)
    except ValueError:
        remedy = "Its operator makes another region file: posthouse init region, or init authority and init statement"
        raise OperatorError(f"region {region.name}: its authority is no certificate", remedy) from None


def _registrar_keys(region: RootRegion) -> set[bytes]:
    return {region.registrar_key, *(one.key for one in region.earlier)}


def _check_apart(region: RootRegion, other: RootRegion) -> None:
    if _registrar_keys(region) & _registrar_keys(other):
        raise OperatorError(f"{region.name} and {other.name} have one registrar key", "Each region has its own")
    if region.authority == other.authority:
        raise OperatorError(f"{region.name} and {other.name} have one authority", "Each region has its own")
    if _log_marks(region) & _log_marks(other):
        what = f"{region.name} and {other.name} have one log key or witness key, or two of one name"
        raise OperatorError(what, "Each region has its own: `posthouse registrar init` makes them")
    theirs = dict(addresses(other))
    for address, own in addresses(region):
        if address in theirs:
            raise OperatorError(f"{address} is the address of {own} and of {theirs[address]}", "Ask both whose it is")


def _log_marks(region: RootRegion) -> set[str | bytes]:
    """What no other region's log or witness may have."""
    try:
        return {mark for key in log_keys(region) for mark in (key.name, key.public)}
    except OperatorError:  # published before this was looked at: nobody uses them
        return set()


def check_quorums(regions: Sequence[RootRegion]) -> None:
    """Of what is to be published: where half of a log's witnesses suffice, the other half can stand by another history.
    Raises MinorityQuorum."""
    for region in regions:
        witnesses = sum(1 for other in regions if other.name != region.name and other.witness_key)
        if region.log_key and witnesses and 2 * region.policy.quorum <= witnesses:
            raise MinorityQuorum(
                f"the log of {region.name} needs {region.policy.quorum} of {witnesses} witnesses, which is no majority",
                f"Its operator asks for more: posthouse init statement --quorum {witnesses // 2 + 1}",
            )


def published_before(folder: Path, own: bytes | None) -> Parsed | None:
    """What is published, for whoever signs in `folder` and trusts `own`: that, or what lies there and follows it.
    None: nothing yet. What merely lies beside a draft is no evidence of what was there before it.

    Raises OperatorError where `own` is needed; TrustError and its kinds where what lies there does not follow it."""
    path = folder / BEFORE
    if own is None:
        if path.exists():
            what = f"{path} says what is published, and whoever made the draft may have made that"
            raise OperatorError(what, "Give the root document that you trust, your own copy: --trusted root.bin")
        return None
    if not path.exists():
        return parse_bundle(own)
    found = path.read_bytes()
    verify_root(found, 0, prev=verify_root(own, 0))  # what has run out since says what was there before all the same
    return parse_bundle(found)


def check_next(metadata: tuf.Metadata[Any], before: tuf.Metadata[Any] | None, path: Path) -> None:
    """A draft is the next version of what is published. Raises OperatorError."""
    version, last = metadata.signed.version, before.signed.version if before else 0
    if version != last + 1:
        what = f"{path} is version {version}, and version {last} is published" if last else f"{path} is no version 1"
        remedy = "Give the root document that you trust, your own copy: --trusted root.bin"
        raise OperatorError(what, "Stage it again" if last else remedy)


def read_draft(path: Path, kind: type[T]) -> tuf.Metadata[T] | None:
    """Root or targets metadata in a file; None where there is none. Raises OperatorError."""
    try:
        return parse(path.read_bytes(), kind, str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Mend its permissions") from None
    except (ProtocolError, TrustError) as error:
        raise OperatorError(error.text, "Stage it again, with the command that made it") from None
