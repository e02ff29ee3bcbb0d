"""The simulator itself: some seeds hold, and a seed is the same world in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.simulation.swarm import run_seed

_DIGEST = "from tests.simulation.swarm import run_seed; print(run_seed({}, safety=15.0, nodes=3).digest)"


@pytest.mark.parametrize("seed", range(1, 6))
def test_a_seed_holds(seed: int) -> None:
    result = run_seed(seed, safety=20.0)
    assert result.violation is None, result.violation
    assert result.counts["delivered"] > 5


@pytest.mark.parametrize(("seed", "nodes"), [(11, 1), (12, 3), (13, 3)])
def test_every_receipt_in_a_world_with_faults_is_true(seed: int, nodes: int) -> None:
    result = run_seed(seed, safety=30.0, nodes=nodes, receipts=0.5)
    assert result.violation is None, result.violation
    assert result.counts["proven"] > 5


def test_a_seed_is_the_same_world_whatever_the_order_of_hashes() -> None:
    digests = set()
    for hash_seed in ("0", "1", "4711"):
        done = subprocess.run(
            [sys.executable, "-c", _DIGEST.format(2)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        digests.add(done.stdout)
    assert len(digests) == 1


def test_a_second_world_in_one_process_is_the_same_too() -> None:
    first, _, again = run_seed(3, safety=20.0), run_seed(4, safety=10.0), run_seed(3, safety=20.0)
    assert first.digest == again.digest
    assert first.events == again.events
