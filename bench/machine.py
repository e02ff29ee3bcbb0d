"""What a process cost, and on what machine: read from /proc (Linux; elsewhere the figures are 0)."""

from __future__ import annotations

import os
import platform
import resource
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("posthouse", "trio", "trio-websocket", "wsproto", "msgpack", "msgspec", "aiosqlite", "pynacl")
_PROC = Path("/proc")


def cpu_s(pid: int) -> float:
    """User and system CPU of a process and all its threads so far, s; 0 when it is gone. See proc(5), fields 14, 15."""
    try:
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_rss_mib(pid: int) -> float:
    """The most memory that was resident in a process so far (VmHWM), MiB; 0 when it is gone."""
    return _status_mib(pid, "VmHWM:")


def rss_mib(pid: int) -> float:
    """Memory that is resident in a process now (VmRSS), MiB; 0 when it is gone."""
    return _status_mib(pid, "VmRSS:")


def busy_s() -> float:
    """CPU that the whole machine has spent, all cores, s. See proc(5), /proc/stat: all but idle and iowait."""
    try:
        fields = (_PROC / "stat").read_text().splitlines()[0].split()[1:9]
    except OSError:
        return 0.0
    return sum(int(value) for place, value in enumerate(fields) if place not in (3, 4)) / os.sysconf("SC_CLK_TCK")


class Meter:
    """CPU and memory of a cell's nodes over the measured part, across their incarnations; and what the machine did
    beside. `rss_mib_max`: of the node that had most."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.rss_mib_max = 0.0
        self.window_s = self._busy_s = self._own_s = 0.0
        self._since_s: dict[int, float] = {}
        self._started_s = 0.0

    def begin(self, pids: Iterable[int]) -> None:
        """The measured part begins."""
        self._since_s = {pid: cpu_s(pid) for pid in pids}
        self._started_s, self._busy_s, self._own_s = time.monotonic(), busy_s(), time.process_time()

    def leave(self, pid: int) -> None:
        """This process is about to be killed, or the run is over; one that was not there counts from its own start."""
        self.cpu_s += max(0.0, cpu_s(pid) - self._since_s.pop(pid, 0.0))
        self.rss_mib_max = max(self.rss_mib_max, peak_rss_mib(pid))

    def end(self, pids: Iterable[int]) -> None:
        """The measured part ends."""
        for pid in pids:
            self.leave(pid)
        self.window_s = time.monotonic() - self._started_s
        self._busy_s, self._own_s = busy_s() - self._busy_s, time.process_time() - self._own_s

    def elsewhere(self, generator_s: float) -> float:
        """The share of the machine's CPU, 0 … 1, that went neither to the node nor to the bench."""
        spent_s = self._busy_s - self._own_s - self.cpu_s - generator_s
        return max(0.0, spent_s / (self.window_s * (os.cpu_count() or 1))) if self.window_s else 0.0


def _status_mib(pid: int, key: str) -> float:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def raise_file_limit() -> None:
    """As many open files as the system lets this user have; children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def describe_machine(data: Path) -> dict[str, Any]:
    """Processor, kernel, memory and the file system that `data` lies on: a figure is worth little without them."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1024**2
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_mib": memory,
        "kernel": f"{platform.system()} {platform.release()}",
        "disk": _file_system(data),
    }


def describe_versions() -> dict[str, str]:
    """Python and the libraries on the hot path."""
    found = {"python": sys.version.split()[0]}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpu_model() -> str:
    try:
        lines = (_PROC / "cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _file_system(path: Path) -> str:
    try:
        mounts = [line.split() for line in (_PROC / "self" / "mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    inside = [(fields[1], fields[2]) for fields in mounts if path.resolve().is_relative_to(fields[1])]
    return max(inside, key=lambda mount: len(mount[0]))[1] if inside else "unknown"
