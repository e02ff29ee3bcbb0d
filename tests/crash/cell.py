"""The cell under test: three real node processes, a supervisor for each, and everything that can be done to them.

A node that ends by itself is started again, as an init system does; how often, and its last words, are kept.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import trio

from cluster.control import CellView
from cluster.control.api import KEEPS_UP
from cluster.control.pages import ask_view
from cluster.env import RealEnv
from cluster.local import Layout, NodeLayout, make_federation
from cluster.local.processes import node_command
from relay.errors import PosthouseError
from tests.crash.lines import Lines
from tests.crash.powercut import Cut, build, cut, environment

REGION = "norden"
NODES = 3
_AGAIN_S = 0.5  # before a node that ended by itself is started again
_POLL_S = 0.1
_LOOK_MOST_S = 10.0  # what takes longer between two looks is a stop: three nodes are asked, 2 s each at most
_ROOT = Path(__file__).parents[2]


def variables_of_a_checkout() -> dict[str, str]:
    """The environment of a child that finds this very source."""
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


class Hang(Exception):
    """Something did not come about in time."""


class Patience:
    """How long something was waited for, s, without what this very process stood still meanwhile, and the cell with it:
    on a machine that is measured on, say."""

    def __init__(self) -> None:
        self._waited, self._looked = 0.0, time.monotonic()

    def waited(self) -> float:
        """Up to now, s. To be asked at each look."""
        now = time.monotonic()
        self._waited, self._looked = self._waited + min(now - self._looked, _LOOK_MOST_S), now
        return self._waited


class Node:
    """A node's process, under supervision while `run` runs."""

    def __init__(self, number: int, layout: NodeLayout, command: Sequence[str]) -> None:
        self.number, self.layout = number, layout
        self.data, self.undo = layout.data_dir, layout.directory / "undo"
        self.over_shim = True
        self.ended: list[str] = []  # the last words, each time it ended by itself
        self._command = command
        self._wanted, self._gone = trio.Event(), trio.Event()
        self._process: trio.Process | None = None

    async def run(self) -> None:
        while True:
            await self._wanted.wait()
            self._gone = trio.Event()
            self._process = await self._spawn()
            try:
                status = await self._process.wait()
            finally:
                self._process.kill()
                with trio.CancelScope(shield=True):
                    await self._process.wait()
                    if self._process.stdin is not None:
                        await self._process.stdin.aclose()
            self._gone.set()
            if self._wanted.is_set():
                self.ended.append(f"{self.layout.name} ended with {status}: {self._last_line()}")
                await trio.sleep(_AGAIN_S)

    async def _spawn(self) -> trio.Process:
        variables = variables_of_a_checkout()
        if self.over_shim:
            variables |= environment(build(), self.data, self.undo)
        with self.layout.log_path.open("ab") as log:
            return await trio.lowlevel.open_process(
                self._command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=variables, start_new_session=True
            )

    def _last_line(self) -> str:
        lines = self.layout.log_path.read_text("utf-8", "replace").splitlines()
        return lines[-1][:300] if lines else ""

    # --- from outside ----------------------------------------------------------------------------
    def start(self) -> None:
        self._wanted.set()

    def signal(self, number: int) -> None:
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """SIGKILL; it stays dead until `start`."""
        if self._wanted.is_set():
            self._wanted = trio.Event()
        self.signal(signal.SIGKILL)

    async def killed(self) -> None:
        """`kill`, and wait until it is gone."""
        self.kill()
        if self._process is not None:
            await self._gone.wait()

    def undo_size(self) -> int:
        """Bytes of what it could take back: they change with every write."""
        return sum(log.stat().st_size for log in self.undo.glob("log.*"))

    def forget(self) -> None:
        """What is on the disk now counts as durable: somebody else changed it."""
        shutil.rmtree(self.undo, ignore_errors=True)

    def cut(self, rng: Random, strict: bool) -> Cut:
        """The power was cut: of a killed node, what it had not synced is taken back."""
        return cut(self.data, self.undo, rng, strict=strict)

    async def view(self) -> CellView | None:
        """The cell as this node sees it; None where it does not answer."""
        with trio.move_on_after(2.0):
            try:
                return await ask_view(self.layout.control_path)
            except (PosthouseError, OSError):
                return None
        return None


class Cell:
    """All nodes. `run` supervises them."""

    def __init__(self, directory: Path, lines: Lines | None, *, synced: str = "all", often: int = 0) -> None:
        """`synced`: "all", or what tests.crash.unsynced takes: a way in which nodes do not sync. `often`: KiB of log
        between two checkpoints; 0: as limits.py says."""
        self.lines = lines
        self.early: list[str] = []  # stores that were given a vote before they had caught up, in words
        self._voted: set[str] = set()
        self.layout: Layout = make_federation(directory, [REGION], RealEnv(), nodes=NODES, tls=False)
        layouts = self.layout.nodes(REGION)
        for number, node in enumerate(layouts):
            _configure(node, layouts, number, lines)
        self.nodes = [
            Node(number, node, _command(node, number, lines, synced, often)) for number, node in enumerate(layouts)
        ]

    @property
    def sockets(self) -> tuple[Path, ...]:
        """Where clients connect."""
        return tuple(node.layout.directory / "clients" for node in self.nodes)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for node in self.nodes:
                nursery.start_soon(node.run)

    def start(self) -> None:
        for node in self.nodes:
            node.start()

    async def kill(self, nodes: Sequence[Node]) -> None:
        """SIGKILL, all at once."""
        for node in nodes:
            node.kill()
        for node in nodes:
            await node.killed()

    async def leader(self) -> Node | None:
        """The node that leads, as most recently known."""
        views = [view for node in self.nodes if (view := await node.view()) is not None and view.leader]
        newest = max(views, key=lambda view: view.term, default=None)
        return next((node for node in self.nodes if newest and node.layout.name == newest.leader), None)

    async def whole(self, deadline_s: float) -> float:
        """Wait until one store of every node votes and has about everything, and every node sees that; how long it
        took, s. Raises Hang."""
        patience = Patience()
        views: list[CellView | None] = []
        while patience.waited() < deadline_s:
            views = [await node.view() for node in self.nodes]
            self._watch([view for view in views if view and view.leader == view.node])
            if all(views) and self._agree([view for view in views if view]):
                return patience.waited()
            await trio.sleep(_POLL_S)
        raise Hang(f"the cell is not whole after {deadline_s:.0f} s: {'; '.join(map(_in_words, views))}")

    def _watch(self, leading: Sequence[CellView]) -> None:
        """A store that has a vote for the first time has about everything."""
        for view in leading:
            for one in view.voters:
                fresh = self._voted and one.store not in self._voted
                if fresh and (one.behind is None or one.behind > KEEPS_UP):
                    self.early.append(f"{one.node}'s store {one.store} had a vote while {one.behind} blocks behind")
                self._voted.add(one.store)

    @staticmethod
    def _agree(views: Sequence[CellView]) -> bool:
        leading = [view for view in views if view.leader == view.node]
        return (
            len(leading) == 1
            and leading[0].whole()
            and not leading[0].learners
            and all(view.leader == leading[0].node and view.voters for view in views)
            and all({one.store for one in view.voters} == {one.store for one in leading[0].voters} for view in views)
        )

    def tracebacks(self) -> int:
        """How many the nodes have logged: each is a mistake of theirs."""
        return sum(node.layout.log_path.read_bytes().count(b"Traceback (most") for node in self.nodes)


def _in_words(view: CellView | None) -> str:
    if view is None:
        return "no answer"
    voters, learners = (
        ", ".join(f"{one.node} {one.store[:6]} {one.behind} behind" for one in group) or "none"
        for group in (view.voters, view.learners)
    )
    return f"{view.node} sees leader {view.leader or '–'}, term {view.term}, voters {voters}; learners {learners}"


def _command(node: NodeLayout, number: int, lines: Lines | None, synced: str, often: int) -> list[str]:
    command = node_command(node)
    if often:
        command = [command[0], "-m", "tests.crash.often", str(often), *command[3:]]
    elif synced != "all":
        command = [command[0], "-m", "tests.crash.unsynced", synced, *command[3:]]
    return [*(lines.within(number) if lines else ()), *command]


def _configure(node: NodeLayout, nodes: Sequence[NodeLayout], number: int, lines: Lines | None) -> None:
    """Clients come over a Unix socket; with `lines`, nodes find each other there."""
    text = node.config_path.read_text()
    unix = 'unix = "clients"\n'
    if lines:
        port = node.links_addr.port
        within = f'links = "{lines.address(number)}:{port}"\nlinks_advertised = "{node.links_addr}"\n'
        text = re.sub(r"^links = .*\n", within, text, flags=re.MULTILINE)
        text += "\n[routes]\n"
        for n, other in enumerate(nodes):
            text += f'"{other.cell}/{other.name}" = "{lines.address(n)}:{other.links_addr.port}"\n'
    text = re.sub(r"^\[listen\]\n", "[listen]\n" + unix, text, flags=re.MULTILINE)
    node.config_path.write_text(text)


