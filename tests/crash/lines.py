"""The lines between the nodes: each node in a network namespace of its own, on one bridge, so that a line can be cut as
one is: packets vanish, nobody is told.

All of it lives in a namespace of the harness's, and goes with it: nothing of the machine's own network is touched, and
root is not needed where users may make namespaces (Linux).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_INSIDE = "POSTHOUSE_CRASH_INSIDE"
_UNSHARE = ("unshare", "--net", "--mount")


def _command() -> list[str]:
    return [*_UNSHARE, *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]


def possible() -> bool:
    """May this user have network and mount namespaces, and are the tools there?"""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "mount"))):
        return False
    probe = [*_command(), "ip", "link", "add", "probe", "type", "veth", "peer", "name", "other"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def enter(module: str, arguments: Sequence[str]) -> bool:
    """Run the module again within namespaces of its own. Returns only where it is inside already (True), or cannot be
    (False)."""
    if _INSIDE not in os.environ and possible():
        os.environ[_INSIDE] = "1"
        command = [*_command(), sys.executable, "-m", module, *arguments]
        os.execvp(command[0], command)
    return _INSIDE in os.environ


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)


class Lines:
    """A bridge, and a namespace for each of `count` nodes, at 10.77.0.1, 10.77.0.2, … Made only when inside `enter`."""

    def __init__(self, count: int) -> None:
        self._holders: list[subprocess.Popen[bytes]] = []
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", "cell", "type", "bridge")
        _run("ip", "link", "set", "cell", "up")
        for number in range(count):
            self._add(number)

    def _add(self, number: int) -> None:
        # it holds the namespace until its input ends, that is: as long as this process lives
        holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._holders.append(holder)
        out: IO[bytes] | None = holder.stdout
        assert out is not None
        out.readline()
        line = f"line{number}"
        _run("ip", "link", "add", line, "type", "veth", "peer", "name", "eth0", "netns", str(holder.pid))
        _run("ip", "link", "set", line, "master", "cell", "up")
        within = self.within(number)
        _run(*within, "ip", "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            _run(*within, "ip", "link", "set", device, "up")

    @staticmethod
    def address(number: int) -> str:
        return f"10.77.0.{number + 1}"

    def within(self, number: int) -> list[str]:
        """What runs a command in the namespace of node `number`."""
        return ["nsenter", f"--net=/proc/{self._holders[number].pid}/ns/net", "--"]

    def cut(self, number: int) -> None:
        """Nothing gets to or from the node any more."""
        _run("ip", "link", "set", f"line{number}", "down")

    def heal(self, number: int) -> None:
        _run("ip", "link", "set", f"line{number}", "up")

    def close(self) -> None:
        for holder in self._holders:
            holder.kill()
            holder.wait()


def mount_small(directory: Path, size: int) -> None:
    """A file system of `size` bytes over `directory`, for this process and its children."""
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", str(directory))


def unmount(directory: Path) -> None:
    _run("umount", str(directory))
