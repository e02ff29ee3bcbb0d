"""Looks for canaries wherever they could be: stores, files, logs, metrics, borders, links.

What a node has in the clear is looked at whether it runs or not: all its files as they lie there, and the pages of its
admin port. Its stores are unsealed only when it is stopped: a running node holds them, and a copy made beside it might
be torn, and would be one more disk with mail on it. Then it is checked that the look itself works: what was sent must
be found where it has to be.
"""

from __future__ import annotations

import http.client
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cluster.audit.kit import HEARD, LINKS, SENT, ByKit, Canary, Kit, Mark
from cluster.audit.look import Kind, Look, Secret, stores_below
from cluster.audit.scan import Scanner, files_below, unmasked
from cluster.audit.shelf import Found, Place, Role, Shelf, Verdict
from cluster.audit.sites import Site, newest_root
from cluster.config_keys import Address
from cluster.core.linkwire import federation_id
from cluster.local.capture import FULL, captured
from relay.core.wire import Code
from relay.errors import DiskFailed, OperatorError, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.files import STORE_FILE
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing
from relay.limits import MIB

PAGES: Final = ("/metrics", "/cell", "/readyz")  # of a node's admin port
_ASK_S: Final = 5.0  # seconds for one of them


@dataclass(slots=True)
class NodeLook:
    """What was looked at on one node. `unsealed`: its stores whose records were read; `shut`: why others were not;
    `pages`: of its admin port, while it runs."""

    site: Site
    shelf: Shelf
    unsealed: list[str] = field(default_factory=list)
    shut: list[str] = field(default_factory=list)
    pages: int = 0


@dataclass(frozen=True, slots=True)
class Sighting:
    """A canary's envelope in a store, and why it is there."""

    node: NodeLook
    place: Place
    role: Role


@dataclass(slots=True)
class Sightings:
    """Everything. `borders`: (source, target) → bytes that were captured; `findings` name the node or file."""

    kit: Kit
    nodes: list[NodeLook]
    found: dict[bytes, list[Sighting]] = field(default_factory=dict)  # by envelope
    borders: Counter[tuple[str, str]] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)  # bytes of what else was looked at
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not self.findings and all(node.shelf.clean for node in self.nodes)

    @property
    def shut(self) -> list[str]:
        """What could not be unsealed, and why: nothing is proven of it."""
        return [f"{node.shelf.label}: {text}" for node in self.nodes for text in node.shut]


def look_for(
    directory: Path, sites: list[Site], capture: Path | None, silent: Iterable[Path], links: Iterable[Path]
) -> Sightings:
    """Look for the kit in `directory` at the nodes of `sites`; at what crossed borders, kept in `capture`; in `silent`,
    files and directories in which nothing of a canary may be; and in `links`, captures of client links in the clear, in
    which ciphertext may be. Raises OperatorError, TrustError."""
    kit = Kit.load(directory)
    root = newest_root(sites)
    if federation_id(root) != kit.federation:
        what = f"the canaries in {directory} were sent in another federation than {root.payload.federation}"
        raise OperatorError(what, "Give the KIT that was made there")
    if not kit.canaries:
        raise OperatorError(f"{directory} has no canaries", "Send some again, to a new KIT, when the nodes run")
    if beside := [site for site in sites if directory.resolve().is_relative_to(site.top.resolve())]:
        what = f"{directory} lies with the files of {beside[0].region}-{beside[0].node}, and has all plaintexts"
        raise OperatorError(what, "Move it elsewhere: these files are looked into")
    report = Sightings(kit, [NodeLook(site, Shelf(site.region, site.node)) for site in sites])
    scanner, marks = kit.scanner(), kit.marks()
    for node in report.nodes:
        look = Look(node.shelf, ByKit(marks, node.site.region), scanner, note=_noting(report, node))
        _unseal(node, look)
        look.files(node.site.top)
        _ask(node, scanner)
    if capture is not None:
        _borders(report, capture, scanner)
    for path in silent:
        for file in _files(path):
            _scan(report, file, scanner, f"{file}")
    own = [path for path in files_below(directory / LINKS) if path.suffix in (f".{SENT}", f".{HEARD}")]
    spoken = {path: _scan(report, path, scanner, f"the client link {path}", link=True)
              for path in (*own, *(file for link in links for file in _files(link)))}  # fmt: skip
    _check_links(report, {path.name: ids for path, ids in spoken.items() if path in own})
    _check_rest(report)
    return report


def _noting(report: Sightings, node: NodeLook) -> Callable[[Shelf, Found, Verdict], None]:
    def note(shelf: Shelf, found: Found, verdict: Verdict) -> None:
        if verdict.role is not Role.OTHER:
            report.found.setdefault(found.id, []).append(Sighting(node, found.place, verdict.role))

    return note


# --- a node --------------------------------------------------------------------------------------
def _unseal(node: NodeLook, look: Look) -> None:
    """Every store of the node that nobody holds."""
    site = node.site
    try:
        ring = StorageRing.load(site.storage_key)
    except (OSError, OperatorError) as error:
        node.shut.append(f"no storage key: {error}")
        return
    for place in stores_below(site.top):
        file = site.name(place / STORE_FILE)
        try:
            with open_stopped(place, ring) as store:
                look.store(store, file)
            node.unsealed.append(file)
        except StoreLocked:
            node.shut.append(f"{file}: its node runs")
        except (StoreForeign, StoreDamaged, DiskFailed) as error:
            node.shelf.findings.append(f"{file} cannot be looked into: {error.text}")


def _ask(node: NodeLook, scanner: Scanner[Secret]) -> None:
    """What the node shows on its admin port."""
    if node.site.admin is None:
        return
    for page in PAGES:
        body = _page(node.site.admin, page)
        node.pages += body is not None
        for hit in scanner.scan_bytes(body or b""):
            node.shelf.in_the_open += 1
            node.shelf.findings.append(f"{hit.secret} ({hit.encoding}) in {page} at byte {hit.offset}")


def _page(where: Address, page: str) -> bytes | None:
    """None where nobody answers."""
    connection = http.client.HTTPConnection(where.host, where.port, timeout=_ASK_S)
    try:
        connection.request("GET", page)
        return connection.getresponse().read(16 * MIB)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


# --- borders, files and links --------------------------------------------------------------------
def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise OperatorError(f"{path}: nothing is there", "Name a file or directory to look into")
    return files_below(path) if path.is_dir() else [path]


def _scan(report: Sightings, path: Path, scanner: Scanner[Secret], where: str, link: bool = False) -> set[bytes]:
    """The envelopes in a file. What must not be in it is a finding: a plaintext always, ciphertext unless it is a
    client link in the clear; there what clients say may be masked."""
    report.files[str(path)] = path.stat().st_size
    hits = list(scanner.scan_file(path))
    bad = {(hit.offset, hit.secret): hit.encoding for hit in hits if not link or hit.secret.kind is not Kind.ENVELOPE}
    for hit in report.kit.masked().scan_file(path, unmasked) if link else ():
        bad.setdefault((hit.offset, hit.secret), "masked")
    report.findings += (f"{secret} ({how}) in {where} at byte {at}" for (at, secret), how in bad.items())
    return {hit.secret.envelope for hit in hits}


def _borders(report: Sightings, capture: Path, scanner: Scanner[Secret]) -> None:
    """What crossed, and that enough of it was kept: more than the canaries that were handed over there."""
    for stream in captured(capture):
        report.borders[stream.source, stream.target] += stream.path.stat().st_size
        _scan(report, stream.path, scanner, f"what crossed from {stream.source} to {stream.target}: {stream.path}")
    if (capture / FULL).exists():
        report.findings.append(f"{capture} was full: what crossed after that was not kept")
    due: Counter[tuple[str, str]] = Counter()
    for canary in report.kit.canaries:
        for mark in canary.marks:
            if mark.code == Code.STORED:
                due.update({(canary.origin, home): mark.size for home in mark.homes if home != canary.origin})
    for (source, target), size in due.items():
        if (kept := report.borders[source, target]) < size:
            what = f"{kept} bytes were captured from {source} to {target}, where canaries of {size} crossed"
            report.findings.append(f"{what}: it was not captured all the while")


# --- whether the look works ----------------------------------------------------------------------
def _check_links(report: Sightings, spoken: dict[str, set[bytes]]) -> None:
    """What a client submitted is ciphertext on its own link, in the clear: it must be seen there."""
    for canary in report.kit.canaries:
        said = spoken.get(f"{canary.sender}.{SENT}", set())
        for mark in canary.marks:
            if mark.id not in said:
                what = f"{canary.name} ({short(mark.id)}) is not on the link of {canary.sender}, who sent it"
                report.findings.append(f"{what}: the look did not work, or the kit is not whole")


def _check_rest(report: Sightings) -> None:
    """What waits must be found where it waits, where stores of that region were unsealed; and all must be somewhere."""
    looked = {node.site.region for node in report.nodes if node.unsealed}
    if not any(mark.taken for _, mark in report.kit.marks().values()):
        report.findings.append("no node took any of the canaries: there was nothing to look for")
    for canary in report.kit.canaries:
        if not canary.marks:
            report.findings.append(f"{canary.name}, {canary.what}: it was never sent")
        for mark in canary.marks:
            report.findings += _missing(report, canary, mark, looked)


def _missing(report: Sightings, canary: Canary, mark: Mark, looked: set[str]) -> list[str]:
    regions = {sighting.node.site.region for sighting in report.found.get(mark.id, ())}
    about = f"{canary.name} ({short(mark.id)}), {canary.what},"
    if not mark.taken:
        return []  # refused, or nobody knows: nothing has to be anywhere
    if mark.code == Code.STORED:
        gone = [region for region in mark.waits if region in looked - regions]
        if gone:
            why = "nobody collected it there, or the look did not work"
            return [f"{about} waits in {' and '.join(gone)} and was not found there: {why}"]
    if not regions and not mark.seen and {canary.origin, *mark.homes} <= looked:
        return [f"{about} arrived nowhere: it was lost, or the look did not work"]
    return []


def short(envelope: bytes) -> str:
    """An envelope as people see it."""
    return envelope.hex()[:8]
