"""python -m tests.simulation.hunt [SEEDS=n] [words of names …]: run the simulator against every planted defect.

Seed after seed, the recorded one first, until an invariant does not hold; and the same seed must hold without the
defect. Returns 1 where one is not found within SEEDS (200).
"""

from __future__ import annotations

import sys
import time
from functools import partial
from itertools import chain
from multiprocessing import get_context
from typing import NamedTuple

import pytest

from tests.simulation import swarm
from tests.simulation.defects import DEFECTS, Defect

SEEDS = 200
WORKERS = 2


class Found(NamedTuple):
    """What came of the hunt for one defect. `seed` 0: not found."""

    name: str
    seed: int
    violation: str
    tried: int
    took: float  # s of real time


def main(arguments: list[str]) -> int:
    """Returns 1 where a defect was not found."""
    seeds, words = SEEDS, list[str]()
    for argument in arguments:
        if argument.startswith("SEEDS="):
            seeds = int(argument.removeprefix("SEEDS="))
        else:
            words.append(argument)
    wanted = [place for place, defect in enumerate(DEFECTS) if not words or any(word in defect.name for word in words)]
    found = 0
    with get_context("spawn").Pool(WORKERS, maxtasksperchild=1) as pool:
        for result in pool.imap_unordered(partial(hunt, seeds=seeds), wanted):
            found += result.seed > 0
            print(_line(result), flush=True)
    print(f"defects: {found} of {len(wanted)} found")
    return int(found < len(wanted))


def _line(found: Found) -> str:
    if not found.seed:
        return f"{found.name}: NOT FOUND in {found.tried} seeds ({found.took:.0f} s){found.violation}"
    words = found.violation.strip().splitlines()[-1]
    return f"{found.name}: found by seed {found.seed}, the {found.tried}. tried ({words}; {found.took:.0f} s)"


def hunt(place: int, seeds: int = SEEDS) -> Found:
    """Look for the defect at that place of the list."""
    defect, began, unclean = DEFECTS[place], time.perf_counter(), ""
    order = chain([defect.seed], (seed for seed in range(1, seeds + 1) if seed != defect.seed))
    for tried, seed in enumerate(order, 1):
        violation = _violation(defect, seed)
        if violation is None:
            continue
        clean = run(seed, defect)
        if clean is None:
            return Found(defect.name, seed, violation, tried, time.perf_counter() - began)
        unclean = f"; but seed {seed} does not hold without it, too: {clean.strip().splitlines()[-1]}"
    return Found(defect.name, 0, unclean, seeds, time.perf_counter() - began)


def _violation(defect: Defect, seed: int) -> str | None:
    with pytest.MonkeyPatch.context() as patch:
        defect.plant(patch)
        return run(seed, defect)


def run(seed: int, defect: Defect) -> str | None:
    """The violation of a seed under the options of a defect, planted or not."""
    return swarm.run_seed(seed, **defect.options).violation


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
