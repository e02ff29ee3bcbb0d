"""Node processes: started, watched, stopped, and never left behind.

Each node runs in a session of its own, so that Ctrl-C in the terminal reaches only this process, which then stops them.
Its standard input is a pipe from here: should this process die without a word, the node sees the end of it and stops.
A node is named by its region and its own name; without one, the region's first is meant.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import trio

from cluster.config_keys import Address
from cluster.local.border import Border, Crossing
from cluster.local.capture import Capture
from cluster.local.layout import FIRST, Layout, NodeLayout
from cluster.local.make import port_is_free
from cluster.provision import make_data
from relay.errors import OperatorError
from relay.limits import DRAIN_S

READY_S: Final = 120.0  # seconds from the start of a process to /readyz: of many at once, on a slow machine
STOP_S: Final = DRAIN_S + 5.0  # seconds from SIGTERM to SIGKILL: a node drains, then closes its store
GONE_S: Final = 30.0  # seconds from SIGKILL to the end: far more than it takes, unless the kernel waits for a disk
_POLL_S: Final = 0.05
_LAST_LINES: Final = 12  # of a log, in an error


@dataclass
class _Running:
    node: NodeLayout
    process: trio.Process
    exited: trio.Event = field(default_factory=trio.Event)
    stopping: bool = False

    async def gone(self) -> None:
        """Wait for the end of a process that was killed, or told to stop. Raises OperatorError after GONE_S."""
        with trio.move_on_after(GONE_S):
            await self.exited.wait()
        if not self.exited.is_set():
            what = f"node {self.node.label} (process {self.process.pid}) has not ended {GONE_S:g} s after it was to"
            raise OperatorError(what, "SIGKILL waits for system calls: look at its disk (state D in `ps`)")


class LocalFederation:
    """The processes of a Layout, as an async context manager; leaving it stops them all. `capture` keeps what crosses
    the borders, where the layout was made with borders; each way over one takes `delay_s` seconds."""

    def __init__(self, layout: Layout, capture: Capture | None = None, delay_s: float = 0.0) -> None:
        self.layout = layout
        self._running: dict[tuple[str, str], _Running] = {}
        self._died = trio.Event()
        self._dead: deque[_Running] = deque()
        self._stack = AsyncExitStack()
        self._crossings = {
            (border.source, border.target, border.node): Crossing(
                Address("127.0.0.1", border.port),
                layout.node(border.target, border.node).links_addr,
                capture.reel(border.source, border.target, border.node) if capture else None,
                delay_s,
            )
            for border in layout.file.borders
        }

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.enter_context(_only_one(self.layout.directory))
            self._nursery = await stack.enter_async_context(trio.open_nursery())
            for crossing in self._crossings.values():
                await self._nursery.start(crossing.run)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            with trio.CancelScope(shield=True):
                async with trio.open_nursery() as nursery:
                    for region, name in self._running:
                        nursery.start_soon(self.stop, region, name)
        except BaseException:  # another Ctrl-C: nobody waits for nodes that drain
            for region, name in self._running:
                self.kill(region, name)
            self._nursery.cancel_scope.cancel()
            await self._stack.aclose()
            raise
        self._nursery.cancel_scope.cancel()
        if isinstance(error, Exception):  # goes on as it is, not in the nursery's group
            await self._stack.aclose()
            return False
        return await self._stack.__aexit__(kind, error, trace)

    async def start(self, region: str, name: str = FIRST) -> None:
        """Start a node and wait until it is ready. Raises OperatorError, with the node's last words."""
        await self.launch(region, name)
        await self.ready(region, name)

    async def launch(self, region: str, name: str = FIRST) -> None:
        """Start a node and do not wait: one of a cell is ready only when most of the cell run. Raises OperatorError."""
        node = self.layout.node(region, name)
        if (before := self._running.get((region, name))) is not None:
            if not before.stopping:
                raise OperatorError(f"{node.label} runs already", "Stop it first")
            await before.gone()
        for what, address in (("clients", node.clients_addr), ("links", node.links_addr), ("admin", node.admin_addr)):
            if not port_is_free(address):
                remedy = f"Stop what listens there, or change listen.{what} in {node.config_path} and the root document"
                raise OperatorError(f"{node.label}: port {address.port} ({what}) is in use", remedy)
        self._running[region, name] = running = _Running(node, await _spawn(node))
        self._nursery.start_soon(self._watch, running)

    async def start_region(self, region: str) -> None:
        """Start all nodes of a region at once, and wait until they are ready."""
        async with trio.open_nursery() as nursery:
            for node in self.layout.nodes(region):
                nursery.start_soon(self.start, region, node.name)

    async def start_all(self) -> None:
        """Start every node at once, and wait until they are ready."""
        async with trio.open_nursery() as nursery:
            for region in self.layout.regions:
                nursery.start_soon(self.start_region, region)

    async def ready(self, region: str, name: str = FIRST, deadline_s: float = READY_S) -> None:
        """Wait for /readyz. Raises OperatorError with the reason when the process ends, or the deadline passes."""
        running = self._running[region, name]
        node = running.node
        reason = "it has not answered yet"
        with trio.move_on_after(deadline_s):
            while not running.exited.is_set():
                reason = await _ask_ready(node.admin_addr) or ""
                if not reason:
                    return
                await trio.sleep(_POLL_S)
        if running.exited.is_set():
            what = f"node {node.label} ended with status {running.process.returncode}"
        else:
            what = f"node {node.label} was not ready after {deadline_s:.0f} s: {reason}"
        raise OperatorError(what, f"Its log, {node.log_path}, ends with:\n{_last_lines(node.log_path)}")

    def kill(self, region: str, name: str = FIRST) -> None:
        """SIGKILL: the node gets no chance to say or write anything."""
        running = self._running[region, name]
        running.stopping = True
        running.process.kill()

    async def ended(self) -> None:
        """Wait until every node that was killed or told to stop has ended: before that nobody can open its store.
        Raises OperatorError where one does not."""
        for running in list(self._running.values()):
            if running.stopping:
                await running.gone()

    async def stop(self, region: str, name: str = FIRST) -> int:
        """SIGTERM, and SIGKILL where that is not enough. Returns the exit status (negative: the signal). Raises
        OperatorError where neither is."""
        running = self._running[region, name]
        running.stopping = True
        with suppress(ProcessLookupError):
            running.process.terminate()
        with trio.move_on_after(STOP_S):
            await running.exited.wait()
        if not running.exited.is_set():
            running.process.kill()
            await running.gone()
        return running.process.returncode or 0

    def hurry(self) -> None:
        """SIGTERM once more for nodes that stop: those that drain end at once."""
        for running in self._running.values():
            if running.stopping and not running.exited.is_set():
                running.process.terminate()

    async def stop_all(self) -> None:
        """Stop every node that runs, all at once."""
        async with trio.open_nursery() as nursery:
            for node in self.running():
                nursery.start_soon(self.stop, node.region, node.name)

    def running(self, region: str | None = None) -> list[NodeLayout]:
        """The nodes that run (of a region): started, and neither killed nor stopped."""
        nodes = self.layout.every_node() if region is None else self.layout.nodes(region)
        known = ((node, self._running.get((node.region, node.name))) for node in nodes)
        return [node for node, running in known if running is not None and not running.stopping]

    async def wipe(self, region: str, name: str = FIRST) -> None:
        """Take everything away that a killed or stopped node had on its disk. Its next start finds an empty directory,
        and no sign that it ever made the log of its cell."""
        node = self.layout.node(region, name)
        if (before := self._running.get((region, name))) is not None:
            if not before.stopping:
                raise OperatorError(f"{node.label} runs", "Kill or stop it first")
            await before.gone()
        await trio.to_thread.run_sync(shutil.rmtree, node.data_dir)
        make_data(node.data_dir, founds=False)

    async def died(self) -> None:
        """Wait until a node ends that nobody stopped; then raise OperatorError with its last words."""
        _, error = await self.next_death()
        raise error

    async def next_death(self) -> tuple[NodeLayout, OperatorError]:
        """The next node that ends and that nobody stopped, and its last words."""
        while not self._dead:
            await self._died.wait()
        dead = self._dead.popleft()
        log = dead.node.log_path
        what = f"node {dead.node.label} ended with status {dead.process.returncode}"
        return dead.node, OperatorError(what, f"Its log, {log}, ends with:\n{_last_lines(log)}")

    def carries_on(self, region: str) -> bool:
        """Whether more than half of the region's nodes run."""
        return 2 * len(self.running(region)) > len(self.layout.nodes(region))

    def pid(self, region: str, name: str = FIRST) -> int:
        """The process id of a node, for those who measure it."""
        return self._running[region, name].process.pid

    def border(self, region: str) -> Border:
        """The region's border, where the layout was made with borders: what stands between its nodes and those of other
        regions, not between its own. Raises OperatorError."""
        crossings = [crossing for ends, crossing in self._crossings.items() if region in ends[:2]]
        if not crossings:
            raise OperatorError(f"{region} has no border that could be cut", "Make the federation with borders")
        return Border(region, crossings)

    async def _watch(self, running: _Running) -> None:
        with trio.CancelScope(shield=True):  # a process is waited for, whatever happens: no zombies, no strays
            try:
                await running.process.wait()
            finally:
                if running.process.stdin is not None:
                    await running.process.stdin.aclose()
                running.exited.set()
        if not running.stopping:
            running.stopping = True
            self._dead.append(running)
            self._died.set()
            self._died = trio.Event()


def node_command(node: NodeLayout) -> list[str]:
    """What runs a node."""
    return [sys.executable, "-m", "cluster.cli", "node", "run", "--with-parent", str(node.config_path)]


async def _spawn(node: NodeLayout) -> trio.Process:
    source = str(Path(__file__).parents[2])  # so that it runs from a checkout that is not installed
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    with node.log_path.open("ab") as log:
        return await trio.lowlevel.open_process(
            node_command(node),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )


async def _ask_ready(address: Address) -> str | None:
    """None when the node is ready; otherwise why not."""
    request = b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = b""
    try:
        with trio.fail_after(2.0):
            async with await trio.open_tcp_stream(*address) as stream:
                await stream.send_all(request)
                while len(answer) < 65_536 and (data := await stream.receive_some(4096)):
                    answer += data
    except (OSError, trio.BrokenResourceError, trio.TooSlowError):
        return "nobody listens on its admin port"
    head, _, body = answer.partition(b"\r\n\r\n")
    if head[:5] == b"HTTP/" and head.split()[1:2] == [b"200"]:
        return None
    return body.decode("utf-8", "replace").strip() or "it did not answer in full"


def _last_lines(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_384))
            lines = file.read().decode("utf-8", "replace").splitlines()[-_LAST_LINES:]
    except OSError as error:
        return f"  ({error.strerror})"
    return "\n".join(f"  {line}" for line in lines) or "  (nothing)"


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory: two sets of processes on the same stores and ports cannot work."""
    with (directory / "federation.json").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = f"{directory} is in use by another process"
            raise OperatorError(what, "Use the federation that runs there, or another --dir") from None
        yield
