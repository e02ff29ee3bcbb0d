"""What a run says: one flat JSON object, and a table for people."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from bench import together
from bench.accounts import exact_ms, histogram_ms, lost_deliveries, merge, percentile_curve
from bench.machine import describe_machine, describe_versions
from bench.pipes import Cost
from bench.phases import Acks, describe_kill
from bench.run import Kill, Raw
from bench.samples import commit_ms, longest_stop_ms
from bench.scenario import NS, Schedule
from relay.core.wire import Code

NEVER = ("lost", "duplicated", "reordered", "damaged", "unanswered")
QUIET = 0.1  # of the machine's CPU may go elsewhere before the table says so
ENOUGH = 0.95  # of the offered rate must be achieved, or the latencies are those of a queue that grows


def summarize(raw: Raw, canary: dict[str, Any] | None, data: Path) -> dict[str, Any]:
    """The report: the keys of a bench result first, then what makes it reproducible and honest."""
    scenario, schedule, sent = raw.scenario, raw.scenario.schedule, raw.sent
    first, start_ns = schedule.first_measured, raw.start_ns
    accepted = [0 < code < Code.STALE for code in sent.codes]
    absent: Counter[int] = Counter()
    for one in raw.received:
        absent.update(one.absent)
    last_ns = raw.last_ns()
    whole = [sequence for sequence in range(first, schedule.total) if last_ns[sequence]]
    window_ns = schedule.offset_ns(schedule.total) - schedule.offset_ns(first)
    took_ns = max([window_ns] + [last_ns[sequence] - start_ns - schedule.offset_ns(first) for sequence in whole])
    latencies = merge(part for one in raw.received for part in one.latencies)
    deliveries = latencies.get_total_count()
    also = canary or {}
    acks = raw.acks()
    kills = [_kill(kill, acks, start_ns, schedule) for kill in raw.kills]
    costs = [sent.cost, *(one.cost for one in raw.received)]
    return {
        "offered_per_s": round(schedule.measured * NS / window_ns, 3),
        "achieved_per_s": round(len(whole) * NS / took_ns, 3),
        "recipients": scenario.recipients,
        "latency_ms": histogram_ms(latencies),
        "last_recipient_ms": exact_ms([last_ns[s] - start_ns - schedule.offset_ns(s) for s in whole]),
        "ack_ms": histogram_ms(merge([sent.latencies])),
        "lost": lost_deliveries(accepted, absent) + also.get("lost", 0),
        "duplicated": sum(one.duplicated for one in raw.received) + also.get("duplicated", 0),
        "reordered": sum(one.reordered for one in raw.received) + also.get("reordered", 0),
        "cpu_us_per_delivery": round(raw.meter.cpu_s * 1e6 / deliveries, 2) if deliveries else 0.0,
        "rss_mib_max": round(raw.meter.rss_mib_max, 1),
        "deliveries": deliveries,
        "accepted": sum(accepted),
        "unanswered": sent.codes.count(0),
        "refused": _refused(sent.codes),
        "resubmitted": sent.resubmitted,
        "wire_duplicates": sum(one.wire_duplicates for one in raw.received),
        "damaged": sum(one.damaged for one in raw.received),
        "reconnects": sum(one.connects for one in raw.received) - scenario.recipients,
        "faults": _faults(raw),
        "nodes": scenario.nodes,
        "failover_ms": next((kill["failover_ms"] for kill in kills), None),
        "kills": kills,
        "drains": [together.drained(drain, start_ns, schedule) for drain in raw.drains],
        "away": _away(raw),
        "node_cpu_s": round(raw.meter.cpu_s, 2),
        "each_node": _each_node(raw),
        "generator": {
            "parse_us_per_delivery": round(max(one.parse_us for one in raw.received), 2),
            "receiver_us_per_delivery": _per_item([one.cost for one in raw.received]),
            "sender_us_per_message": _per_item([sent.cost]),
            "sender_late_ms_max": round(sent.late_us_max / 1000, 3),
        },
        "canary": canary,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seed": scenario.seed,
        "scenario": msgspec.to_builtins(scenario),
        "machine": describe_machine(data),
        "elsewhere": round(raw.meter.elsewhere(sum(cost.user_s + cost.system_s for cost in costs)), 3),
        "versions": describe_versions(),
        "interval_s": schedule.interval_s,
        "timeline": _timeline(raw, acks),
        "curves": {"delivery": percentile_curve(latencies), "receipt": percentile_curve(merge([sent.latencies]))},
    }


def _timeline(raw: Raw, acks: Acks) -> list[dict[str, Any]]:
    """For each interval of the measured part what became of the messages that were due in it."""
    schedule = raw.scenario.schedule
    receipts: list[list[int]] = [[] for _ in range(schedule.intervals)]
    pairs = zip(acks.due_ns, acks.acked_ns, strict=True)
    for sequence, (due, acked) in enumerate(pairs, schedule.first_measured):
        if acked is not None:
            receipts[schedule.interval(sequence)].append(acked - due)
    points = []
    for number, answered in enumerate(receipts):
        latencies = merge(one.latencies[number] for one in raw.received)
        points.append({
            "at_s": number * schedule.interval_s, "deliveries": latencies.get_total_count(),
            "latency_ms": histogram_ms(latencies), "receipts": len(answered), "ack_ms": exact_ms(answered),
        })  # fmt: skip
    return points


def _each_node(raw: Raw) -> dict[str, Any]:
    """CPU and memory of each, and how long the commits took that it saw."""
    meter = raw.meter
    return {
        node: {
            "cpu_s": round(spent_s, 2), "rss_mib_max": round(meter.node_rss_mib[node], 1),
            "commit_ms": commit_ms(raw.counted.get(node, {})),
            "stop_ms": longest_stop_ms(raw.counted.get(node, {})),
        }
        for node, spent_s in sorted(meter.node_cpu_s.items())
    }  # fmt: skip


def _kill(kill: Kill, acks: Acks, start_ns: int, schedule: Schedule) -> dict[str, Any]:
    down_s = round((kill.back_ns - kill.at_ns) / NS, 2) if kill.back_ns else None
    at_ns = kill.at_ns - start_ns
    at_s = round((at_ns - schedule.offset_ns(schedule.first_measured)) / NS, 2)  # into the measured part
    return {"node": kill.node, "at_s": at_s, "led": kill.led, "down_s": down_s, **describe_kill(acks, at_ns)}


def _away(raw: Raw) -> dict[str, Any] | None:
    """How long it took all who were away to be served again, and to have what had waited for them."""
    scenario, schedule = raw.scenario, raw.scenario.schedule
    if scenario.away_ns is None:
        return None
    at_ns, for_ns = scenario.away_ns
    returned_ns, live_ns, caught_ns = zip(*(one.back_ns for one in raw.received), strict=True)
    caught_ms = round((max(caught_ns) - min(returned_ns)) / 1e6, 1) if all(caught_ns) else None
    waiting = (schedule.due(at_ns + for_ns - 1) - schedule.due(at_ns - 1)) * scenario.each
    return {
        "at_s": scenario.away_at,
        "for_s": scenario.away_for,
        "waiting": waiting,
        "live_ms": round((max(live_ns) - min(returned_ns)) / 1e6, 1) if caught_ms is not None else None,
        "caught_up_ms": caught_ms,
        "drained_per_s": round(waiting * 1000 / caught_ms, 1) if caught_ms and waiting else None,
    }


def _describe_stops(report: dict[str, Any]) -> Iterator[str]:
    stops = [(node["stop_ms"], name) for name, node in report.get("each_node", {}).items() if node.get("stop_ms")]
    if stops:
        longest, name = max(stops)
        yield f"the longest time that a node stood still: {name}, at most {longest:g} ms"


def _describe_away(away: dict[str, Any], recipients: int) -> str:
    left = f"{recipients} devices left at {away['at_s']:g} s and came back {away['for_s']:g} s later"
    if away["caught_up_ms"] is None:
        return f"{left}: not all of them were served again"
    drained = f", {away['drained_per_s']:g} a second" if away["drained_per_s"] else ""
    return (
        f"{left}: all served after {away['live_ms']:g} ms, all with everything after {away['caught_up_ms']:g} ms "
        f"({away['waiting']} deliveries had waited{drained})"
    )


def _refused(codes: bytes) -> dict[str, int]:
    names = {int(code): code.name for code in Code}
    return {names.get(code, str(code)): codes.count(code) for code in sorted(set(codes)) if code >= Code.STALE}


def _faults(raw: Raw) -> dict[str, int]:
    """Why connections ended, and how often."""
    faults = Counter(raw.sent.faults)
    for one in raw.received:
        faults.update(one.faults)
    return dict(faults)


def _per_item(costs: list[Cost]) -> dict[str, float]:
    count = sum(cost.count for cost in costs) or 1
    user_s, system_s = sum(cost.user_s for cost in costs), sum(cost.system_s for cost in costs)
    return {"user": round(user_s * 1e6 / count, 2), "system": round(system_s * 1e6 / count, 2)}


def verdict(report: dict[str, Any]) -> list[str]:
    """Why the run does not pass; empty when it does."""
    wrong = [f"{report[key]} {key}" for key in NEVER if report[key]] + list(_too_slow(report))
    for one in (*report.get("also", ()), *filter(None, [report.get("quiet")])):
        wrong += [f"{one['scenario']['name']}: {line}" for line in _too_slow(one)]
    return wrong + list(together.wrong(report))


def _too_slow(report: dict[str, Any]) -> Iterator[str]:
    if away := report.get("away"):  # then the end of the run says nothing about the rate
        if away["caught_up_ms"] is None:
            yield "not all devices came back"
        return
    stalled = report.get("scenario", {}).get("stall_at") is not None
    if not stalled and report["achieved_per_s"] < ENOUGH * report["offered_per_s"]:
        yield (
            f"only {report['achieved_per_s']:.1f} of {report['offered_per_s']:.1f} messages a second were achieved "
            f"(below {ENOUGH:.0%}): the latencies are those of a growing queue"
        )


def _shape(report: dict[str, Any]) -> str:
    """Who sends to whom."""
    scenario = report["scenario"]
    recipients, groups = report["recipients"], scenario.get("groups", 1)
    if scenario.get("pairs"):
        shape = f"{recipients} pairs, 1 → 1"
    else:
        shape = f"1 → {recipients}" if groups == 1 else f"{groups} groups, 1 → {recipients // groups} each"
    idle = f" and {scenario['idle']} idle" if scenario.get("idle") else ""
    return shape + idle + (" abroad" if scenario.get("abroad") else "")


def make_table(report: dict[str, Any]) -> Table:
    """The report for a terminal."""
    scenario = report["scenario"]
    nodes = f"{report['nodes']} node{'s' if report['nodes'] > 1 else ''}"
    title = f"{scenario['name']}: {_shape(report)} at {report['offered_per_s']:g}/s, {nodes}"
    table = Table(title=title)
    for column in ("", "p50", "p90", "p99", "p99.9", "max"):
        table.add_column(column, justify="right" if column else "left")
    for key, label in (
        ("latency_ms", "to every recipient, ms"),
        ("last_recipient_ms", "to the last one, ms"),
        ("ack_ms", "to the receipt, ms"),
    ):
        cells = (report[key].get(name) for name in ("p50", "p90", "p99", "p999", "max"))
        table.add_row(label, *("–" if cell is None else f"{cell:.2f}" for cell in cells))
    for one in (*filter(None, [report.get("quiet")]), *report.get("also", ())):
        label = f"{one['scenario']['name']} ({_shape(one)} at {one['offered_per_s']:g}/s)"
        cells = (one["latency_ms"].get(name) for name in ("p50", "p90", "p99", "p999", "max"))
        table.add_row(label, *("–" if cell is None else f"{cell:.2f}" for cell in cells))
    return table


def _describe_kill(kill: dict[str, Any]) -> str:
    who = f"killed {kill['node']}{' (leading)' if kill['led'] else ''}"
    back = f", back after {kill['down_s']} s" if kill["down_s"] is not None else ", not brought back"
    calm = f"as before after {kill['failover_ms']} ms" if kill["failover_ms"] is not None else "never as before"
    p99 = ", ".join(f"{phase['phase']} {phase['ack_ms'].get('p99', '–')}" for phase in kill["phases"])
    return f"{who}{back}: receipts {calm} (none for {kill['silence_ms']} ms; p99 ms: {p99})"


def _describe_floors(floors: dict[str, Any]) -> str:
    bare, joined = floors.get("to_bare", "–"), floors.get("to_joined", "–")
    return (
        f"floors: a bare send costs {floors['bare_us']} µs, one frame of {floors['frames_a_send']} in a send "
        f"{floors['joined_us']} µs; CPU of all nodes a delivery is {bare} and {joined} times that"
    )


def describe(report: dict[str, Any]) -> list[str]:
    """What does not fit the table, a line each."""
    generator = report["generator"]
    receiver, sender = generator["receiver_us_per_delivery"], generator["sender_us_per_message"]
    parse, late = generator["parse_us_per_delivery"], generator["sender_late_ms_max"]
    machine, kills = report["machine"], report["kills"]
    lines = [
        f"achieved {report['achieved_per_s']:g}/s of {report['offered_per_s']:g}/s; {report['deliveries']} deliveries",
        f"lost {report['lost']}, duplicated {report['duplicated']}, reordered {report['reordered']} "
        f"(again on the wire: {report['wire_duplicates']})",
        f"node: {report['cpu_us_per_delivery']} µs CPU a delivery, at most {report['rss_mib_max']} MiB resident",
        f"generator: {receiver['user']} µs user + {receiver['system']} µs system a delivery; "
        f"one that comes alone: {parse} µs without its read",
        f"sender: {sender['user']} + {sender['system']} µs a message, at most {late} ms late",
        *_describe_stops(report),
    ]
    if away := report.get("away"):
        lines.append(_describe_away(away, report["recipients"]))
    if floors := report.get("floors"):
        lines.append(_describe_floors(floors))
    if kills:
        lines += [_describe_kill(kill) for kill in kills]
        lines.append(f"{report['resubmitted']} submitted again after {len(kills)} kill(s)")
    lines += together.describe(report)
    if report["refused"]:
        lines.append("refused: " + ", ".join(f"{count} {name}" for name, count in report["refused"].items()))
    if report["canary"]:
        canary = report["canary"]
        lines.append(f"canary (full SDK): {canary['received']} of {canary['sent']}, p50 {canary['p50_ms']} ms")
    if report["elsewhere"] > QUIET:
        lines.append(f"{report['elsewhere']:.0%} of the machine went to other programs: the figures suffer from it")
    where = (f"{machine['cores']} cores", machine["cpu"], machine["kernel"], machine["disk"])
    lines.append(f"{', '.join(where)}; seed {report['seed']}")
    return lines
