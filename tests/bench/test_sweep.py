"""Sweeps, over runs that are made up: where they stop, which value is the knee, and what makes one fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from bench.page import render
from bench.progress import Line, progress_line
from bench.scenario import Scenario
from bench.shown import describe, make_table, verdict
from bench.sweep import run_sweep
from relay.errors import OperatorError


async def swept(directory: Path, p99: dict[float, float | None], lost: float = 0, **keys: Any) -> dict[str, Any]:
    """A sweep whose runs have this p99; None: that run is void."""

    async def one(scenario: Scenario, where: Path, line: Line) -> dict[str, Any]:
        value = scenario.rate if keys.get("sweep_rate") else scenario.recipients
        if p99[value] is None:
            raise OperatorError("only 3 devices were live in time", "")
        return {
            "latency_ms": {"p50": 1.0, "p99": p99[value], "max": 9.0}, "offered_per_s": scenario.rate,
            "achieved_per_s": scenario.rate, "cpu_us_per_delivery": 3.0, "elsewhere": 0.0, "lost": int(value == lost),
            "duplicated": 0, "reordered": 0, "damaged": 0, "unanswered": 0, "where": where.name,
        }  # fmt: skip

    with progress_line(Console(stderr=True)) as line:
        return await run_sweep(Scenario(name="up", **keys), directory, line, one)


def values(report: dict[str, Any]) -> list[float]:
    return [step["value"] for step in report["steps"]]


async def test_rates_end_with_the_first_that_does_not_hold(tmp_path: Path) -> None:
    rates = (10.0, 20.0, 40.0, 80.0)
    report = await swept(tmp_path, {10.0: 5.0, 20.0: 50.0, 40.0: 900.0}, sweep_rate=rates)
    assert values(report) == [10, 20, 40] and report["knee"] == 20 and report["saturated"]
    assert verdict(report) == []
    assert describe(report)[0] == "the knee: 20 messages a second is the most that held p99 below 500 ms"
    page = render(report)
    assert "data:image/svg+xml" in page and "the knee: 20" in page
    assert make_table(report).row_count == 3


async def test_the_knee_is_looked_for_between_two_rates(tmp_path: Path) -> None:
    p99 = {10.0: 5.0, 40.0: 900.0, 20.0: 50.0, 28.3: 600.0}
    report = await swept(tmp_path, p99, sweep_rate=(10.0, 40.0), sweep_refine=2)
    assert values(report) == [10, 20, 28.3, 40] and report["knee"] == 20


async def test_all_sizes_are_run_and_the_bound_is_the_scenarios(tmp_path: Path) -> None:
    report = await swept(tmp_path, {5: 1.0, 10: 30.0, 20: 2.0}, sweep_recipients=(5, 10, 20), bound_ms=20.0)
    assert values(report) == [5, 10, 20] and report["knee"] == 5
    calm = await swept(tmp_path, {5: 1.0, 10: 3.0}, sweep_recipients=(5, 10))
    assert calm["knee"] == 10 and not calm["saturated"] and describe(calm)[0].startswith("no knee: everything held")


@pytest.mark.parametrize(
    ("p99", "lost", "text"),
    [({5: 1.0, 10: 3.0}, 10, "1 lost"), ({5: 1.0, 10: None}, 0, "at 10: only 3 devices"),
     ({5: 800.0, 10: 900.0}, 0, "not even 5 recipients held")],
)  # fmt: skip
async def test_what_is_wrong_in_a_step_is_wrong(tmp_path: Path, p99: dict[float, Any], lost: int, text: str) -> None:
    report = await swept(tmp_path, p99, lost, sweep_recipients=(5, 10))
    assert len(verdict(report)) == 1 and text in verdict(report)[0]
    assert report["knee"] == (None if "even" in text else 5)
    assert render(report).startswith("<!DOCTYPE html>")
