"""A report as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from rich.table import Table
from rich.text import Text

from bench import contest, plots, sweep
from bench.shown import describe, make_table, verdict

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; margin: .7rem 0; } th, td { padding: .2rem .7rem; border-bottom: 1px solid #ddd; }
td, th { text-align: right; } td:first-child, th:first-child { text-align: left; }
figure { margin: 1rem 0; } img { width: 100%; } figcaption, .small { color: #555; font-size: .9rem; }
.good, .bad { padding: .4rem .8rem; border-radius: .3rem; } .good { background: #e3f4e3; } .bad { background: #fbe0e0; }
pre { overflow-x: auto; background: #f6f6f6; padding: .7rem; font-size: .85rem; }
"""
_META = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
_HEAD = f'<!DOCTYPE html>\n<html lang="en"><head>{_META}'


def render(report: dict[str, Any]) -> str:
    """The page of any kind of report."""
    table = make_table(report)
    title, wrong = str(table.title), verdict(report)
    body = [f"<h1>{escape(title)}</h1>"]
    if at := report.get("at"):
        body.append(f'<p class="small">Measured by <code>posthouse bench</code>, {escape(at)}</p>')
    said = "; ".join(wrong) or "passed: nothing lost, duplicated or reordered"
    body.append(f'<p class="{"bad" if wrong else "good"}">{"not passed: " if wrong else ""}{escape(said)}</p>')
    body.append(_table([str(column.header) for column in table.columns], _rows(table)))
    body.append("<ul>" + "".join(f"<li>{escape(line)}</li>" for line in describe(report)) + "</ul>")
    body += [_figure(one) for one in _pictures(report)]
    body += [part for part in (_timeline(report), _nodes(report)) if part]
    body += ["<h2>What was run</h2>", f"<pre>{escape(_toml(report['scenario']))}</pre>"]
    body.append("<h2>Machine and versions</h2>")
    body.append(_table(["", ""], [[name, str(value)] for name, value in _about(report)]))
    data = escape(json.dumps(report, indent=1))
    body.append(f"<details><summary>All figures, as JSON</summary><pre>{data}</pre></details>")
    head = f"{_HEAD}<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
    return "\n".join([head, *body, "</body></html>", ""])


def _pictures(report: dict[str, Any]) -> list[plots.Picture]:
    if report.get("sweep") and report.get("comparison"):
        caption = f"p99 to every recipient over {report['sweep']}, each system up to where it does not hold"
        return [plots.curve(caption, report["sweep"], contest.lines(report), report["bound_ms"], None)]
    if what := report.get("sweep"):
        lines, knee = sweep.lines(report), report["knee"] if report["saturated"] else None
        return [plots.curve(f"Latency to every recipient over {what}", what, lines, report["bound_ms"], knee)]
    if not report.get("timeline"):
        return []
    return [plots.over_time(report), plots.percentiles(report)]


def _figure(picture: plots.Picture) -> str:
    caption = escape(picture.caption)
    return f'<figure><img alt="{caption}" src="{picture.url}"><figcaption>{caption}</figcaption></figure>'


def _rows(table: Table) -> Iterable[Sequence[str]]:
    return zip(*([Text.from_markup(str(cell)).plain for cell in column.cells] for column in table.columns), strict=True)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["<table>"]
    if any(head):
        lines.append("<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in head) + "</tr>")
    lines += ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return "\n".join([*lines, "</table>"])


def _timeline(report: dict[str, Any]) -> str:
    """The figures behind the first picture, for who reads numbers, or cannot see pictures."""
    points = report.get("timeline")
    if not points:
        return ""
    head = ["from, s", "deliveries", "p50 ms", "p99 ms", "max ms", "receipts", "receipt p50 ms", "receipt p99 ms"]
    rows = [
        [
            str(point["at_s"]), str(point["deliveries"]),
            *(_ms(point["latency_ms"].get(name)) for name in ("p50", "p99", "max")),
            str(point["receipts"]), *(_ms(point["ack_ms"].get(name)) for name in ("p50", "p99")),
        ]
        for point in points
    ]  # fmt: skip
    return f"<details><summary>Latency over time, in figures</summary>{_table(head, rows)}</details>"


def _nodes(report: dict[str, Any]) -> str:
    nodes, sync = report.get("each_node"), report.get("sync_ms")
    if not nodes:
        return ""
    head = ["node", "CPU, s", "most resident, MiB", "commits seen", "mean ms", "p50 ms ≤", "p99 ms ≤", "stop, ms ≤"]
    rows = [
        [
            name, str(one["cpu_s"]), str(one["rss_mib_max"]), f"{one['commit_ms'].get('count', 0):.0f}",
            *(_ms(one["commit_ms"].get(key)) for key in ("mean", "p50", "p99")), _ms(one.get("stop_ms")),
        ]
        for name, one in nodes.items()
    ]  # fmt: skip
    alone = f"One fdatasync of 512 bytes on this disk, with nothing else going on: {_spread(sync)}." if sync else ""
    return f"<h2>Nodes and disk</h2>{_table(head, rows)}<p>{alone}</p>"


def _spread(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f} ms" for name, value in found.items())


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _about(report: dict[str, Any]) -> list[tuple[str, object]]:
    machine, versions = report["machine"], report["versions"]
    about = [(name.replace("_mib", ", MiB"), value) for name, value in machine.items()]
    if "elsewhere" in report:
        about.append(("CPU that went to other programs", f"{report['elsewhere']:.0%}"))
    return [*about, *versions.items()]


def _toml(scenario: dict[str, Any]) -> str:
    """The scenario, to be run again; JSON's texts, numbers, truths and lists are TOML's as well."""
    return "\n".join(f"{key} = {json.dumps(value)}" for key, value in scenario.items() if value is not None)
