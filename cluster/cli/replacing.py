"""`posthouse registrar replace-key`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click
import trio

from cluster.cli.options import now_ms
from cluster.registrar.config import load_config
from cluster.registrar.replacing import ROOM
from cluster.registrar.replacing import replace_key as replace_it

_PATH = click.Path(path_type=Path)


@click.command("replace-key")
@click.option(
    "--at", "at", type=_PATH, required=True, envvar="POSTHOUSE_REGISTRAR", show_envvar=True,
    help="The registrar's directory, or its registrar.toml.",
)  # fmt: skip
@click.option("--out", type=_PATH, metavar="FILE", help="Where to write.  [default: REGION.replaced in that directory]")
@click.option(
    "--room", default=ROOM, show_default=True, type=click.IntRange(min=0),
    help="Entries in each other region's log for users who are on their way there. 0: the key was stolen.",
)  # fmt: skip
def replace_key(at: Path, out: Path | None, room: int) -> None:
    """Give a registrar that does not run another key, for home records and releases.

    What it signed with the old one holds: the region's statement says until which entry of each log, and everybody goes
    by that. Where the other regions' logs end it knows as their witness.

    \b
    1. Stop the registrar, then run this where its directory is.
    2. Where `posthouse init region` was run:
         posthouse init statement --registrar-key FILE --dir norden
    3. When the keepers have published that: posthouse init join root.bin, and
       root.bin to all servers, of all regions, and to the registrars.
    4. Start it. Then delete the old key, NAME.key.before.
    Nobody enrols, moves away, or changes devices between 1 and 4; all else goes on.
    """
    config = load_config(at, now_ms())
    target = out or config.source.parent / f"{config.region}.replaced"
    made = trio.run(partial(replace_it, config, now_ms(), target, room))
    click.echo(f"{config.region} has another registrar's key, {made.key.hex()[:16]}…")
    for region, end in made.before.ends:
        click.echo(f"  the one of before ends at entry {end} of the log of {region}")
    click.echo(f"Made {target}. Have the root document name it: posthouse init statement --registrar-key {target}")
