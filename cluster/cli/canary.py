"""`posthouse audit canary …`: send marked envelopes, and look for them everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import trio
from rich.console import Console

from cluster.audit.canary_report import show, write_json
from cluster.audit.release import find_people, release
from cluster.audit.sighting import look_for
from cluster.audit.sites import unclaimed_stores
from cluster.cli.exits import Exit, NoAnswer
from cluster.cli.options import deadline_option, dir_option, now_ms, result_file
from cluster.cli.sites import named_sites
from cluster.local.home import Home
from cluster.local.layout import CAPTURED

SEND_S: Final = 60.0  # seconds; some dozens of messages take a few
_PATH: Final = click.Path(path_type=Path)


@click.group()
def canary() -> None:
    """Send marked envelopes, and look for them on every disk, log and captured link.

    Random texts go out in ordinary messages between test users; their plaintext, and pieces of the ciphertext that
    their clients submitted, are known to the sender and to nobody else. Where they may be says rule 3 of DESIGN
    section 5: in the recipient's home region; in the sender's until handed over, and until the stretch of the log that
    they lie in goes; nowhere else, and in the clear nowhere at all.
    """


@canary.command()
@click.option("--user", "users", multiple=True, metavar="NAME", help="A test user of --dir; may be given repeatedly.")
@click.option("--away", multiple=True, metavar="NAME", help="One who is left offline: mail for it waits at home.")
@click.option("--count", type=click.IntRange(1, 100), default=1, show_default=True, help="Messages for each two users.")
@deadline_option(SEND_S, "Give up waiting after so long; what was sent is in KIT.")
@dir_option
@click.argument("kit", type=_PATH)
def send(users: tuple[str, ...], away: tuple[str, ...], count: int, seconds: float, directory: Path, kit: Path) -> None:
    """Send canaries between test users, and write to KIT, a new directory, what to look for.

    Each user who stays online writes to every other one, and to a group of all. Without --user: two users in each
    region whose registrar's key is in --dir (canary-REGION-1, and canary-REGION-2 who is left offline), made if they
    are not there. Their nodes must run. Named users may not receive anywhere else meanwhile; what comes for them stays
    in their stores in --dir.

    KIT has the plaintexts, and what the clients said to their nodes and heard: keep it off the nodes' disks. To look on
    a server, copy it to memory there (/dev/shm).
    """
    if away and not users:
        raise click.UsageError("Name who writes with --user, where --away is given.")
    home = Home(directory)
    people = find_people(home, users, away, now_ms())
    made, whole = trio.run(release, home, people, kit, now_ms(), count, seconds)
    if made.canaries:
        envelopes = sum(len(one.marks) for one in made.canaries)
        where = ", ".join(sorted({person.card.region for person in people}))
        said = f"{len(made.canaries)} canaries ({envelopes} envelopes) between {len(people)} users of {where}"
        click.echo(f"{said}: {kit}")
    if not whole:
        what = f"not all canaries could be sent within {seconds:g} s; " + (
            f"{kit} has those that were" if made.canaries else "there is no KIT"
        )
        raise NoAnswer(what, "Do the nodes of all their users run? A longer --deadline waits longer")


@canary.command()
@click.option("--config", type=_PATH, metavar="FILE", help="A node's node.toml; DIR is then its data, or a copy of it.")
@click.option(
    "--capture", type=_PATH, metavar="PATH",
    help="What `posthouse up --capture` kept.  [default: DIR/captured, where it is]",
)
@click.option("--also", multiple=True, type=_PATH, metavar="PATH",
              help="What may have nothing of a canary: a log kept elsewhere, a backup, a capture of TLS.")
@click.option("--client-link", "links", multiple=True, type=_PATH, metavar="PATH",
              help="A capture of clients' plain ws: ciphertext may be in it.")
@click.option("--json", "json_path", type=_PATH, callback=result_file, metavar="FILE", help="Write everything here.")
@click.argument("kit", type=_PATH)
@click.argument("directory", metavar="[DIR]", required=False, type=_PATH)
def look(
    kit: Path, directory: Path | None, config: Path | None, capture: Path | None, also: tuple[Path, ...],
    links: tuple[Path, ...], json_path: Path | None,
) -> None:
    """Look for the canaries of KIT at the nodes in DIR, and say of each where it is and whether it may be there.

    DIR and --config are those of `posthouse audit residency`. Of each node, whether it runs or not: all its files as
    they lie there (stores and their WAL, quarantine, logs), and /metrics, /cell and /readyz of its admin port. Nothing
    of a canary may be in any, neither plaintext nor ciphertext, raw, in hex or in base64: stores are sealed. Then what
    crossed the borders, --also and the client links.

    A node holds its store while it runs, and no copy is made: mail would rest on one disk more. So look twice: while
    the nodes run, and when they are stopped (one after the other will do in a cell of several). Stores of stopped nodes
    are unsealed with the key that their config names; each envelope of a canary, in a block, a carry, a snapshot or a
    store that was set aside, is at home there, or a copy in its sender's outbox, or foreign.

    What was left waiting must be found where it waits, what was sent on its sender's own link, and at the borders as
    many bytes as crossed: else the look itself did not work, which is a finding, too.

    Exit status 0 says that everything was looked into and all canaries are where they may be; 1, that something is
    wrong; 2, that there is nothing to look at; 3, that nothing is wrong so far, but a node runs, or a key is missing.
    """
    sites = named_sites(directory, config)
    if capture is None and directory is not None and (directory / CAPTURED).is_dir():
        capture = directory / CAPTURED
    report = look_for(kit, sites, capture, also, links)
    report.findings += unclaimed_stores(directory, sites)
    if json_path is not None:
        write_json(json_path, report)
    show(Console(highlight=False), report)
    if not report.clean:
        click.get_current_context().exit(Exit.FAILED)
    if report.shut:
        click.get_current_context().exit(Exit.OPERATOR)
