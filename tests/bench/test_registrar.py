"""The registrar's bench runs and counts; how fast it is, is nobody's promise in a test."""

from __future__ import annotations

from pathlib import Path

from bench.registrar import measure


async def test_it_measures_what_it_says(tmp_path: Path) -> None:
    figures = await measure(tmp_path, 40, 20)
    assert figures.users == 40 and 2 <= figures.batches <= 40
    assert 0 < figures.p50_ms <= figures.p99_ms
    assert 500 < figures.staple_bytes < 2048 and 500 < figures.latest_bytes < 2048
