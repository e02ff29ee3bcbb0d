"""The standard figures of a process (Prometheus, "Writing client libraries": process metrics), as the library has them.
But it counts the open files by listing them: with 10,000 connections that stopped a node for 8 to 16 ms at each scrape.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_PROC: Final = Path("/proc/self")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = resource.getpagesize()


class ProcessFigures(Collector):
    """CPU seconds, memory, open files. Where there is no /proc, the CPU seconds only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._started = _started()
        registry.register(self)

    def collect(self) -> Iterable[Metric]:
        """See prometheus_client."""
        yield CounterMetricFamily("process_cpu_seconds", "User and system CPU time spent, seconds", time.process_time())
        if self._started:
            yield from self._of_proc(self._started)

    def _of_proc(self, started: float) -> Iterator[Metric]:
        pages = (_PROC / "statm").read_bytes().split()
        open_fds = os.stat(_PROC / "fd").st_size or len(os.listdir(_PROC / "fd"))  # Linux < 6.2 says 0
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        for name, text, value in (
            ("virtual_memory_bytes", "Virtual memory size in bytes", int(pages[0]) * _PAGE),
            ("resident_memory_bytes", "Resident memory size in bytes", int(pages[1]) * _PAGE),
            ("start_time_seconds", "Start time of the process since the Unix epoch, seconds", started),
            ("open_fds", "Open file descriptors", open_fds),
            ("max_fds", "Most file descriptors that may be open", limit),
        ):
            yield GaugeMetricFamily(f"process_{name}", text, value)


def _started() -> float:
    """Unix time, s; 0 where there is no /proc (proc_pid_stat(5), field 22: ticks since the machine's start)."""
    try:
        ticks = int((_PROC / "stat").read_bytes().rpartition(b")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_bytes().splitlines() if line.startswith(b"btime "))
    except OSError:
        return 0.0
    return int(boot.split()[1]) + ticks / _TICKS
