"""Comparisons: a real peer beside a real cell, one that is missing, one that cannot be driven, and one that lies."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

import bench.contest
import trio
from bench.cli import bench as command
from bench.compare import POSTHOUSE, Outcome, Turn, check, find_peers, make_report
from bench.compared import describe, make_table
from bench.peers.api import Program
from bench.peers.registry import PEERS
from bench.peers.start import find_program, open_peer, version_of
from bench.report import summarize
from bench.progress import Line, progress_line
from bench.run import Raw, run_peer
from bench.scenario import Scenario, load_scenario
from bench.sweep import Sweep, run_sweeps
from relay.errors import ConfigError, OperatorError
from tests.bench.broker import Broker, Lie, truly
from tests.bench.standin import StandIn
from tests.bench.test_run import SMALL
from tests.bench.test_run import run as run_posthouse
from tests.flipping import flipped
from tests.patience import PATIENCE_S

NOWHERE = Program("no-such-server", "", "apt install no-such-server", ("--version",))
SYSTEM: dict[str, Any] = {
    "latency_ms": {"p50": 1.0, "p90": 12.0, "p99": 123.4, "max": 200.0}, "achieved_per_s": 20.0, "lost": 0,
    "cpu_us_per_delivery": 1.5, "duplicated": 0, "reordered": 0, "version": "1.2.3", "settings": "as it comes",
    "promises": {"brief": "memory, no acks", "durable": "no", "acknowledged": "no", "replicated": "no"}, "turns": 1,
    "generator_us_per_delivery": {"user": 1.0, "system": 2.0, "parse": 0.5}, "sender_late_ms_max": 0.1, "wrong": [],
}  # fmt: skip
REPORT: dict[str, Any] = {
    "scenario": {"name": "small", "recipients": 3, "rate": 20.0, "size": 256, "seed": 1}, "comparison": True,
    "systems": {"posthouse": SYSTEM, "nats": {**SYSTEM, "wrong": ["7 lost"], "lost": 7}},
    "ratios": {"nats": {"p50": 0.5, "p90": 1.0}}, "missing": {}, "failed": {}, "wrong": [], "rounds": [],
    "elsewhere": 0.3, "machine": {"cores": 2, "cpu": "cpu", "kernel": "kernel", "disk": "ext4"},
}  # fmt: skip


async def run_broker(delivers: Lie, logs: Path, **changes: Any) -> Raw:
    broker = Broker(delivers)
    async with trio.open_nursery() as nursery:
        await nursery.start(broker.serve)
        scenario = Scenario(**{**SMALL, **changes})
        raw = await run_peer(scenario, "nats", broker, logs, lambda status: None, quiet_s=1.0)
        nursery.cancel_scope.cancel()
    return raw


def script(path: Path, text: str) -> Path:
    """A program at `path`."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def text_of(report: dict[str, Any]) -> str:
    console = Console(record=True, width=80, force_terminal=False)
    console.print(make_table(report))
    return console.export_text() + "\n".join(describe(report))


# --- with a broker in the peer's place -----------------------------------------------------------
def liar(number: int, log: list[bytes]) -> list[bytes]:
    """Loses 20, duplicates 30, swaps 50 and 51, damages 60."""
    message = log[number - 1]
    match number:
        case 20 | 50:
            return []
        case 30:
            return [message, message]
        case 51:
            return [message, log[49]]
        case 60:
            return [flipped(message)]
    return truly(number, log)


async def test_what_a_peer_loses_repeats_or_swaps_is_counted_at_every_subscriber(tmp_path: Path) -> None:
    ours = await run_posthouse(StandIn(), tmp_path)
    theirs = await run_broker(liar, tmp_path)
    turns = [
        Turn(1, POSTHOUSE, "nats", ours, summarize(ours, None, tmp_path)),
        Turn(1, "nats", "nats", theirs, summarize(theirs, None, tmp_path)),
    ]
    report = make_report(Scenario(**SMALL), Outcome(turns, versions={"nats": "9.9.9"}), tmp_path)
    seen = {key: report["systems"]["nats"][key] for key in ("lost", "duplicated", "reordered", "damaged")}
    assert seen == {"lost": 16, "duplicated": 8, "reordered": 8, "damaged": 8}
    text = text_of(report)
    assert "nats did not hold: 16 lost; 8 damaged; 8 duplicated; 8 reordered" in text
    assert "16/8/8" in text and "nats 9.9.9" in text
    assert all(line.startswith("only ") for line in report["wrong"]), "what a peer does wrong is not ours"
    assert report["ratios"]["nats"].keys() <= {"p50", "p90", "p99", "max", "achieved", "cpu"}
    assert [one["system"] for one in report["rounds"]] == ["posthouse", "nats"]


async def test_a_good_broker_is_found_good_and_nobody_claims_an_answer(tmp_path: Path) -> None:
    raw = await run_broker(truly, tmp_path)
    report = summarize(raw, None, tmp_path)
    assert [report[key] for key in ("lost", "duplicated", "reordered", "damaged", "unanswered")] == [0] * 5
    assert (report["deliveries"], report["accepted"]) == (800, 120)
    assert report["ack_ms"] == {}, "core NATS acknowledges nothing"
    assert report["generator"]["parse_us_per_delivery"] > 0


# --- with the real ones --------------------------------------------------------------------------
def test_a_comparison_from_the_command_to_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Posthouse, NATS, Posthouse, JetStream: real servers, which come with the packages of the bench; and one that does
    not start, which does not keep the others from being compared."""
    script(tmp_path / "mosquitto", "echo cannot bind; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    out = tmp_path / "found.json"
    args = ["smoke", "--peer", "nats", "--peer", "mosquitto", "--peer", "jetstream", "--rounds", "1", "--nodes", "1",
            "--recipients", "6", "--seconds", "1", "--json", str(out)]  # fmt: skip
    result = CliRunner().invoke(command, ["compare", *args], catch_exceptions=False)
    report = json.loads(out.read_text())
    assert [one["system"] for one in report["rounds"]] == ["posthouse", "nats", "posthouse", "posthouse", "jetstream"]
    assert [one["nodes"] for one in report["rounds"]] == [1, 1, 1, 1, 3]
    assert "mosquitto ended with status 3: cannot bind" in report["failed"]["mosquitto"]
    for name, system in report["systems"].items():
        assert [system[key] for key in ("lost", "duplicated", "reordered", "damaged", "unanswered")] == [0] * 5, name
        assert system["latency_ms"]["p50"] > 0 and system["cpu_us_per_delivery"] >= 0
        assert system["version"] != "unknown" and system["generator_us_per_delivery"]["parse"] > 0
    assert report["systems"]["posthouse"]["turns"] == 3 and report["systems"]["jetstream"]["ack_ms"]["p50"] > 0
    assert report["ratios"].keys() == {"nats", "jetstream"} and report["missing"] == {}
    assert result.exit_code == (1 if report["wrong"] else 3), result.output
    assert "ratio to jetstream" in result.output and "mosquitto could not be driven" in result.output


async def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    program = script(tmp_path / "nats-server", "echo cannot bind; exit 3")
    with pytest.raises(ExceptionGroup) as caught:
        async with open_peer(PEERS["nats"], program, tmp_path / "run"):
            raise AssertionError("it never listened")
    assert caught.group_contains(OperatorError, match="nats ended with status 3: cannot bind")


KILLED = """
import os, pathlib, sys, trio
from bench.peers.registry import PEERS
from bench.peers.start import find_program, open_peer
async def main():
    peer = PEERS["nats"]
    async with open_peer(peer, find_program(peer.program), pathlib.Path(sys.argv[1])) as stage:
        print(*stage.pids.values(), flush=True)
        os.kill(os.getpid(), 9)
trio.run(main)
"""


async def test_a_server_does_not_outlive_a_bench_that_is_killed(tmp_path: Path) -> None:
    found = await trio.run_process(
        [sys.executable, "-c", KILLED, str(tmp_path / "run")], capture_stdout=True, check=False
    )
    assert found.returncode == -9
    with suppress(ProcessLookupError), trio.fail_after(PATIENCE_S):
        handle = os.pidfd_open(int(found.stdout))
        await trio.lowlevel.wait_readable(handle)  # it has ended
        os.close(handle)


def test_a_sweep_of_all_names_the_knee_of_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real servers, at each size in turn; one that does not start is void, and said to be."""
    script(tmp_path / "mosquitto", "echo cannot bind; exit 3")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    out, page = tmp_path / "found.json", tmp_path / "found.html"
    args = ["smoke", "--peer", "nats", "--peer", "mosquitto", "--nodes", "1", "--recipients", "4", "--seconds", "1",
            "--sweep-recipients", "2,4", "--bound-ms", "60000", "--json", str(out), "--html", str(page)]  # fmt: skip
    result = CliRunner().invoke(command, ["compare", *args], catch_exceptions=False)
    report = json.loads(out.read_text())
    assert report["knees"] == {"posthouse": 4, "nats": 4, "mosquitto": None}, result.output
    assert [step["value"] for step in report["systems"]["nats"]["steps"]] == [2, 4]
    assert "cannot bind" in report["systems"]["mosquitto"]["steps"][0]["void"] and report["wrong"] == []
    assert result.exit_code == 0 and "nats" in result.output and "no knee: everything held" in result.output
    assert "data:image/svg+xml" in page.read_text()


async def test_each_system_rises_until_it_does_not_hold_and_is_refined_by_itself(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []

    def sweep(name: str, most: float, line: Line) -> Sweep:
        async def one(scenario: Scenario, where: Path, line: Line) -> dict[str, Any]:
            seen.append((name, scenario.rate))
            p99 = 1.0 if scenario.rate <= most else 900.0
            return {"latency_ms": {"p99": p99}, "offered_per_s": 1.0, "achieved_per_s": 1.0, "lost": 0,
                    "duplicated": 0, "reordered": 0, "damaged": 0, "unanswered": 0}  # fmt: skip

        return Sweep(Scenario(name="up", sweep_rate=(10.0, 40.0, 160.0), sweep_refine=1), tmp_path, line, one, name)

    with progress_line(Console(stderr=True)) as line:
        slow, quick = sweep("slow", 25.0, line), sweep("quick", 500.0, line)
        await run_sweeps([slow, quick])
    assert seen == [("slow", 10), ("quick", 10), ("slow", 40), ("quick", 40), ("quick", 160), ("slow", 20)]
    assert (slow.low, slow.high, quick.low, quick.high) == (20, 40, 160, 0)


# --- who is not here -----------------------------------------------------------------------------
def test_a_missing_peer_is_named_with_how_it_is_got(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PEERS["mosquitto"], "program", NOWHERE, raising=False)
    found, missing = find_peers(["nats", "mosquitto", "nats"])
    assert list(found) == ["nats"]
    assert missing == {"mosquitto": "no-such-server was not found: apt install no-such-server"}
    with pytest.raises(OperatorError, match=r"no peer to compare with.*apt install no-such-server"):
        find_peers(["mosquitto"])


def test_a_program_is_found_in_its_wheel_and_says_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PEERS["nats"].program
    path = find_program(program)
    assert path is not None and version_of(program, path)[0].isdigit()
    assert version_of(NOWHERE, tmp_path / "nothing") == "unknown"
    monkeypatch.setenv("PATH", str(tmp_path))
    other = script(tmp_path / program.name, "exit 0")
    assert find_program(program) == other, "PATH comes first"


def invoke(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> Result:
    async def locally(*_: object) -> dict[str, Any]:
        return {**REPORT, **changes}

    monkeypatch.setattr(bench.contest, "compare_locally", locally)
    return CliRunner().invoke(command, ["compare", "smoke", "--peer", "nats"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("changes", "status", "text"),
    [
        ({}, 0, "nats did not hold: 7 lost"),
        ({"missing": {"redis": "it was not found: get it"}}, 3, "redis is missing: it was not found: get it"),
        ({"failed": {"redis": "it fell over"}}, 3, "redis could not be driven: it fell over"),
        ({"wrong": ["2 lost"], "missing": {"redis": "gone"}}, 1, "not passed: posthouse: 2 lost"),
    ],
)
def test_the_exit_status_says_what_is_to_be_believed(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], status: int, text: str
) -> None:
    result = invoke(monkeypatch, **changes)
    assert result.exit_code == status and text in result.output.replace("\n", " ")


def test_the_table_fits_a_terminal() -> None:
    console = Console(record=True, width=80, force_terminal=False)
    console.print(make_table(REPORT))
    text = console.export_text()
    assert "…" not in text and "memory, no acks" in text and "ratio to nats" in text and "123" in text


def test_what_a_comparison_cannot_do_is_told_before_anything_starts() -> None:
    for name, changes in (("failover", {}), ("replication", {}), ("backlog", {}), ("smoke", {"tls": True})):
        with pytest.raises(ConfigError, match="no meaning beside a peer"):
            check(load_scenario(name, changes))
    check(load_scenario("fanout"))
