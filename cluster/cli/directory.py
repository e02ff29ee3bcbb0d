"""`posthouse directory …`: what the signed root document says, and whether everything here fits it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cluster.cli.options import dir_option, now_ms
from cluster.local.home import Home
from cluster.local.people import card_of
from relay.core.codec import digest, encode
from relay.core.trust import Root, RootRegion, verify_root
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
    root = _load(root_path, directory, None)
    payload = root.payload
    click.echo(f"federation  {payload.federation}, root version {payload.version}, until {_day(payload.expires)}")
    click.echo(f"digest      {root.digest.hex()}")
    keys = ", ".join(key.hex()[:16] for key in payload.keys)
    click.echo(f"signed by   {payload.threshold} of {len(payload.keys)}: {keys}")
    for region in payload.regions:
        click.echo(f"\nregion {region.name}  (fingerprint {fingerprint(region)})")
        for cell in region.cells:
            for node in cell.nodes:
                click.echo(f"  {cell.name}/{node.name}  links {node.link}  clients {' '.join(node.clients)}")
    home = Home(directory)
    if names := home.names():
        click.echo("\nusers here")
        for name in names:
            click.echo(f"  {name}  {card_of(home, name)}")


@directory_.command()
@click.option("--digest", "pin", metavar="HEX", help="The digest that the root document must have.")
@_root_option
@dir_option
def verify(pin: str | None, root_path: Path | None, directory: Path) -> None:
    """Verify the root document and everything in --dir that must fit it.

    Checks the root's signatures, expiry and (with --digest) identity, every region's authority certificate, and that
    the address card of every user names a region of the federation. Exit status 5 when something does not hold.
    """
    root = _load(root_path, directory, pin)
    for region in root.payload.regions:
        _check_region(region)
    home = Home(directory)
    names = home.names()
    for name in names:
        root.region(card_of(home, name).region)
    regions = len(root.payload.regions)
    click.echo(f"good: root version {root.payload.version}, {regions} region(s), {len(names)} user(s) here")


def fingerprint(region: RootRegion) -> str:
    """What two operators read to each other: 20 hex digits of the digest of the region's entry."""
    text = digest(encode(region), b"posthouse.region")[:10].hex()
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _load(root_path: Path | None, directory: Path, pin: str | None) -> Root:
    if pin is not None and (len(pin) != 64 or set(pin) - set("0123456789abcdef")):
        raise click.BadParameter("64 hex digits, as `posthouse directory show` prints them", param_hint="--digest")
    path = root_path or Home(directory).root_path
    try:
        signed = path.read_bytes()
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Give --dir (or POSTHOUSE_DIR), or --root") from None
    return verify_root(signed, now_ms(), pinned=bytes.fromhex(pin) if pin else None)


def _check_region(region: RootRegion) -> None:
    try:
        authority = x509.load_der_x509_certificate(region.authority)
        authority.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise TrustError(f"region {region.name}: its authority's certificate does not hold", "Ask there") from error
    if datetime.now(UTC) > authority.not_valid_after_utc:
        raise TrustError(f"region {region.name}: its authority's certificate has expired", "A new root is needed")
    for cell in region.cells:
        if not cell.name.startswith(region.name + "/"):
            raise TrustError(f"region {region.name} lists the cell {cell.name} of another", "Ask the root's keeper")


def _day(ms: int) -> str:
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d}"
