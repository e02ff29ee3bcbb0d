"""A sweep: the same run over and over, each time with more recipients or at a higher rate, and where it stops holding.

A step holds when p99 to every recipient is below the scenario's bound, at least 95 % of the offered rate was achieved,
and nothing went wrong. The **knee** is the highest value that held before the first that did not. Each step has a new
cell, so that none finds what an overloaded one has left behind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from rich.table import Table

from bench.machine import describe_machine, describe_versions
from bench.progress import Line
from bench.report import ENOUGH, NEVER
from bench.scenario import Scenario
from relay.errors import PosthouseError

RATE, RECIPIENTS = "rate", "recipients"
UNITS: Final = {RATE: "messages a second", RECIPIENTS: "recipients"}
RunOne = Callable[[Scenario, Path, Line], Awaitable[dict[str, Any]]]


def swept(scenario: Scenario) -> str:
    """What a scenario sweeps; empty where it does not."""
    return RATE if scenario.sweep_rate else RECIPIENTS if scenario.sweep_recipients else ""


@dataclass
class Sweep:
    """One system's. `low` is the last value that held, `high` the first rate that did not."""

    scenario: Scenario
    directory: Path
    line: Line
    run_one: RunOne
    name: str = ""
    steps: list[dict[str, Any]] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0

    @property
    def what(self) -> str:
        return swept(self.scenario)

    async def rise(self, value: float) -> None:
        """The next value; nothing once a rate has not held."""
        if self.high:
            return
        if await self._step(value):
            self.low = value
        elif self.what == RATE:
            self.high = value

    async def refine(self) -> None:
        """Look once between the last rate that held and the first that did not."""
        middle = round(math.sqrt(self.low * self.high), 1)
        if self.low < middle < self.high and await self._step(middle):
            self.low = middle
        elif self.low < middle < self.high:
            self.high = middle

    async def _step(self, value: float) -> bool:
        """Run one, and say whether it held. One that is void (the system could not even take the devices) did not."""
        one = msgspec.structs.replace(
            self.scenario, sweep_rate=(), sweep_recipients=(),
            **{self.what: int(value) if self.what == RECIPIENTS else value},
        )  # fmt: skip
        self.line.stage = f"{self.name}{value:g} {UNITS[self.what]}: "
        found: dict[str, Any] = {"value": value}
        try:
            found["report"] = await self.run_one(one, self.directory / f"step-{len(self.steps) + 1}", self.line)
        except PosthouseError as error:
            found["void"] = error.text
        self.line.stage = ""
        found["held"] = _held(found, self.scenario.bound_ms)
        self.steps.append(found)
        return bool(found["held"])


async def run_sweeps(sweeps: Sequence[Sweep]) -> None:
    """All steps, of all systems in turn; a sweep of rates ends with the first that does not hold, and looks
    `sweep_refine` times between it and the last that did."""
    scenario = sweeps[0].scenario
    for value in scenario.sweep_rate or scenario.sweep_recipients:
        for sweep in sweeps:
            await sweep.rise(value)
    for _ in range(scenario.sweep_refine):
        for sweep in sweeps:
            await sweep.refine()


async def run_sweep(scenario: Scenario, directory: Path, line: Line, run_one: RunOne) -> dict[str, Any]:
    """The sweep of one system, whole. Files go into directories in `directory`."""
    sweep = Sweep(scenario, directory, line, run_one)
    await run_sweeps([sweep])
    return make_report(sweep)


def _held(step: dict[str, Any], bound_ms: float) -> bool:
    report = step.get("report")
    if report is None or any(report[key] for key in NEVER):
        return False
    in_time: bool = report["latency_ms"].get("p99", math.inf) < bound_ms
    enough: bool = report["achieved_per_s"] >= ENOUGH * report["offered_per_s"]
    return in_time and enough


def make_report(sweep: Sweep) -> dict[str, Any]:
    """What came of it, with every step's own report."""
    steps = sorted(sweep.steps, key=lambda step: step["value"])
    reports = [step["report"] for step in steps if "report" in step]
    knee = None
    for step in steps:
        if not step["held"]:
            break
        knee = step["value"]
    totals = {key: sum(report[key] for report in reports) for key in NEVER}
    wrong = [f"{count} {key}" for key, count in totals.items() if count]
    wrong += [f"at {step['value']:g}: {step['void']}" for step in steps if "void" in step]
    if knee is None:
        wrong.append(f"not even {steps[0]['value']:g} {UNITS[sweep.what]} held")
    return {
        "scenario": msgspec.to_builtins(sweep.scenario),
        "sweep": sweep.what,
        "knee": knee,
        "saturated": any(not step["held"] for step in steps),
        "bound_ms": sweep.scenario.bound_ms,
        **totals,
        "steps": steps,
        "wrong": wrong,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": describe_machine(sweep.directory),
        "elsewhere": round(sum(report["elsewhere"] for report in reports) / max(1, len(reports)), 3),
        "versions": describe_versions(),
    }


def make_table(report: dict[str, Any]) -> Table:
    """The steps for a terminal."""
    table = Table(title=f"{report['scenario']['name']}: over {UNITS[report['sweep']]}")
    columns = (UNITS[report["sweep"]], "p50, ms", "p99, ms", "max, ms", "achieved/s", "CPU µs a delivery", "to floors")
    for column in (*columns, "held"):
        table.add_column(column, justify="right")
    for step in report["steps"]:
        one, held = step.get("report"), "yes" if step["held"] else "no"
        if one is None:
            table.add_row(f"{step['value']:g}", *["–"] * (len(columns) - 1), "void")
            continue
        latency, floors = one["latency_ms"], one.get("floors", {})
        table.add_row(
            f"{step['value']:g}", *(f"{latency[key]:.2f}" if key in latency else "–" for key in ("p50", "p99", "max")),
            f"{one['achieved_per_s']:g}", str(one["cpu_us_per_delivery"]),
            f"{floors.get('to_bare', '–')}, {floors.get('to_joined', '–')}", held,
        )  # fmt: skip
    return table


def knee_of(report: dict[str, Any]) -> str:
    """The knee, in words."""
    bound, unit = f"p99 below {report['bound_ms']:g} ms", UNITS[report["sweep"]]
    if report["knee"] is None:
        return f"nothing held {bound}"
    if report["saturated"]:
        return f"the knee: {report['knee']:g} {unit} is the most that held {bound}"
    return f"no knee: everything held {bound}, up to {report['knee']:g} {unit}"


def describe(report: dict[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    knee = knee_of(report)
    return [
        knee,
        f"lost {report['lost']}, duplicated {report['duplicated']}, reordered {report['reordered']} in all steps",
        f"{report['elsewhere']:.0%} of the machine went to other programs",
    ]


def lines(report: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """The curves: (value, ms) for each percentile."""
    found: dict[str, list[tuple[float, float]]] = {}
    for key in ("p50", "p99"):
        steps = [(step["value"], step.get("report", {}).get("latency_ms", {}).get(key)) for step in report["steps"]]
        found[key] = [(value, ms) for value, ms in steps if ms is not None]
    return found
