"""A quiet simulator cannot pass: what must happen is counted, and a run in which it hardly did says so."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation import __main__ as command
from tests.simulation import tally
from tests.simulation.swarm import run_seed
from tests.simulation.tally import MUST, too_quiet


def test_every_thing_must_happen_in_a_tenth_of_the_seeds() -> None:
    assert too_quiet(Counter(dict.fromkeys(MUST, 100)), 1000) == []
    assert too_quiet(Counter({**dict.fromkeys(MUST, 100), "carry": 99}), 1000) == ["carry: 99 times, not 100"]
    assert too_quiet(Counter(), 99) == []
    assert len(too_quiet(Counter(), 100)) == len(MUST)


def test_a_quiet_run_fails_and_says_what_was_too_rare(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tally, "FEW", 1)
    monkeypatch.setattr(tally, "SHARE", 0.001)
    monkeypatch.setattr(command, "run_seed", lambda seed, echo: run_seed(seed, safety=5.0, nodes=1, every={}))
    assert command.main(["SEED=1"]) == 1
    shown = capsys.readouterr().out
    assert "a quiet simulator cannot pass" in shown
    assert "disk wiped: 0 times" in shown
    assert "0 violations" in shown
