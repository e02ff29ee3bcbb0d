"""Scenarios: the one that ships, overrides, and every mistake at once; schedules that neither drift nor bunch up."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.scenario import NS, Scenario, Schedule, known_scenarios, load_scenario, smoke
from relay.errors import ConfigError


def test_the_shipped_scenario_is_what_the_issue_asks_for() -> None:
    assert known_scenarios() == [
        "backlog", "channel", "cross-border", "crowd", "drain", "failover", "fair", "fanout", "groups", "idle",
        "mixed-day",
        "one-to-one", "replication", "saturation", "slow", "smoke", "storm", "sweep",
    ]  # fmt: skip
    scenario = load_scenario("fanout")
    assert (scenario.recipients, scenario.rate, scenario.seconds, scenario.size) == (300, 50.0, 20.0, 256)
    assert scenario.kill_at is None and scenario.nodes == 3


def test_the_scenarios_of_a_cell() -> None:
    replication, backlog = load_scenario("replication"), load_scenario("backlog")
    assert (replication.versus, replication.nodes, replication.rate, replication.rounds) == (True, 3, 200.0, 4)
    assert (backlog.backlog, backlog.nodes) == (1_000_000, 3)


def test_it_is_found_by_path_as_well_and_values_can_be_replaced() -> None:
    import bench

    path = Path(bench.__file__).parent / "scenarios" / "fanout.toml"
    assert load_scenario(str(path)) == load_scenario("fanout")
    small = load_scenario(str(path), {**smoke(), "kill_at": 1.5})
    assert (small.name, small.recipients, small.rate, small.seconds, small.kill_at) == ("fanout", 20, 20.0, 3.0, 1.5)


def test_every_mistake_is_reported_at_once_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text('recipient = 3\nrate = "fast"\nseconds = 0\nsize = 1\ntls = "yes"\nzzz = 1\n')
    with pytest.raises(ConfigError) as caught:
        load_scenario(str(path))
    findings = {where: (what, remedy) for where, what, remedy in caught.value.findings}
    assert set(findings) == {"recipient", "name", "rate", "seconds", "size", "tls", "zzz"}
    assert findings["recipient"][1] == "Did you mean `recipients`?"
    assert "32 to 65536" in findings["size"][1]
    assert "'fast'" in findings["rate"][0]
    assert all(remedy for _, remedy in findings.values())


@pytest.mark.parametrize(
    ("overrides", "where"),
    [({"kill_at": 20.0}, "kill_at"), ({"nodes": 2}, "nodes"), ({"kill_at": 1.0, "kill": "n4"}, "kill"),
     ({"nodes": 1, "kill_at": 1.0, "restart": False}, "restart"), ({"versus": True, "nodes": 1}, "nodes"),
     ({"versus": True, "kill_at": 1.0}, "kill_at"), ({"backlog": 5, "kill_at": 1.0}, "kill_at"),
     ({"nodes": 1, "kill_at": 1.0, "kill": "follower"}, "kill"), ({"generators": 4, "recipients": 3}, "generators"),
     ({"sweep_rate": [5.0, 3.0]}, "sweep_rate"), ({"sweep_recipients": [5, 5]}, "sweep_recipients"),
     ({"sweep_rate": [5.0], "sweep_recipients": [5]}, "sweep_recipients"), ({"sweep_refine": 1}, "sweep_refine"),
     ({"sweep_recipients": [1, 2], "generators": 2}, "generators"), ({"sweep_rate": [5.0], "backlog": 9}, "sweep_rate"),
     ({"sweep_recipients": [0]}, "sweep_recipients"), ({"sweep_rate": [1.0, "x"]}, "sweep_rate"),
     ({"groups": 7}, "groups"), ({"pairs": True, "groups": 3}, "groups"), ({"groups": 2, "backlog": 5}, "groups"),
     ({"pairs": True, "recipients": 901}, "recipients"), ({"pairs": True, "rate": 1.0}, "rate"),
     ({"away_at": 19.0, "away_for": 2.0}, "away_at"), ({"away_for": 2.0}, "away_for"),
     ({"away_at": 1.0, "backlog": 5}, "away_at"), ({"away_at": -1.0}, "away_at"),
     ({"rate": 0.01, "seconds": 1.0, "warm_up": 0.0}, "rate"), ({"members": 300}, "members"),
     ({"members": 900, "pairs": True}, "members"), ({"stall_for": 3.0}, "stall_for"),
     ({"stall_at": 10.0, "stall_for": 30.0}, "stall_at"), ({"stall_at": 1.0, "away_at": 1.0}, "stall_at"),
     ({"abroad": True}, "abroad"), ({"drain_at": 1.0, "nodes": 1}, "drain_at"), ({"drain_at": 20.0}, "drain_at"),
     ({"alone": True}, "alone"), ({"idle": 3, "backlog": 5}, "idle"), ({"link_ms": 3.0, "versus": True}, "link_ms"),
     ({"idle": 19_900, "nodes": 1}, "idle"), ({"also": [{"recipients": 0}]}, "also 1: recipients"),
     ({"also": [{}, {"kill_at": 3.0}]}, "also 2: kill_at"), ({"also": [{"abroad": True}]}, "also 1: abroad"),
     ({"also": 3}, "also")],
)  # fmt: skip
def test_values_must_fit_together(overrides: dict[str, object], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_scenario("fanout", overrides)
    assert [finding[0] for finding in caught.value.findings] == [where]


def test_a_missing_file_and_a_broken_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one of: backlog, channel, cross-border, crowd, drain"):
        load_scenario(str(tmp_path / "nowhere.toml"))
    (tmp_path / "broken.toml").write_text("rate = = 3")
    with pytest.raises(ConfigError, match="not TOML"):
        load_scenario(str(tmp_path / "broken.toml"))
    (tmp_path / "latin.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(ConfigError, match="not TOML"):
        load_scenario(str(tmp_path / "latin.toml"))


@given(st.floats(0.1, 20_000), st.floats(0, 60), st.floats(1, 120), st.integers(0, 200 * NS))
def test_a_schedule_is_even_and_due_counts_it(rate: float, warm_up: float, seconds: float, elapsed: int) -> None:
    schedule = Schedule(rate, warm_up, seconds)
    due = schedule.due(elapsed)
    assert 0 <= due <= schedule.total
    assert due == 0 or schedule.offset_ns(due - 1) <= elapsed
    assert due == schedule.total or schedule.offset_ns(due) > elapsed
    assert schedule.measured >= 1
    last = schedule.offset_ns(schedule.total - 1)
    assert abs(last - (schedule.total - 1) * NS / rate) <= 1


def test_loads_share_what_is_the_runs_and_have_keys_of_their_own() -> None:
    changes = {"also": [{"rate": 2.0}, {"name": "far", "abroad": True, "size": 99}], "link_ms": 9.0, "kill_at": 3.0}
    first, second, third = load_scenario("fanout", changes).loads
    assert (first.name, first.kill_at, first.also, first.floors) == ("fanout", 3.0, (), True)
    assert (second.name, second.rate, second.kill_at, second.size, second.canary_rate) == ("load 1", 2.0, None, 256, 0)
    assert (third.name, third.abroad, third.size, third.rate, third.seconds) == ("far", True, 99, 50.0, 20.0)
    assert len({one.seed for one in (first, second, third)}) == 3
    assert load_scenario("fanout").loads == (load_scenario("fanout"),)


def test_nothing_is_due_before_the_start() -> None:
    assert Schedule(1000, 0, 1).due(-1) == 0
    assert Schedule(1000, 0, 1).due(0) == 1


def test_the_measured_part_follows_the_warm_up() -> None:
    scenario = Scenario(name="x", rate=10, warm_up=2, seconds=3)
    assert (scenario.schedule.first_measured, scenario.schedule.total, scenario.schedule.measured) == (20, 50, 30)
