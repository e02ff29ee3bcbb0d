"""Making a federation on one machine: keys, a signed root, a config for each node, ports that are free now."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import msgspec
from securesystemslib.signer import CryptoSigner

from cluster.config_keys import Address
from cluster.env import socket_fits
from cluster.federation.keys import new_signer
from cluster.federation.making import Keyring, make_federation_root
from cluster.local.home import Home
from cluster.local.layout import BorderPort, FederationFile, Layout, NodeLayout, Ports
from cluster.provision import (
    Place, check_size, make_data, new_region_keys, node_names, region_entry, write_node, write_public, write_signer,
)  # fmt: skip
from relay.core.shapes import Name
from relay.core.trust import RootRegion
from relay.errors import OperatorError
from relay.journal.seal import StorageRing
from relay.ports import Env

MAX_REGIONS = 16
MAX_NODES = 24  # processes on one machine; each takes about 60 MB
_PORTS = range(20_000, 32_000)  # below the ports that systems hand out for outgoing connections (32768 on, Linux)


def make_federation(
    directory: Path, regions: Sequence[str], env: Env, *, nodes: int = 1, tls: bool = True, borders: bool = False
) -> Layout:
    """Make a federation of `regions`, one cell of `nodes` (1, 3 or 5) nodes each, in a new or empty directory.

    `tls`: clients come by wss, or by plain ws. `borders`: the regions dial each other through ports that
    LocalFederation forwards and can cut. Nothing is started. Raises OperatorError."""
    directory = directory.absolute()
    _check(directory, regions, nodes)
    now_ms = env.clock.wall_ms()
    file = _choose_ports(regions, nodes, env, borders)
    home = Home(directory)
    layout = Layout(home, file)
    entries = [_make_region(layout, region, tls, now_ms) for region in regions]
    keys = Keyring(
        (new_signer(),), (new_signer(),), new_signer(), {region.name: signer for region, signer in entries}
    )
    for name, signer in (("root-1", keys.root[0]), ("keeper-1", keys.keepers[0]), ("online", keys.online)):
        write_signer(home.secrets / f"{name}.pem", signer)
    write_public(home.root_path, make_federation_root("local", [region for region, _ in entries], keys, now_ms))
    home.clients.mkdir(mode=0o700)
    write_public(directory / "targets.json", _scrape_targets(layout))
    write_public(directory / "federation.json", msgspec.json.format(msgspec.json.encode(file)) + b"\n")
    return layout


def _make_region(layout: Layout, region: str, tls: bool, now_ms: int) -> tuple[RootRegion, CryptoSigner]:
    """Keys of a region, and each node's files; returns what the root says of it, and the key that signs that."""
    secrets = layout.home.secrets
    keys = new_region_keys(region, secrets, now_ms)
    StorageRing.generate(secrets / f"{region}.storage.key")
    paths = {"root": "../../root.bin", "storage_key": f"../../secrets/{region}.storage.key"}
    routes = {
        f"{border.target}/1/{border.node}": Address("127.0.0.1", border.port)
        for border in layout.file.borders
        if border.source == region
    }
    nodes = layout.nodes(region)
    places = [_place(node, tls) for node in nodes]
    for node, place in zip(nodes, places, strict=True):
        write_node(place, keys, node.directory, now_ms, paths, routes)
        make_data(node.data_dir, founds=node is nodes[0] and len(nodes) > 1)
    return region_entry(places, keys), keys.signer


def _check(directory: Path, regions: Sequence[str], nodes: int) -> None:
    check_size(nodes)
    if not 1 <= len(regions) <= MAX_REGIONS:
        raise OperatorError(f"{len(regions)} regions on one machine", f"Name 1 to {MAX_REGIONS}")
    if len(regions) * nodes > MAX_NODES:
        what = f"{len(regions)} regions of {nodes} nodes are {len(regions) * nodes} processes on one machine"
        raise OperatorError(what, f"At most {MAX_NODES}: take fewer regions, or --nodes 1")
    if twice := [region for place, region in enumerate(regions) if region in regions[:place]]:
        raise OperatorError(f"region {twice[0]!r} is named twice", "Give each a name of its own")
    for region in regions:
        try:
            msgspec.convert(region, Name)
        except msgspec.ValidationError:
            remedy = "Use a–z, 0–9, . and -, at most 64, starting with a letter or digit"
            raise OperatorError(f"{region!r} cannot be a region's name", remedy) from None
    if directory.exists() and not directory.is_dir():
        raise OperatorError(f"{directory} is not a directory", "Choose a new one")
    if directory.exists() and any(directory.iterdir()):
        what = f"{directory} is not empty and holds no finished federation"
        raise OperatorError(what, "Choose a new directory, or empty this one")


def _scrape_targets(layout: Layout) -> bytes:
    """Where Prometheus finds the nodes (its file_sd format)."""
    targets = [
        {"targets": [str(node.admin_addr)], "labels": {"region": node.region, "cell": node.cell, "node": node.name}}
        for node in layout.every_node()
    ]
    return msgspec.json.format(msgspec.json.encode(targets)) + b"\n"


def _place(node: NodeLayout, tls: bool) -> Place:
    return Place(
        node.region, links=node.links_addr, clients=node.clients_addr, admin=node.admin_addr, tls=tls, node=node.name,
        control=node.control_path.name if socket_fits(node.control_path) else "",
    )  # fmt: skip


def _choose_ports(regions: Sequence[str], nodes: int, env: Env, borders: bool) -> FederationFile:
    ports, names = free_ports(env), node_names(nodes)
    chosen = {
        region: {name: Ports(clients=next(ports), links=next(ports), admin=next(ports)) for name in names}
        for region in regions
    }
    pairs = permutations(regions, 2) if borders else ()
    crossings = (BorderPort(source, target, name, next(ports)) for source, target in pairs for name in names)
    return FederationFile(2, chosen, tuple(crossings))


def free_ports(env: Env) -> Iterator[int]:
    """Different loopback ports on which nobody listens now, from a random place on."""
    first = int(env.random_float() * len(_PORTS))
    for offset in range(len(_PORTS)):
        port = _PORTS[(first + offset) % len(_PORTS)]
        if port_is_free(Address("127.0.0.1", port)):
            yield port
    raise OperatorError(f"no free port in {_PORTS.start}–{_PORTS.stop}", "Stop something that listens there")


def port_is_free(address: Address) -> bool:
    """Nobody listens on it at this moment."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError:
            return False
    return True
