"""Worlds with registrars, a log that shows two histories, and a witness that lies. What must hold in them is in
tests.simulation.registrars and tests.simulation.halting, and every world checks it; here it has happened, too."""

from __future__ import annotations

from typing import Any

import pytest

from tests.simulation.defects import ALONE, DEFECTS
from tests.simulation.hunt import hunt
from tests.simulation.swarm import Result, run_seed

LIES = {
    "cosigns anything", "cosigns at a wrong time", "cosigns with a wrong key", "cosigns another checkpoint",
    "keeps forks to itself", "says noise", "says nothing for long", "says that it has seen more", "shows a checkpoint",
    "slanders under a borrowed name", "slanders under another key", "slanders with another logs checkpoint",
    "slanders with checkpoints that agree",
}  # fmt: skip
FORKS: dict[str, Any] = {"liar": "quito", "lies": 0.0, "forks": True}


def run(seed: int, **options: Any) -> Result:
    result = run_seed(seed, **{**ALONE, "regions": 3, "rate": 1.0, "every": {}, **options})
    assert result.violation is None, result.violation
    return result


@pytest.mark.parametrize("false_witness", ["", "norden", "quito"])
def test_a_log_that_forks_is_halted_whoever_lies(false_witness: str) -> None:
    counts = run(6, **FORKS, false_witness=false_witness).counts
    assert counts["fork found"] and counts["federation halted"] >= 2


def test_nobody_is_halted_for_what_a_false_witness_says() -> None:
    counts = run(1, false_witness="sauda", safety=200.0).counts
    assert {kind.removeprefix("lie: witness ") for kind in counts if kind.startswith("lie: witness")} >= LIES
    assert not counts["fork found"] and not counts["federation halted"]


def test_a_false_witness_stands_by_two_histories_and_behind_what_it_stood_by() -> None:
    counts = run(13, **FORKS, false_witness="norden", safety=100.0).counts
    assert counts["lie: witness cosigns two histories of one size"]
    assert counts["lie: witness cosigns a smaller tree after a bigger one"]


@pytest.mark.parametrize("name", ["cosigns what does not follow", "believes whoever shows a fork"])
def test_a_defect_is_found(name: str) -> None:
    place = next(place for place, defect in enumerate(DEFECTS) if defect.name == name)
    found = hunt(place, seeds=3)
    assert found.seed, found.violation
