"""Suites: the one that ships, mistakes in others, and what is written and said of each run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import bench.local
from bench.cli import bench as command
from bench.scenario import Scenario
from bench.suite import load_suite
from relay.errors import ConfigError, OperatorError
from tests.bench.test_cli import GOOD


def test_the_short_suite_is_a_bit_of_everything() -> None:
    names = [scenario.name for scenario in load_suite("short")]
    assert names == ["fanout", "groups", "one-to-one", "failover", "saturation"]
    assert sum((one.seconds + one.warm_up) * max(1, len(one.sweep_rate)) for one in load_suite("short")) < 120


@pytest.mark.parametrize(
    ("text", "where"),
    [("", "run"), ("run = 3", "run"), ("x = 1\n[[run]]\nscenario = 'smoke'", "run"), ("[[run]]\nrate = 3.0", "run 1"),
     ("[[run]]\nscenario = 'smoke'\n[[run]]\nscenario = 'smoke'", "run 2"), ("= 3", "suite"),
     ("[[run]]\nscenario = 'smoke'\nrates = 3", "rates"), ("[[run]]\nscenario = 'nowhere'", "scenario")],
)  # fmt: skip
def test_a_mistake_in_a_suite_is_told(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_suite(str(path))
    assert [finding[0] for finding in caught.value.findings] == [where]


def test_every_run_has_its_files_and_one_that_fails_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async def locally(scenario: Scenario, directory: Path, console: object) -> dict[str, Any]:
        if scenario.name == "void":
            raise OperatorError("only 3 devices were live", "")
        return {**GOOD, "lost": 0 if scenario.name == "smoke" else 2, "scenario": {"name": scenario.name}}

    monkeypatch.setattr(bench.local, "bench_locally", locally)
    path, out = tmp_path / "suite.toml", tmp_path / "out"
    path.write_text("".join(f"[[run]]\nscenario = 'smoke'\nname = '{name}'\n" for name in ("void", "worse", "smoke")))
    result = CliRunner().invoke(command, ["suite", str(path), "--dir", str(out)], catch_exceptions=False)
    assert result.exit_code == 1
    assert sorted(file.name for file in out.iterdir()) == ["smoke.html", "smoke.json", "worse.html", "worse.json"]
    assert "void: only 3 devices were live" in result.output and "worse: 2 lost" in result.output
