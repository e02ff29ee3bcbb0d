"""`posthouse registrar release` and `move`: users who move, by registrars that run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from cluster.cli.exits import NoAnswer
from cluster.cli.options import dir_option, now_ms
from cluster.local.home import Home
from cluster.local.people import card_of, introduce, sign_move, take_move
from cluster.provision import write_public
from cluster.registrar.asking import Registrar, Service
from cluster.registrar.config import load_config
from relay.client.identity import own_records
from relay.core.trust import HomeRecord, Root, read_home
from relay.errors import OperatorError, PeerError

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("request", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=_PATH, help="Where to write.  [default: REQUEST.released]")
@click.option(
    "--at", "at", type=_PATH, required=True, envvar="POSTHOUSE_REGISTRAR", show_envvar=True,
    help="The directory, or registrar.toml, of the registrar of the region that is left.",
)  # fmt: skip
def release(request: Path, out: Path | None, at: Path) -> None:
    """Have the running registrar let a user go who asks to be at home in another cell.

    The first of two signatures of registrars, as `posthouse user release` gives it where a region has no log. REQUEST
    is what `posthouse user move --ask` wrote. The release is in the region's log before it is given: from then on that
    registrar signs no other record of that version, and releases it for no other request, whoever asks. It cannot be
    taken back. What went astray is written again for the same REQUEST.

    Writes the released request with its staple, the proof that the log has it. The registrar of the region that is
    entered wants both: posthouse registrar enrol REQUEST.released --after REQUEST.before
    """
    registrar = Registrar.of(load_config(at, now_ms()))
    record, released = trio.run(registrar.release, request.read_bytes(), now_ms())
    target = out or request.with_name(f"{request.name}.released")
    write_public(target, released)
    click.echo(f"Released from {registrar.region}, to {record.cell}: {target}", err=True)


@click.command()
@click.argument("name")
@click.option("--to", "cell", required=True, metavar="CELL", help="The new home, like sauda/1.")
@click.option(
    "--at", "at", type=_PATH, envvar="POSTHOUSE_REGISTRAR", show_envvar=True,
    help="The registrar of the region that is left: its directory.  [default: where the root says that it is]",
)  # fmt: skip
@click.option(
    "--into", type=_PATH,
    help="The registrar of the region that is entered: its directory.  [default: where the root says that it is]",
)
@dir_option
def move(name: str, cell: str, at: Path | None, into: Path | None, directory: Path) -> None:
    """Move the user NAME, whose store is in --dir, to another cell, by two registrars that run.

    That of the region that is left logs the release, that of the region that is entered logs the new home record and
    the ones before it; each with its proof, which is verified here. Without --at and --into they are asked at their
    outer faces, which let users go, and take them in, only with `open = true`.

    What is cut short goes on when the same command is run again: what was released or logged stays so, and is not done
    twice. A client that runs reconnects to the new home by itself; what waits in the old one is handed over. Prints the
    address card.
    """
    home = Home(directory)
    newest = read_home(own_records(home.store(name))[-1])
    if newest.cell != cell:
        _move(home, name, newest, cell, at, into)
        newest = read_home(own_records(home.store(name))[-1])
    click.echo(f"{name} is at home in {newest.cell}, by version {newest.version}", err=True)
    click.echo(str(card_of(home, name)))
    if not trio.run(introduce, home, name):
        click.echo(f"No node of {cell} answers now; it will learn of {name} when {name} connects.", err=True)


def _move(home: Home, name: str, newest: HomeRecord, cell: str, at: Path | None, into: Path | None) -> None:
    root, left, entered = home.root(now_ms()), newest.payload.region, cell.partition("/")[0]
    leave, enter = _service(at, root, left, f"{name} is at home in"), _service(into, root, entered, f"{cell} is in")
    with _again():
        records = leave.records(newest.user)
        if not records:
            what = f"the log of {left} has no {name}"
            raise OperatorError(what, "Have the records so far logged there first: posthouse registrar enrol")
        take_move(home, name, records, now_ms())
        take_move(home, name, sign_move(home, name, cell, now_ms(), leave, enter.sign), now_ms())


def _service(at: Path | None, root: Root, region: str, why: str) -> Service:
    if at is None:
        return Service(lambda: Registrar.named(root, region), now_ms)
    config = load_config(at, now_ms())
    if config.region != region:
        raise OperatorError(f"{at} is the registrar of {config.region}, and {why} {region}", f"Name that of {region}")
    return Service(lambda: Registrar.of(config), now_ms)


@contextmanager
def _again() -> Iterator[None]:
    """A registrar that does not answer costs time, nothing else."""
    try:
        yield
    except PeerError as error:
        remedy = "Run the same command again when it answers: what is released or logged is not done twice"
        raise NoAnswer(error.text, remedy) from None
