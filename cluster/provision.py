"""Making what a region runs on: its keys, certificates and configs, and what the signed root will say of it.

Used by the federation on one machine (cluster.local) and by `posthouse init`. Secrets are written with mode 0600, and
never over anything that exists.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey
from securesystemslib.signer import CryptoSigner

from cluster.config_keys import Address
from cluster.federation.keys import new_signer, public_bytes
from cluster.pki import issue_node, make_authority
from relay.core.trust import RootCell, RootNode, RootRegion
from relay.errors import OperatorError

BOOTSTRAP: Final = "bootstrap"  # an empty file in the data directory of the node that is to make its cell's log
SIZES: Final = (1, 3, 5)  # nodes of a cell


@dataclass(frozen=True)
class Place:
    """A node to be: who it is, what it listens on (`control`: a path beside its config, or none), and the addresses by
    which others know it."""

    region: str
    links: Address
    clients: Address
    admin: Address
    tls: bool = True
    node: str = "n1"
    control: str = ""
    links_advertised: Address | None = None
    clients_advertised: Address | None = None

    @property
    def cell(self) -> str:
        """A region starts with one cell."""
        return f"{self.region}/1"

    def entry(self) -> RootNode:
        """What the root document says of it."""
        scheme = "wss" if self.tls else "ws"
        url = f"{scheme}://{self.clients_advertised or self.clients}"
        return RootNode(self.node, str(self.links_advertised or self.links), (url,))


@dataclass(frozen=True)
class RegionKeys:
    """What a region signs with; the private halves stay with its operator, off the servers."""

    authority: bytes  # X.509, DER
    authority_key: bytes  # PEM
    registrar: SigningKey
    signer: CryptoSigner  # signs what the region says of itself in the root document


def new_region_keys(region: str, secrets: Path, now_ms: int) -> RegionKeys:
    """New keys for `region`, kept in `secrets`. Raises OperatorError."""
    authority, authority_key = make_authority(region, now_ms=now_ms)
    registrar, signer = SigningKey.generate(), new_signer()
    write_secret(secrets / f"{region}.authority.pem", authority_key)
    write_secret(secrets / f"{region}.registrar.key", bytes(registrar).hex().encode() + b"\n")
    write_signer(secrets / f"{region}.region.pem", signer)
    return RegionKeys(authority, authority_key, registrar, signer)


def check_size(nodes: int) -> None:
    """A cell has 1, 3 or 5 nodes: an even number survives no more than the odd one below it. Raises OperatorError."""
    if nodes not in SIZES:
        raise OperatorError(f"a cell of {nodes} nodes", "Take 1 (development), 3 or 5")


def node_names(nodes: int) -> tuple[str, ...]:
    """The names of a new cell's nodes; the first one makes the log."""
    return tuple(f"n{number}" for number in range(1, nodes + 1))


def make_data(directory: Path, founds: bool) -> None:
    """A node's empty data directory. `founds`: its first start makes the log of a cell of several nodes, of which all
    others then ask to be members. Raises OperatorError."""
    try:
        directory.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise OperatorError(f"cannot make {directory}: {error.strerror}", "Check the directory's permissions") from None
    if founds:
        write_public(directory / BOOTSTRAP, b"")


def region_entry(places: Sequence[Place], keys: RegionKeys) -> RootRegion:
    """What the root document says of the region that these nodes are the first cell of."""
    cell = RootCell(places[0].cell, tuple(place.entry() for place in places))
    return RootRegion(places[0].region, keys.authority, bytes(keys.registrar.verify_key), (cell,))


def write_node(
    place: Place,
    keys: RegionKeys,
    directory: Path,
    now_ms: int,
    paths: Mapping[str, str],
    routes: Mapping[str, Address] | None = None,
) -> Path:
    """Certificate, private key and config of a node in `directory`; `paths` are the [paths] that the caller decides
    (root, storage_key). Returns the config's path. Raises OperatorError."""
    named = [address.host for address in (place.clients_advertised, place.clients) if address and not address.wildcard]
    hosts = list(dict.fromkeys(named))
    certificate, private_key = issue_node(
        keys.authority, keys.authority_key, place.region, place.cell, place.node, hosts, now_ms=now_ms
    )
    write_public(directory / "tls" / "node.pem", certificate)
    write_secret(directory / "tls" / "node.key", private_key)
    config = directory / "node.toml"
    write_public(config, _node_toml(place, paths, routes or {}).encode())
    return config


def _node_toml(place: Place, paths: Mapping[str, str], routes: Mapping[str, Address]) -> str:
    """TOML with the keys that are set; configs/node.toml explains all of them."""
    listen: dict[str, object] = {"clients": str(place.clients), "tls": place.tls, "links": str(place.links)}
    if place.links_advertised and place.links_advertised != place.links:
        listen["links_advertised"] = str(place.links_advertised)
    listen["admin"] = str(place.admin)
    if place.control:
        listen["control"] = place.control
    tls = {"certificate": "tls/node.pem", "private_key": "tls/node.key"}
    tables: dict[str, Mapping[str, object]] = {
        "node": {"region": place.region, "cell": place.cell, "name": place.node},
        "paths": {**paths, "data": "data", **tls},
        "listen": listen,
        "routes": {f'"{name}"': str(address) for name, address in routes.items()},
    }
    lines = ["# Every key is explained in configs/node.toml; `posthouse config check` checks this file."]
    for name, table in tables.items():
        if table:
            lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    escaped = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def load_signing_key(path: Path) -> SigningKey:
    """An Ed25519 key from a file of 64 hex digits. Raises OperatorError."""
    try:
        return SigningKey(bytes.fromhex(path.read_text("ascii").strip()))
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "This key is kept by whoever ran `posthouse init`") from None
    except ValueError:
        raise OperatorError(f"{path} is not a key of 64 hex digits", "Restore it from where it is kept") from None


def write_signer(path: Path, signer: CryptoSigner) -> None:
    """A new private key, and the public one beside it as .pub, with the same mode. Raises OperatorError."""
    write_secret(path, signer.private_bytes)
    write_secret(path.with_suffix(".pub"), public_bytes(signer.public_key).hex().encode() + b"\n")


def write_secret(path: Path, data: bytes) -> None:
    """A new file, mode 0600 from its first byte on, in a directory of mode 0700. Raises OperatorError."""
    _write_new(path, data, 0o600, 0o700)


def write_public(path: Path, data: bytes) -> None:
    """A new file that everybody may read. Raises OperatorError."""
    _write_new(path, data, 0o644, 0o755)


def _write_new(path: Path, data: bytes, mode: int, directory_mode: int) -> None:
    try:
        path.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise OperatorError(f"{path} exists already", "Move it away, or choose another --dir") from None
    except OSError as error:
        raise OperatorError(f"cannot write {path}: {error.strerror}", "Check the directory's permissions") from None
