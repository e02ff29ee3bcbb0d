"""Who takes part in a run, as the first orders of its worker processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.enrol import enrol, make_group
from bench.pipes import Author, Endpoint, Plan, Publish, Receive, Send, Subscribe
from bench.scenario import Scenario
from bench.target import Target


@dataclass(frozen=True, slots=True)
class Cast:
    """One order for each receiving process, and the sender's."""

    receivers: tuple[Receive | Subscribe, ...]
    sender: Send | Publish


def make_plan(
    scenario: Scenario, endpoints: Sequence[Endpoint], addresses: Sequence[bytes] = (b"",), mailboxes: bool = False
) -> Plan:
    """What all workers of the run know."""
    return Plan(
        endpoints=tuple(endpoints),
        addresses=tuple(addresses),
        mailboxes=mailboxes,
        rate=scenario.rate,
        warm_up=scenario.warm_up,
        seconds=scenario.seconds,
        size=scenario.size,
        seed=scenario.seed,
        away_ns=scenario.away_ns,
    )


def cast_members(scenario: Scenario, target: Target) -> Cast:
    """Users in the target's cell, made from the seed: the author of each stream, and who gets it. Blocks: there are
    keys to make."""
    now_ms, streams, home = time.time_ns() // 1_000_000, scenario.streams, target.home
    count = streams + scenario.recipients
    users = [enrol(home, scenario.seed, number, now_ms) for number in range(count)]
    owners, members = users[:streams], users[streams:]
    if scenario.pairs:
        addresses, authors = [member.user for member in members], [Author(owner) for owner in owners]
    else:
        groups = [make_group(home, owner, [owner, *members[place::streams]]) for place, owner in enumerate(owners)]
        addresses = [group.id for group in groups]
        authors = [Author(owner, group.head, group.parts) for owner, group in zip(owners, groups, strict=True)]
    plan = make_plan(scenario, target.endpoints, addresses, scenario.pairs)
    shares = [range(number, scenario.recipients, scenario.generators) for number in range(scenario.generators)]
    receivers = [
        Receive(plan, tuple(members[place] for place in share), tuple(place % streams for place in share))
        for share in shares
    ]
    return Cast(tuple(receivers), Send(plan, tuple(authors)))


def cast_subscribers(scenario: Scenario, peer: str, endpoints: Sequence[Endpoint]) -> Cast:
    """Subscribers of one subject of the peer of that name, and who publishes to it."""
    plan, numbers = make_plan(scenario, endpoints), range(scenario.recipients)
    shares = (tuple(numbers[number :: scenario.generators]) for number in range(scenario.generators))
    return Cast(tuple(Subscribe(plan, peer, share) for share in shares), Publish(plan, peer))
