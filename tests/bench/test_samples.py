"""What the bench makes of the nodes' own counts."""

from __future__ import annotations

import pytest

from bench.samples import longest_stop_ms, since
from relay.observe.metrics import Metrics


def counted(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if set(sample.labels) <= {"le"}:
                found[sample.name + "".join(f"{{{value}}}" for value in sample.labels.values())] = sample.value
    return found


@pytest.mark.parametrize(
    ("late_s", "shown"), [([0.001], 5.0), ([0.001, 0.31, 0.06], 400.0), ([60.0], None), ([], None)]
)
def test_the_longest_stop_is_that_of_the_run(late_s: list[float], shown: float | None) -> None:
    metrics = Metrics()
    metrics.loop_late_seconds.observe(0.9)
    before = counted(metrics)
    for one in late_s:
        metrics.loop_late_seconds.observe(one)
    assert longest_stop_ms(since(before, counted(metrics))) == shown
