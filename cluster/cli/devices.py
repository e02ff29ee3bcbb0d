"""`posthouse user devices | revoke | rotate | recover`."""

from __future__ import annotations

from pathlib import Path

import click
import trio

from cluster.cli.options import dir_option, now_ms
from cluster.enrolment import read_records
from cluster.local import devices as life
from cluster.local.devices import Changed
from cluster.local.home import Home
from cluster.local.people import card_of, introduce
from cluster.local.recovery import Recovery

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("name")
@dir_option
def devices(name: str, directory: Path) -> None:
    """List the devices of the user NAME: id, the version that enrolled it, and its store in --dir, if it has one.

    It is what this directory knows: what was changed elsewhere, it learns when a client of it connects.
    """
    record, listed = life.devices_of(Home(directory), name, now_ms())
    for one in listed:
        mark = "  (this one)" if one.name == name else ""
        click.echo(f"{one.id.hex()[:16]}\tsince {one.since}\t{one.name or '-'}{mark}")
    recovery = "a recovery key" if record.payload.recovery_key else "no recovery key"
    click.echo(f"Version {record.version}, {recovery}, {len(record.former)} former ids.", err=True)


@click.command()
@click.argument("device")
@click.option("--as", "by", metavar="NAME", help="The client that signs.  [default: another one of the same user]")
@dir_option
def revoke(device: str, by: str | None, directory: Path) -> None:
    """Revoke DEVICE: a client in --dir (NAME+DEVICE), or the beginning of an id that `posthouse user devices` shows.

    The next version of the home record does not list it any more, and names a new user key: a lost device had the old
    one. As soon as a node of the user's cell has the version, the device's sessions end, nothing is delivered to it,
    and it cannot connect; what waited for it alone is gone. Others stop sealing for it when they learn of the version.
    Its id never comes back. Needs the registrar's key in --dir/secrets.
    """
    home = Home(directory)
    _tell(home, life.revoke(home, device, by, now_ms()), "Revoked")


@click.command()
@click.argument("name")
@click.option("--device", is_flag=True, help="The keys of the device NAME, instead of the user key.")
@dir_option
def rotate(name: str, device: bool, directory: Path) -> None:
    """Make a new user key for NAME, or new keys for the device NAME.

    The user key signs the next versions of the home record; the clients of the user in --dir get the new one. A device
    with new keys has a new id, and everything else stays: conversations, cursor, what waits for it. No client may have
    its store open meanwhile. Needs the registrar's key in --dir/secrets.
    """
    home = Home(directory)
    change = life.rotate_device if device else life.rotate_user
    _tell(home, change(home, name, now_ms()), "Rotated")


@click.command()
@click.argument("name")
@click.option("--recovery", required=True, metavar="FILE", type=_FILE, help="The file of the recovery key.")
@click.option("--records", metavar="FILE", type=_FILE, help="The user's records, where the registrar's are not here.")
@click.option("--keep", multiple=True, metavar="CLIENT", help="A client of the user in --dir that stays. Repeatable.")
@click.option(
    "--new-recovery", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Make another recovery key, write it into the new file FILE, and give up this one.",
)  # fmt: skip
@dir_option
def recover(
    name: str, recovery: Path, records: Path | None, keep: tuple[str, ...], new_recovery: Path | None, directory: Path
) -> None:
    """Make the device NAME for the user whose recovery key is in FILE, in the place of all devices that are lost.

    For when the devices are lost, or somebody else has the user key. The new version of the home record is signed by
    the recovery key; it names a new user key, and lists the new device and those of --keep. All others are revoked.
    NAME may be `USER+DEVICE`.

    What waited for the lost devices was sealed for their keys: nobody can read it any more, and it is dropped. The node
    writes into its log how many envelopes that were. Conversations and groups begin anew on the new device.
    """
    home = Home(directory)
    known = read_records(records.read_bytes()) if records else ()
    key = Recovery.read(recovery)
    changed = life.recover(home, name, key, now_ms(), records=known, keep=keep, replacement=new_recovery)
    click.echo(str(key.card))
    _tell(home, changed, "Recovered")


def _tell(home: Home, changed: Changed, what: str) -> None:
    """Bring the version to the user's node, and say what there is to know."""
    record = changed.record
    click.echo(f"{what}: version {record.version}, {len(record.devices)} device(s).", err=True)
    if changed.without_key:
        click.echo(
            f"{changed.without_key} of them have no store here: they go on, but cannot sign the next version.", err=True
        )
    if not trio.run(introduce, home, changed.by):
        region = card_of(home, changed.by).region
        click.echo(f"No node of {region} answers now: it holds once {changed.by} has connected.", err=True)
