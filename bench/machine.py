"""What a process cost, and on what machine: read from /proc (Linux; elsewhere the figures are 0)."""

from __future__ import annotations

import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from bench.accounts import exact_ms
from relay.errors import OperatorError

_LIBRARIES = ("posthouse", "trio", "trio-websocket", "wsproto", "msgpack", "msgspec", "aiosqlite", "pynacl")
_FILES: Final = 256  # of a process, beside its connections
_PROC = Path("/proc")
_SYNCS: Final = 200  # of a mark file's slot, to see what one costs on this disk
_SLOT: Final = 512  # bytes (relay.journal.mark)


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
    beside. `node_cpu_s` and `node_rss_mib` (the most that was resident) are by the nodes' names."""

    def __init__(self) -> None:
        self.node_cpu_s: dict[str, float] = {}
        self.node_rss_mib: dict[str, float] = {}
        self.window_s = self._busy_s = self._own_s = 0.0
        self._since_s: dict[int, float] = {}
        self._started_s = 0.0

    @property
    def cpu_s(self) -> float:
        """Of all nodes."""
        return sum(self.node_cpu_s.values())

    @property
    def rss_mib_max(self) -> float:
        """Of the node that had most."""
        return max(self.node_rss_mib.values(), default=0.0)

    def begin(self, pids: Mapping[str, int]) -> None:
        """The measured part begins."""
        self._since_s = {pid: cpu_s(pid) for pid in pids.values()}
        self._started_s, self._busy_s, self._own_s = time.monotonic(), busy_s(), time.process_time()

    def leave(self, node: str, pid: int) -> None:
        """This process is about to be killed, or the run is over; one that was not there counts from its own start."""
        spent_s = max(0.0, cpu_s(pid) - self._since_s.pop(pid, 0.0))
        self.node_cpu_s[node] = self.node_cpu_s.get(node, 0.0) + spent_s
        self.node_rss_mib[node] = max(self.node_rss_mib.get(node, 0.0), peak_rss_mib(pid))

    def end(self, pids: Mapping[str, int]) -> None:
        """The measured part ends."""
        for node, pid in pids.items():
            self.leave(node, pid)
        self.window_s = time.monotonic() - self._started_s
        self._busy_s, self._own_s = busy_s() - self._busy_s, time.process_time() - self._own_s

    def elsewhere(self, generator_s: float) -> float:
        """The share of the machine's CPU, 0 … 1, that went neither to the node nor to the bench."""
        spent_s = self._busy_s - self._own_s - self.cpu_s - generator_s
        return max(0.0, spent_s / (self.window_s * (os.cpu_count() or 1))) if self.window_s else 0.0


def sync_ms(directory: Path) -> dict[str, float]:
    """What a slot of a mark file, written and fdatasynced, costs on this disk while nothing else goes on."""
    times: list[int] = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        handle = file.fileno()
        os.pwrite(handle, bytes(2 * _SLOT), 0)
        os.fsync(handle)
        for number in range(_SYNCS):
            began = time.perf_counter_ns()
            os.pwrite(handle, bytes([number % 256]) * _SLOT, number % 2 * _SLOT)
            os.fdatasync(handle)
            times.append(time.perf_counter_ns() - began)
    return exact_ms(times)


def _status_mib(pid: int, key: str) -> float:
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)


def raise_file_limit(connections: int = 0) -> None:
    """As many open files as the system lets this user have; children inherit it. Raises OperatorError where one process
    cannot have so many connections."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and connections + _FILES > most:
        what = f"{connections} connections need more open files than this user may have ({most})"
        raise OperatorError(what, f"Raise the hard limit (`ulimit -Hn {connections + _FILES}`, as root), or have fewer")


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
