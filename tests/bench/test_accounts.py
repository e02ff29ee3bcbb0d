"""Ledgers against a plain model, histograms that merge, percentiles that are exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bench.accounts import Latencies, Ledger, exact_ms, histogram_ms, lost_deliveries, merge


def model(arrivals: list[int], total: int) -> tuple[int, int, set[int]]:
    """(duplicated, reordered, absent), with a set and no cleverness."""
    seen: set[int] = set()
    duplicated = reordered = 0
    for sequence in arrivals:
        if sequence in seen:
            duplicated += 1
        elif seen and sequence < max(seen):
            reordered += 1
        seen.add(sequence)
    return duplicated, reordered, set(range(total)) - seen


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 10))
def test_a_ledger_counts_what_a_set_would(arrivals: list[int], more: int) -> None:
    total = max(arrivals, default=0) + 1 + more
    ledger, seen = Ledger(), set()
    for sequence in arrivals:
        assert ledger.take(sequence) == (sequence not in seen)
        seen.add(sequence)
    assert (ledger.duplicated, ledger.reordered, ledger.absent(total)) == model(arrivals, total)


def test_a_ledger_of_a_good_run_stays_empty() -> None:
    ledger = Ledger()
    assert all(ledger.take(sequence) for sequence in range(1000))
    assert not ledger.missing
    assert ledger.absent(1000) == set()


@given(st.lists(st.lists(st.integers(0, 5_000_000), max_size=50), min_size=1, max_size=4))
def test_workers_histograms_merge_into_one(shares: list[list[int]]) -> None:
    workers = [Latencies() for _ in shares]
    for worker, share in zip(workers, shares, strict=True):
        for us in share:
            worker.add(us)
    merged = merge(worker.encoded() for worker in workers)
    every = sorted(us for share in shares for us in share)
    assert merged.get_total_count() == len(every)
    found = histogram_ms(merged)
    if not every:
        assert found == {}
        return
    assert abs(found["max"] * 1000 - max(every[-1], 1)) <= every[-1] / 1000 + 1  # three significant digits
    assert found["p50"] <= found["p90"] <= found["p99"] <= found["p999"] <= found["max"]


def test_a_latency_beyond_the_histogram_is_not_dropped() -> None:
    latencies = Latencies()
    latencies.add(10**12)
    assert merge([latencies.encoded()]).get_total_count() == 1


def test_exact_percentiles_are_nearest_rank() -> None:
    assert exact_ms([]) == {}
    assert exact_ms([7_000_000]) == {"p50": 7.0, "p90": 7.0, "p99": 7.0, "p999": 7.0, "max": 7.0}
    hundred = [ms * 1_000_000 for ms in range(100, 0, -1)]
    assert exact_ms(hundred) == {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p999": 100.0, "max": 100.0}


def test_only_what_was_accepted_can_be_lost() -> None:
    assert lost_deliveries([True, False, True], {0: 3, 1: 5}) == 3
    assert lost_deliveries([True, True], {}) == 0
