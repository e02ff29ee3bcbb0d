"""The bench against a real node, small and short: everything is delivered, also when the node is killed in mid-run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KEYS = [
    "offered_per_s", "achieved_per_s", "recipients", "latency_ms", "last_recipient_ms", "ack_ms", "lost", "duplicated",
    "reordered", "cpu_us_per_delivery", "rss_mib_max",
]  # fmt: skip


def bench(tmp_path: Path, *args: str) -> dict[str, Any]:
    out = tmp_path / "bench.json"
    command = [sys.executable, "-m", "cluster.cli", "bench", "run", "smoke", "--json", str(out), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    report: dict[str, Any] = json.loads(out.read_text())
    return report


@pytest.mark.parametrize(
    ("seconds", "kills", "args"),
    [(3, 0, ()), (6, 1, ("--tls", "--kill-at", "1", "--seconds", "6"))],
    ids=["plain", "wss and a kill"],
)
def test_a_small_run_loses_nothing(seconds: int, kills: int, args: tuple[str, ...], tmp_path: Path) -> None:
    report = bench(tmp_path, *args)
    assert list(report)[: len(KEYS)] == KEYS
    assert (report["lost"], report["duplicated"], report["reordered"]) == (0, 0, 0)
    assert (report["recipients"], report["deliveries"], report["accepted"]) == (20, 400 * seconds, 20 * seconds + 20)
    assert report["canary"]["received"] == report["canary"]["sent"] > 0
    assert len(report["kills"]) == kills
    assert report["cpu_us_per_delivery"] > 0
    assert report["rss_mib_max"] > 10
