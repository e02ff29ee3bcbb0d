"""A suite: several scenarios one after the other, each with its result and its page; the short one is `make bench`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import trio
from rich.console import Console
from rich.table import Table

from bench.extra import needing_extra
from bench.scenario import Scenario, load_scenario, read_toml
from cluster.cli.exits import Exit
from cluster.cli.options import ending_like_ctrl_c
from relay.errors import ConfigError, OperatorError, PosthouseError

SHORT = "short"


def load_suite(source: str) -> list[Scenario]:
    """The scenarios of a suite, by path or by the name of one that comes with Posthouse. Raises ConfigError."""
    given = read_toml(source, "suite", "bench/suites/short.toml", (SHORT,))
    runs = given.get("run")
    if set(given) != {"run"} or not isinstance(runs, list) or not all(isinstance(one, dict) for one in runs):
        raise ConfigError(source, [("run", "missing, or not alone", "Give [[run]] for each scenario")])
    return list(_load(source, runs))


def _load(source: str, runs: list[dict[str, Any]]) -> Iterator[Scenario]:
    names = set()
    for number, changes in enumerate(runs, 1):
        which = changes.pop("scenario", None)
        if not isinstance(which, str):
            raise ConfigError(source, [(f"run {number}", "has no scenario", 'Give scenario = "fanout", or another')])
        scenario = load_scenario(which, changes)
        if scenario.name in names:
            raise ConfigError(source, [(f"run {number}", f"is called {scenario.name}, too", "Give each its own name")])
        names.add(scenario.name)
        yield scenario


def summary(reports: dict[str, dict[str, Any]], wrong: dict[str, list[str]]) -> Table:
    """A line for each run."""
    table = Table(title="The suite")
    for column in ("", "p50, ms", "p99, ms", "receipt p99, ms", "lost", "duplicated", "reordered", ""):
        table.add_column(column, justify="right" if column else "left")
    for name, report in reports.items():
        times = report.get("latency_ms", {}), report.get("ack_ms", {})
        cells = times[0].get("p50"), times[0].get("p99"), times[1].get("p99")
        counts = (str(report.get(key, "–")) for key in ("lost", "duplicated", "reordered"))
        said = "did not pass" if wrong[name] else "passed"
        if report.get("sweep"):
            said += f", knee {report['knee'] or '–'}"
        table.add_row(name, *("–" if cell is None else f"{cell:.2f}" for cell in cells), *counts, said)
    return table


@click.command()
@click.argument("source", metavar="[SUITE]", default=SHORT)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path("bench-results"),
    show_default=True, metavar="DIR", help="Write a JSON file and a page for each run into DIR.",
)
def suite(source: str, directory: Path) -> None:
    """Run several scenarios, one after the other: SUITE is a file, or the one that comes with Posthouse (short), which
    takes less than five minutes.

    Exit status 1 when one of the runs does not pass, as with `bench run`; the others are run all the same."""
    scenarios = load_suite(source)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"{directory}: {error.strerror}", "Name a directory that you may write to") from None
    with needing_extra():
        from bench.local import bench_in_scratch
        from bench.page import render
        from bench.shown import describe, make_table, verdict
    console, began = Console(), time.monotonic()
    reports: dict[str, dict[str, Any]] = {}
    wrong: dict[str, list[str]] = {}
    with ending_like_ctrl_c():
        for scenario in scenarios:
            name = scenario.name
            try:
                report = reports[name] = trio.run(bench_in_scratch, scenario, Console(stderr=True))
            except PosthouseError as error:
                reports[name], wrong[name] = {}, [error.text]
                continue
            wrong[name] = verdict(report)
            console.print(make_table(report))
            for line in describe(report):
                console.print(f"  {line}", highlight=False, soft_wrap=True, markup=False)
            (directory / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (directory / f"{name}.html").write_text(render(report), encoding="utf-8")
    console.print(summary(reports, wrong))
    for name, lines in wrong.items():
        for line in lines:
            console.print(f"[bold red]not passed[/]: {name}: {line}", highlight=False, soft_wrap=True)
    console.print(f"{time.monotonic() - began:.0f} s; results and pages are in {directory}", highlight=False)
    if any(wrong.values()):
        click.get_current_context().exit(Exit.FAILED)
