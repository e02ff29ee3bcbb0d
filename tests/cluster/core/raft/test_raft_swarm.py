"""Swarms of machines under crashes, loss, cuts, skewed clocks, changes of members, snapshots, wiped and old disks.

A failing seed runs again with `Swarm(seed).run()`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.cluster.core.raft.chaos import Swarm

SEEDS, PARTS = 48, 4
TRACE = """
from hashlib import sha256
from tests.cluster.core.raft.chaos import Swarm
trace = sha256()
for seed in (3,):
    swarm = Swarm(seed)
    send = swarm.world.send
    swarm.world.send = lambda node, message, send=send: (trace.update(repr(message).encode()), send(node, message))
    swarm.run()
print(trace.hexdigest())
"""


@pytest.mark.parametrize("part", range(PARTS))
def test_swarms_keep_their_promises(part):
    fired: Counter[str] = Counter()
    for seed in range(part, SEEDS, PARTS):
        swarm = Swarm(seed).run()
        fired.update(swarm.fired)
        fired["committed"] += swarm.world.judge.highest
    for happened in ("changed", "snapshots", "wiped", "committed"):
        assert fired[happened], f"{happened}: never"


@pytest.mark.parametrize("seed", [1_000_001, 1_000_002])
def test_a_swarm_over_the_codec(seed):
    Swarm(seed, wire=True).run()


def test_a_seed_is_the_whole_story():
    """The same trace in other processes, whatever the order of their hashes."""
    traces = {
        subprocess.run(
            [sys.executable, "-c", TRACE], env={**os.environ, "PYTHONHASHSEED": order}, capture_output=True, check=True
        ).stdout
        for order in ("1", "2")
    }
    assert len(traces) == 1
