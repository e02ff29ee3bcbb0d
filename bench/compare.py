"""Posthouse and its peers under the same load in one run: Posthouse, a peer, Posthouse, the next peer, and so on, for
several rounds. One system runs at a time, started for its turn with empty disks, so that nobody's idle work is in
another's figures. A peer is compared with those turns of Posthouse that came right before its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import msgspec

from bench.accounts import histogram_ms, merge
from bench.machine import describe_machine, describe_versions
from bench.peers.api import Peer, Promises
from bench.peers.registry import PEERS
from bench.peers.start import find_program, open_peer, version_of
from bench.progress import Line
from bench.report import summarize, verdict
from bench.run import Raw, run_bench, run_peer, unwrapped
from bench.scenario import Scenario
from bench.target import local_target
from relay.errors import ConfigError, OperatorError, PosthouseError

POSTHOUSE: Final = "posthouse"
COUNTED: Final = ("lost", "duplicated", "reordered", "damaged", "unanswered")
RATIOS: Final = ("p50", "p90", "p99", "max")


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of one system. `beside`: the peer that this turn is compared with (or that had it)."""

    number: int
    system: str
    beside: str
    raw: Raw
    report: dict[str, Any]


@dataclass(slots=True)
class Outcome:
    """What was played, and what could not be: peers by name, with the reason and what to do."""

    turns: list[Turn] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def check(scenario: Scenario) -> None:
    """Raises ConfigError for what a comparison cannot do."""
    cannot = {
        "kill_at": scenario.kill_at is not None, "versus": scenario.versus, "backlog": bool(scenario.backlog),
        "tls": scenario.tls, "pairs": scenario.pairs, "groups": scenario.groups > 1,
        "away_at": scenario.away_at is not None, "also": bool(scenario.also),
        "link_ms": scenario.link_ms is not None, "drain_at": scenario.drain_at is not None,
        "stall_at": scenario.stall_at is not None, "trickle": scenario.trickle, "idle": bool(scenario.idle),
        "members": bool(scenario.members),
    }  # fmt: skip
    findings = [(key, "has no meaning beside a peer", "Leave it out") for key, given in cannot.items() if given]
    if findings:
        raise ConfigError(scenario.name, findings)


def find_peers(names: Sequence[str]) -> tuple[dict[str, Path], dict[str, str]]:
    """Executables of those that are here, and how the others are got. Raises OperatorError when none is here."""
    found = {name: find_program(PEERS[name].program) for name in dict.fromkeys(names)}
    missing = {
        name: f"{PEERS[name].program.name} was not found: {PEERS[name].program.install}"
        for name, path in found.items()
        if path is None
    }
    if len(missing) == len(found):  # all that were asked for
        raise OperatorError("no peer to compare with", "; ".join(missing.values()))
    return {name: path for name, path in found.items() if path is not None}, missing


async def compare(scenario: Scenario, names: Sequence[str], directory: Path, line: Line) -> dict[str, Any]:
    """Play `scenario.rounds` rounds with those peers that are installed, files in `directory`; returns the report.

    Raises PosthouseError when nothing can be compared, or when Posthouse itself cannot be driven."""
    check(scenario)
    programs, missing = find_peers(names)
    outcome = Outcome(missing=missing)
    for name, path in programs.items():
        outcome.versions[name] = version_of(PEERS[name].program, path)
    for number in range(1, scenario.rounds + 1):
        for name, path in programs.items():
            if name not in outcome.failed:
                await _pair(scenario, number, PEERS[name], path, directory, line, outcome)
    return make_report(scenario, outcome, directory)


async def _pair(
    scenario: Scenario, number: int, peer: Peer, path: Path, directory: Path, line: Line, outcome: Outcome
) -> None:
    """A turn of Posthouse, and one of the peer. One that cannot be driven is noted, and left out from then on."""
    # other keys and bytes in each round; the canary is an SDK client, which peers have none of
    played = msgspec.structs.replace(scenario, seed=scenario.seed + number - 1, canary_rate=0.0)
    place = directory / f"round-{number}-{peer.name}"
    line.say(f"round {number} of {scenario.rounds}: {POSTHOUSE}, then {peer.name}")
    async with local_target(place / POSTHOUSE, played.tls, played.nodes) as target:
        raw = await run_bench(played, target, place / POSTHOUSE, line.show)
    outcome.turns.append(Turn(number, POSTHOUSE, peer.name, raw, summarize(raw, None, directory)))
    line.say(f"round {number} of {scenario.rounds}: {peer.name}")
    try:
        with unwrapped():
            async with open_peer(peer, path, place / peer.name) as stage:
                alone = msgspec.structs.replace(played, nodes=len(stage.endpoints))
                raw = await run_peer(alone, peer.name, stage, place / peer.name, line.show)
    except PosthouseError as error:
        outcome.failed[peer.name] = str(error)
    else:
        outcome.turns.append(Turn(number, peer.name, peer.name, raw, summarize(raw, None, directory)))


# --- what it says --------------------------------------------------------------------------------
def promises_of(system: str, nodes: int) -> Promises:
    """What the figures of a system are worth."""
    if system != POSTHOUSE:
        return PEERS[system].promises
    most = f"{nodes // 2 + 1} of {nodes}"
    durable = f"fsync on {most} nodes before it is delivered" if nodes > 1 else "fsync before it is delivered"
    brief = f"fsync {most}, acked" if nodes > 1 else "fsync, acked"
    return Promises(brief, durable, "to the sender, and by every recipient", f"{nodes} nodes" if nodes > 1 else "no")


def make_report(scenario: Scenario, outcome: Outcome, directory: Path) -> dict[str, Any]:
    """One JSON object: the systems, the ratios, and every turn."""
    turns = outcome.turns
    systems = {name: _system(scenario, name, turns, outcome) for name in dict.fromkeys(turn.system for turn in turns)}
    pairs = {name: _ratios(name, turns) for name in systems if name != POSTHOUSE}
    return {
        "scenario": msgspec.to_builtins(scenario),
        "comparison": True,
        "systems": systems,
        "ratios": pairs,
        "missing": outcome.missing,
        "failed": outcome.failed,
        "wrong": sorted({wrong for turn in turns if turn.system == POSTHOUSE for wrong in verdict(turn.report)}),
        "rounds": [
            {"round": turn.number, "system": turn.system, "beside": turn.beside, **turn.report} for turn in turns
        ],
        "machine": describe_machine(directory),
        "elsewhere": round(sum(turn.report["elsewhere"] for turn in turns) / len(turns), 3),
        "versions": describe_versions(),
    }


def _figures(turns: Sequence[Turn]) -> dict[str, Any]:
    """All turns of one system, together."""
    deliveries = sum(turn.report["deliveries"] for turn in turns)
    cpu_s = sum(turn.report["node_cpu_s"] for turn in turns)
    parts = [part for turn in turns for one in turn.raw.received for part in one.latencies]
    return {
        "latency_ms": histogram_ms(merge(parts)),
        "achieved_per_s": round(sum(turn.report["achieved_per_s"] for turn in turns) / len(turns), 2),
        "cpu_us_per_delivery": round(cpu_s * 1e6 / deliveries, 2) if deliveries else 0.0,
    }


def _system(scenario: Scenario, name: str, every: Sequence[Turn], outcome: Outcome) -> dict[str, Any]:
    turns = [turn for turn in every if turn.system == name]
    generators = [turn.report["generator"] for turn in turns]
    received = [one["receiver_us_per_delivery"] for one in generators]
    wrong = sorted({line for turn in turns for line in verdict(turn.report)})
    peer = PEERS.get(name)
    return {
        **_figures(turns),
        "ack_ms": histogram_ms(merge(turn.raw.sent.latencies for turn in turns)),
        **{key: sum(turn.report[key] for turn in turns) for key in COUNTED},
        "promises": msgspec.to_builtins(promises_of(name, scenario.nodes)),
        "settings": peer.settings if peer else f"{scenario.nodes} node(s), every block fsynced by a majority",
        "version": outcome.versions.get(name) or describe_versions().get(name, "unknown"),
        "processes": turns[0].report["nodes"],
        "rss_mib_max": max(turn.report["rss_mib_max"] for turn in turns),
        "turns": len(turns),
        "generator_us_per_delivery": {
            "user": _mean(one["user"] for one in received),
            "system": _mean(one["system"] for one in received),
            "parse": max(one["parse_us_per_delivery"] for one in generators),
        },
        "sender_late_ms_max": max(one["sender_late_ms_max"] for one in generators),
        "wrong": wrong,
    }


def _mean(values: Iterable[float]) -> float:
    return round(fmean(values), 2)


def _ratios(peer: str, turns: Sequence[Turn]) -> dict[str, float]:
    """Posthouse's figures by the peer's: below 1 it is quicker, or cheaper. `achieved` is the rate: more is better."""
    # a peer's last turn may be missing: then Posthouse's beside it does not count
    rounds = {turn.number for turn in turns if turn.system == peer}
    ours = _figures([t for t in turns if t.system == POSTHOUSE and t.beside == peer and t.number in rounds])
    theirs = _figures([turn for turn in turns if turn.system == peer])
    found = {key: _ratio(ours["latency_ms"], theirs["latency_ms"], key) for key in RATIOS}
    found["achieved"] = _ratio(ours, theirs, "achieved_per_s")
    found["cpu"] = _ratio(ours, theirs, "cpu_us_per_delivery")
    return {key: ratio for key, ratio in found.items() if ratio is not None}


def _ratio(ours: Mapping[str, float], theirs: Mapping[str, float], key: str) -> float | None:
    return round(ours[key] / theirs[key], 3) if ours.get(key) and theirs.get(key) else None
