"""Several loads at the same time, in one report: what each of them saw, and what they did to the first one, to memory
and to who is behind a long link. Pure, but for the sounding of the link.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import trio

from bench.accounts import exact_ms
from bench.run import Kill, Raw
from bench.scenario import NS, Schedule
from cluster.config_keys import Address
from cluster.local.border import Crossing
from relay.limits import KIB, OUTBOX_BYTES

_SOUND_S: Final = 0.1
_COUNTS: Final = ("lost", "duplicated", "reordered", "damaged", "unanswered")


async def sound(at: Address, delay_s: float, found: list[int], *, task_status: trio.TaskStatus[None]) -> None:
    """Send a byte over a border like those of the run and back, again and again, until cancelled: `found` gets what
    each round trip took, ns. `at`: a free address."""

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    listeners = await trio.open_tcp_listeners(0, host=at.host)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, listeners)
        to = Address(at.host, listeners[0].socket.getsockname()[1])
        await nursery.start(Crossing(at, to, None, delay_s).run)
        async with await trio.open_tcp_stream(*at) as stream:
            task_status.started()
            while True:
                began = time.monotonic_ns()
                await stream.send_all(b"?")
                await stream.receive_some(1)
                found.append(time.monotonic_ns() - began)
                await trio.sleep(_SOUND_S)


# --- the report ----------------------------------------------------------------------------------
def join(
    reports: Sequence[dict[str, Any]], raws: Sequence[Raw], quiet: dict[str, Any] | None, trips_ns: Sequence[int]
) -> dict[str, Any]:
    """The first load's report, with what the others did. What went wrong anywhere is counted. `quiet`: the report of
    the first load alone; `trips_ns`: what was found by `sound`."""
    first, *others = reports
    every = [*reports, *([quiet] if quiet else [])]
    totals = {key: sum(one[key] for one in every) for key in _COUNTS}
    more: dict[str, Any] = {"also": others, "memory": [_memory(raw) for raw in raws if _is_weighed(raw)]}
    if quiet is not None:
        more["quiet"] = quiet
        now, before = first["latency_ms"], quiet["latency_ms"]
        more["to_quiet"] = {key: round(now[key] / before[key], 2) for key in ("p50", "p99") if now and before}
    if trips_ns:
        trip = exact_ms(trips_ns)
        more["link"] = {"round_trip_ms": trip, "loads": [_over(trip, one) for one in reports if _is_abroad(one)]}
    if deliveries := sum(one["deliveries"] for one in reports):  # the nodes' work was for all of them
        more["cpu_us_per_delivery"] = round(first["node_cpu_s"] * 1e6 / deliveries, 2)
    return first | totals | more


def _is_weighed(raw: Raw) -> bool:
    scenario = raw.scenario
    return bool(scenario.idle or scenario.stall_at is not None)


def _memory(raw: Raw) -> dict[str, Any]:
    """What a load's connections took of all nodes together: when all were there, and at most."""
    count, (before, there) = raw.scenario.recipients + raw.scenario.idle, raw.rss_mib
    most = sum(raw.meter.node_rss_mib.values())
    return {
        "load": raw.scenario.name, "connections": count, "before_mib": round(before, 1), "there_mib": round(there, 1),
        "most_mib": round(most, 1), "kib_each": round((there - before) * KIB / count, 1),
        "most_kib_each": round((most - before) * KIB / count, 1), "stalled": raw.scenario.stall_at is not None,
    }  # fmt: skip


def _is_abroad(report: dict[str, Any]) -> bool:
    return bool(report["scenario"]["abroad"])


def _over(trip: dict[str, float], report: dict[str, Any]) -> dict[str, Any]:
    """What a load's p50 is above the link's round trip, and above one way; ms."""
    p50 = report["latency_ms"].get("p50")
    name = report["scenario"]["name"]
    if p50 is None:
        return {"load": name, "adds_ms": None, "adds_to_one_way_ms": None}
    return {
        "load": name, "adds_ms": round(p50 - trip["p50"], 2), "adds_to_one_way_ms": round(p50 - trip["p50"] / 2, 2)
    }  # fmt: skip


def drained(drain: Kill, start_ns: int, schedule: Schedule) -> dict[str, Any]:
    """A node that was told to stop: when, how long it took to go, and to be back."""
    at_ns = drain.at_ns - start_ns - schedule.offset_ns(schedule.first_measured)
    return {
        "node": drain.node, "at_s": round(at_ns / NS, 2), "gone_s": round((drain.gone_ns - drain.at_ns) / NS, 2),
        "down_s": round((drain.back_ns - drain.at_ns) / NS, 2),
    }  # fmt: skip


# --- what is said --------------------------------------------------------------------------------
def wrong(report: dict[str, Any]) -> Iterator[str]:
    """Bounds of the scenario that were passed."""
    scenario = report.get("scenario", {})  # one of an earlier version has no such bounds
    if (ratio := report.get("to_quiet", {}).get("p99", 0.0)) > scenario.get("bound_ratio", ratio):
        yield f"p99 is {ratio:g} times that of the same load alone, above {scenario['bound_ratio']:g}"
    for one in report.get("memory", ()):
        bound = scenario["bound_kib"]
        if bound is not None and not one["stalled"] and one["kib_each"] > bound:
            yield f"{one['load']}: {one['kib_each']:g} KiB a connection, above {bound:g}"
        if one["stalled"] and one["most_kib_each"] * KIB > OUTBOX_BYTES:
            yield f"{one['load']}: {one['most_kib_each']:g} KiB for each that stalls, above {OUTBOX_BYTES // KIB}"
    for one in report.get("link", {}).get("loads", ()):
        if one["adds_ms"] is None or one["adds_ms"] > scenario["bound_adds_ms"]:
            yield f"{one['load']}: p50 is {one['adds_ms']} ms above the link's round trip, which is too much"


def describe(report: dict[str, Any]) -> Iterator[str]:
    """What does not fit the table, a line each."""
    for key in ("p50", "p99"):
        if ratio := report.get("to_quiet", {}).get(key):
            yield f"{key} with the others there is {ratio:g} times that of the same load alone"
    for one in report.get("memory", ()):
        stalled = f", at most {one['most_kib_each']:g}" if one["stalled"] else ""
        yield (
            f"{one['load']}: {one['connections']} connections, {one['kib_each']:g} KiB resident for each{stalled} "
            f"(all nodes: {one['before_mib']:g} MiB before, {one['there_mib']:g} with them)"
        )
    if link := report.get("link"):
        trip = link["round_trip_ms"]
        yield f"the link's round trip, measured over the same relay: p50 {trip['p50']:g} ms, p99 {trip['p99']:g} ms"
        for one in link["loads"]:
            yield (
                f"{one['load']}: p50 is {one['adds_ms']} ms above the round trip, "
                f"{one['adds_to_one_way_ms']} ms above one way"
            )
    for drain in report.get("drains", ()):
        gone, back = drain["gone_s"], drain["down_s"]
        yield f"drained {drain['node']} at {drain['at_s']:g} s: gone after {gone} s, back after {back} s"
