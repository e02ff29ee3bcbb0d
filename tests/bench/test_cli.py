"""The command, without a node: what it says before anything starts, and what it makes of a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import bench.local
from bench.cli import bench as command
from bench.scenario import Scenario
from relay.errors import ConfigError

GOOD: dict[str, Any] = {
    "offered_per_s": 50.0, "achieved_per_s": 50.0, "recipients": 3, "latency_ms": {"p50": 1.0, "max": 2.0},
    "last_recipient_ms": {}, "ack_ms": {}, "lost": 0, "duplicated": 0, "reordered": 0, "cpu_us_per_delivery": 1.5,
    "rss_mib_max": 60.0, "deliveries": 3000, "unanswered": 0, "refused": {}, "resubmitted": 4, "wire_duplicates": 1,
    "damaged": 0, "nodes": 3, "kills": [{
        "node": "n2", "led": True, "down_s": 1.2, "failover_ms": 812.5, "silence_ms": 700.0, "normal_ms": 50.0,
        "phases": [{"phase": "before", "messages": 9, "ack_ms": {"p99": 3.5}},
                   {"phase": "failover", "messages": 0, "ack_ms": {}}],
    }], "canary": None, "seed": 1,
    "generator": {"parse_us_per_delivery": 1.0, "receiver_us_per_delivery": {"user": 1.0, "system": 2.0},
                  "sender_us_per_message": {"user": 1.0, "system": 2.0}, "sender_late_ms_max": 0.1},
    "elsewhere": 0.3, "machine": {"cores": 2, "cpu": "cpu", "kernel": "kernel", "disk": "ext4"}, "versions": {},
}  # fmt: skip


def run(monkeypatch: pytest.MonkeyPatch, report: dict[str, Any], *args: str) -> tuple[Result, Scenario]:
    """The command, over a result that is made up."""
    asked: list[Scenario] = []

    async def locally(scenario: Scenario, directory: Path, console: object) -> dict[str, Any]:
        asked.append(scenario)
        return {**report, "scenario": {"name": scenario.name}}

    monkeypatch.setattr(bench.local, "bench_locally", locally)
    return CliRunner().invoke(command, ["run", *args], catch_exceptions=False), asked[0]


def test_a_good_run_passes_and_its_result_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    out = tmp_path / "f.json"
    args = ("--recipients", "3", "--rate", "7", "--kill-at", "2", "--smoke", "--seed", "9", "--tls", "--json", str(out))
    result, scenario = run(monkeypatch, GOOD, "fanout", *args)
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert "killed n2 (leading), back after 1.2 s: receipts as before after 812.5 ms (none for 700.0 ms" in said
    assert "p99 ms: before 3.5, failover –)" in said and "4 submitted again after 1 kill(s)" in said
    assert "1 → 3 at 50/s, 3 nodes" in said
    assert "30% of the machine went to other programs" in result.output
    assert json.loads(out.read_text())["achieved_per_s"] == 50.0
    assert (scenario.recipients, scenario.rate, scenario.kill_at, scenario.seed, scenario.tls) == (3, 7.0, 2.0, 9, True)
    assert scenario.seconds == 3.0


@pytest.mark.parametrize(
    ("wrong", "text"),
    [({"lost": 2}, "2 lost"), ({"duplicated": 1}, "1 duplicated"), ({"reordered": 3}, "3 reordered"),
     ({"damaged": 1}, "1 damaged"), ({"unanswered": 1}, "1 unanswered"),
     ({"achieved_per_s": 47.0, "refused": {"OVERLOADED": 9}}, "only 47.0 of 50.0 messages a second")],
)  # fmt: skip
def test_a_bad_run_does_not_pass(monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any], text: str) -> None:
    result, _ = run(monkeypatch, {**GOOD, **wrong})
    assert result.exit_code == 1
    assert text in result.output.replace("\n", " ")


def test_a_result_on_standard_output_is_only_json(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(monkeypatch, GOOD, "smoke", "--json", "-")
    assert json.loads(result.stdout)["recipients"] == 3


def test_a_page_is_written_and_standard_output_is_only_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "page.html"
    run(monkeypatch, GOOD, "smoke", "--html", str(file))
    result, _ = run(monkeypatch, GOOD, "smoke", "--html", "-")
    assert result.stdout == file.read_text() and result.stdout.startswith("<!DOCTYPE html>")


def test_a_sweep_is_asked_for_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    _, scenario = run(monkeypatch, GOOD, "smoke", "--sweep-recipients", "5,10", "--bound-ms", "20")
    assert (scenario.sweep_recipients, scenario.sweep_rate, scenario.bound_ms) == ((5, 10), (), 20.0)
    _, scenario = run(monkeypatch, GOOD, "smoke", "--sweep-rate", "5,7.5")
    assert scenario.sweep_rate == (5.0, 7.5)
    for wrong in ("5;10", "5,x", "[1]"):
        with pytest.raises((ConfigError, click.BadParameter)):
            command.main(["run", "smoke", "--sweep-rate", wrong], standalone_mode=False)


def test_mistakes_are_told_before_anything_starts() -> None:
    with pytest.raises(ConfigError) as caught:
        CliRunner().invoke(command, ["run", "fanout", "--rate", "0", "--size", "3"], catch_exceptions=False)
    assert {where for where, _, _ in caught.value.findings} == {"rate", "size"}
