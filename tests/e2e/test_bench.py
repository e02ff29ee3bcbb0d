"""The bench against a real node, small and short: everything is delivered, also when the node is killed in mid-run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE_S

KEYS = [
    "offered_per_s", "achieved_per_s", "recipients", "latency_ms", "last_recipient_ms", "ack_ms", "lost", "duplicated",
    "reordered", "cpu_us_per_delivery", "rss_mib_max",
]  # fmt: skip


def bench(tmp_path: Path, *args: str, scenario: str = "smoke") -> dict[str, Any]:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "cluster.cli", "bench", "run", scenario, "--json", str(out), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(out.read_text())
    return report


@pytest.mark.parametrize(
    ("seconds", "kills", "args"),
    [
        (3, 0, ("--nodes", "1")),
        (6, 1, ("--nodes", "1", "--tls", "--kill-at", "1", "--seconds", "6")),
        (8, 1, ("--kill-at", "1", "--no-restart", "--seconds", "8")),
    ],
    ids=["plain", "wss and a kill", "a leader of three dies"],
)
def test_a_small_run_loses_nothing(seconds: int, kills: int, args: tuple[str, ...], tmp_path: Path) -> None:
    report = bench(tmp_path, *args)
    assert list(report)[: len(KEYS)] == KEYS
    assert (report["lost"], report["duplicated"], report["reordered"]) == (0, 0, 0)
    assert (report["recipients"], report["deliveries"], report["accepted"]) == (20, 400 * seconds, 20 * seconds + 20)
    assert report["canary"]["received"] == report["canary"]["sent"] > 0
    assert len(report["kills"]) == kills
    if report["nodes"] == 3:
        (kill,) = report["kills"]
        assert kill["led"] and kill["down_s"] is None and 0 < kill["failover_ms"] == report["failover_ms"]
        assert sum(phase["messages"] for phase in kill["phases"]) == 20 * seconds
    assert report["cpu_us_per_delivery"] > 0
    assert report["rss_mib_max"] > 10


def test_what_replication_costs_is_measured_side_by_side(tmp_path: Path) -> None:
    args = ("--rounds", "1", "--seconds", "2", "--rate", "20", "--recipients", "5")
    report = bench(tmp_path, *args, scenario="replication")
    assert report["solo"]["ack_ms"]["p50"] > 0 and report["cell"]["ack_ms"]["p50"] > 0
    assert report["ratio"]["p50"] > 0 and report["ratio"]["p99"] > 0 and report["lost"] == 0


def test_a_backlog_survives_every_restart(tmp_path: Path) -> None:
    report = bench(tmp_path, "--backlog", "500", "--rate", "400", "--recipients", "3", scenario="backlog")
    assert report["queued"] == 500 and len(report["restarts"]) == 6
    assert 0 < report["restart_s_max"] < 30 and report["rss_mib_max"] > 10
