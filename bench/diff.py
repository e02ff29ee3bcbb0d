"""Two reports side by side: every figure that both kinds of run are judged by, and what else differs between them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.report import QUIET
from relay.errors import OperatorError

_TIMES = ("p50", "p90", "p99", "p999", "max")
# What is compared, in order, of whatever kind the reports are; lists of figures stand for each of them.
_FIGURES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("latency_ms", "to every recipient, ms", _TIMES), ("last_recipient_ms", "to the last one, ms", _TIMES),
    ("ack_ms", "to the receipt, ms", _TIMES), ("solo.ack_ms", "receipt, one node, ms", _TIMES),
    ("cell.ack_ms", "receipt, several nodes, ms", _TIMES), ("ratio", "several nodes to one", _TIMES),
    ("failover_ms", "failover, ms", ()), ("filled_s", "filled, s", ()),
    ("away", "all back, ms", ("live_ms", "caught_up_ms")), ("restart_s_max", "slowest start, s", ()),
    ("cpu_us_per_delivery", "CPU of all nodes a delivery, µs", ()),
    ("floors", "the same, to the floor", ("to_bare", "to_joined")), ("rss_mib_max", "most resident, MiB", ()),
    ("sync_ms", "a sync of the disk, ms", ("p50", "p99")),
    ("lost", "lost", ()), ("duplicated", "duplicated", ()), ("reordered", "reordered", ()),
    ("damaged", "damaged", ()), ("unanswered", "unanswered", ()),
)  # fmt: skip
_MORE_IS_BETTER = (("achieved_per_s", "achieved a second", ()),)
_OF_THE_MACHINE = {"sync_ms"}  # told, not judged


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. `ratio` is B to A, None where there is none; `worse`: how many times as bad B is (0: not judged)."""

    label: str
    a: float | None
    b: float | None
    ratio: float | None
    worse: float


def read_report(path: Path) -> dict[str, Any]:
    """A report as `--json` writes it. Raises OperatorError."""
    remedy = "Give a file that `posthouse bench run … --json FILE` wrote"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OperatorError(f"{path} cannot be read: {error.strerror}", remedy) from None
    except ValueError:
        raise OperatorError(f"{path} is no JSON", remedy) from None
    if not isinstance(report, dict) or not all(isinstance(report.get(key), dict) for key in ("scenario", "machine")):
        raise OperatorError(f"{path} is no report of the bench", remedy)
    return report


def compare_reports(a: dict[str, Any], b: dict[str, Any]) -> list[Row]:
    """The figures that one of them has at least."""
    rows = []
    for sign, figures in ((1, _MORE_IS_BETTER), (-1, _FIGURES)):
        for path, label, names in figures:
            for name in names or ("",):
                values = _figure(a, path, name), _figure(b, path, name)
                if any(value is not None for value in values):
                    judged = 0 if path in _OF_THE_MACHINE else sign
                    rows.append(_row(f"{label} {name}".strip(), *values, judged))
    return rows


def _figure(report: dict[str, Any], path: str, name: str) -> float | None:
    found: Any = report
    for key in [*path.split("."), *filter(None, [name])]:
        found = found.get(key) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) else None


def _row(label: str, a: float | None, b: float | None, sign: int) -> Row:
    if a is None or b is None:
        return Row(label, a, b, None, 0.0)
    if a == b:
        return Row(label, a, b, 1.0 if a else None, 1.0 if sign else 0.0)
    ratio = b / a if a else math.inf
    worse = ratio if sign < 0 else 1 / ratio if ratio else math.inf
    return Row(label, a, b, ratio if a else None, worse if sign else 0.0)


def make_table(rows: list[Row]) -> Table:
    """For a terminal."""
    table = Table(title="A against B")
    for column in ("", "A", "B", "B / A"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        ratio = "–" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.label, *("–" if value is None else f"{value:.10g}" for value in (row.a, row.b)), ratio)
    return table


def differences(a: dict[str, Any], b: dict[str, Any]) -> Iterator[str]:
    """Why the figures may differ though nothing got better or worse, a line each."""
    parts = {"scenario": "another scenario", "machine": "another machine", "versions": "other versions"}
    for part, name in parts.items():
        one, other = a.get(part) or {}, b.get(part) or {}
        for key in sorted({*one, *other}):
            if one.get(key) != other.get(key):
                yield f"{name}: {key} is {_shown(one.get(key))} in A and {_shown(other.get(key))} in B"
    for letter, report in (("A", a), ("B", b)):
        if report.get("elsewhere", 0) > QUIET:
            yield f"{report['elsewhere']:.0%} of the machine went to other programs in {letter}"


def _shown(value: object) -> str:
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)


def worsened(rows: list[Row], above: float) -> list[str]:
    """The figures of B that are worse than `above` times those of A, a line each."""
    found = [row for row in rows if row.worse > above]
    return [
        f"{row.label}: {row.a:g} became {row.b:g}" + (f", {row.worse:.2f} times as bad" if row.worse < math.inf else "")
        for row in found
        if row.a is not None and row.b is not None
    ]
