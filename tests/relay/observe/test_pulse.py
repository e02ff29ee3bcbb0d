"""The pulse of a process: how late its loop wakes, and that what points in circles goes in the end."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Iterator

import pytest
import trio

from relay.observe import pulse
from relay.observe.metrics import Metrics
from relay.limits import BUSY_S, INTAKE_EVERY_MOST_S, INTAKE_EVERY_S, INTAKE_ROUNDS
from relay.observe.pulse import Garbage, Pulse, feel_pulse


class Ring:
    def __init__(self) -> None:
        self.self = self


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    yield
    gc.unfreeze()


async def test_a_stop_is_counted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    monkeypatch.setattr(pulse, "STOOD_STILL_S", 0.01)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feel_pulse, metrics, Pulse())
        await trio.testing.wait_all_tasks_blocked()
        time.sleep(0.1)  # noqa: ASYNC251  this is what is measured
        gc.collect()
        with trio.fail_after(5):
            while not metrics.registry.get_sample_value("posthouse_gc_pause_seconds_count"):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    within = metrics.registry.get_sample_value("posthouse_loop_late_seconds_bucket", {"le": "0.05"})
    count = metrics.registry.get_sample_value("posthouse_loop_late_seconds_count")
    assert count is not None and within is not None and count > within


def test_what_a_look_has_left_is_not_looked_at_again() -> None:
    with Garbage().watched() as garbage:
        kept = [[] for _ in range(1_000)]  # type: ignore[var-annotated]
        gc.collect()
        assert gc.get_freeze_count() >= len(kept) and all(one is not kept for one in gc.get_objects())
        assert garbage.pauses and not garbage.due
    assert gc.get_freeze_count() == 0


def test_what_points_in_circles_goes_when_there_is_much_of_it() -> None:
    gc.collect()
    gc.freeze()
    with Garbage(least=10_000).watched() as garbage:
        rings = [Ring() for _ in range(100)]
        last = weakref.ref(rings[-1])
        gc.collect()
        del rings
        gc.collect()
        assert last() is not None and not garbage.due, "it is where nobody looks"
        kept = [[] for _ in range(10_000 + 2 * gc.get_freeze_count())]  # type: ignore[var-annotated]
        gc.collect()
        assert garbage.due and kept
        garbage.look_at_all()
        assert last() is None and not garbage.due


def test_what_has_come_and_gone_makes_no_look_at_everything_due() -> None:
    """It was freed at once: only what is there counts."""
    gc.collect()
    gc.freeze()
    with Garbage(least=10_000).watched() as garbage:
        for _ in range(5):
            kept = [[] for _ in range(garbage._bound // 2)]  # type: ignore[var-annotated]
            gc.collect()
            assert not garbage.due and kept
            del kept


def test_what_takes_the_place_of_others_is_looked_at_in_small_steps() -> None:
    """The collector counts what is made less what is let go: nothing, here."""
    with Garbage().watched() as garbage:
        kept = [[] for _ in range(50_000)]  # type: ignore[var-annotated]
        gc.collect()
        most = 0
        for number in range(len(kept)):
            kept[number] = []
            if number % 100 == 0:
                most = max(most, *(len(gc.get_objects(generation=generation)) for generation in range(2)))
                garbage.look_at_new()
        frozen = gc.get_freeze_count()
    assert most < 5_000 and frozen > len(kept) / 2


async def test_a_look_at_everything_counts_as_a_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever looks at how late the loop wakes must not be the one who makes it late, unseen."""
    metrics, looked = Metrics(), []

    def slow(self: Garbage) -> None:
        self.due = False
        looked.append(self)
        time.sleep(0.2)

    monkeypatch.setattr(Garbage, "look_at_all", slow)
    monkeypatch.setattr(Garbage, "_count", lambda self: setattr(self, "due", not looked))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feel_pulse, metrics, Pulse())
        with trio.fail_after(5):
            while not looked:  # noqa: ASYNC110
                await trio.sleep(0.01)
            count = metrics.registry.get_sample_value("posthouse_loop_late_seconds_count")
            while metrics.registry.get_sample_value("posthouse_loop_late_seconds_count") == count:  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    total = metrics.registry.get_sample_value("posthouse_loop_late_seconds_sum")
    assert total is not None and total > 0.15


def test_a_node_is_busy_while_its_loop_wakes_late_again_and_again() -> None:
    pulse = Pulse()
    for _ in range(1_000):
        pulse.felt(0.001)
    assert not pulse.busy, "a timer's tick"
    pulse.felt(5.0)
    assert not pulse.busy, "one stop"
    for _ in range(25):
        pulse.felt(0.002)
    assert pulse.busy
    while pulse.late_s > 0.6 * BUSY_S:
        pulse.felt(0.001)
    assert pulse.busy, "one quiet moment"
    for _ in range(100):
        pulse.felt(0.0)
    assert not pulse.busy


def test_the_time_from_batch_to_batch_is_that_of_what_a_block_takes() -> None:
    pulse = Pulse()
    assert pulse.every_s == INTAKE_EVERY_S
    for _ in range(100):
        pulse.committed(0.006)
        pulse.gave(0.008)
    assert pulse.every_s == pytest.approx(0.006 + INTAKE_ROUNDS * 0.008, rel=0.01)
    for _ in range(100):
        pulse.gave(0.0)  # to few
    assert pulse.every_s == INTAKE_EVERY_S
    for _ in range(100):
        pulse.gave(5.0)
    assert pulse.every_s == INTAKE_EVERY_MOST_S
