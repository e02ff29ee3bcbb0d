"""Who takes part in a run, as the first orders of its worker processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.enrol import enrol, make_group
from bench.pipes import Endpoint, Plan, Publish, Receive, Send, Subscribe
from bench.scenario import Scenario
from bench.target import Target


@dataclass(frozen=True, slots=True)
class Cast:
    """One order for each receiving process, and the sender's."""

    receivers: tuple[Receive | Subscribe, ...]
    sender: Send | Publish


def make_plan(scenario: Scenario, endpoints: Sequence[Endpoint], group: bytes = b"") -> Plan:
    """What all workers of the run know."""
    return Plan(
        endpoints=tuple(endpoints),
        group=group,
        rate=scenario.rate,
        warm_up=scenario.warm_up,
        seconds=scenario.seconds,
        size=scenario.size,
        seed=scenario.seed,
    )


def cast_members(scenario: Scenario, target: Target) -> Cast:
    """Users of a group in the target's cell, made from the seed, and its owner. Blocks: there are keys to make."""
    now_ms = time.time_ns() // 1_000_000
    owner, *members = (enrol(target.home, scenario.seed, number, now_ms) for number in range(scenario.recipients + 1))
    group = make_group(target.home, owner, [owner, *members])
    plan = make_plan(scenario, target.endpoints, group.id)
    shares = (tuple(members[number :: scenario.generators]) for number in range(scenario.generators))
    return Cast(tuple(Receive(plan, share) for share in shares), Send(plan, owner, group.head, group.parts))


def cast_subscribers(scenario: Scenario, peer: str, endpoints: Sequence[Endpoint]) -> Cast:
    """Subscribers of one subject of the peer of that name, and who publishes to it."""
    plan, numbers = make_plan(scenario, endpoints), range(scenario.recipients)
    shares = (tuple(numbers[number :: scenario.generators]) for number in range(scenario.generators))
    return Cast(tuple(Subscribe(plan, peer, share) for share in shares), Publish(plan, peer))
