"""How a report is shown, and whether the run passed: by the kind of its scenario."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from rich.table import Table

from bench import backlog, compared, contest, report, sweep, versus


def _kind(result: dict[str, Any]) -> ModuleType:
    scenario = result["scenario"]
    if result.get("sweep"):
        return contest if result.get("comparison") else sweep
    if result.get("comparison"):
        return compared
    return versus if scenario.get("versus") else backlog if scenario.get("backlog") else report


def make_table(result: dict[str, Any]) -> Table:
    """For a terminal."""
    table = _kind(result).make_table(result)
    assert isinstance(table, Table)
    return table


def describe(result: dict[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    return list(_kind(result).describe(result))


def verdict(result: dict[str, Any]) -> list[str]:
    """Why the run does not pass; empty when it does. A comparison fails where one of its rounds did."""
    if _kind(result) is report:
        return report.verdict(result)
    return list(result.get("wrong", ()))
