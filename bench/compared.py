"""A comparison (bench.compare), for people: one table, and what does not fit it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rich import box
from rich.table import Table

from bench.report import QUIET

_COLUMNS: Final = ("p50", "p90", "p99", "max", "msg/s", "CPU", "l/d/r")
_CELLS: Final = ("p50", "p90", "p99", "max")
_CAPTION: Final = "ms to every recipient, CPU µs a delivery, lost/duplicated/reordered\nratio: Posthouse by the peer"


def make_table(report: Mapping[str, Any]) -> Table:
    """Every system with its promises, then the ratios. It fits 80 columns."""
    scenario = report["scenario"]
    load = f"1 → {scenario['recipients']} at {scenario['rate']:g}/s, {scenario['size']} B"
    table = Table(title=f"{scenario['name']}: {load}", caption=_CAPTION, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for name, system in report["systems"].items():
        table.add_row(
            f"{name} {system['version']}\n[dim]{system['promises']['brief']}[/]",
            *(_number(system["latency_ms"].get(key)) for key in _CELLS),
            _number(system["achieved_per_s"]),
            _number(system["cpu_us_per_delivery"]),
            f"{system['lost']}/{system['duplicated']}/{system['reordered']}",
        )
    table.add_section()
    for name, ratios in report["ratios"].items():
        cells = (_number(ratios.get(key)) for key in (*_CELLS, "achieved", "cpu"))
        table.add_row(f"ratio to {name}", *cells, "")
    return table


def _number(value: float | None) -> str:
    """In five characters, where it can be."""
    return "–" if value is None else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def describe(report: Mapping[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    lines = []
    for name, system in report["systems"].items():
        promises = system["promises"]
        said = "; ".join(f"{key}: {promises[key]}" for key in ("durable", "acknowledged", "replicated"))
        lines.append(f"{name} ({system['settings']}): {said}")
        if name in report["ratios"] and system["wrong"]:
            lines.append(f"{name} did not hold: {'; '.join(system['wrong'])}")
    lines += [_cost(name, system) for name, system in report["systems"].items()]
    lines += [f"{name} could not be driven: {why}" for name, why in report["failed"].items()]
    lines += [f"{name} is missing: {how}" for name, how in report["missing"].items()]
    if report["elsewhere"] > QUIET:
        lines.append(f"{report['elsewhere']:.0%} of the machine went to other programs: the figures suffer from it")
    machine = report["machine"]
    where = (f"{machine['cores']} cores", machine["cpu"], machine["kernel"], machine["disk"])
    lines.append(f"{', '.join(where)}; seed {report['scenario']['seed']}")
    return lines


def _cost(name: str, system: Mapping[str, Any]) -> str:
    cost = system["generator_us_per_delivery"]
    return (
        f"generator for {name}: {cost['user']} µs user + {cost['system']} µs system a delivery; one that comes "
        f"alone: {cost['parse']} µs without its read; sender at most {system['sender_late_ms_max']} ms late; "
        f"{system['turns']} turn(s)"
    )
