"""A whole bench on this machine: federation, canary, load, report."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import trio
from rich.console import Console

from bench.backlog import measure_backlog
from bench.canary import Canary, fly
from bench.floors import measure_floors, ratios
from bench.machine import raise_file_limit, sync_ms
from bench.progress import Line, progress_line
from bench.report import summarize
from bench.run import Raw, run_bench, run_loads, unwrapped
from bench.scenario import Scenario
from bench.sweep import run_sweep, swept
from bench.target import LocalTarget, local_target
from bench.together import join, sound
from bench.versus import compare
from cluster.config_keys import Address
from cluster.env import RealEnv
from cluster.local.make import free_ports


async def bench_locally(scenario: Scenario, directory: Path, console: Console) -> dict[str, Any]:
    """Run `scenario` against a new node whose files go into `directory` (new or empty); returns the report.

    Raises PosthouseError when the run is void."""
    raise_file_limit(scenario.connections)
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
    async with local_target(directory, scenario.tls, scenario.nodes, scenario.link_ms) as target:
        quiet = await _alone(scenario, target, directory, line) if scenario.alone else None
        raws, trips_ns = await _measure(scenario, target, directory, line, canary)
        said = canary.summary() if canary is not None else None
        reports = [summarize(raw, None if number else said, directory) for number, raw in enumerate(raws)]
        report = join(reports, raws, quiet, trips_ns)
        report["scenario"] = msgspec.to_builtins(scenario)
        line.say("timing the disk")
        report["sync_ms"] = await trio.to_thread.run_sync(sync_ms, directory)
        if scenario.floors and not scenario.also:
            line.say("measuring the floors")
            floors = await measure_floors(raws[0])
            report["floors"] = floors | ratios(floors, report["cpu_us_per_delivery"])
    return report


async def _alone(scenario: Scenario, target: LocalTarget, logs: Path, line: Line) -> dict[str, Any]:
    """The scenario's own load with nothing else going on; users of its own."""
    first = scenario.loads[0]
    played = msgspec.structs.replace(first, name="alone", seed=first.seed + 100, kill_at=None, drain_at=None)
    line.stage = "alone: "
    raw = await run_bench(played, target, logs, line.show)
    line.stage = ""
    return summarize(raw, None, logs)


async def _measure(
    scenario: Scenario, target: LocalTarget, logs: Path, line: Line, canary: Canary | None
) -> tuple[list[Raw], list[int]]:
    """All loads; and what round trips over the link took meanwhile, ns, where there is one."""
    trips_ns: list[int] = []
    async with trio.open_nursery() as nursery:
        if scenario.link_ms is not None:
            at = Address("127.0.0.1", next(free_ports(RealEnv())))
            await nursery.start(sound, at, scenario.link_ms / 2000, trips_ns)
        if canary is not None:
            line.say("letting the canary in")
            await nursery.start(fly, canary, target)
        raws = await run_loads(scenario.loads, target, logs, line.show)
        if canary is not None:
            line.say("collecting the canary's messages")
            canary.stop.set()
            await canary.done.wait()
        nursery.cancel_scope.cancel()
    return raws, trips_ns
