"""`posthouse bench compare`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import trio
from rich.console import Console

from bench.extra import needing_extra
from bench.peers.registry import PEERS
from bench.scenario import load_scenario, smoke
from cluster.cli.exits import Exit
from cluster.cli.options import ending_like_ctrl_c

# of the options of `bench run`, those that mean something here
SAME: Final = (
    "scenario", "sweep_recipients", "sweep_rate", "bound_ms", "recipients", "rate", "seconds", "size", "generators",
    "nodes", "rounds", "seed", "small", "json_path", "html_path", "keep",
)  # fmt: skip
HELP: Final = """Play SCENARIO with Posthouse and with other message brokers, in turn, in one run, on this machine.

Each round is Posthouse, the first peer, Posthouse, the second, and so on; the same generator drives all of them in
clear, with the same schedule, sizes and number of recipients, and checks what arrives. One system runs at a time, from
empty disks. The table has latency, rate and CPU of each, what each promises, and Posthouse's figures divided by each
peer's (below 1: quicker, or cheaper). A scenario that sweeps has every system go through all values, each up to the
first rate that it does not hold, and names the knee of each.

Exit status 1 when Posthouse lost, duplicated or reordered anything, or achieved less than 95 % of the offered rate; 3
when a peer is not installed or could not be driven (the others are compared all the same). What goes wrong with a peer
is told beside its figures, and changes no status."""


def make_compare(options: Sequence[click.Parameter]) -> click.Command:
    """The command; `options` are those of `bench run`."""
    peers = click.Option(
        ["--peer", "peers"], multiple=True, type=click.Choice(list(PEERS)), default=tuple(PEERS), show_default=True,
        help="A broker to compare with; give it again for another.",
    )  # fmt: skip
    same = [option for option in options if option.name in SAME]
    return click.Command("compare", params=[*same[:1], peers, *same[1:]], callback=_compare, help=HELP)


def _compare(
    scenario: str, peers: tuple[str, ...], small: bool, json_path: Path | None, html_path: Path | None,
    keep: Path | None, **overrides: Any,
) -> None:  # fmt: skip
    given = {key: value for key, value in overrides.items() if value is not None}
    chosen = load_scenario(scenario, {**(smoke() if small else {}), **given})
    with needing_extra():
        from bench.contest import compare_locally
        from bench.shown import describe, make_table

        if html_path is not None:
            from bench.page import render
    with ending_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="posthouse-bench-") as scratch:
        report = trio.run(compare_locally, chosen, peers, keep or Path(scratch) / "run", Console(stderr=True))
    console = Console(stderr=Path("-") in (json_path, html_path))
    console.print(make_table(report))
    for line in describe(report):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if json_path is not None:
        with click.open_file(str(json_path), "w", encoding="utf-8") as file:
            file.write(json.dumps(report, indent=2) + "\n")
    if html_path is not None:
        with click.open_file(str(html_path), "w", encoding="utf-8") as file:
            file.write(render(report))
    for line in report["wrong"]:
        console.print(f"[bold red]not passed[/]: posthouse: {line}", highlight=False, soft_wrap=True)
    if report["wrong"]:
        click.get_current_context().exit(Exit.FAILED)
    if report["missing"] or report["failed"]:
        click.get_current_context().exit(Exit.OPERATOR)
