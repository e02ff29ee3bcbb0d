"""`posthouse init …`: what an operator of one region among several needs, step by step."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import click
import msgspec

from cluster.cli.options import federation_pin, now_ms
from cluster.cli.region import (
    authority_key_of, load_region, node_of, own_region, region_option, replace_file, signing_key_of, tell_fingerprint,
    write_region,
)  # fmt: skip
from cluster.cli.renewal import authority, certificate
from cluster.cli.statement import statement
from cluster.config import load_config
from cluster.config_keys import Address
from cluster.federation.keys import load_signer
from cluster.federation.regionfile import read_region_file, sign_region
from cluster.local.home import Home
from cluster.provision import (
    Place, RegionKeys, check_size, load_signing_key, make_data, new_region_keys, node_names, region_entry, write_node,
    write_public, write_secret,
)  # fmt: skip
from relay.client import update_root
from relay.core.shapes import Name
from relay.core.trust import Root, RootNode, RootRegion, follow_root
from relay.errors import OperatorError, ProtocolError
from relay.journal.seal import StorageRing

_ALONE = (
    "Make a region of three under another name (`posthouse init region`), and new users there. To bring a node that "
    "is alone to another machine stop it, move its whole directory, and keep its host name"
)
_TUF_ROLES = frozenset({"root", "targets", "snapshot", "timestamp"})
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]")


@click.group()
def init() -> None:
    """Set up real regions, each by its own operator.

    \b
    1. Each operator makes a region, on a machine of their own:
         posthouse init region norden --dir norden \\
           --host a.norden.example --host b.norden.example --host c.norden.example
       norden/server-n1/, -n2/ and -n3/ are what goes to the servers,
       norden/secrets/ stays here, and norden/norden.region goes to the
       federation's keepers.
    2. The keepers admit all regions and publish a root document over them
       (docs/CEREMONY.md; `posthouse federation`):
         posthouse federation init --dir federation
         posthouse federation add-region norden.region sauda.region \\
           --dir federation
         posthouse federation sign federation/staged/targets.json --key …
         posthouse federation publish --dir federation
       and send federation/root.bin to every operator. Over the phone they
       compare the fingerprints that steps 1 and 2 print.
    3. Each operator takes the root in, which checks that it has the region
       as it was made:
         posthouse init join root.bin --dir norden
    4. Copy norden/server-n1/ … to the servers, and on each:
         posthouse config check server-n1/node.toml
         posthouse node run server-n1/node.toml
    5. Users are made where norden/secrets/ is (the registrar's key signs them):
         posthouse user create alice --region norden --dir norden

    A region that comes later: step 1, then step 2 with the new file in the
    same --dir (the root gets a new version), then step 3 for everybody.
    A node that comes later, for a cell of several: `posthouse init node`.
    Every year: new certificates for the nodes, `posthouse init certificate`.
    """


init.add_command(certificate)
init.add_command(authority)
init.add_command(statement)


def _ports(command: Callable[..., None]) -> Callable[..., None]:
    """Options about what a server listens on."""
    port = click.IntRange(1, 65535)
    for option in (
        click.option("--listen", default="0.0.0.0", show_default=True, metavar="ADDRESS", help="Where it listens."),
        click.option("--admin", default=9201, show_default=True, type=port, help="Port for /metrics."),
        click.option("--links", default=9101, show_default=True, type=port, help="Port for other nodes."),
        click.option("--clients", default=443, show_default=True, type=port, help="Port for clients' wss."),
    ):
        command = option(command)
    return command


@init.command()
@click.argument("region")
@click.option(
    "--host", "hosts", required=True, multiple=True,
    help="Name or address under which clients and other nodes reach a server; once for each node.",
)
@click.option("--nodes", type=int, help="Nodes of the region's cell: 1, 3 or 5.  [default: as many as --host]")
@_ports
@region_option
def region(
    region: str, hosts: tuple[str, ...], nodes: int | None, clients: int, links: int, admin: int, listen: str,
    directory: Path,
) -> None:  # fmt: skip
    """Make the keys, certificates and configs of REGION and its nodes.

    In DIR: server/ (config, node certificate and key, storage key: copy it to the server; with several nodes
    server-n1/, server-n2/ …, one for each), secrets/ (the keys of the region's authority and registrar: keep them here,
    with a backup; REGION.region.pem signs what the region says of itself) and REGION.region (nothing secret: for the
    federation's keepers). Nothing that exists is overwritten.

    Three nodes on three machines lose nothing when any one of them dies. With one --host and several nodes, all are
    for one machine, and their ports count up: good for a trial only.
    """
    _check_name(region)
    nodes = len(hosts) if nodes is None else nodes
    check_size(nodes)
    if len(hosts) not in (1, nodes):
        raise OperatorError(f"{len(hosts)} hosts for {nodes} nodes", "Give --host once for each node, or only once")
    places = []
    for number, name in enumerate(node_names(nodes)):
        host, up = (hosts[0], number) if len(hosts) == 1 else (hosts[number], 0)
        places.append(_place(region, name, host, clients + up, links + up, admin + up, listen))
    keys = new_region_keys(region, directory / "secrets", now_ms())
    servers = [directory / ("server" if nodes == 1 else f"server-{place.node}") for place in places]
    StorageRing.generate(_private(servers[0] / "secrets") / "storage.key")
    for place, server in zip(places, servers, strict=True):
        _write_server(place, keys, server, servers[0])
    if nodes > 1:
        make_data(servers[0] / "data", founds=True)
    signed = sign_region(region_entry(places, keys), [keys.signer], now_ms())
    write_public(directory / f"{region}.region", signed)
    click.echo(f"Made {directory}. Send {directory / f'{region}.region'} to the federation's keepers.")
    tell_fingerprint(read_region_file(signed, f"{region}.region"))


@init.command("node")
@click.argument("name")
@click.option("--host", required=True, help="Name or address under which clients and other nodes reach the server.")
@_ports
@region_option
def node_(name: str, host: str, clients: int, links: int, admin: int, listen: str, directory: Path) -> None:
    """Make a further node, NAME, of the region in DIR: to take another's place, or to make three nodes five.

    A region of one node gets no more of them: its log cannot be spread over several. Make a region of three, under
    another name, and new users there. To another machine such a node moves stopped, with its whole directory, under the
    same host name.

    Makes DIR/server-NAME/ and puts the node into REGION.region, signed anew. It is a node of the cell once the
    federation's keepers have published that file (`posthouse federation add-region`, `publish`), and `posthouse init
    join` has brought the new root to every server of the region. Then start it, and see it come up with `posthouse cell
    add-node NAME`.
    """
    path, entry = own_region(directory)
    _check_name(name, "a node's name")
    cell = entry.cells[0]
    if name in [node.name for node in cell.nodes]:
        raise OperatorError(f"{cell.name} has a node {name!r} already", "Choose a name that no node of it has")
    if len(cell.nodes) == 1:
        raise OperatorError(f"{cell.name} has one node, whose log cannot be spread over several", _ALONE)
    authority_key, first = authority_key_of(directory, entry), next(directory.glob("server*/secrets/storage.key"), None)
    if first is None:
        remedy = "Run it where `posthouse init region` was run, or put a server's secrets/storage.key there"
        raise OperatorError(f"{directory} lacks the storage key of {entry.name}", remedy)
    registrar = load_signing_key(directory / "secrets" / f"{entry.name}.registrar.key")
    keys = RegionKeys(entry.authority, authority_key, registrar, load_signer(signing_key_of(directory, entry.name)))
    place = _place(entry.name, name, host, clients, links, admin, listen)
    _write_server(place, keys, directory / f"server-{name}", first.parents[1])
    _write_nodes(path, entry, (*cell.nodes, place.entry()))


@init.command("drop-node")
@click.argument("name")
@region_option
def drop_node(name: str, directory: Path) -> None:
    """Take the node NAME out of REGION.region, after `posthouse cell remove-node NAME`.

    As long as the root lists a node it counts: clients are served only while more than half of a cell's nodes vote. Its
    files here, DIR/server-NAME, become DIR/dropped-NAME.
    """
    path, entry = own_region(directory)
    left = tuple(node for node in entry.cells[0].nodes if node.name != name)
    if len(left) == len(entry.cells[0].nodes) or not left:
        names = ", ".join(node.name for node in entry.cells[0].nodes)
        raise OperatorError(f"{entry.cells[0].name} cannot do without {name!r}", f"Its nodes are: {names}")
    gone = [config.parent for config in directory.glob("server*/node.toml") if node_of(config) == name]
    _write_nodes(path, entry, left)
    for server in gone:
        server.rename(directory / f"dropped-{name}")


def _place(region: str, name: str, host: str, clients: int, links: int, admin: int, listen: str) -> Place:
    return Place(
        region,
        node=name,
        links=_address(listen, links),
        clients=_address(listen, clients),
        admin=Address("127.0.0.1", admin),
        control="control",
        links_advertised=_address(host, links),
        clients_advertised=_address(host, clients),
    )


def _write_server(place: Place, keys: RegionKeys, server: Path, first: Path) -> None:
    """What goes to the server of a node; the storage key is that of `first`, another server of the region."""
    write_node(place, keys, server, now_ms(), {"root": "root.bin", "storage_key": "secrets/storage.key"})
    if server != first:
        write_secret(_private(server / "secrets") / "storage.key", (first / "secrets" / "storage.key").read_bytes())


def _private(directory: Path) -> Path:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return directory


def _write_nodes(path: Path, entry: RootRegion, nodes: tuple[RootNode, ...]) -> None:
    """Other nodes in the region's first cell."""
    cell = msgspec.structs.replace(entry.cells[0], nodes=nodes)
    names = ", ".join(node.name for node in nodes)
    entry = msgspec.structs.replace(entry, cells=(cell, *entry.cells[1:]))
    write_region(path, entry, f"{cell.name} has the nodes {names}")


@init.command()
@click.argument("source", metavar="ROOT", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--federation-id", "pin", metavar="HEX", help="The id that it must have, as the keepers read it out.")
@region_option
def join(source: Path, pin: str | None, directory: Path) -> None:
    """Take a signed ROOT document into the region in DIR.

    Checks its signatures, that it follows the one that is there, and that it has this region exactly as it was made
    here. Then it puts it into DIR and the users' stores there, and into each DIR/server*, and checks the whole config
    of each node. Copy it to the servers: running nodes take it by themselves, and say when they have to be restarted.

    The first root document is believed as it comes, unless --federation-id says whose it must be.
    """
    new = _new_root(source, directory / "root.bin", federation_pin(pin))
    regions = sorted(directory.glob("*.region"))
    if not regions:
        raise OperatorError(f"{directory} holds no region", "Give the --dir of `posthouse init region`")
    for path in regions:
        own = load_region(path)
        if own not in new.payload.regions:
            what = f"{source} does not have the region {own.name} as it was made here"
            raise OperatorError(what, f"Send {path} to the federation's keepers again, and compare fingerprints")
    servers = sorted(path.parent for path in directory.glob("server*/node.toml"))
    for target in (directory, *servers):
        replace_file(target / "root.bin", new.signed)
    home = Home(directory)
    for name in home.names():
        update_root(home.store(name), new.signed)
    for server in servers:
        load_config(server / "node.toml")
    names = ", ".join(region.name for region in new.payload.regions)
    click.echo(f"Joined: version {new.payload.version} of the root document, with {names}.")
    click.echo(f"federation id  {new.federation_id.hex()}")
    for server in servers:
        click.echo(f"Copy {server} to its server and run: posthouse node run {server.name}/node.toml")


def _new_root(source: Path, kept: Path, pin: bytes | None) -> Root:
    """What it says, if it is or follows what is kept. Raises OperatorError, TrustError and its kinds."""
    try:
        return follow_root(source.read_bytes(), kept.read_bytes() if kept.exists() else None, now_ms(), pin)
    except ProtocolError as error:
        raise OperatorError(f"{source} is no root document: {error.text}", "Get it again, from the keepers") from None


def _check_name(name: str, what: str = "a region's name") -> None:
    if name in _TUF_ROLES:
        raise OperatorError(f"{name!r} cannot be {what}: it is the name of a role in the root", "Choose another one")
    try:
        msgspec.convert(name, Name)
    except msgspec.ValidationError:
        remedy = "Use a–z, 0–9, . and -, at most 64, starting with a letter or digit"
        raise OperatorError(f"{name!r} cannot be {what}", remedy) from None


def _address(host: str, port: int) -> Address:
    if not _HOST.fullmatch(host):
        raise OperatorError(f"{host!r} is no host", "Give a name or an address, IPv6 in brackets, without a port")
    return Address.parse(f"{host}:{port}")
