"""What a bench drives: something that takes clients and can be killed. The one here is a federation of one node."""

from __future__ import annotations

from typing import Protocol

from bench.enrol import Home
from bench.pipes import Endpoint


class Target(Protocol):
    """A running cell, for the bench."""

    @property
    def home(self) -> Home:
        """Where the bench's users live, and who signs for it."""

    @property
    def endpoint(self) -> Endpoint:
        """Where clients connect; the same after a restart."""

    @property
    def pid(self) -> int:
        """The process that is measured; another one after a restart."""

    def kill(self) -> None:
        """SIGKILL."""

    async def restart(self) -> None:
        """Start again on the same data, and wait until it serves."""
