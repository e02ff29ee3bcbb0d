"""A peer's servers: found, started, watched, and ended."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Final

import trio

from bench.peers.api import HOST, Peer, Program, Server
from bench.pipes import Endpoint
from bench.samples import Samples
from cluster.env import RealEnv
from cluster.local.make import free_ports
from relay.errors import OperatorError

_LISTEN_S: Final = 20.0  # seconds from a server's start until it takes a connection
_VERSION_S: Final = 10.0  # seconds for a program to say its version
_POLL_S: Final = 0.05
_GUARD: Final = ("sh", "-c", 'read _; kill -9 "$1"', "sh")  # its input ends when this process does, however that was
_SYSTEM: Final = ("/usr/local/sbin", "/usr/sbin")  # where servers live that not every PATH names


def find_program(program: Program) -> Path | None:
    """Its executable: on PATH, beside this Python, or inside its wheel; None when there is none."""
    places = [os.environ.get("PATH", os.defpath), str(Path(sys.executable).parent), *_SYSTEM]
    if found := shutil.which(program.name, path=os.pathsep.join(places)):
        return Path(found)
    with suppress(metadata.PackageNotFoundError):
        for file in metadata.files(program.wheel) or () if program.wheel else ():
            path = Path(str(file.locate()))
            if file.name == program.name and os.access(path, os.X_OK):
                return path
    return None


def version_of(program: Program, path: Path) -> str:
    """What the program says of itself; "unknown" when it says nothing like a version."""
    try:
        said = subprocess.run(
            [path, *program.version], capture_output=True, text=True, errors="replace", timeout=_VERSION_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    number = re.search(r"\d+\.\d+(\.\d+)?", said.stdout + said.stderr)
    return number[0] if number else "unknown"


class PeerStage:
    """A peer that runs: what a run drives and measures (bench.target.Stage)."""

    def __init__(self, peer: Peer, servers: list[Server]) -> None:
        self.endpoints = tuple(Endpoint(HOST, server.port) for server in servers)
        self.pids: dict[str, int] = {}
        self._peer = peer
        self._end = trio.Event()
        self._dead = ""

    async def samples(self) -> dict[str, Samples]:
        """What a peer counts of itself is not asked."""
        await trio.lowlevel.checkpoint()
        return {}

    async def died(self) -> None:
        """Wait; raises OperatorError when a server ends by itself."""
        await self._end.wait()
        raise OperatorError(f"{self._peer.name}: {self._dead}", f"Does {self._peer.program.name} run here by itself?")

    async def run(
        self, path: Path, server: Server, directory: Path, *, task_status: trio.TaskStatus[trio.Process]
    ) -> None:
        """One server process; it never outlives this task."""
        log = directory / f"{server.name}.log"
        with log.open("wb") as output:
            process = await trio.lowlevel.open_process(
                [path, *server.arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,  # Ctrl-C reaches only the bench, which then ends it
            )
        self.pids[server.name] = process.pid
        guard: trio.Process | None = None
        try:
            guard = await trio.lowlevel.open_process(
                [*_GUARD, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True
            )
            task_status.started(process)
            status = await process.wait()
            lines = log.read_text(errors="replace").strip().splitlines()
            self._dead = f"{server.name} ended with status {status}: {lines[-1] if lines else 'it said nothing'}"
            self._end.set()
        finally:
            with trio.CancelScope(shield=True):
                for one in filter(None, (guard, process)):  # the guard first: its order is for a process that runs
                    one.kill()
                    await one.wait()


async def _listening(stage: PeerStage) -> None:
    """Until every server takes connections. Raises OperatorError."""
    for endpoint in stage.endpoints:
        while True:
            try:
                stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
            except OSError:
                await trio.sleep(_POLL_S)
            else:
                await stream.aclose()
                break


def _provision(peer: Peer, directory: Path) -> list[Server]:
    directory.mkdir(parents=True)
    return peer.servers(directory, free_ports(RealEnv()))


@asynccontextmanager
async def open_peer(peer: Peer, path: Path, directory: Path) -> AsyncIterator[PeerStage]:
    """The peer, started by the executable at `path` with everything it writes in `directory` (new), and ready; killed
    at the end. Raises OperatorError."""
    servers = _provision(peer, directory)
    stage = PeerStage(peer, servers)
    async with trio.open_nursery() as nursery:
        for server in servers:
            await nursery.start(stage.run, path, server, directory)
        async with trio.open_nursery() as starting:
            starting.start_soon(stage.died)
            with trio.move_on_after(_LISTEN_S) as scope:
                await _listening(stage)
            if scope.cancelled_caught:
                raise OperatorError(f"{peer.name} takes no connections after {_LISTEN_S:.0f} s", f"See {directory}")
            await peer.prepare(stage.endpoints)
            starting.cancel_scope.cancel()
        yield stage
        nursery.cancel_scope.cancel()
