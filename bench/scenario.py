"""A scenario: what runs, as TOML. Every mistake is reported at once, with what to do about it."""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec
from msgspec import Meta

from cluster.provision import SIZES, node_names
from relay.errors import ConfigError
from relay.limits import MAX_CONNECTIONS, MAX_MEMBERS

NS = 1_000_000_000  # ns in a second
_RECIPIENTS = min(MAX_CONNECTIONS, MAX_MEMBERS) - 8  # the sender and the canary's clients connect as well
_STEPS = 32  # of a sweep; each takes as long as a run
_STREAMS = 900  # each has a sender of its own, and one process waits for all of them with select: 1,024 at most
_INTERVALS = 120  # points of a curve over time; more than a page has room for says no more
_MIN_BODY = 32  # bytes; sequence number and time need up to 23
_AFTER = 10.0  # seconds after the last message was due that some may still not read; the run waits a bit longer
_LOADS = 8  # at a time; each has processes of its own
_SHARED = ("nodes", "tls", "seconds", "warm_up", "size", "link_ms")  # what the loads of a scenario have from it
_OWN = (
    "name", "recipients", "rate", "size", "generators", "groups", "pairs", "members", "abroad", "idle", "trickle",
    "away_at", "away_for", "stall_at", "stall_for",
)  # fmt: skip


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Field descriptions are the remedies that a user reads."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="a name of 1 to 64 characters")]
    recipients: Annotated[
        int, Meta(ge=1, le=_RECIPIENTS, description=f"how many devices receive, 1 to {_RECIPIENTS}")
    ] = 300
    rate: Annotated[float, Meta(gt=0, le=20_000, description="messages a second, above 0, at most 20000")] = 50.0
    seconds: Annotated[float, Meta(ge=1, le=3600, description="seconds that are measured, 1 to 3600")] = 20.0
    warm_up: Annotated[float, Meta(ge=0, le=600, description="seconds before the measured ones, 0 to 600")] = 2.0
    size: Annotated[
        int, Meta(ge=_MIN_BODY, le=64 * 1024, description=f"bytes of an envelope's body, {_MIN_BODY} to 65536")
    ] = 256
    generators: Annotated[int, Meta(ge=1, le=64, description="receiving processes, 1 to 64")] = 1
    canary_rate: Annotated[float, Meta(ge=0, le=100, description="SDK messages a second, 0 to 100")] = 1.0
    tls: Annotated[bool, Meta(description="true or false")] = False
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1, description="a whole number, 0 or more")] = 1
    nodes: Annotated[int, Meta(description="nodes of the cell: 1, 3 or 5")] = 3
    kill: Annotated[
        str, Meta(pattern="^(leader|follower|n[1-5])$", description="leader, follower, or a node: n1 … n5")
    ] = "leader"
    restart: Annotated[bool, Meta(description="true or false")] = True
    versus: Annotated[bool, Meta(description="true or false")] = False
    rounds: Annotated[int, Meta(ge=1, le=100, description="rounds of a comparison, 1 to 100")] = 4
    floors: Annotated[bool, Meta(description="true or false")] = True
    backlog: Annotated[int, Meta(ge=0, le=10_000_000, description="envelopes to queue, 0 to 10000000")] = 0
    groups: Annotated[
        int, Meta(ge=1, le=_STREAMS, description=f"groups that get messages in turn, 1 to {_STREAMS}")
    ] = 1
    pairs: Annotated[bool, Meta(description="true or false")] = False
    channel: Annotated[bool, Meta(description="true or false")] = False
    away_at: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="seconds into the measured part, or nothing")
    ] = None
    away_for: Annotated[float, Meta(ge=0, le=3600, description="seconds that all recipients are away, 0 to 3600")] = 0.0
    members: Annotated[
        int, Meta(ge=0, le=MAX_MEMBERS, description=f"members of the group, most of them never there, to {MAX_MEMBERS}")
    ] = 0
    idle: Annotated[
        int, Meta(ge=0, le=3 * MAX_CONNECTIONS, description=f"further devices, 0 to {3 * MAX_CONNECTIONS}")
    ] = 0
    stall_at: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="seconds into the measured part, or nothing")
    ] = None
    stall_for: Annotated[float, Meta(ge=0, le=3600, description="seconds that nobody reads, 0 to 3600")] = 0.0
    trickle: Annotated[bool, Meta(description="true or false")] = False
    link_ms: Annotated[
        Annotated[float, Meta(ge=0, le=2_000)] | None, Meta(description="round trip to another region, ms, up to 2000")
    ] = None
    abroad: Annotated[bool, Meta(description="true or false")] = False
    drain_at: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="seconds into the measured part, below `seconds`")
    ] = None
    also: Annotated[
        tuple[dict[str, Any], ...], Meta(max_length=_LOADS, description=f"tables, up to {_LOADS}: [[also]]")
    ] = ()
    alone: Annotated[bool, Meta(description="true or false")] = False
    bound_ratio: Annotated[
        float, Meta(gt=1, le=100, description="how many times p99 may be with the others there, above 1, up to 100")
    ] = 2.0
    bound_kib: Annotated[
        Annotated[float, Meta(gt=0)] | None, Meta(description="KiB of memory for a connection, or nothing")
    ] = None
    bound_adds_ms: Annotated[
        float, Meta(gt=0, le=60_000, description="ms that p50 may be above the link's round trip, up to 60000")
    ] = 5.0
    sweep_recipients: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=_RECIPIENTS)], ...],
        Meta(max_length=_STEPS, description=f"a list of up to {_STEPS} numbers of recipients, each 1 to {_RECIPIENTS}"),
    ] = ()
    sweep_rate: Annotated[
        tuple[Annotated[float, Meta(gt=0, le=20_000)], ...],
        Meta(max_length=_STEPS, description=f"a list of up to {_STEPS} rates, each above 0, at most 20000"),
    ] = ()
    sweep_refine: Annotated[int, Meta(ge=0, le=10, description="further rates near the knee, 0 to 10")] = 0
    bound_ms: Annotated[float, Meta(gt=0, le=60_000, description="ms that p99 has to stay below, up to 60000")] = 500.0
    kill_at: Annotated[
        Annotated[float, Meta(ge=0)] | None, Meta(description="seconds into the measured part, below `seconds`")
    ] = None

    @property
    def streams(self) -> int:
        """How many addresses get messages in turn: groups, or users."""
        return self.recipients if self.pairs else self.groups

    @property
    def each(self) -> int:
        """How many recipients a message has."""
        return self.recipients // self.streams

    @property
    def away_ns(self) -> tuple[int, int] | None:
        """When after the start all recipients leave, and how long they stay away; None where they stay."""
        return self._stretch(self.away_at, self.away_for)

    @property
    def stall_ns(self) -> tuple[int, int] | None:
        """The same for when they read nothing."""
        return self._stretch(self.stall_at, self.stall_for)

    def _stretch(self, at: float | None, seconds: float) -> tuple[int, int] | None:
        if at is None:
            return None
        schedule = self.schedule
        return schedule.offset_ns(schedule.first_measured) + int(at * NS), int(seconds * NS)

    @property
    def connections(self) -> int:
        """Clients of all loads: who receives, who idles, who sends."""
        return sum(load.recipients + load.idle + load.streams for load in self.loads)

    @property
    def loads(self) -> tuple[Scenario, ...]:
        """What runs at the same time: this scenario's own load first, then those of `also`."""
        if not self.also:
            return (self,)
        shared = {key: getattr(self, key) for key in _SHARED} | {"canary_rate": 0.0, "floors": False}
        others = (
            Scenario(**{"name": f"load {number}", **shared, "seed": self.seed + number, **changes})
            for number, changes in enumerate(self.also, 1)
        )
        return (msgspec.structs.replace(self, also=()), *others)

    @property
    def schedule(self) -> Schedule:
        return Schedule(self.rate, self.warm_up, self.seconds)


class Schedule:
    """When each message is due: fixed before the run, whatever the node does (an open loop)."""

    def __init__(self, rate: float, warm_up: float, seconds: float) -> None:
        self.rate = rate
        self.first_measured = round(rate * warm_up)
        self.total = self.first_measured + max(1, round(rate * seconds))
        self.interval_s = max(1, math.ceil(seconds / _INTERVALS))

    @property
    def measured(self) -> int:
        """Messages that are timed: the sequence numbers first_measured … total - 1."""
        return self.total - self.first_measured

    def offset_ns(self, sequence: int) -> int:
        """ns after the start at which message `sequence` is due; monotonic, never drifting."""
        return int(sequence * NS / self.rate)

    @property
    def intervals(self) -> int:
        """How many stretches of `interval_s` seconds the measured part has."""
        return self.interval(self.total - 1) + 1

    def interval(self, sequence: int) -> int:
        """In which of them a measured message is due, from 0."""
        return (self.offset_ns(sequence) - self.offset_ns(self.first_measured)) // (self.interval_s * NS)

    def due(self, elapsed_ns: int) -> int:
        """How many messages are due `elapsed_ns` after the start."""
        if elapsed_ns < 0:
            return 0
        count = min(self.total, int(elapsed_ns * self.rate / NS) + 2)
        while count > 0 and self.offset_ns(count - 1) > elapsed_ns:
            count -= 1
        return count


def _check(source: str, given: Mapping[str, Any]) -> Scenario:
    if findings := _findings(given):
        raise ConfigError(source, findings)
    return msgspec.convert(dict(given), Scenario)


def _findings(given: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    hints = get_type_hints(Scenario, include_extras=True)
    findings: list[tuple[str, str, str]] = []
    for key in given:
        if key not in hints:
            close = difflib.get_close_matches(key, hints, 1)
            remedy = f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(hints)}"
            findings.append((key, "no such key", remedy))
    if "name" not in given:
        findings.append(("name", "missing", "Give the scenario a name"))
    for key, hint in hints.items():
        if key in given:
            try:
                msgspec.convert(given[key], hint, strict=True)
            except msgspec.ValidationError as error:
                findings.append((key, f"{given[key]!r}: {error}".rstrip("."), f"Give {get_args(hint)[1].description}"))
    if not findings:
        findings += _also_findings(given)
    if not findings:
        findings += _together(given)
    return findings


def _together(given: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """What only shows when values are looked at together; each value by itself is right."""
    scenario = msgspec.convert(dict(given), Scenario)
    if scenario.kill_at is not None and scenario.kill_at >= scenario.seconds:
        yield "kill_at", f"{scenario.kill_at} is not before the end", f"Choose less than {scenario.seconds} seconds"
    if scenario.nodes not in SIZES:
        yield "nodes", f"a cell of {scenario.nodes} nodes", "Choose 1, 3 or 5"
    elif scenario.kill_at is not None:
        alone = scenario.nodes == 1
        if alone and not scenario.restart:
            yield "restart", "the only node would stay dead", "Let it come back, or choose 3 nodes"
        if scenario.kill != "leader" and (alone or scenario.kill not in ("follower", *node_names(scenario.nodes))):
            yield "kill", f"a cell of {scenario.nodes} has no {scenario.kill}", "Choose leader, or more nodes"
    if scenario.versus and scenario.nodes == 1:
        yield "nodes", "a cell of one against a cell of one", "Choose 3 or 5"
    if scenario.kill_at is not None and (scenario.versus or scenario.backlog):
        yield "kill_at", "has no meaning for this scenario", "Leave it out"
    fewest = min(scenario.sweep_recipients or (scenario.recipients,))
    if scenario.generators > fewest:
        yield "generators", "more than recipients", f"Choose at most {fewest}"
    if scenario.away_at is not None and scenario.away_at + scenario.away_for > scenario.seconds:
        yield "away_at", "they would come back after the end", f"Be back after {scenario.seconds} seconds at most"
    if scenario.away_at is None and scenario.away_for:
        yield "away_for", "nobody leaves", "Give away_at, or leave it out"
    if scenario.away_at is not None and (scenario.versus or scenario.backlog):
        yield "away_at", "has no meaning for this scenario", "Leave it out"
    yield from _streams_together(scenario)
    yield from _stays_together(scenario)
    yield from _sweep_together(scenario)
    yield from _channel_together(scenario)
    yield from _loads_together(scenario)
    if scenario.rate * (scenario.seconds + scenario.warm_up) < 1:
        yield "rate", "no message would be sent", "Raise rate or seconds"


def _streams_together(scenario: Scenario) -> Iterable[tuple[str, str, str]]:
    groups, sizes = scenario.groups, scenario.sweep_recipients or (scenario.recipients,)
    if scenario.pairs and groups > 1:
        yield "groups", "stand beside pairs", "Choose one of them"
    elif scenario.pairs and max(sizes) > _STREAMS:
        yield "recipients", f"{max(sizes)} pairs", f"Choose at most {_STREAMS}"
    elif any(size % groups for size in sizes):
        yield "groups", "recipients cannot be shared out evenly", f"Choose a multiple of {groups} recipients"
    rate, seconds = min(scenario.sweep_rate or (scenario.rate,)), scenario.seconds + scenario.warm_up
    if 1 <= rate * seconds < (max(sizes) if scenario.pairs else groups):
        yield "rate", "not everybody would get a message", "Raise rate or seconds, or have fewer pairs or groups"
    if (scenario.pairs or groups > 1) and scenario.backlog:
        yield "pairs" if scenario.pairs else "groups", "has no meaning for this scenario", "Leave it out"


def _channel_together(scenario: Scenario) -> Iterable[tuple[str, str, str]]:
    """A channel has one stream, no members, and readers in its cell."""
    other = ("pairs", "members", "abroad", "also", "versus", "backlog", "trickle", "floors", "kill_at")
    for key in other if scenario.channel else ():
        if getattr(scenario, key):
            yield key, "stands beside channel", "Leave it out, or say false"
    if scenario.channel and scenario.groups > 1:
        yield "groups", "stand beside channel", "Choose one of them"


def _stays_together(scenario: Scenario) -> Iterable[tuple[str, str, str]]:
    """Who is there, and where: members, idlers, those who stall; nodes that go."""
    if scenario.members and (scenario.pairs or scenario.groups > 1):
        yield "members", "of which group?", "Have one group, or leave it out"
    elif scenario.members and scenario.members <= max(scenario.sweep_recipients or (scenario.recipients,)):
        yield "members", "fewer than recipients and their sender", f"Choose more than {scenario.recipients}"
    if scenario.stall_at is None and scenario.stall_for:
        yield "stall_for", "nobody stalls", "Give stall_at, or leave it out"
    elif scenario.stall_at is not None and scenario.stall_at + scenario.stall_for > scenario.seconds + _AFTER:
        most = scenario.seconds + _AFTER
        yield "stall_at", "they would read again long after the end", f"Read again after {most:g} seconds at most"
    if scenario.stall_at is not None and scenario.away_at is not None:
        yield "stall_at", "stands beside away_at", "Choose one of them"
    if scenario.abroad and scenario.link_ms is None:
        yield "abroad", "there is no other region", "Give link_ms"
    if scenario.drain_at is not None and (scenario.nodes == 1 or scenario.drain_at >= scenario.seconds):
        yield "drain_at", "needs another node, and time", f"Choose 3 nodes, and less than {scenario.seconds} seconds"


def _loads_together(scenario: Scenario) -> Iterable[tuple[str, str, str]]:
    if scenario.alone and not scenario.also:
        yield "alone", "there is nothing else", "Give [[also]], or leave it out"
    plain = not (scenario.versus or scenario.backlog or scenario.sweep_rate or scenario.sweep_recipients)
    composed = ("also", "link_ms", "drain_at", "stall_at", "idle", "trickle", "members")
    for key in composed if not plain else ():
        if getattr(scenario, key) not in (None, 0, ()):
            yield key, "has no meaning for this scenario", "Leave it out"
    most = MAX_CONNECTIONS * scenario.nodes
    if scenario.nodes in SIZES and scenario.connections > most:
        yield "idle", f"{scenario.connections} connections", f"{scenario.nodes} node(s) take {most} at most"


def _also_findings(given: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    """Mistakes in the other loads."""
    shared = {key: given[key] for key in _SHARED if key in given}
    for number, changes in enumerate(given.get("also", ()), 1):
        for key in changes:
            if key not in _OWN:
                yield f"also {number}: {key}", "no key of a further load", f"Known: {', '.join(_OWN)}"
        if set(changes) <= set(_OWN):
            for key, what, remedy in _findings({"name": "also", **shared, **changes}):
                yield f"also {number}: {key}", what, remedy


def _sweep_together(scenario: Scenario) -> Iterable[tuple[str, str, str]]:
    sweeps = {"sweep_recipients": scenario.sweep_recipients, "sweep_rate": scenario.sweep_rate}
    for key, values in sweeps.items():
        if list(values) != sorted(set(values)):
            yield key, "does not rise from each value to the next", "Sort them, and name each once"
        if values and (scenario.versus or scenario.backlog):
            yield key, "has no meaning for this scenario", "Leave it out"
    if all(sweeps.values()):
        yield "sweep_recipients", "stands beside sweep_rate", "Sweep one thing at a time"
    if scenario.sweep_refine and not scenario.sweep_rate:
        yield "sweep_refine", "only rates are refined", "Give sweep_rate, or leave it out"


def known_scenarios() -> list[str]:
    """Names of the scenarios that come with Posthouse."""
    folder = resources.files("bench") / "scenarios"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def smoke() -> dict[str, Any]:
    """What makes any scenario small and short: the size of the one called smoke."""
    small = load_scenario("smoke")
    return {"recipients": small.recipients, "rate": small.rate, "seconds": small.seconds, "warm_up": small.warm_up}


def load_scenario(source: str, overrides: Mapping[str, Any] | None = None) -> Scenario:
    """Read a scenario by path or, for those that come with Posthouse, by name; `overrides` replace its values.

    Raises ConfigError with every finding."""
    given = read_toml(source, "scenario", "bench/scenarios/fanout.toml", known_scenarios())
    return _check(source, {**given, **(overrides or {})})


def read_toml(source: str, kind: str, example: str, known: Iterable[str]) -> dict[str, Any]:
    """A file by path or, for those that come with Posthouse, by name. Raises ConfigError."""
    shipped = resources.files("bench") / f"{kind}s" / f"{source}.toml"
    try:
        text = (shipped if source in known else Path(source)).read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        remedy = f"Give a path, or one of: {', '.join(known)}"
        raise ConfigError(source, [(kind, error.strerror or "cannot be read", remedy)]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(source, [(kind, f"not TOML: {error}", f"See {example}")]) from None
