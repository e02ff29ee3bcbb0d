"""The page of a report: whole by itself, with everything that was measured, whatever the texts are."""

from __future__ import annotations

import tomllib
from html.parser import HTMLParser
from html import unescape
from pathlib import Path

import msgspec

from bench.page import render
from bench.report import summarize
from bench.scenario import Scenario
from tests.bench.standin import StandIn
from tests.bench.test_run import run

VOID = {"meta", "img"}


class Reader(HTMLParser):
    """Every tag is closed in order; what is loaded from where."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.loaded: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


async def test_a_run_becomes_one_page(tmp_path: Path) -> None:
    report = summarize(await run(StandIn(), tmp_path, name="<b>&", seconds=2.0, kill_at=0.5), None, tmp_path)
    report["sync_ms"] = {"p50": 0.5}
    page, reader = render(report), Reader()
    reader.feed(page)
    assert not reader.open and reader.seen.count("img") == 2
    assert all(url.startswith("data:image/svg+xml;base64,") for url in reader.loaded)
    assert "script" not in reader.seen and "link" not in reader.seen and "url(" not in page
    assert "<b>" not in page, "a scenario's name is a text"
    text = unescape(page)
    for said in ("<b>&: 1 → 8 at 100/s, 1 node", "1600 deliveries", "killed n1", "One fdatasync", "Machine"):
        assert said in text
    start = text.index("<pre>") + 5
    again = msgspec.convert(tomllib.loads(text[start : text.index("</pre>", start)]), Scenario)
    assert msgspec.to_builtins(again) == report["scenario"], "what a page says was run can be run"


async def test_latency_over_time_adds_up(tmp_path: Path) -> None:
    report = summarize(await run(StandIn(), tmp_path, seconds=2.0), None, tmp_path)
    points = report["timeline"]
    assert [point["at_s"] for point in points] == [0, 1] and report["interval_s"] == 1
    assert [(point["deliveries"], point["receipts"]) for point in points] == [(800, 100), (800, 100)]
    assert max(point["latency_ms"]["max"] for point in points) == report["latency_ms"]["max"]
    curve = report["curves"]["delivery"]
    assert curve[0][0] == 0 and curve[-1] == (100.0, report["latency_ms"]["max"])
    assert curve == sorted(curve)
    assert report["each_node"]["n1"]["cpu_s"] == report["node_cpu_s"]
