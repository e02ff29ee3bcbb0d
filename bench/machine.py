"""What a process cost, and on what machine: read from /proc (Linux; elsewhere the figures are 0)."""

from __future__ import annotations

import os
import platform
import resource
import sys
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
    try:
        lines = (_PROC / str(pid) / "status").read_text().splitlines()
    except OSError:
        return 0.0
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


class NodeMeter:
    """CPU and memory of a node over the measured part, across its incarnations."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.rss_mib_max = 0.0
        self._since_s = 0.0

    def begin(self, pid: int) -> None:
        """The measured part begins."""
        self._since_s = cpu_s(pid)

    def end(self, pid: int) -> None:
        """It ends, or this incarnation is about to be killed; the next one counts from its own start."""
        self.cpu_s += max(0.0, cpu_s(pid) - self._since_s)
        self.rss_mib_max = max(self.rss_mib_max, peak_rss_mib(pid))
        self._since_s = 0.0


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
