"""`posthouse audit …`: prove what the disks of nodes hold."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
from rich.console import Console

from cluster.audit.erased import check_erasures
from cluster.audit.report import line, show, write_json
from cluster.audit.residency import audit_residency
from cluster.audit.shelf import Found, Shelf, Verdict
from cluster.audit.sites import NothingHere, unclaimed_stores
from cluster.cli.auditlog import checkpoint, verify, show as show_log
from cluster.cli.canary import canary
from cluster.cli.exits import Exit
from cluster.cli.options import result_file
from cluster.cli.sites import named_sites
from cluster.erasure import read_receipts

_PATH: Final = click.Path(path_type=Path)


@click.group()
def audit() -> None:
    """Prove what lies on the disks of nodes and what does not; check the logs of what operators and registrars did."""


for command in (canary, verify, show_log, checkpoint):
    audit.add_command(command)


@audit.command()
@click.option("--config", type=_PATH, metavar="FILE", help="A node's node.toml; DIR is then its data, or a copy of it.")
@click.option("--each", is_flag=True, help="A line for each envelope.")
@click.option("--json", "json_path", type=_PATH, callback=result_file, metavar="FILE", help="Write everything here.")
@click.argument("directory", metavar="[DIR]", required=False, type=_PATH)
def residency(directory: Path | None, config: Path | None, each: bool, json_path: Path | None) -> None:
    """Prove by the signed records that every envelope on the disks in DIR belongs in its region.

    DIR is what `posthouse up` or `demo --dir` keeps, the directory of a region's or node's config, or a data directory
    beside its node.toml; on a server, give --config alone. No node may run on any of the stores.

    Unseals every store with the key that the config names: its blocks and their chain, every checkpoint, a snapshot
    that was being fetched, stores that were set aside and copies beside them. Each envelope is for somebody who is at
    home in the region by a home record (of a group: by a roster) that verifies, or a copy in the outbox of a sender who
    is; else it is foreign, and named. Then every file is scanned for pieces of the envelopes, and for the storage
    keys, in the open. docs/OPERATIONS.md says what that proves, and what not.

    Exit status 0 says that all belongs there, and what was looked at; 1, that something does not, or cannot be read;
    2, that there is nothing to look at; 3, that a node runs.
    """
    sites = named_sites(directory, config)

    def say(shelf: Shelf, found: Found, verdict: Verdict) -> None:
        click.echo(line(shelf, found, verdict))

    try:
        report = audit_residency(sites, say if each else None)
    except NothingHere as error:
        raise click.UsageError(f"{error}.") from None
    report.findings += unclaimed_stores(directory, sites)
    if json_path is not None:
        write_json(json_path, report)
    show(Console(highlight=False), report)
    if not report.clean:
        click.get_current_context().exit(Exit.FAILED)


@audit.command()
@click.option("--config", type=_PATH, metavar="FILE", help="A node's node.toml; DIR is then its data, or a copy of it.")
@click.argument("receipts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("directory", metavar="[DIR]", required=False, type=_PATH)
def erasure(receipts: Path, directory: Path | None, config: Path | None) -> None:
    """Check erasure receipts against the disks in DIR of nodes that are stopped.

    RECEIPTS is a file of `posthouse cell erasure --out`. Each receipt must be signed by the node whose store it is, and
    every store of its cell that is found, set-aside ones and unfinished snapshots included, must hold no envelope for
    the user below the index that it names.

    Exit status 0 says that all of it holds; 1, that something does not.
    """
    sites = named_sites(directory, config)
    good, bad = check_erasures(sites, read_receipts(receipts))
    for text in good:
        click.echo(text)
    for text in bad:
        click.echo(text, err=True)
    if bad or not good:
        click.get_current_context().exit(Exit.FAILED)
