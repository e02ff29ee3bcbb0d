"""The figures of a process are those that the library has, without a list of its open files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from relay.observe.process import ProcessFigures


def figures(registry: CollectorRegistry) -> dict[str, float]:
    return {sample.name: sample.value for family in registry.collect() for sample in family.samples}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="there is no /proc")
def test_they_are_what_the_library_says() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    ProcessFigures(ours)
    ProcessCollector(registry=theirs)
    with Path("/dev/null").open("rb"):
        mine, expected = figures(ours), figures(theirs)
    assert mine.keys() == expected.keys()
    for name in ("process_start_time_seconds", "process_max_fds", "process_open_fds"):
        assert mine[name] == pytest.approx(expected[name], abs=1), name
    for name in ("process_cpu_seconds_total", "process_resident_memory_bytes", "process_virtual_memory_bytes"):
        assert mine[name] == pytest.approx(expected[name], rel=0.1, abs=0.1), name


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="there is no /proc")
def test_an_older_linux_is_asked_for_the_list(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    ProcessFigures(registry)
    real = os.stat
    monkeypatch.setattr(os, "stat", lambda path: os.stat_result([0] * 10) if str(path).endswith("/fd") else real(path))
    assert figures(registry)["process_open_fds"] == pytest.approx(len(os.listdir("/proc/self/fd")), abs=1)
