"""`posthouse directory …`: what the signed root document says, and whether everything here fits it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from cluster.cli.options import dir_option, federation_pin, now_ms
from cluster.directory.inspect import verify_bundle
from cluster.federation.regionfile import fingerprint
from cluster.federation.words import policy_words
from cluster.local.home import Home, read_root
from cluster.local.people import card_of
from relay.client.identity import own_records
from relay.core.trust import verify_root
from relay.errors import OperatorError, TrustError

_root_option = click.option(
    "--root", "root_path", type=click.Path(path_type=Path), help="A root document.  [default: root.bin in --dir]"
)


@click.group("directory")
def directory_() -> None:
    """The federation's directory: regions, cells, nodes, users."""


@directory_.command()
@_root_option
@dir_option
def show(root_path: Path | None, directory: Path) -> None:
    """Show the signed root document, after verifying it, and the users who have a store in --dir."""
    root = read_root(root_path or Home(directory).root_path, now_ms())
    payload = root.payload
    click.echo(f"federation  {payload.federation}, id {root.federation_id.hex()}")
    until = f"until {_day(payload.expires)}, fresh until {_day(payload.fresh_until)}"
    click.echo(f"version     {payload.version} under root version {payload.root_version}, {until}")
    keys = ", ".join(key.hex()[:16] for key in payload.keys)
    click.echo(f"signed by   {payload.threshold} of {len(payload.keys)}: {keys}")
    for name in payload.lapsed:
        click.echo(f"\nregion {name}  its statement has EXPIRED")
    prints = {delegation.name: fingerprint(delegation) for delegation in payload.delegations}
    for region in payload.regions:
        click.echo(f"\nregion {region.name}  (fingerprint {prints[region.name]})")
        for line in policy_words(region.policy):
            click.echo(f"  {line}")
        for cell in region.cells:
            for node in cell.nodes:
                click.echo(f"  {cell.name}/{node.name}  links {node.link}  clients {' '.join(node.clients)}")
    home = Home(directory)
    if names := home.names():
        click.echo("\nusers here")
        for name in names:
            click.echo(f"  {name}  {card_of(home, name)}")


@directory_.command()
@click.option("--federation-id", "pin", metavar="HEX", help="The federation id that the root document must have.")
@_root_option
@dir_option
def verify(pin: str | None, root_path: Path | None, directory: Path) -> None:
    """Verify the root document and everything in --dir that must fit it.

    Checks the root's signatures, expiry and (with --federation-id) whose it is, every region's authority certificate,
    the certificates of the nodes and the home records of the users in --dir, and reports everything at once. Exit
    status 5 when something does not hold.
    """
    home = Home(directory)
    paths = [*directory.glob("nodes/*/tls/*.pem"), *sorted(directory.glob("server*/tls/*.pem"))]
    certificates = {str(path.relative_to(directory)): path.read_bytes() for path in paths}
    chains = {f"user {name}": own_records(home.store(name)) for name in home.names()}
    signed, pinned = _read(root_path, directory), federation_pin(pin)
    findings = verify_bundle(signed, now_ms=now_ms(), pinned=pinned, certificates=certificates, chains=chains)
    for finding in findings:
        click.echo(f"{'good' if finding.ok else 'BAD '}  {finding.where}: {finding.what}", err=not finding.ok)
    bad = [finding for finding in findings if not finding.ok]
    if bad:
        raise TrustError(f"{len(bad)} of {len(findings)} checks do not hold", bad[0].remedy)
    for region in verify_root(signed, now_ms()).payload.regions:
        for line in policy_words(region.policy):
            click.echo(f"policy region {region.name}: {line}")


def _read(root_path: Path | None, directory: Path) -> bytes:
    path = root_path or Home(directory).root_path
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Give --dir (or POSTHOUSE_DIR), or --root") from None


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
