"""What is counted, exactly: a ledger for each recipient, latencies in histograms that merge, percentiles of few values.

Lost, duplicated and reordered mean what DESIGN.md section 1 says; what only the wire repeats is counted apart.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from hdrh.histogram import HdrHistogram

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 99.9}
_MAX_US = 3_600_000_000  # one hour; what takes longer is recorded as that
_PER_NINE = 8  # points of a percentile curve from 90 to 99, and so on
_DIGITS = 3  # significant digits of a recorded latency


class Ledger:
    """Which of the sequence numbers 0 … one recipient has seen. `next` is one above the highest; `missing` are the
    numbers below it that have not come, so that the memory is the damage, not the length of the run."""

    __slots__ = ("duplicated", "missing", "next", "reordered")

    def __init__(self) -> None:
        self.next = 0
        self.missing: set[int] = set()
        self.duplicated = 0
        self.reordered = 0

    def take(self, sequence: int) -> bool:
        """Note one arrival. False when it had come before."""
        if sequence == self.next:
            self.next = sequence + 1
            return True
        if sequence > self.next:
            self.missing.update(range(self.next, sequence))
            self.next = sequence + 1
            return True
        if sequence in self.missing:
            self.missing.remove(sequence)
            self.reordered += 1
            return True
        self.duplicated += 1
        return False

    def absent(self, total: int) -> set[int]:
        """The numbers below `total` that never came."""
        return self.missing | set(range(self.next, total))


class Latencies:
    """Latencies in µs, counted in a plain Counter while the clock matters, and handed over as an HdrHistogram."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: Counter[int] = Counter()

    def add(self, us: int) -> None:
        """Count one latency, µs."""
        self.counts[us] = self.counts.get(us, 0) + 1

    def encoded(self) -> bytes:
        """The histogram in HdrHistogram's V2 format (base64)."""
        histogram = _histogram()
        for us, count in self.counts.items():
            histogram.record_value(min(max(us, 1), _MAX_US), count)
        encoded: bytes = histogram.encode()
        return encoded


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, _MAX_US, _DIGITS)


def merge(encoded: Iterable[bytes]) -> HdrHistogram:
    """One histogram of all the workers'."""
    merged = _histogram()
    for one in encoded:
        merged.decode_and_add(one)
    return merged


def histogram_ms(histogram: HdrHistogram) -> dict[str, float]:
    """p50 … p999 and max in ms; empty when nothing was recorded."""
    if not histogram.get_total_count():
        return {}
    found = {name: histogram.get_value_at_percentile(percent) for name, percent in PERCENTILES.items()}
    found["max"] = histogram.get_max_value()
    return {name: round(us / 1000, 3) for name, us in found.items()}


def percentile_curve(histogram: HdrHistogram) -> list[tuple[float, float]]:
    """(percentile, ms), from the least to the greatest, denser where it matters: eight for each nine, as far as there
    are values to tell them apart."""
    count = histogram.get_total_count()
    if not count:
        return []
    steps = range(math.ceil(_PER_NINE * math.log10(count)) + 1)
    percents = [*(100 * (1 - 10 ** (-step / _PER_NINE)) for step in steps), 100.0]
    return [(round(one, 5), round(histogram.get_value_at_percentile(one) / 1000, 3)) for one in percents]


def exact_ms(values_ns: Sequence[int]) -> dict[str, float]:
    """The same of a few values, by nearest rank, without a histogram's rounding."""
    if not values_ns:
        return {}
    ordered = sorted(values_ns)
    found = {
        name: ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)] for name, percent in PERCENTILES.items()
    }
    found["max"] = ordered[-1]
    return {name: round(ns / 1e6, 3) for name, ns in found.items()}


def lost_deliveries(accepted: Sequence[bool], absent: Mapping[int, int]) -> int:
    """Deliveries that are missing: `absent` counts for each sequence the recipients without it, and only an envelope
    with a receipt can be lost."""
    return sum(count for sequence, count in absent.items() if accepted[sequence])
