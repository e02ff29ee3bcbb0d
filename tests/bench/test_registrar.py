"""The registrar's bench runs and counts; how fast it is, is nobody's promise in a test."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from bench import registrars
from bench.registrar import measure
from tests.patience import PATIENCE_S


async def test_it_measures_what_it_says(tmp_path: Path) -> None:
    figures = await measure(tmp_path, 40, 20)
    assert figures.users == 40 and 2 <= figures.batches <= 40
    assert 0 < figures.p50_ms <= figures.p99_ms
    assert 500 < figures.staple_bytes < 2048 and 500 < figures.latest_bytes < 2048
    assert figures.cached_lookup_us > 0 and figures.verify_staple_us > 0


async def test_the_same_by_real_registrars(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("r") / "r"  # short: there are Unix sockets in it
    with trio.fail_after(PATIENCE_S):
        found = await registrars.measure(place, 12)
    for figures in found.values():
        assert figures.users == 12 and 1 <= figures.batches <= 12
        assert 0 < figures.p50_ms <= figures.p99_ms and figures.per_second > 0
