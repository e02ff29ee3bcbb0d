"""What a long queue costs: a cell is filled with envelopes that nobody collects, and its nodes are started again.

Measured: from the start of a process to its /readyz, and what memory it then has; and how large its store is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import trio
from rich.table import Table

from bench.machine import describe_machine, describe_versions, peak_rss_mib, rss_mib
from bench.progress import Line
from bench.run import fill
from bench.scenario import Scenario
from bench.target import REGION, LocalTarget, local_target
from relay.errors import PosthouseError
from relay.limits import MIB


async def measure_backlog(scenario: Scenario, directory: Path, line: Line) -> dict[str, Any]:
    """Queue `scenario.backlog` envelopes in a new cell whose files go into `directory`, then restart its nodes, one by
    one: each killed, and each stopped. Raises PosthouseError when they could not be queued."""
    line.say("starting the cell")
    async with local_target(directory, scenario.tls, scenario.nodes) as target:
        began = trio.current_time()
        accepted = await fill(scenario, target, directory, line.show)
        filled_s = trio.current_time() - began
        if accepted < scenario.backlog:
            what = f"only {accepted} of {scenario.backlog} envelopes were accepted"
            raise PosthouseError(what, f"Choose a lower rate; see {directory}/nodes")
        full = {name: round(rss_mib(pid), 1) for name, pid in target.pids.items()}
        restarts = [
            await _restart(target, name, how, line) for name in sorted(target.pids) for how in ("SIGKILL", "SIGTERM")
        ]
        stores = {node.name: _size_mib(node.data_dir) for node in target.layout.nodes(REGION)}
    return {
        "scenario": msgspec.to_builtins(scenario),
        "queued": accepted,
        "filled_s": round(filled_s, 1),
        "queued_mib": round(accepted * (scenario.size + _HEADER) / MIB, 1),
        "rss_mib": full,
        "store_mib": stores,
        "restarts": restarts,
        "restart_s_max": max(one["ready_s"] for one in restarts),
        "rss_mib_max": max(one["rss_mib_max"] for one in restarts),
        "machine": describe_machine(directory),
        "versions": describe_versions(),
    }


_HEADER = 100  # bytes, about: an envelope's header and framing


async def _restart(target: LocalTarget, node: str, how: str, line: Line) -> dict[str, Any]:
    line.say(f"{how} for {node}, and its start")
    if how == "SIGKILL":
        target.kill(node)
        await trio.sleep(0.5)  # the others notice
    else:
        await target.stop(node)
    began = trio.current_time()
    await target.restart(node)
    took = trio.current_time() - began
    pid = target.pids[node]
    return {
        "node": node, "after": how, "ready_s": round(took, 2), "rss_mib": round(rss_mib(pid), 1),
        "rss_mib_max": round(peak_rss_mib(pid), 1),
    }  # fmt: skip


def _size_mib(directory: Path) -> float:
    return round(sum(path.stat().st_size for path in directory.rglob("*") if path.is_file()) / MIB, 1)


def make_table(report: dict[str, Any]) -> Table:
    """The restarts for a terminal."""
    table = Table(title=f"{report['queued']} envelopes queued ({report['queued_mib']} MiB)")
    for column in ("node", "after", "ready, s", "RSS, MiB", "at most", "store, MiB"):
        table.add_column(column, justify="left" if column in ("node", "after") else "right")
    for one in report["restarts"]:
        store = report["store_mib"][one["node"]]
        table.add_row(*map(str, (*(one[key] for key in ("node", "after", "ready_s", "rss_mib", "rss_mib_max")), store)))
    return table


def describe(report: dict[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    full = ", ".join(f"{name} {size}" for name, size in report["rss_mib"].items())
    return [f"queued in {report['filled_s']} s; resident then, MiB: {full}"]
