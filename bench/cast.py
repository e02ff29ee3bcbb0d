"""Who takes part in a run, as the first orders of its worker processes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from bench.broadcast import open_channel
from bench.enrol import enrol, make_group
from bench.pipes import Author, Endpoint, Plan, Publish, Receive, Send, Subscribe
from bench.scenario import Scenario
from bench.target import Target
from relay.core.codec import digest


@dataclass(frozen=True, slots=True)
class Cast:
    """One order for each receiving process, and the sender's."""

    receivers: tuple[Receive | Subscribe, ...]
    sender: Send | Publish


def make_plan(
    scenario: Scenario, endpoints: Sequence[Endpoint], addresses: Sequence[bytes] = (b"",), hint: str = ""
) -> Plan:
    """What all workers of the run know."""
    return Plan(
        endpoints=tuple(endpoints),
        addresses=tuple(addresses),
        mailboxes=scenario.pairs,
        rate=scenario.rate,
        warm_up=scenario.warm_up,
        seconds=scenario.seconds,
        size=scenario.size,
        seed=scenario.seed,
        away_ns=scenario.away_ns,
        stall_ns=scenario.stall_ns,
        trickle=scenario.trickle,
        hint=hint,
        channel=scenario.channel,
    )


def cast_members(scenario: Scenario, target: Target) -> Cast:
    """Users, made from the seed: the author of each stream at home in the target's cell, and who gets it, there or
    abroad. Blocks: there are keys to make."""
    now_ms, streams = time.time_ns() // 1_000_000, scenario.streams
    at = target.abroad if scenario.abroad else target
    owners = [enrol(target.home, scenario.seed, number, now_ms) for number in range(streams)]
    count = scenario.recipients + scenario.idle
    users = [enrol(at.home, scenario.seed, number, now_ms) for number in range(streams, streams + count)]
    members, idle = users[: scenario.recipients], users[scenario.recipients :]
    if scenario.pairs:
        addresses, authors = [member.user for member in members], [Author(owner) for owner in owners]
    elif scenario.channel:
        channel, terms = open_channel(owners[0], target.home.cell, scenario.seed)
        addresses, authors = [channel], [Author(owners[0], terms)]
    else:
        never = [digest(b"%d" % number) for number in range(scenario.members - scenario.recipients - 1)]
        groups = [
            make_group(owner, [(target.home, owner.user), *((at.home, one.user) for one in members[place::streams]),
                               *((at.home, user) for user in never)])
            for place, owner in enumerate(owners)
        ]  # fmt: skip
        addresses = [group.id for group in groups]
        authors = [Author(owner, group.head, group.parts) for owner, group in zip(owners, groups, strict=True)]
    hint = at.home.region if scenario.abroad and scenario.pairs else ""
    plan = make_plan(scenario, target.endpoints, addresses, hint)
    there = msgspec.structs.replace(plan, endpoints=tuple(at.endpoints))
    shares = [range(number, scenario.recipients, scenario.generators) for number in range(scenario.generators)]
    receivers = [
        Receive(
            there, tuple(members[place] for place in share), tuple(place % streams for place in share),
            tuple(idle[number :: scenario.generators]),
        )
        for number, share in enumerate(shares)
    ]  # fmt: skip
    return Cast(tuple(receivers), Send(plan, tuple(authors)))


def cast_subscribers(scenario: Scenario, peer: str, endpoints: Sequence[Endpoint]) -> Cast:
    """Subscribers of one subject of the peer of that name, and who publishes to it."""
    plan, numbers = make_plan(scenario, endpoints), range(scenario.recipients)
    shares = (tuple(numbers[number :: scenario.generators]) for number in range(scenario.generators))
    return Cast(tuple(Subscribe(plan, peer, share) for share in shares), Publish(plan, peer))
