"""python -m tests.simulation [SEEDS=n] [SEED=k] [TRACE=1] [option=value …]: run the simulator over n seeds from k on.

Every world is another one. What has a star in the table must happen, of n seeds, n / 10 times at least, or the run has
failed: a quiet simulator cannot pass. Less than 100 seeds, or fixed options, say nothing about that.

Without SEED it starts at 1. With SEED and without SEEDS it runs that seed alone; TRACE=1 shows every event of it as it
happens, and what the nodes log. Any option of tests.simulation.options may be fixed, as nodes=3.
"""

from __future__ import annotations

import ast
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from multiprocessing import get_context
from typing import Any

from tests.simulation.swarm import Result, run_seed
from tests.simulation.tally import MUST, too_quiet

WORKERS = 2
SHOWN = 60  # last events of a failing seed


def main(arguments: list[str]) -> int:
    """Returns 1 where an invariant did not hold, or too little happened."""
    given: dict[str, Any] = {}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if value:
            given[name] = ast.literal_eval(value)
    seeds, seed = given.pop("SEEDS", 0), given.pop("SEED", 0)
    trace = given.pop("TRACE", 0)
    first, count = seed or 1, seeds or (1 if seed else 20)
    began = time.perf_counter()
    counts: Counter[str] = Counter()
    events = crashes = bad = 0
    seconds = took = 0.0
    for result in _results(first, count, given, bool(trace)):
        events, crashes, seconds, took = (
            events + result.events, crashes + result.crashes, seconds + result.seconds, took + result.took,
        )  # fmt: skip
        counts.update(result.counts)
        if result.violation is not None:
            bad += 1
            _show(result, given)
    _table(counts)
    quiet = [] if given else too_quiet(counts, count)  # whoever fixes options knows what he does
    if quiet:
        print(f"a quiet simulator cannot pass; in {count} seeds too rare were:", *quiet, sep="\n  ")
    real = time.perf_counter() - began
    print(
        f"{real:.0f} s of real time, {WORKERS} processes; a seed took {took / count:.2f} s of one, and ran"
        f" {seconds / took:.0f} times as fast as the clock"
    )
    print(
        f"simulation: {count} seeds, {seconds / 3600:.2f} simulated hours, {events} events, {crashes} crashes,"
        f" {bad} violations"
    )
    return int(bad > 0 or bool(quiet))


def _results(first: int, count: int, given: dict[str, Any], trace: bool) -> Iterator[Result]:
    if count == 1:
        yield run_seed(first, print if trace else None, **given)
        return
    with get_context("spawn").Pool(WORKERS) as pool:
        yield from pool.imap(partial(run_seed, **given), range(first, first + count))


def _show(result: Result, given: dict[str, Any]) -> None:
    fixed = "".join(f" {name}={value!r}" for name, value in given.items())
    print(f"\nseed {result.seed}: {result.violation}")
    print(f"after {result.seconds:.3f} s, {result.events} events; trace {result.digest}; options:")
    print(*result.options.lines(), sep="\n")
    print("the last events:")
    print(*result.newest[-SHOWN:], sep="\n")
    print(f"replay: make simulate SEED={result.seed}{fixed}    (TRACE=1 shows every event)\n", flush=True)


def _table(counts: Counter[str]) -> None:
    width = max(map(len, counts), default=0)
    for kind, number in sorted({**dict.fromkeys(MUST, 0), **counts}.items()):
        print(f"{'*' if kind in MUST else ' '} {kind:<{width}}  {number:>9,}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
