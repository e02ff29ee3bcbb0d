"""`posthouse user …` and `posthouse card`."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from cluster.cli.options import as_option, dir_option, now_ms
from cluster.local.home import Home
from cluster.local.people import card_of, create_device, create_user, introduce
from relay.errors import OperatorError


@click.group()
def user() -> None:
    """Users and devices whose keys are kept in --dir."""


@user.command()
@click.argument("name")
@click.option("--region", help="The user's home region.")
@click.option("--device-of", metavar="USER", help="Make a further device of USER, called USER+NAME, instead of a user.")
@dir_option
def create(name: str, region: str | None, device_of: str | None, directory: Path) -> None:
    """Make the user NAME, at home in --region, or a further device of a user.

    Makes the keys, and a home record signed with them and with the region's registrar key, which must be in
    --dir/secrets. Then it introduces the user to the region's node; where none answers, the node learns of the user
    when the user first connects. NAME stays on this machine. Prints the address card to hand to friends.
    """
    if (region is None) == (device_of is None):
        raise click.UsageError("Give either --region (a new user) or --device-of (a further device).")
    home = Home(directory)
    if device_of is not None:
        card = create_device(home, name, device_of, now_ms())
        name = f"{device_of.partition('+')[0]}+{name}"
    else:
        assert region is not None
        card = create_user(home, name, region, now_ms())
    click.echo(str(card))
    if not trio.run(introduce, home, name):
        click.echo(f"No node of {card.region} answers now; it will learn of {name} when {name} connects.", err=True)


@user.command("list")
@dir_option
def list_(directory: Path) -> None:
    """List the users and devices that have a store in --dir, with their address cards."""
    home = Home(directory)
    for name in home.names():
        click.echo(f"{name}\t{card_of(home, name)}")


@click.command()
@as_option
@dir_option
def card(name: str, directory: Path) -> None:
    """Print the address card of a user.

    Whoever has it can write to the user: it says where to ask (the home region) and for whom (a hash of the user's
    first signed record). It contains no name and no secret.
    """
    home = Home(directory)
    if not home.clients.is_dir():
        raise OperatorError(f"{directory} has no users", "Start with `posthouse up`, or give --dir (or POSTHOUSE_DIR)")
    click.echo(str(card_of(home, name)))
