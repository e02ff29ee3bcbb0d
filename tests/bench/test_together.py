"""Bounds of loads that run together, from figures that are made up; the sounding of a link; and the limit of files."""

from __future__ import annotations

import resource
from typing import Any

import pytest
import trio

from bench.machine import raise_file_limit
from bench.scenario import load_scenario
from bench.together import sound, wrong
from cluster.config_keys import Address
from cluster.env import RealEnv
from cluster.local.make import free_ports
from relay.errors import OperatorError

SCENARIO = {"bound_ratio": 2.0, "bound_kib": 25.0, "bound_adds_ms": 5.0}


def memory(**changes: Any) -> dict[str, Any]:
    return {"load": "idlers", "kib_each": 20.0, "most_kib_each": 40.0, "stalled": False, **changes}


@pytest.mark.parametrize(
    ("report", "text"),
    [
        ({"to_quiet": {"p50": 9.0, "p99": 2.0}, "memory": [memory()], "link": {"loads": [{"adds_ms": 5.0}]}}, ""),
        ({"to_quiet": {"p99": 2.1}}, "p99 is 2.1 times"),
        ({"memory": [memory(kib_each=25.1)]}, "25.1 KiB a connection"),
        ({"memory": [memory(kib_each=99.0, stalled=True)]}, ""),
        ({"memory": [memory(most_kib_each=1100.0, stalled=True)]}, "1100 KiB for each that stalls, above 1024"),
        ({"link": {"loads": [{"load": "far", "adds_ms": 5.1}]}}, "far: p50 is 5.1 ms above"),
        ({"link": {"loads": [{"load": "far", "adds_ms": None}]}}, "far: p50 is None ms above"),
    ],
)
def test_what_passes_a_bound_is_told(report: dict[str, Any], text: str) -> None:
    said = list(wrong({"scenario": SCENARIO, **report}))
    assert len(said) == (1 if text else 0) and all(text in line for line in said)


async def test_a_link_is_sounded_while_a_run_goes_on() -> None:
    found: list[int] = []
    at = Address("127.0.0.1", next(free_ports(RealEnv())))
    async with trio.open_nursery() as nursery:
        await nursery.start(sound, at, 0.01, found)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert found and min(found) >= 20_000_000


def test_more_connections_than_files_is_an_operators_business(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: set_to.append(limits))
    raise_file_limit(3000)
    assert set_to == [(4096, 4096)]
    with pytest.raises(OperatorError, match="10042 connections need more open files"):
        raise_file_limit(load_scenario("idle").connections)
