"""Whole runs with real worker processes against a stand-in: what it does wrong must be seen, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from bench.report import describe, make_table, summarize, verdict
from bench.run import Raw, run_bench, run_loads
from bench.scenario import Scenario
from bench.together import join
from relay.errors import PosthouseError
from tests.bench.standin import Frames, StandIn, truly
from tests.flipping import flipped

SMALL = {"name": "small", "nodes": 1, "recipients": 8, "rate": 100.0, "seconds": 1.0, "warm_up": 0.2, "generators": 2}


async def run(target: StandIn, logs: Path, quiet_s: float = 10.0, **changes: Any) -> Raw:
    async with trio.open_nursery() as nursery:
        await nursery.start(target.serve)
        raw = await run_bench(Scenario(**{**SMALL, **changes}), target, logs, lambda status: None, quiet_s)
        nursery.cancel_scope.cancel()
    return raw


def wrongs(report: dict[str, Any]) -> list[str]:
    """The verdict, but for the rate: a machine that does other things as well may be too slow for that."""
    return [line for line in verdict(report) if not line.startswith("only ")]


async def test_a_good_node_passes(tmp_path: Path) -> None:
    target = StandIn()
    report = summarize(await run(target, tmp_path), None, tmp_path)
    assert wrongs(report) == []
    assert (report["deliveries"], report["accepted"], report["offered_per_s"]) == (800, 120, 100.0)
    assert 0 < report["achieved_per_s"] <= 100
    assert list(report["latency_ms"]) == ["p50", "p90", "p99", "p999", "max"] == list(report["last_recipient_ms"])
    assert 0 < report["ack_ms"]["p50"] <= report["latency_ms"]["max"]
    assert report["latency_ms"]["p50"] <= report["last_recipient_ms"]["p50"] * 1.001  # a histogram of three digits
    assert target.logins == 9
    assert 8 * 120 / 8 <= target.acks <= 9 * 120  # the stand-in asks for an ack every 8 deliveries or 20 ms
    assert make_table(report).row_count == 3
    assert any("800 deliveries" in line for line in describe(report))


async def test_a_kill_in_mid_run_loses_nothing(tmp_path: Path) -> None:
    target = StandIn()
    raw = await run(target, tmp_path, kill_at=0.4)
    report = summarize(raw, None, tmp_path)
    assert wrongs(report) == []
    assert len(report["kills"]) == 1
    (kill,) = report["kills"]
    assert kill["down_s"] >= 0.2 and (kill["node"], kill["led"]) == ("n1", True)
    assert [phase["phase"] for phase in kill["phases"]] == ["before", "failover", "after"]
    assert sum(phase["messages"] for phase in kill["phases"]) == 100 and kill["silence_ms"] >= 150
    assert report["failover_ms"] == kill["failover_ms"] is None, "the run ends less than a second later"
    assert report["resubmitted"] > 0
    assert report["reconnects"] == 8
    # the schedule went on while nobody answered, and latencies count from it
    assert report["latency_ms"]["max"] >= 150


def liar(number: int, log: list[bytes]) -> Frames:
    """Loses 20, duplicates 30, repeats 40 on the wire, swaps 50 and 51, damages 60."""
    envelope = log[number - 1]
    match number:
        case 20 | 50:
            return []
        case 30:
            return [(2 * number, envelope), (2 * number + 1, envelope)]
        case 40:
            return [(2 * number, envelope)] * 2
        case 51:
            return [(2 * number, envelope), (2 * number + 1, log[49])]
        case 60:
            return [(2 * number, flipped(envelope))]
    return truly(number, log)


async def test_every_lie_is_seen_at_every_recipient(tmp_path: Path) -> None:
    report = summarize(await run(StandIn(liar), tmp_path, quiet_s=1.0), None, tmp_path)
    seen = {key: report[key] for key in ("lost", "duplicated", "wire_duplicates", "reordered", "damaged")}
    assert seen == {"lost": 2 * 8, "duplicated": 8, "wire_duplicates": 8, "reordered": 8, "damaged": 8}
    assert verdict(report)[:4] == ["16 lost", "8 duplicated", "8 reordered", "8 damaged"]


@pytest.mark.parametrize("streams", [{"groups": 4}, {"pairs": True}])
async def test_streams_are_counted_each_by_itself(tmp_path: Path, streams: dict[str, Any]) -> None:
    report = summarize(await run(StandIn(liar), tmp_path, quiet_s=1.0, **streams), None, tmp_path)
    each = 1 if "pairs" in streams else 2
    assert report["accepted"] == 120 and report["deliveries"] == 99 * each
    seen = {key: report[key] for key in ("lost", "duplicated", "reordered", "damaged")}
    # 50 comes behind 51, which is another stream's
    assert seen == {"lost": 2 * each, "duplicated": each, "reordered": 0, "damaged": each}
    assert ("8 pairs" if "pairs" in streams else "4 groups, 1 → 2 each") in str(make_table(report).title)


@pytest.mark.parametrize(("at", "stay"), [(0.3, 0.0), (0.0, 1.0)])
async def test_all_leave_at_once_and_come_back_for_everything(tmp_path: Path, at: float, stay: float) -> None:
    target = StandIn()
    report = summarize(await run(target, tmp_path, away_at=at, away_for=stay), None, tmp_path)
    assert verdict(report) == [] and report["deliveries"] == 800
    assert (report["reconnects"], report["faults"], target.logins) == (8, {}, 17)
    away = report["away"]
    assert away["waiting"] == 8 * 100 * stay and away["live_ms"] > 0 and away["caught_up_ms"] > 0
    assert (report["latency_ms"]["max"] >= 900) == (stay == 1.0), "what waited counts from when it was due"
    assert any("8 devices left at" in line and "all served after" in line for line in describe(report))


async def test_who_stalls_has_everything_in_the_end(tmp_path: Path) -> None:
    target = StandIn()
    report = summarize(await run(target, tmp_path, stall_at=0.2, stall_for=1.0), None, tmp_path)
    assert verdict(report) == [] and (report["deliveries"], report["reconnects"]) == (800, 0)
    assert report["latency_ms"]["max"] >= 900, "nobody read what came"
    assert report["latency_ms"]["p50"] < report["latency_ms"]["max"]


async def test_who_trickles_reads_everything_and_acks_nothing(tmp_path: Path) -> None:
    target = StandIn()
    report = summarize(await run(target, tmp_path, trickle=True), None, tmp_path)
    assert wrongs(report) == [] and report["deliveries"] == 800
    assert target.acks <= 120, "those of the sender"


async def test_idlers_are_there_and_get_nothing(tmp_path: Path) -> None:
    target = StandIn()
    raw = await run(target, tmp_path, idle=30)
    assert (target.logins, sum(one.connects for one in raw.received)) == (8 + 30 + 1, 38)
    assert raw.rss_mib[1] > 0 and wrongs(summarize(raw, None, tmp_path)) == []


async def test_several_loads_at_a_time_are_counted_apart(tmp_path: Path) -> None:
    target = StandIn()
    also = ({"recipients": 4, "rate": 50.0, "pairs": True}, {"recipients": 3, "rate": 20.0, "stall_at": 0.0})
    scenario = Scenario(**SMALL, also=also, drain_at=0.3)
    async with trio.open_nursery() as nursery:
        await nursery.start(target.serve)
        raws = await run_loads(scenario.loads, target, tmp_path, lambda status: None)
        nursery.cancel_scope.cancel()
    reports = [summarize(raw, None, tmp_path) for raw in raws]
    assert [one["deliveries"] for one in reports] == [800, 50, 60] and len({raw.start_ns for raw in raws}) == 1
    report = join(reports, raws, {**reports[0], "lost": 3}, [20_000_000])
    assert report["lost"] == 3 and [one["scenario"]["name"] for one in report["also"]] == ["load 1", "load 2"]
    assert [one["node"] for one in report["drains"]] == ["n1"] and report["drains"][0]["down_s"] >= 0.2
    assert report["to_quiet"] == {"p50": 1.0, "p99": 1.0} and report["link"]["round_trip_ms"]["p50"] == 20.0
    (memory,) = report["memory"]
    assert (memory["load"], memory["connections"], memory["stalled"]) == ("load 2", 3, True)
    assert "3 lost" in verdict(report) and make_table(report).row_count == 3 + 1 + 2
    text = "\n".join(describe(report))
    assert "drained n1 at 0.3" in text and "the link's round trip" in text and "load 2: 3 connections" in text


async def test_a_node_that_turns_devices_away_voids_the_run(tmp_path: Path) -> None:
    target = StandIn(turn_away=True)
    with pytest.raises(ExceptionGroup) as caught:
        await run(target, tmp_path)
    assert caught.group_contains(PosthouseError, match="AUTH, no such device")
