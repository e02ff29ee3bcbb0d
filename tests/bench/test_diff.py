"""Two reports side by side: ratios, what is worse, and what else differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench.cli import bench as command
from bench.diff import compare_reports, differences, worsened
from relay.errors import OperatorError

A: dict[str, Any] = {
    "achieved_per_s": 50.0, "latency_ms": {"p50": 10.0, "p99": 40.0}, "cpu_us_per_delivery": 8.0, "lost": 0,
    "sync_ms": {"p50": 1.0}, "failover_ms": None, "scenario": {"name": "fanout", "rate": 50.0, "kill_at": None},
    "machine": {"cores": 2, "cpu": "one"}, "versions": {"python": "3.11.7"}, "elsewhere": 0.0,
}  # fmt: skip


def changed(**changes: Any) -> dict[str, Any]:
    return {**A, **changes}


def test_ratios_are_of_b_to_a_and_worse_has_a_direction() -> None:
    b = changed(achieved_per_s=25.0, latency_ms={"p50": 5.0, "p99": 60.0}, sync_ms={"p50": 9.0})
    rows = {row.label: row for row in compare_reports(A, b)}
    assert rows["achieved a second"].ratio == 0.5 and rows["achieved a second"].worse == 2.0
    assert rows["to every recipient, ms p50"].ratio == 0.5 and rows["to every recipient, ms p50"].worse == 0.5
    assert rows["to every recipient, ms p99"].worse == 1.5
    assert rows["a sync of the disk, ms p50"].ratio == 9.0 and rows["a sync of the disk, ms p50"].worse == 0
    assert "failover, ms" not in rows and rows["lost"].ratio is None
    assert worsened(list(rows.values()), 1.5) == ["achieved a second: 50 became 25, 2.00 times as bad"]
    assert len(worsened(list(rows.values()), 1.2)) == 2
    assert worsened(compare_reports(A, A), 1.0) == []


def test_the_first_loss_is_worse_than_any_ratio() -> None:
    assert worsened(compare_reports(A, changed(lost=1)), 1e9) == ["lost: 0 became 1"]
    assert worsened(compare_reports(changed(lost=1), A), 1.0) == []


def test_a_figure_that_only_one_has_is_shown_and_not_judged() -> None:
    rows = {row.label: row for row in compare_reports(A, changed(failover_ms=300.0))}
    assert (rows["failover, ms"].a, rows["failover, ms"].b, rows["failover, ms"].worse) == (None, 300.0, 0)


def test_what_else_differs_is_said() -> None:
    b = changed(scenario={**A["scenario"], "rate": 20.0, "kill_at": 2.0}, machine={"cores": 4, "cpu": "one"},
                versions={"python": "3.13.1"}, elsewhere=0.5)  # fmt: skip
    assert list(differences(A, b)) == [
        "another scenario: kill_at is nothing in A and 2.0 in B",
        "another scenario: rate is 50.0 in A and 20.0 in B",
        "another machine: cores is 2 in A and 4 in B",
        'other versions: python is "3.11.7" in A and "3.13.1" in B',
        "50% of the machine went to other programs in B",
    ]
    assert list(differences(A, A)) == []


def test_the_command(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, report in zip(paths, (A, changed(latency_ms={"p50": 30.0}, elsewhere=0.3)), strict=True):
        path.write_text(json.dumps(report))
    args = ["diff", *map(str, paths)]
    shown = CliRunner().invoke(command, args)
    assert shown.exit_code == 0 and "3.00" in shown.output and "30% of the machine" in shown.output
    failed = CliRunner().invoke(command, [*args, "--fail-above", "2"])
    assert failed.exit_code == 1 and "10 became 30, 3.00 times as bad" in failed.output
    assert CliRunner().invoke(command, [*args, "--fail-above", "3"]).exit_code == 0
    assert CliRunner().invoke(command, [*args, "--fail-above", "0.5"]).exit_code == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "no report"), ('{"scenario": 1}', "no report")],
)
def test_what_is_no_report_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OperatorError, match=said):
        CliRunner().invoke(command, ["diff", str(path), str(path)], catch_exceptions=False)
