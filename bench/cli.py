"""`posthouse bench …`: run a scenario, show what came of it."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console

from bench.comparing import make_compare
from bench.extra import needing_extra
from bench.machine import describe_machine
from bench.scenario import load_scenario, smoke
from bench.suite import suite
from cluster.cli.options import ending_like_ctrl_c, result_file

FAILED = 1  # exit status when the run says no


def _numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Callback of an option that takes values with commas between them; a whole number stays one."""
    try:
        return None if value is None else tuple(json.loads(f"[{value}]", parse_constant=float))
    except ValueError:
        raise click.BadParameter("numbers with commas between them") from None


@click.group()
def bench() -> None:
    """Measure a cell: latency, CPU and correctness under an open load."""


@bench.command()
@click.argument("scenario", default="fanout")
@click.option("--recipients", type=int, help="Devices that receive.")
@click.option("--rate", type=float, help="Group messages a second.")
@click.option("--seconds", type=float, help="Length of the measured part.")
@click.option("--size", type=int, help="Bytes of each envelope's body.")
@click.option("--generators", type=int, help="Receiving processes.")
@click.option("--nodes", type=int, help="Nodes of the cell: 1, 3 or 5; the recipients are spread over them.")
@click.option("--kill-at", type=float, help="SIGKILL a node so many seconds into the measured part.")
@click.option("--kill", metavar="NODE", help="Which one: leader, follower, or by its name (n1 …).")
@click.option("--restart/--no-restart", default=None, help="Start it again, or not.")
@click.option("--rounds", type=int, help="Rounds of a comparison.")
@click.option("--groups", type=int, help="Groups that get the messages in turn; recipients are shared out among them.")
@click.option("--pairs/--no-pairs", default=None, help="A sender for each recipient, who writes to nobody else.")
@click.option("--sweep-recipients", callback=_numbers, metavar="N,N…", help="Run for each number of recipients.")
@click.option("--sweep-rate", callback=_numbers, metavar="RATE,…", help="Run at each rate, until one does not hold.")
@click.option("--bound-ms", type=float, help="What p99 has to stay below for a step of a sweep to hold.")
@click.option("--backlog", type=int, help="Envelopes to queue before nodes are started again (backlog).")
@click.option("--canary-rate", type=float, help="Messages a second between full SDK clients; 0: none.")
@click.option("--seed", type=int, help="Keys, padding and jitter.")
@click.option("--tls/--no-tls", default=None, help="wss in the node, or plain ws.")
@click.option("--smoke", "small", is_flag=True, help="Small and short: 20 recipients, 20 messages a second, 3 seconds.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, allow_dash=True), callback=result_file, metavar="FILE",
    help="Write the result to FILE (-: standard output).",
)
@click.option(
    "--html", "html_path", type=click.Path(path_type=Path, allow_dash=True), callback=result_file, metavar="FILE",
    help="Write a page for people, with plots, to FILE (-: standard output); it needs nothing but itself.",
)
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep nodes, logs and keys in a new DIR.")
def run(
    scenario: str, small: bool, json_path: Path | None, html_path: Path | None, keep: Path | None, **overrides: Any
) -> None:
    """Run SCENARIO, a file or the name of one that comes with Posthouse (backlog, cross-border, crowd,
    drain, failover, fair, fanout, groups, idle, mixed-day, one-to-one, replication, saturation, slow, smoke, storm,
    sweep), on this machine.

    Exit status 1 when anything was lost, duplicated or reordered, when less than 95 % of the offered rate was achieved,
    or when a bound that the scenario gives was passed."""
    given = {key: value for key, value in overrides.items() if value is not None}
    chosen = load_scenario(scenario, {**(smoke() if small else {}), **given})
    with needing_extra():
        from bench.local import bench_locally

        if html_path is not None:
            from bench.page import render  # which takes a second to load
        from bench.shown import describe, make_table, verdict
    with ending_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="posthouse-bench-") as scratch:
        report = trio.run(bench_locally, chosen, keep or Path(scratch) / "run", Console(stderr=True))
    console = Console(stderr=Path("-") in (json_path, html_path))
    console.print(make_table(report))
    for line in describe(report):
        console.print(f"  {line}", highlight=False, soft_wrap=True)
    if json_path is not None:
        _write(json_path, json.dumps(report, indent=2) + "\n")
    if html_path is not None:
        _write(html_path, render(report))
    wrong = verdict(report)
    for line in wrong:
        console.print(f"[bold red]not passed[/]: {line}", highlight=False, soft_wrap=True)
    if wrong:
        click.get_current_context().exit(FAILED)


def _write(path: Path, text: str) -> None:
    with click.open_file(str(path), "w", encoding="utf-8") as file:
        file.write(text)


@bench.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--fail-above", type=click.FloatRange(min=1), metavar="RATIO",
    help="Exit status 1 when a figure of B is worse than RATIO times that of A.",
)
def diff(a: Path, b: Path, fail_above: float | None) -> None:
    """Compare two results that `bench run --json` wrote, A and B: every figure, and the ratio of B to A.

    What makes the two hard to compare (another scenario, machine or version, a machine that was busy) is said below."""
    with needing_extra():
        from bench.diff import compare_reports, differences, make_table, read_report, worsened
    one, other = read_report(a), read_report(b)
    rows, console = compare_reports(one, other), Console()
    console.print(make_table(rows))
    for line in differences(one, other):
        console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
    wrong = worsened(rows, fail_above) if fail_above is not None else []
    for line in wrong:
        console.print(f"[bold red]worse[/]: {line}", highlight=False, soft_wrap=True)
    if wrong:
        click.get_current_context().exit(FAILED)


@bench.command()
@click.option("--users", default=5_000, show_default=True, help="Users to enrol in each of the three ways.")
@click.option("--at-once", default=1_000, show_default=True, help="Requests that wait at any time, without HTTP.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, allow_dash=True), callback=result_file,
              metavar="FILE", help="Write the result to FILE (-: standard output).")  # fmt: skip
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Keep the registries in a new DIR.")
def registrar(users: int, at_once: int, json_path: Path | None, keep: Path | None) -> None:
    """Enrol users into a region's new log with two witnesses, and measure what a directory costs.

    Three ways: within this process, without HTTP; then by `posthouse registrar run`, a process for each of three
    regions, with one user a request over many connections, and with many users a request. Another process asks, with
    requests that were made before; its own cost is told. Prints enrolments a second and CPU, and the size of the proofs
    and what they cost to make and to verify, and a lookup of a record that is known."""
    from bench.registrar import measure
    from bench.registrars import measure as measure_served

    with ending_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="posthouse-bench-") as scratch:
        directory = keep or Path(scratch) / "run"
        directory.mkdir(parents=True)
        found = {"without HTTP": asdict(trio.run(measure, directory, users, at_once))}
        served = trio.run(measure_served, directory / "served", users)
        found |= {way: asdict(figures) for way, figures in served.items()}
        found["machine"] = describe_machine(directory)
    for way, figures in found.items():
        click.echo(way, err=True)
        for name, value in figures.items():
            click.echo(f"  {name:<18}{f'{value:,.1f}' if isinstance(value, float) else value:>12}", err=True)
    if json_path is not None:
        _write(json_path, json.dumps(found, indent=2) + "\n")


bench.add_command(make_compare(run.params))
bench.add_command(suite)
