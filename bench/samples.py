"""What the nodes say of themselves: their metrics, asked before and after, and what happened in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import cast
from urllib.error import URLError
from urllib.request import urlopen

import trio
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from cluster.config_keys import Address

Samples = Mapping[str, float]  # name, with `le` in braces where it is a histogram's bucket → value
_ASK_S = 5.0
_parse = cast("Callable[[str], Iterator[Metric]]", text_string_to_metric_families)  # the library leaves it untyped
_COMMIT = "posthouse_commit_seconds"
_LATE = "posthouse_loop_late_seconds"


async def ask_samples(admin: Address) -> Samples:
    """The samples without labels, and the buckets of histograms; empty where nobody answers."""
    try:
        text = await trio.to_thread.run_sync(_get, f"http://{admin}/metrics", abandon_on_cancel=True)
    except (URLError, OSError):
        return {}
    found: dict[str, float] = {}
    for family in _parse(text):
        for sample in family.samples:
            if set(sample.labels) <= {"le"}:
                found[sample.name + "".join(f"{{{value}}}" for value in sample.labels.values())] = sample.value
    return found


def _get(url: str) -> str:
    with urlopen(url, timeout=_ASK_S) as answer:
        text: bytes = answer.read()
    return text.decode()


def since(before: Samples, after: Samples) -> Samples:
    """What was counted in between; a node that was started again meanwhile counts from its start."""
    again = any(after.get(name, 0.0) < value for name, value in before.items() if name.endswith(("_total", "_count")))
    return after if again else {name: value - before.get(name, 0.0) for name, value in after.items()}


def commit_ms(samples: Samples) -> dict[str, float]:
    """How many blocks this node saw committed, and how long they took from append to durable, ms: the mean exactly,
    percentiles as upper bounds of the histogram's buckets. Empty where there were none."""
    count = samples.get(f"{_COMMIT}_count", 0.0)
    if not count:
        return {}
    found = {"count": count, "mean": round(samples[f"{_COMMIT}_sum"] * 1000 / count, 3)}
    buckets = _buckets(samples, _COMMIT)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        bound = min(bound for bound, value in buckets if value >= share * count)
        if bound < float("inf"):  # what is beyond all bounds has none
            found[name] = round(bound * 1000, 3)
    return found


def longest_stop_ms(samples: Samples) -> float | None:
    """How long this node stood still at most, ms: the upper bound of the histogram's bucket. None where nothing was
    counted, or it was beyond all bounds."""
    buckets = _buckets(samples, _LATE)
    count = samples.get(f"{_LATE}_count", 0.0)
    bound = min((bound for bound, value in buckets if value >= count), default=float("inf")) if count else float("inf")
    return round(bound * 1000, 3) if bound < float("inf") else None


def _buckets(samples: Samples, histogram: str) -> list[tuple[float, float]]:
    """(upper bound, how many up to it) of each bucket."""
    prefix = f"{histogram}_bucket{{"
    return [(float(name[len(prefix) : -1]), value) for name, value in samples.items() if name.startswith(prefix)]
