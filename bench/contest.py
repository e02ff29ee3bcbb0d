"""A sweep of Posthouse and of its peers in one run: at each value every system has its turn, from empty disks, until a
rate does not hold; then each one's knee is looked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from bench.compare import POSTHOUSE, check, compare, find_peers, promises_of
from bench.machine import describe_machine, describe_versions, raise_file_limit
from bench.peers.api import Peer
from bench.peers.registry import PEERS
from bench.peers.start import open_peer, version_of
from bench.progress import Line, progress_line
from bench.report import QUIET, summarize
from bench.run import run_bench, run_peer, unwrapped
from bench.scenario import Scenario
from bench.sweep import UNITS, Sweep, knee_of, make_report, run_sweeps, swept
from bench.target import local_target

Report = dict[str, Any]


async def compare_locally(scenario: Scenario, names: tuple[str, ...], directory: Path, console: Console) -> Report:
    """`compare` (bench.compare), or for a scenario that sweeps `compare_sweeps`, with its progress on `console`."""
    most = max(scenario.sweep_recipients, default=0)
    raise_file_limit(max(scenario.connections, most))
    with progress_line(console) as line, unwrapped():
        return await (compare_sweeps if swept(scenario) else compare)(scenario, names, directory, line)


async def compare_sweeps(scenario: Scenario, names: tuple[str, ...], directory: Path, line: Line) -> Report:
    """Sweep all systems that are installed, files in `directory`. Raises PosthouseError where there are none."""
    check(scenario)
    programs, missing = find_peers(names)
    played = msgspec.structs.replace(scenario, canary_rate=0.0, floors=False)  # which peers have none of
    sweeps = [Sweep(played, directory / POSTHOUSE, line, _ours, f"{POSTHOUSE}, ")]
    for name, path in programs.items():
        sweeps.append(Sweep(played, directory / name, line, partial(_theirs, PEERS[name], path), f"{name}, "))
    await run_sweeps(sweeps)
    systems: dict[str, Report] = {}
    for name, sweep in zip((POSTHOUSE, *programs), sweeps, strict=True):
        peer = PEERS.get(name)
        version = version_of(peer.program, programs[name]) if peer else describe_versions().get(name, "unknown")
        systems[name] = make_report(sweep) | {
            "version": version, "promises": msgspec.to_builtins(promises_of(name, scenario.nodes)),
            "settings": peer.settings if peer else f"{scenario.nodes} node(s), every block fsynced by a majority",
        }  # fmt: skip
    return {
        "scenario": msgspec.to_builtins(scenario),
        "comparison": True,
        "sweep": swept(scenario),
        "bound_ms": scenario.bound_ms,
        "systems": systems,
        "knees": {name: one["knee"] for name, one in systems.items()},
        "missing": missing,
        "failed": {},
        "wrong": systems[POSTHOUSE]["wrong"],
        "at": systems[POSTHOUSE]["at"],
        "machine": describe_machine(directory),
        "elsewhere": round(sum(one["elsewhere"] for one in systems.values()) / len(systems), 3),
        "versions": describe_versions(),
    }


async def _ours(scenario: Scenario, directory: Path, line: Line) -> Report:
    line.say("starting")
    async with local_target(directory, scenario.tls, scenario.nodes) as target:
        raw = await run_bench(scenario, target, directory, line.show)
    return summarize(raw, None, directory)


async def _theirs(peer: Peer, path: Path, scenario: Scenario, directory: Path, line: Line) -> Report:
    line.say("starting")
    with unwrapped():
        async with open_peer(peer, path, directory) as stage:
            alone = msgspec.structs.replace(scenario, nodes=len(stage.endpoints))
            raw = await run_peer(alone, peer.name, stage, directory, line.show)
    return summarize(raw, None, directory)


# --- what it says --------------------------------------------------------------------------------
def make_table(report: Mapping[str, Any]) -> Table:
    """Every value with every system that got so far."""
    scenario, unit = report["scenario"], UNITS[report["sweep"]]
    fixed = f"1 → {scenario['recipients']}" if report["sweep"] == "rate" else f"at {scenario['rate']:g}/s"
    title = f"{scenario['name']}: over {unit}, {fixed}, {scenario['size']} B"
    table = Table(title=title, caption="ms to every recipient; CPU µs a delivery; lost/duplicated/reordered",
                  box=box.SIMPLE, padding=(0, 1, 0, 0))  # fmt: skip
    table.add_column(unit.split()[0], justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in ("p50", "p99", "max", "msg/s", "CPU", "l/d/r", "held"):
        table.add_column(column, justify="right", no_wrap=True)
    for value in sorted({step["value"] for one in report["systems"].values() for step in one["steps"]}):
        for name, one in report["systems"].items():
            for step in one["steps"]:
                if step["value"] == value:
                    table.add_row(f"{value:g}", name, *_cells(step))
        table.add_section()
    return table


def _cells(step: Mapping[str, Any]) -> Iterator[str]:
    report = step.get("report")
    if report is None:
        yield from ("–",) * 6
        yield "void"
        return
    for key in ("p50", "p99", "max"):
        yield f"{report['latency_ms'][key]:.1f}" if key in report["latency_ms"] else "–"
    yield f"{report['achieved_per_s']:.1f}"
    yield f"{report['cpu_us_per_delivery']:.1f}"
    yield f"{report['lost']}/{report['duplicated']}/{report['reordered']}"
    yield "yes" if step["held"] else "no"


def describe(report: Mapping[str, Any]) -> list[str]:
    """The knees, what each system promises, and what does not fit the table."""
    systems, ours = report["systems"], report["knees"][POSTHOUSE]
    lines = []
    for name, one in systems.items():
        times = ""
        if name != POSTHOUSE and ours and one["knee"] and one["saturated"] and systems[POSTHOUSE]["saturated"]:
            times = f"; that of {POSTHOUSE} is {ours / one['knee']:.2f} times as high"
        lines.append(f"{name} {one['version']} ({one['promises']['brief']}): {knee_of(one)}{times}")
        lines += [f"{name} at {step['value']:g}: {step['void']}" for step in one["steps"] if "void" in step]
    lines += [f"{name} ({one['settings']}): durable: {one['promises']['durable']}" for name, one in systems.items()]
    lines += [f"{name} is missing: {how}" for name, how in report["missing"].items()]
    if report["elsewhere"] > QUIET:
        lines.append(f"{report['elsewhere']:.0%} of the machine went to other programs: the figures suffer from it")
    return lines


def lines(report: Mapping[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """The curves: (value, p99 in ms) of each system."""
    return {
        name: [
            (step["value"], step["report"]["latency_ms"]["p99"])
            for step in one["steps"]
            if "p99" in step.get("report", {}).get("latency_ms", {})
        ]
        for name, one in report["systems"].items()
    }
