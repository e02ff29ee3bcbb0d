"""What replication costs: the same load on a cell of one node and on one of several, side by side in one run.

Both cells run from the start to the end; the load goes to one and to the other in turn, several times, so that what
else the machine does meets both. Ratios are of the latency from when a message was due to its final receipt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hdrh.histogram import HdrHistogram
from rich.table import Table

from bench.accounts import histogram_ms, merge
from bench.machine import describe_machine, describe_versions, sync_ms
from bench.progress import Line
from bench.report import summarize, verdict
from bench.run import run_bench
from bench.scenario import Scenario
from bench.target import LocalTarget, local_target


async def compare(scenario: Scenario, directory: Path, line: Line) -> dict[str, Any]:
    """Run `scenario.rounds` rounds against each cell, whose files go into `directory`; returns the report."""
    line.say("starting two cells")
    async with (
        local_target(directory / "solo", scenario.tls, 1) as solo,
        local_target(directory / "cell", scenario.tls, scenario.nodes) as cell,
    ):
        sides: dict[str, LocalTarget] = {"solo": solo, "cell": cell}
        reports: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
        acks: dict[str, list[bytes]] = {name: [] for name in sides}
        for number in range(scenario.rounds):
            for name, target in sides.items() if number % 2 == 0 else reversed(sides.items()):
                line.say(f"round {number + 1} of {scenario.rounds}: {name}")
                # other keys for each, so that no round meets the group of another
                played = msgspec.structs.replace(
                    scenario, nodes=1 if name == "solo" else scenario.nodes, seed=scenario.seed + number
                )
                raw = await run_bench(played, target, directory / name, line.show)
                reports[name].append(summarize(raw, None, directory))
                acks[name].append(raw.sent.latencies)
    return _report(scenario, directory, reports, {name: merge(parts) for name, parts in acks.items()})


def _report(
    scenario: Scenario, directory: Path, reports: dict[str, list[dict[str, Any]]], acks: dict[str, HdrHistogram]
) -> dict[str, Any]:
    sides = {name: _side(reports[name], acks[name]) for name in reports}
    solo, cell = sides["solo"]["ack_ms"], sides["cell"]["ack_ms"]
    every = [report for one in reports.values() for report in one]
    return {
        "scenario": msgspec.to_builtins(scenario),
        "solo": sides["solo"],
        "cell": sides["cell"],
        "ratio": {name: round(cell[name] / solo[name], 2) for name in ("p50", "p90", "p99") if solo.get(name)},
        "mark_sync_ms": sync_ms(directory),
        **{key: sum(report[key] for report in every) for key in ("lost", "duplicated", "reordered", "unanswered")},
        "wrong": sorted({line for report in every for line in verdict(report)}),
        "machine": describe_machine(directory),
        "elsewhere": round(sum(report["elsewhere"] for report in every) / len(every), 3),
        "versions": describe_versions(),
    }


def _side(reports: list[dict[str, Any]], acks: HdrHistogram) -> dict[str, Any]:
    return {
        "ack_ms": histogram_ms(acks),
        "rounds_ack_ms": [report["ack_ms"] for report in reports],
        "achieved_per_s": round(sum(report["achieved_per_s"] for report in reports) / len(reports), 2),
        "node_cpu_s": round(sum(report["node_cpu_s"] for report in reports), 2),
    }


def make_table(report: dict[str, Any]) -> Table:
    """The comparison for a terminal."""
    nodes = report["scenario"]["nodes"]
    table = Table(title=f"{report['scenario']['name']}: receipts at {report['scenario']['rate']:g}/s, ms")
    for column in ("", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right" if column else "left")
    for name, label in (("solo", "1 node"), ("cell", f"{nodes} nodes")):
        found = report[name]["ack_ms"]
        table.add_row(label, *(f"{found[key]:.2f}" if key in found else "–" for key in ("p50", "p90", "p99", "max")))
    table.add_row("ratio", *(f"{report['ratio'].get(key, 0):.2f}" for key in ("p50", "p90", "p99")), "")
    return table


def describe(report: dict[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    mark, solo = report["mark_sync_ms"]["p50"], report["solo"]["ack_ms"].get("p50")
    share = f", {mark / solo:.0%} of a receipt's p50 with one node" if solo else ""
    cpu = f"CPU of all nodes: {report['solo']['node_cpu_s']} s with one, {report['cell']['node_cpu_s']} s with several"
    return [
        f"lost {report['lost']}, duplicated {report['duplicated']}, reordered {report['reordered']}",
        f"the mark file: p50 {mark} ms for a sync{share}",
        cpu,
        f"{report['elsewhere']:.0%} of the machine went to other programs",
    ]
