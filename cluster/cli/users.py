"""`posthouse user …` and `posthouse card`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from cluster.cli.devices import devices, recover, revoke, rotate
from cluster.cli.options import as_option, dir_option, now_ms
from cluster.enrolment import asked_region, left_region, read_records, read_request, split_release
from cluster.local.book import Book
from cluster.local.home import Home
from cluster.local.people import (
    card_of, create_device, create_user, introduce, move_user, newest_records, releaser_of, take_move,
)  # fmt: skip
from cluster.provision import write_public
from relay.client import Card, ask_to_move
from relay.core.codec import pack
from relay.errors import OperatorError, TrustError


@click.group()
def user() -> None:
    """Users and devices whose keys are kept in --dir."""


@user.command()
@click.argument("name")
@click.option("--region", help="The user's home region.")
@click.option("--device-of", metavar="USER", help="Make a further device of USER, called USER+NAME, instead of a user.")
@click.option(
    "--recovery", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Make a recovery key, too, and write its secret into the new file FILE, to be put away.",
)  # fmt: skip
@dir_option
def create(name: str, region: str | None, device_of: str | None, recovery: Path | None, directory: Path) -> None:
    """Make the user NAME, at home in --region, or a further device of a user.

    Makes the keys, and a home record signed with them and with the region's registrar key, which must be in
    --dir/secrets. Then it introduces the user to the region's node; where none answers, the node learns of the user
    when the user first connects. NAME stays on this machine. Prints the address card to hand to friends.

    A recovery key can put a new device in the place of all others when they are lost or stolen (`posthouse user
    recover`). Its secret is in FILE only, mode 0600: print it, or put it on a disk that lies elsewhere.
    """
    if (region is None) == (device_of is None):
        raise click.UsageError("Give either --region (a new user) or --device-of (a further device).")
    if recovery is not None and region is None:
        raise click.UsageError("A recovery key is the user's, not a device's: give --recovery with --region.")
    home = Home(directory)
    if device_of is not None:
        card = create_device(home, name, device_of, now_ms())
        name = f"{device_of.partition('+')[0]}+{name}"
    else:
        assert region is not None
        card = create_user(home, name, region, now_ms(), recovery)
    click.echo(str(card))
    if not trio.run(introduce, home, name):
        click.echo(f"No node of {card.region} answers now; it will learn of {name} when {name} connects.", err=True)


@user.command()
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--after", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The records before, where they were signed elsewhere.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: REQUEST.records]")
@dir_option
def sign(request: Path, after: Path | None, out: Path | None, directory: Path) -> None:
    """Sign the home record that REQUEST asks for, for keys that were made elsewhere.

    REQUEST is a file from a client that is not ours: the msgpack array [payload, signature by the user key, or by the
    recovery key] of docs/PROTOCOL.md, section 5. Whoever signs vouches for nothing but this: the record is well formed,
    it follows the one before, its keys are keys, who signed may change that, and its home is a cell of the region whose
    registrar key is in --dir/secrets. No secret of the user's is in it. What was signed is kept in --dir/registrar: no
    version is signed twice, and the records before need to be given only where they are not there. Writes the user's
    signed records, oldest first, as the msgpack array that the client puts into AUTH, and prints the address card.
    """
    home = Home(directory)
    root = home.root(now_ms())
    asked, _ = split_release(request.read_bytes())
    with _about(after or request):
        before = read_records(after.read_bytes()) if after else ()
    with _about(request):
        region = asked_region(asked, root)
    registrar = home.registrar(region)
    with _about(request):
        known = newest_records(home, read_request(asked).user, now_ms(), before)
        record, records = Book(home.book(region)).sign(asked, known, root, registrar, now_ms())
    target = out or request.with_name(f"{request.name}.records")
    write_public(target, records)
    click.echo(f"Signed version {record.version} for {record.cell}: {target}", err=True)
    click.echo(str(Card(record.payload.region, record.user)))


@user.command()
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--after", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True,
    help="The user's signed records so far.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path), help="Where to write.  [default: REQUEST.released]")
@dir_option
def release(request: Path, after: Path, out: Path | None, directory: Path) -> None:
    """Let a user go who asks to be at home in another cell: the first of two signatures of registrars.

    Run by whoever keeps the registrar key of the region that is left, in --dir/secrets. What it writes goes to the
    registrar of the region that is entered, who runs `posthouse user sign` on it, with the same --after. Without both,
    and without the user's own, nobody can be moved. Where the region that is left has a log it is released by its
    registrar that runs, which must be in --dir (elsewhere: `posthouse registrar release`).

    It cannot be taken back: that version is released to nobody else from here on, and no other record is signed in its
    place. What went astray is written again for the same REQUEST.
    """
    home = Home(directory)
    root = home.root(now_ms())
    with _about(after):
        before = read_records(after.read_bytes())
        region = left_region(before, root)
    let_go = releaser_of(home, region, now_ms())
    with _about(request):
        asked, released = let_go.release(request.read_bytes(), before)
    target = out or request.with_name(f"{request.name}.released")
    write_public(target, released)
    click.echo(f"Released from {region}, to {asked.cell}: {target}", err=True)


@user.command()
@click.argument("name")
@click.option("--to", "cell", required=True, metavar="CELL", help="The new home, like sauda/1.")
@click.option(
    "--ask", type=click.Path(path_type=Path),
    help="Only write the request here, and the records so far into ASK.before, for registrars elsewhere.",
)  # fmt: skip
@dir_option
def move(name: str, cell: str, ask: Path | None, directory: Path) -> None:
    """Move the user NAME to another cell.

    Three sign: the user, the registrar of the region that is left, and that of the region that is entered. Where both
    registrar keys are in --dir/secrets (of regions with a log: both registrars in --dir, and they run) this does all;
    else see `posthouse registrar move`, or give --ask, have the request released and signed there (`posthouse registrar
    release` and `enrol`, or `posthouse user release` and `sign`), and bring what comes back with `posthouse user take`.

    A client that runs reconnects to the new home by itself. What waits in the old one is handed over; nothing has to be
    stopped. Prints the address card: the old one goes on working.
    """
    home = Home(directory)
    if ask is not None:
        request, before = ask_to_move(home.store(name), cell=cell, now_ms=now_ms())
        write_public(ask, request)
        write_public(ask.with_name(f"{ask.name}.before"), pack(before))
        click.echo(f"Wrote {ask}: have it released, then signed", err=True)
        return
    click.echo(str(move_user(home, name, cell, now_ms())))
    if not trio.run(introduce, home, name):
        click.echo(f"No node of {cell} answers now; it will learn of {name} when {name} connects.", err=True)


@user.command()
@click.argument("name")
@click.argument("records", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@dir_option
def take(name: str, records: Path, directory: Path) -> None:
    """Put newer signed records of the user NAME, from a registrar, into the stores of NAME's devices in --dir.

    Prints the address card.
    """
    home = Home(directory)
    with _about(records):
        card = take_move(home, name, read_records(records.read_bytes()), now_ms())
    click.echo(str(card))


@contextmanager
def _about(path: Path) -> Iterator[None]:
    """Errors name the file that they are about."""
    try:
        yield
    except (OperatorError, TrustError) as error:
        raise type(error)(f"{path}: {error.text}", error.remedy or "Nothing was signed") from None


@user.command("list")
@dir_option
def list_(directory: Path) -> None:
    """List the users and devices that have a store in --dir, with their address cards."""
    home = Home(directory)
    for name in home.names():
        click.echo(f"{name}\t{card_of(home, name)}")


for command in (devices, revoke, rotate, recover):
    user.add_command(command)


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
