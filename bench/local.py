"""A whole bench on this machine: federation, canary, load, report."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import trio
from rich.console import Console

from bench.backlog import measure_backlog
from bench.canary import Canary, fly
from bench.floors import measure_floors, ratios
from bench.machine import raise_file_limit, sync_ms
from bench.progress import Line, progress_line
from bench.report import summarize
from bench.run import Raw, run_bench, unwrapped
from bench.scenario import Scenario
from bench.sweep import run_sweep, swept
from bench.target import LocalTarget, local_target
from bench.versus import compare


async def bench_locally(scenario: Scenario, directory: Path, console: Console) -> dict[str, Any]:
    """Run `scenario` against a new node whose files go into `directory` (new or empty); returns the report.

    Raises PosthouseError when the run is void."""
    raise_file_limit()
    with progress_line(console) as line, unwrapped():
        if scenario.versus:
            return await compare(scenario, directory, line)
        if scenario.backlog:
            return await measure_backlog(scenario, directory, line)
        if swept(scenario):
            return await run_sweep(scenario, directory, line, _bench_one)
        return await _bench_one(scenario, directory, line)


async def bench_in_scratch(scenario: Scenario, console: Console) -> dict[str, Any]:
    """The same, with files that are gone afterwards."""
    with TemporaryDirectory(prefix="posthouse-bench-") as scratch:
        return await bench_locally(scenario, Path(scratch) / "run", console)


async def _bench_one(scenario: Scenario, directory: Path, line: Line) -> dict[str, Any]:
    canary = Canary(scenario.canary_rate) if scenario.canary_rate else None
    line.say("starting the cell")
    async with local_target(directory, scenario.tls, scenario.nodes) as target:
        raw = await _measure(scenario, target, directory, line, canary)
        report = summarize(raw, canary.summary() if canary is not None else None, directory)
        line.say("timing the disk")
        report["sync_ms"] = await trio.to_thread.run_sync(sync_ms, directory)
        if scenario.floors:
            line.say("measuring the floors")
            floors = await measure_floors(raw)
            report["floors"] = floors | ratios(floors, report["cpu_us_per_delivery"])
    return report


async def _measure(scenario: Scenario, target: LocalTarget, logs: Path, line: Line, canary: Canary | None) -> Raw:
    async with trio.open_nursery() as nursery:
        if canary is not None:
            line.say("letting the canary in")
            await nursery.start(fly, canary, target)
        raw = await run_bench(scenario, target, logs, line.show)
        if canary is not None:
            line.say("collecting the canary's messages")
            canary.stop.set()
            await canary.done.wait()
    return raw
