"""`posthouse init certificate` and `init authority`: what has a last day gets another one."""

from __future__ import annotations

from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

import click
import msgspec
from cryptography import x509

from cluster.cli.options import now_ms
from cluster.cli.region import authority_key_of, own_region, region_option, replace_file, write_region
from cluster.core.linkwire import Peer
from cluster.pki import renew_authority, renew_node, valid_until_ms
from relay.core.trust import RootRegion
from relay.errors import OperatorError


@click.command()
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@region_option
def certificate(names: tuple[str, ...], directory: Path) -> None:
    """Issue a new certificate for each node NAME of the region in DIR: the old one ends after a year.

    Replaces DIR/server-NAME/tls/node.pem (of a region of one node, DIR/server/tls/node.pem). Copy that file to the
    node's server, over the old one, which may have expired by then. Nothing is restarted: a running node takes it
    within seconds, logs certificate_renewed, and proves it on every new connection.

    The node keeps its names, its addresses and its key, which is not even needed here: so there is one file to
    replace, no moment at which certificate and key do not fit, and no secret that travels. A new key would lock out
    nobody who has stolen the old one, whose certificate holds to its last day: give such a node's place to another
    (`posthouse init node`, `posthouse cell replace-node`, `posthouse init drop-node`).
    """
    _, entry = own_region(directory)
    key, now = authority_key_of(directory, entry), now_ms()
    made: dict[str, tuple[Path, bytes]] = {}
    for name in names:
        path = _certificate_of(directory, _peer(entry, name))
        try:
            made[name] = path, renew_node(path.read_bytes(), entry.authority, key, _peer(entry, name), now_ms=now)
        except FileNotFoundError:
            remedy = "Copy the node's certificate there from its server ([paths] certificate); it may have expired"
            raise OperatorError(f"{path} is not there, and what it says is needed", remedy) from None
        except OperatorError as error:
            raise OperatorError(f"{path}: {error.text}", error.remedy) from None
    for name, (path, pem) in made.items():
        replace_file(path, pem)
        until = valid_until_ms(x509.load_pem_x509_certificate(pem))
        click.echo(f"{name}  valid until {_day(until)}: copy {path} to its server.")


@click.command()
@region_option
def authority(directory: Path) -> None:
    """Give the authority of the region in DIR another ten years, before its certificate ends.

    Its key stays, so that the nodes' certificates hold under the old one and the new one alike. The new one is in
    REGION.region, and counts once the federation's keepers have published that file (`posthouse federation add-region`,
    `publish`) and `posthouse init join` has brought the new root to every server of the federation and to the users'
    stores. Do it a year ahead: a node or a client that still has the old root when the old certificate ends trusts
    nobody of this region. Certificates of nodes end with their authority's at the latest: `posthouse init certificate`
    afterwards.
    """
    path, entry = own_region(directory)
    renewed = renew_authority(entry.authority, authority_key_of(directory, entry), now_ms=now_ms())
    until = valid_until_ms(x509.load_der_x509_certificate(renewed))
    what = f"The authority of {entry.name} is valid until {_day(until)}"
    write_region(path, msgspec.structs.replace(entry, authority=renewed), what)


def _peer(entry: RootRegion, name: str) -> Peer:
    """Raises OperatorError where the region has no such node."""
    cells = {node.name: cell.name for cell in entry.cells for node in cell.nodes}
    if name not in cells:
        meant = get_close_matches(name, cells, 1)
        remedy = f"Did you mean {meant[0]!r}?" if meant else f"Its nodes are: {', '.join(cells)}"
        raise OperatorError(f"{entry.name} has no node {name!r}", remedy)
    return Peer(entry.name, cells[name], name)


def _certificate_of(directory: Path, peer: Peer) -> Path:
    """Where `posthouse init` writes it."""
    server = directory / f"server-{peer.node}"
    alone = directory / "server"
    return (alone if alone.exists() and not server.exists() else server) / "tls" / "node.pem"


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
