"""What a node's config points at: the root document, certificate and keys must fit each other and the config."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cluster.config_keys import Address, ListenSection, NodeSection, PathsSection
from cluster.kept import kept_root
from cluster.pki import renewal_of, renewal_of_authority, valid_until_ms
from relay.certificates import parse_certificate
from relay.core.trust import Root, RootNode, addresses, follow_root
from relay.errors import NotValidNow, OperatorError, PosthouseError
from relay.journal.seal import StorageRing

Finding: TypeAlias = tuple[str, str, str]  # where (dotted key), what, remedy


def check_root(paths: PathsSection, now_ms: int, findings: list[Finding]) -> Root | None:
    """The verified root document, which is or follows what this node has trusted before; None, with the reason in
    `findings`, where there is none."""
    path, pin = paths.root, bytes.fromhex(paths.federation_id) or None
    data = _read(path, "paths.root", findings)
    if data is None:
        return None
    try:
        return follow_root(data, kept_root(paths.data), now_ms, pin)
    except NotValidNow as error:
        remedy = error.remedy or "Get the newer root document that the federation has signed"
        findings.append(("paths.root", f"{path}: {error.text}", remedy))
    except PosthouseError as error:
        remedy = error.remedy or "Get the root document again, from somebody you trust"
        findings.append(("paths.federation_id" if pin else "paths.root", f"{path}: {error.text}", remedy))
    return None


def check_secrets(paths: PathsSection) -> Iterator[Finding]:
    """Key files: there, only for their owner, and not in the data directory (rule 7)."""
    for where, path in (("paths.private_key", paths.private_key), ("paths.storage_key", paths.storage_key)):
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            yield where, f"{path}: {error.strerror}", "Point to the key file that `posthouse init` wrote"
            continue
        if mode & 0o077:
            yield where, f"{path} may be read by others (mode {mode:04o})", f"Run: chmod 600 {path}"
        elif path == paths.storage_key:
            yield from _check_storage_key(path)
        if path.resolve().is_relative_to(paths.data.resolve()):
            yield where, f"{path} lies in the data directory, beside what it protects", "Keep keys outside paths.data"


def _check_storage_key(path: Path) -> Iterator[Finding]:
    try:
        StorageRing.load(path)
    except OperatorError as error:
        yield "paths.storage_key", error.text, error.remedy or "Point to the key file that `posthouse init` wrote"


def check_data(path: Path) -> Iterator[Finding]:
    """The data directory is made when missing; what exists must be a directory that can be written."""
    if path.exists() and not path.is_dir():
        yield "paths.data", f"{path} is not a directory", "Name a directory, which will be made if it is missing"
    elif path.exists() and not os.access(path, os.W_OK | os.X_OK):
        yield "paths.data", f"{path} cannot be written by this user", "Give it to the user that runs the node"


def check_identity(
    node: NodeSection, paths: PathsSection, listen: ListenSection | None, root: Root | None, now_ms: int
) -> list[Finding]:
    """What the config says of this node against the root document, and the certificate against both. `listen` is None
    where it could not be read."""
    findings: list[Finding] = []
    regions = [region.name for region in root.payload.regions] if root else [node.region]
    if node.region not in regions:
        findings.append(_not_in_root("node.region", node.region, regions))
    elif not node.cell.startswith(node.region + "/"):
        remedy = f"A cell is named region/name: {node.region}/1"
        findings.append(("node.cell", f"{node.cell} is not a cell of region {node.region}", remedy))
    elif root and (listed := _listed(node, root, findings)) and listen:
        findings += _check_listed(listed, listen)
        findings += _check_neighbours(node, root, listen, listed.link)
    findings += _check_certificate(node, paths, root, now_ms)
    return findings


def _listed(node: NodeSection, root: Root, findings: list[Finding]) -> RootNode | None:
    """The root's entry for this node. Looks for the first name that is wrong: the others depend on it."""
    cells = {cell.name: cell for cell in root.region(node.region).cells}
    if node.cell not in cells:
        findings.append(_not_in_root("node.cell", node.cell, list(cells)))
        return None
    nodes = {entry.name: entry for entry in cells[node.cell].nodes}
    if node.name not in nodes:
        findings.append(_not_in_root("node.name", node.name, list(nodes)))
    return nodes.get(node.name)


def _not_in_root(where: str, name: str, known: list[str]) -> Finding:
    meant = get_close_matches(name, known, 1)
    remedy = f"Did you mean {meant[0]!r}?" if meant else f"The root has: {', '.join(known) or 'none'}"
    return where, f"{name!r} is not in the root document", remedy


def _check_listed(listed: RootNode, listen: ListenSection) -> Iterator[Finding]:
    advertised = listen.links_advertised or listen.links
    if str(advertised) != listed.link:
        yield (
            "listen.links_advertised" if listen.links_advertised else "listen.links",
            f"the root document tells other cells to dial {listed.link}, not {advertised}",
            f'Listen there, or set links_advertised = "{listed.link}" if that address leads here',
        )
    plain = [url for url in listed.clients if url.startswith("ws://")]
    if listen.tls and listen.clients and plain:
        remedy = "Set tls = false (loopback only), or have the root document say wss://"
        yield "listen.tls", f"the root document sends clients to {plain[0]}, without TLS", remedy


def check_nodes(root: Root, region: str, routes: Collection[str]) -> Iterator[Finding]:
    """Every node of the own `region`, and every one that this config has one of its `routes` to, has addresses that
    lead to no other of them. What another region says of itself, the own addresses above all, keeps no node from
    starting: whoever is met at an address proves who that is."""
    owners: dict[str, str] = {}
    for one in root.payload.regions:
        for address, own in addresses(one):
            if one.name != region and own not in routes:
                continue
            if (other := owners.setdefault(address, own)) != own:
                what = f"{address} is the address of {own} and of {other}"
                yield "routes" if routes else "paths.root", what, "Give each node its own"


def _loopback(link: str) -> bool:
    try:
        return Address.parse(link).loopback
    except ValueError:
        return False


def _check_neighbours(node: NodeSection, root: Root, listen: ListenSection, link: str) -> Iterator[Finding]:
    """An address on which this node listens must not be another's: on one machine only one of them would start. What
    other regions say matters where the root has this node on one machine with them, only (see check_nodes)."""
    own = f"{node.cell}/{node.name}"
    regions = root.payload.regions if _loopback(link) else [root.region(node.region)]
    others = {
        address.rpartition("://")[2]: other
        for region in regions for address, other in addresses(region) if other != own
    }  # fmt: skip
    for key in ("clients", "links", "admin"):
        if (address := getattr(listen, key)) is not None and (other := others.get(str(address))):
            yield f"listen.{key}", f"{address} is the address of node {other}", "Use another port"


def _check_certificate(node: NodeSection, paths: PathsSection, root: Root | None, now_ms: int) -> list[Finding]:
    findings: list[Finding] = []
    where, path = "paths.certificate", paths.certificate
    data = _read(path, where, findings)
    if data is None:
        return findings
    try:
        certificate = parse_certificate(data)
    except ValueError:
        what = f"{path} is not a PEM certificate, or of an unknown kind"
        return [(where, what, "Use the one that the region's authority issued")]
    findings += _check_subject(certificate, node, path)
    findings += _check_dates(certificate, path, node.name, now_ms)
    region = next((entry for entry in root.payload.regions if entry.name == node.region), None) if root else None
    if region is not None:
        try:
            authority = parse_certificate(region.authority, der=True)
            certificate.verify_directly_issued_by(authority)
            if now_ms >= valid_until_ms(authority):
                what = f"the authority of {region.name} expired on {authority.not_valid_after_utc:%Y-%m-%d}"
                findings.append(("paths.root", what, renewal_of_authority()))
        except (InvalidSignature, ValueError, TypeError):
            what = f"{path} was not issued by the authority that the root names for region {region.name}"
            findings.append((where, what, f"Have it issued by {region.name}'s authority"))
    findings += _check_key(certificate, paths.private_key)
    return findings


def _check_subject(certificate: x509.Certificate, node: NodeSection, path: Path) -> Iterator[Finding]:
    wanted = f"posthouse://{node.region}/{node.cell.partition('/')[2]}/{node.name}"
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    if wanted not in uris:
        what = f"{path} is for {', '.join(uris) or 'nobody of this federation'}, and this node is {wanted}"
        yield "paths.certificate", what, "Use this node's own certificate, or mend [node]"


def _check_dates(certificate: x509.Certificate, path: Path, node: str, now_ms: int) -> Iterator[Finding]:
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    if now >= certificate.not_valid_after_utc:
        what = f"{path} expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
        yield "paths.certificate", what, renewal_of(node)
    if now < certificate.not_valid_before_utc:
        what = f"{path} is valid only from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on"
        yield "paths.certificate", what, "Set this machine's clock, or wait"


def _check_key(certificate: x509.Certificate, path: Path) -> Iterator[Finding]:
    if not path.is_file():
        return  # check_secrets says so
    where = "paths.private_key"
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm):
        remedy = "Use the key that was made with the certificate"
        yield where, f"{path} is not a PEM private key without a password", remedy
        return
    if key.public_key() != certificate.public_key():
        yield where, f"{path} does not belong to the certificate", "Use the key that was made with the certificate"


def _read(path: Path, where: str, findings: list[Finding]) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        findings.append((where, f"{path}: {error.strerror}", "Put the file there, or mend the path"))
        return None
