"""How many users a region's registrar enrols a second over HTTP: `posthouse registrar run`, three regions, a process
each, k = 2. The load is another process (bench.poster) with requests that were made before, and its own cost is told.

Two ways: a request a user, over many connections that stay open; and many users a request, as an institution does it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio

from bench.machine import cpu_s
from bench.users import request_of
from cluster.config_keys import Address
from cluster.core.homelog import read_answers, read_enrolled, verify_stapled_home
from relay.core.tlog import TooFewWitnesses, parse_checkpoint, parse_note
from cluster.env import RealEnv
from cluster.local.make import make_federation
from cluster.registrar.asking import Registrar
from cluster.registrar.config import FILE, load_config
from cluster.registrar.make import make_registrar
from relay.core.codec import pack
from relay.errors import Overloaded, PeerError
from relay.limits import REGISTRAR_BATCH

REGIONS: Final = ("norden", "sauda", "vika")  # the first one is measured
CONNECTIONS: Final = 100  # each has one request under way; fewer than half of what a face takes
_READY_S: Final = 60.0
_LOAD_S: Final = 600.0


@dataclass(frozen=True)
class Served:
    """What came of one way, in the units of the names. CPU is that of whole processes, for each user enrolled."""

    users: int
    per_second: float
    registrar_cpu_us: float
    witnesses_cpu_us: float  # of both
    generator_cpu_us: float
    p50_ms: float
    p99_ms: float
    batches: int


def _make(directory: Path, now_ms: int) -> None:
    """Three registrars that know each other by Unix sockets: short paths, a socket's has at most 107 bytes."""
    directory = directory.absolute()
    make_federation(directory, REGIONS, RealEnv())
    nowhere = Address("127.0.0.1", 1)
    peers = [
        make_registrar(_of(directory, region), region, None, nowhere, region, port=1, witnesses=2, now_ms=now_ms)
        for region in REGIONS
    ]
    for region in REGIONS:
        config = _of(directory, region) / FILE
        others = "".join(
            f'\n[[peers]]\nregion = "{peer.region}"\nlog_key = "{peer.log}"\nwitness_key = "{peer.witness}"\n'
            f'url = "unix:{_of(directory, peer.region)}/inner"\n'
            for peer in peers
            if peer.region != region
        )
        config.write_text(config.read_text() + others)


def _of(directory: Path, region: str) -> Path:
    return directory / f"registrar-{region}"


@contextmanager
def _running(directory: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """By region."""
    with ExitStack() as stack:
        processes = {}
        for region in REGIONS:
            log = stack.enter_context((directory / f"{region}.log").open("ab"))
            words = [sys.executable, "-m", "cluster.cli", "registrar", "run", str(_of(directory, region))]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            processes[region] = process
        yield processes


async def _ready(registrar: Registrar, directory: Path, processes: dict[str, subprocess.Popen[bytes]]) -> None:
    with trio.fail_after(_READY_S):
        while True:
            for region, process in processes.items():
                if process.poll() is not None:
                    text = (directory / f"{region}.log").read_text().strip()
                    raise PeerError(f"the registrar of {region} has ended: {text[-300:]}")
            try:
                await registrar.enrol(request_of(REGIONS[0], 0, time.time_ns() // 1_000_000))
                return
            except (PeerError, Overloaded, TooFewWitnesses):
                await trio.sleep(0.1)


async def measure(directory: Path, users: int) -> dict[str, Served]:
    """Enrol `users` each way, in a federation that is made in `directory` (new)."""
    now_ms = time.time_ns() // 1_000_000
    _make(directory, now_ms)
    requests = [request_of(REGIONS[0], number, now_ms) for number in range(1, 2 * users + 1)]
    registrar = Registrar.of(load_config(_of(directory, REGIONS[0]), now_ms))
    with _running(directory) as processes:
        await _ready(registrar, directory, processes)
        pids = {region: process.pid for region, process in processes.items()}
        single = await _play(directory, registrar, pids, requests[:users], 1)
        return {"one a request": single, "many a request": await _play(
            directory, registrar, pids, requests[users:], REGISTRAR_BATCH // 2
        )}  # fmt: skip


async def _play(directory: Path, registrar: Registrar, pids: dict[str, int], requests: Sequence[bytes], each: int
                ) -> Served:  # fmt: skip
    """Post `requests`, `each` of them in a body."""
    path = "/enrol" if each == 1 else "/enrol-many"
    lines = CONNECTIONS if each == 1 else 2  # one is answered while the other is on its way
    bodies = requests if each == 1 else [pack(list(requests[at : at + each])) for at in range(0, len(requests), each)]
    file = directory / "bodies"
    file.write_bytes(pack(list(bodies)))
    where = load_config(_of(directory, REGIONS[0]), time.time_ns() // 1_000_000).inner.removeprefix("unix:")
    words = [sys.executable, "-m", "bench.poster", where, path, str(file), str(lines)]
    size, before = await _size(registrar), {region: cpu_s(pid) for region, pid in pids.items()}
    run = partial(subprocess.run, words, capture_output=True, text=True, check=False, timeout=_LOAD_S)
    done = await trio.to_thread.run_sync(run)
    spent = {region: cpu_s(pid) - before[region] for region, pid in pids.items()}
    if done.returncode:
        raise PeerError(f"the load ended with an error: {done.stderr[-300:]}", f"Look at {directory}/*.log")
    said: dict[str, Any] = json.loads(done.stdout)
    _check(registrar, said, each)
    count = len(requests)
    took = said["took"]
    return Served(
        count, count / said["seconds"], spent[REGIONS[0]] / count * 1e6,
        sum(spent[region] for region in REGIONS[1:]) / count * 1e6, said["cpu_s"] / count * 1e6,
        took[len(took) // 2] * 1e3, took[math.ceil(len(took) * 0.99) - 1] * 1e3, await _size(registrar) - size - count,
    )  # fmt: skip


async def _size(registrar: Registrar) -> int:
    """Entries of the log."""
    _, note = await registrar.caller.ask("GET", "/checkpoint")
    return parse_checkpoint(parse_note(note).text).size


def _check(registrar: Registrar, said: dict[str, Any], each: int) -> None:
    """Everything was answered, and the last answers verify as a client verifies them."""
    if set(said["statuses"]) != {"200"}:
        raise PeerError(f"the registrar refused: {said['statuses']}")
    now_ms = time.time_ns() // 1_000_000
    for answer in map(bytes.fromhex, said["last"]):
        for one in read_answers(answer) if each > 1 else [read_enrolled(answer)]:
            verify_stapled_home(one.signed, one.staple, registrar.root, registrar.trust, None, now_ms)
