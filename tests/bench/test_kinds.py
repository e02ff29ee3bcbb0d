"""Comparisons and backlogs: what their reports say, from figures that are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from bench.accounts import Latencies, merge
from bench.machine import sync_ms
from bench.scenario import load_scenario
from bench.shown import describe, make_table, verdict
from bench.versus import _report


def part(**changes: Any) -> dict[str, Any]:
    good = {
        "ack_ms": {"p50": 2.0}, "achieved_per_s": 200.0, "offered_per_s": 200.0, "node_cpu_s": 1.5, "lost": 0,
        "duplicated": 0, "reordered": 0, "unanswered": 0, "damaged": 0, "elsewhere": 0.1,
    }  # fmt: skip
    return {**good, **changes}


def histogram(*us: int) -> Any:
    latencies = Latencies()
    for one in us:
        latencies.add(one)
    return merge([latencies.encoded()])


def compared(directory: Path, **changes: Any) -> dict[str, Any]:
    reports = {"solo": [part(), part()], "cell": [part(), part(**changes)]}
    acks = {"solo": histogram(1000, 2000, 4000), "cell": histogram(2000, 5000, 8000)}
    return _report(load_scenario("replication"), directory, reports, acks)


def shown(report: dict[str, Any]) -> str:
    console = Console(record=True, width=120, force_terminal=False)
    console.print(make_table(report))
    return console.export_text() + "\n".join(describe(report))


def test_ratios_are_of_all_rounds_together(tmp_path: Path) -> None:
    report = compared(tmp_path)
    assert report["ratio"] == {"p50": 2.5, "p90": 2.0, "p99": 2.0}
    assert report["solo"]["ack_ms"]["p50"] == pytest.approx(2.0, rel=0.01)
    assert len(report["cell"]["rounds_ack_ms"]) == 2 and report["cell"]["node_cpu_s"] == 3.0
    assert verdict(report) == []
    text = shown(report)
    assert "replication: receipts at 200/s" in text and "2.50" in text and "3 nodes" in text and "the mark file" in text


def test_a_comparison_passes_only_if_every_round_did(tmp_path: Path) -> None:
    report = compared(tmp_path, lost=3)
    assert report["lost"] == 3 and verdict(report) == ["3 lost"]


def test_what_a_mark_costs_is_measured(tmp_path: Path) -> None:
    found = sync_ms(tmp_path)
    assert 0 < found["p50"] <= found["p99"] and not list(tmp_path.iterdir())


def test_a_backlog_is_shown() -> None:
    report = {
        "scenario": msgspec.to_builtins(load_scenario("backlog")), "queued": 1_000_000, "queued_mib": 340.0,
        "filled_s": 400.0, "rss_mib": {"n1": 500.0}, "store_mib": {"n1": 410.5},
        "restarts": [{"node": "n1", "after": "SIGKILL", "ready_s": 7.5, "rss_mib": 300.0, "rss_mib_max": 400.0}],
    }  # fmt: skip
    text = shown(report)
    assert "1000000 envelopes queued" in text and "SIGKILL" in text and "7.5" in text and "410.5" in text
    assert "queued in 400.0 s" in text and verdict(report) == []
