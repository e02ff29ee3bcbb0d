"""The pictures of a report, as SVG that stands in a page by itself."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SIZE = (9.0, 3.6)  # inches
_STYLE = {"font.family": "sans-serif", "axes.grid": True, "grid.alpha": 0.3, "svg.hashsalt": "posthouse"}
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_NINES = (0.0, 90.0, 99.0, 99.9, 99.99, 99.999, 99.9999)


@dataclass(frozen=True, slots=True)
class Picture:
    """`url`: the SVG as a data URL."""

    caption: str
    url: str


def over_time(report: dict[str, Any]) -> Picture:
    """Latency by when messages were due, with the moments at which nodes were killed and came back."""
    figure, axes = _axes("seconds into the measured part, by when a message was due", "ms")
    points = report["timeline"]
    for key, name, label in (
        ("latency_ms", "p50", "delivery p50"), ("latency_ms", "p99", "delivery p99"), ("ack_ms", "p99", "receipt p99"),
    ):  # fmt: skip
        found = [(point["at_s"], point[key].get(name)) for point in points]
        axes.plot(*zip(*found, strict=True), marker="o", markersize=3, label=label)
    axes.set_xlim(-report["interval_s"] / 2, report["scenario"]["seconds"])
    if away := report.get("away"):
        axes.axvspan(away["at_s"], away["at_s"] + away["for_s"], color="tab:blue", alpha=0.1, label="recipients away")
    for kill in report["kills"]:
        axes.axvline(kill["at_s"], color="black", linestyle="--", linewidth=1, label=f"{kill['node']} killed")
        if kill["down_s"] is not None:
            axes.axvspan(kill["at_s"], kill["at_s"] + kill["down_s"], color="black", alpha=0.08)
    return _picture("Latency over time", figure, axes)


def percentiles(report: dict[str, Any]) -> Picture:
    """The percentile curves: how slow the slowest are."""
    figure, axes = _axes("percentile", "ms")
    longest = 10.0
    for name, curve in report["curves"].items():
        shown = [(100 / (100 - percent), ms) for percent, ms in curve if percent < 100]
        if shown:
            longest = max(longest, shown[-1][0])
            axes.plot(*zip(*shown, strict=True), label=name)
    ticks = [percent for percent in _NINES if 100 / (100 - percent) <= longest * 1.01]
    axes.set_xscale("log")
    axes.set_xticks([100 / (100 - percent) for percent in ticks], [f"{percent:g} %" for percent in ticks])
    axes.minorticks_off()
    return _picture("Percentiles: to every recipient, and to the receipt", figure, axes)


def curve(
    caption: str, x_label: str, lines: Mapping[str, Sequence[tuple[float, float]]], bound_ms: float, knee: float | None
) -> Picture:
    """Latencies of several runs over what was changed between them, with the bound and the knee."""
    figure, axes = _axes(x_label, "ms")
    for label, points in lines.items():
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", label=label)
    axes.axhline(bound_ms, color="black", linestyle="--", linewidth=1, label=f"bound, {bound_ms:g} ms")
    if knee is not None:
        axes.axvline(knee, color="tab:red", linestyle=":", label=f"knee, {knee:g}")
    axes.set_xscale("log")
    ticks = sorted({x for points in lines.values() for x, _ in points})
    axes.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axes.minorticks_off()
    return _picture(caption, figure, axes)


def _axes(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    with rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    return figure, axes


def _picture(caption: str, figure: Figure, axes: Axes) -> Picture:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize="small")
    file = BytesIO()
    with rc_context(_STYLE):
        figure.savefig(file, format="svg", metadata=_NO_METADATA)
    return Picture(caption, "data:image/svg+xml;base64," + b64encode(file.getvalue()).decode())
