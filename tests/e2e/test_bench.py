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


ALL = """
name = "all"
nodes = 1
pairs = true
recipients = 4
rate = 20.0
seconds = 3.0
warm_up = 1.0
canary_rate = 0.0
floors = false
alone = true
bound_ratio = 100.0
bound_adds_ms = 60000.0
bound_kib = 4096.0
link_ms = 20.0
also = [
  { name = "far", pairs = true, abroad = true, recipients = 3, rate = 10.0 },
  { name = "far group", abroad = true, recipients = 3, members = 50, rate = 5.0 },
  { name = "stalled", recipients = 10, rate = 10.0, size = 4096, stall_at = 0.0, stall_for = 3.0 },
  { name = "trickling", recipients = 3, idle = 20, rate = 5.0, trickle = true },
]
"""


def test_several_loads_in_two_regions_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "all.toml").write_text(ALL)
    report = bench(tmp_path, scenario=str(tmp_path / "all.toml"))
    assert (report["lost"], report["duplicated"], report["reordered"]) == (0, 0, 0)
    counts = {one["scenario"]["name"]: one["deliveries"] for one in (report["quiet"], report, *report["also"])}
    assert counts == {"alone": 60, "all": 60, "far": 30, "far group": 45, "stalled": 300, "trickling": 45}
    assert report["link"]["round_trip_ms"]["p50"] >= 20 and len(report["link"]["loads"]) == 2
    assert all(one["adds_to_one_way_ms"] > 0 for one in report["link"]["loads"])
    assert report["each_node"].keys() == {"n1", "sauda-n1"}


def test_what_replication_costs_is_measured_side_by_side(tmp_path: Path) -> None:
    args = ("--rounds", "1", "--seconds", "2", "--rate", "20", "--recipients", "5")
    report = bench(tmp_path, *args, scenario="replication")
    assert report["solo"]["ack_ms"]["p50"] > 0 and report["cell"]["ack_ms"]["p50"] > 0
    assert report["ratio"]["p50"] > 0 and report["ratio"]["p99"] > 0 and report["lost"] == 0


def test_a_backlog_survives_every_restart(tmp_path: Path) -> None:
    report = bench(tmp_path, "--backlog", "500", "--rate", "400", "--recipients", "3", scenario="backlog")
    assert report["queued"] == 500 and len(report["restarts"]) == 6
    assert 0 < report["restart_s_max"] < 30 and report["rss_mib_max"] > 10
