"""Making a federation on one machine: keys, a signed root, a config for each node, ports that are free now."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from cluster.config_keys import Address
from cluster.local.home import Home
from cluster.local.layout import BorderPort, FederationFile, Layout, Ports
from cluster.provision import (
    Place, RegionKeys, new_region_keys, new_root, region_entry, write_node, write_public, write_secret,
)
from relay.core.shapes import Name
from relay.errors import OperatorError
from relay.journal.seal import StorageRing
from relay.ports import Env

MAX_REGIONS = 16  # processes on one machine; each takes about 60 MB
_PORTS = range(20_000, 32_000)  # below the ports that systems hand out for outgoing connections (32768 on, Linux)


def make_federation(
    directory: Path, regions: Sequence[str], env: Env, *, tls: bool = True, borders: bool = False
) -> Layout:
    """Make a federation of `regions`, one cell of one node each, in a new or empty directory.

    `tls`: clients come by wss, or by plain ws. `borders`: the regions dial each other through ports that
    LocalFederation forwards and can cut. Nothing is started. Raises OperatorError."""
    directory = directory.absolute()
    _check(directory, regions)
    now_ms = env.clock.wall_ms()
    file = _choose_ports(regions, env, borders)
    home = Home(directory)
    keys: dict[str, RegionKeys] = {}
    for region in regions:
        keys[region] = new_region_keys(region, home.secrets, now_ms)
        StorageRing.generate(home.secrets / f"{region}.storage.key")
    layout = Layout(home, file)
    places = {region: _place(layout, region, tls) for region in regions}
    for region, place in places.items():
        paths = {"root": "../../root.bin", "storage_key": f"../../secrets/{region}.storage.key"}
        routes = {
            f"{border.target}/1/n1": Address("127.0.0.1", border.port)
            for border in file.borders
            if border.source == region
        }
        write_node(place, keys[region], layout.node(region).directory, now_ms, paths, routes)
        layout.node(region).data_dir.mkdir(mode=0o700)
    root_key = SigningKey.generate()
    write_secret(home.secrets / "root.key", bytes(root_key).hex().encode() + b"\n")
    entries = [region_entry(places[region], keys[region]) for region in regions]
    write_public(home.root_path, new_root("local", entries, root_key, now_ms))
    home.clients.mkdir(mode=0o700)
    write_public(directory / "targets.json", _scrape_targets(layout))
    write_public(directory / "federation.json", msgspec.json.format(msgspec.json.encode(file)) + b"\n")
    return layout


def _check(directory: Path, regions: Sequence[str]) -> None:
    if not 1 <= len(regions) <= MAX_REGIONS:
        raise OperatorError(f"{len(regions)} regions on one machine", f"Name 1 to {MAX_REGIONS}")
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
    nodes = [layout.node(region) for region in layout.regions]
    targets = [
        {"targets": [str(node.admin_addr)], "labels": {"region": node.region, "cell": node.cell, "node": node.name}}
        for node in nodes
    ]
    return msgspec.json.format(msgspec.json.encode(targets)) + b"\n"


def _place(layout: Layout, region: str, tls: bool) -> Place:
    node = layout.node(region)
    return Place(region, links=node.links_addr, clients=node.clients_addr, admin=node.admin_addr, tls=tls)


def _choose_ports(regions: Sequence[str], env: Env, borders: bool) -> FederationFile:
    ports = _free_ports(env)
    nodes = {region: Ports(clients=next(ports), links=next(ports), admin=next(ports)) for region in regions}
    pairs = permutations(regions, 2) if borders else ()
    return FederationFile(1, nodes, tuple(BorderPort(source, target, next(ports)) for source, target in pairs))


def _free_ports(env: Env) -> Iterator[int]:
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
