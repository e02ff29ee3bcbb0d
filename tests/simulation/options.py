"""What a seed makes of a world: how many live in it, what they say, what the network is like, which faults come how
often, and how tight the bounds are. A swarm: every seed has some kinds of faults and not others, so that no fault hides
what another one would bring to light."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from random import Random
from typing import Any

import cluster.journal.opening
import cluster.node
import relay.limits
from relay.core.trust import Policy
from relay.limits import KIB, MIB, MINUTE, SECOND
from tests.simulation.network import Weather
from tests.simulation.people import REGIONS
from tests.simulation.rules import draw

FAULTS = (
    "kill", "power", "all_down", "drain", "cut", "silence", "block", "isolate", "skew", "drift", "offline", "slow",
    "forget", "enrol", "regroup", "weather", "stall", "broken_disk",
)  # fmt: skip
OF_SEVERAL = {  # only where others of the cell can make good for it; in that share of such worlds
    "flip": 0.3, "wipe": 0.3, "lost_tail": 0.3, "old_copy": 0.5, "flap": 0.3,
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Times in seconds of virtual time; `every` gives the mean time between two faults of a kind."""

    nodes: int = 1
    regions: int = 3
    safety: float = 120.0  # how long faults come
    heal: float = 300.0  # within which everything must be delivered afterwards
    people: int = 3  # in each region
    devices: int = 2  # of one person, at most
    groups: int = 2
    rate: float = 2.0  # letters a second, of all together
    burst: int = 4  # letters at once, at most
    group_share: float = 0.3
    size: int = 600  # bytes of a letter, at most
    short_lived: float = 0.05  # share of letters that live for seconds only
    lookups: float = 0.1
    channels: int = 0  # broadcast channels that are there at a time
    posts: float = 1.0  # things a second that happen to them, all together; most are posts
    receipts: float = 0.0  # share of outcomes that senders have proven
    liar: str = ""  # the region that lies to the others (tests.simulation.liar); empty: none
    lies: float = 0.1  # the share of its messages that it lies about, where it can
    policies: Mapping[str, Policy] = field(default_factory=dict)  # by region, where there are any
    forks: bool = False  # the log of home records of the region that lies shows two histories
    false_witness: str = ""  # the region whose witness lies (tests.simulation.registrars)
    disk: float = 0.001  # seconds of a disk access
    slow_disk: float = 0.0  # share of accesses that take a hundred times as long
    down: float = 10.0  # seconds that a crashed node stays away, at most
    away: float = 40.0  # seconds that a path stays blocked, or a device away, at most
    skew_ms: float = 30_000.0
    weather: Weather = field(default_factory=Weather)
    every: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)

    def lines(self) -> Iterator[str]:
        """Every option, for a reader."""
        for one in fields(self):
            yield f"  {one.name} = {getattr(self, one.name)}"


def derive(seed: int, **fixed: Any) -> Options:
    """The options of a seed; `fixed` ones are as given."""
    random = Random(f"{seed}/options")

    def spread(low: float, high: float) -> float:
        return round(low * (high / low) ** random.random(), 6)

    every = {kind: spread(*_MEANS.get(kind, (5.0, 60.0))) for kind in FAULTS if random.random() < 0.45}
    if not every.keys() & {"kill", "power", "all_down"}:
        every["kill"] = spread(10.0, 60.0)
    weather = Weather(
        near=spread(0.0001, 0.005), far=spread(0.005, 0.2), access=spread(0.001, 0.1), jitter=spread(0.05, 3.0),
        loss=random.choice([0.0, 0.0, spread(0.001, 0.05)]), split=random.choice([0.0, 0.05, 0.5]),
        bandwidth=random.choice([12.5e6, 1.25e6, 2e5]), window=random.choice([8, 64, 256]) * KIB,
    )  # fmt: skip
    chosen: dict[str, Any] = {
        "safety": spread(60.0, 240.0), "people": random.randint(1, 4), "devices": random.randint(1, 3),
        "groups": random.randint(0, 4), "rate": spread(0.5, 6.0), "burst": random.choice([1, 4, 40]),
        "group_share": random.choice([0.1, 0.4, 0.8]), "size": random.choice([200, 1000, 6000]),
        "short_lived": random.choice([0.0, 0.05, 0.4]), "lookups": random.choice([0.0, 0.1, 0.4]),
        "disk": spread(0.0002, 0.02), "slow_disk": random.choice([0.0, 0.0, 0.02]),
        "down": spread(1.0, 60.0), "away": spread(5.0, 100.0), "skew_ms": spread(1000.0, 90_000.0),
        "weather": weather, "every": every, "limits": _tight(random),
    }  # fmt: skip
    # rule 15 counts on it: no clock is ahead of another by the window, of regions that are wrong to both sides neither
    chosen["skew_ms"] = min(chosen["skew_ms"], chosen["limits"].get("ADMISSION_WINDOW", 10 * MINUTE) / 3)
    coming = Random(f"{seed}/devices")  # of its own: the other draws stay what they were
    every |= {kind: round(coming.uniform(5.0, 40.0), 6) for kind in ("revoke", "rotate") if coming.random() < 0.45}
    shape = Random(f"{seed}/nodes")
    chosen["nodes"] = shape.choice([1, 3, 3, 3])
    if fixed.get("nodes", chosen["nodes"]) > 1:  # such cells talk even where nothing happens: smaller, shorter worlds
        chosen["regions"] = shape.choice([1, 2, 2, 3])
        chosen["safety"] = round(chosen["safety"] / 5, 6)
        chosen["people"] += chosen["regions"] == 1  # somebody to write to
        several = [kind for kind, share in OF_SEVERAL.items() if shape.random() < share]
        every |= {kind: round(shape.uniform(2.0, 10.0), 6) for kind in several}
    moving = Random(f"{seed}/moves")
    if fixed.get("regions", chosen.get("regions", 3)) > 1 and moving.random() < 0.5:
        every["move"] = round(moving.uniform(3.0, 20.0), 6)
        chosen["limits"]["ERASE_S"] = moving.choice([2.0, 10.0, 40.0])
    ruling = Random(f"{seed}/policies")
    if fixed.get("regions", chosen.get("regions", 3)) > 1 and ruling.random() < 0.4:
        chosen["policies"] = draw(ruling, REGIONS[: fixed.get("regions", chosen.get("regions", 3))])
    lying = Random(f"{seed}/liar")
    if fixed.get("regions", chosen.get("regions", 3)) > 1 and lying.random() < 0.5:
        chosen["liar"] = lying.choice(REGIONS[: fixed.get("regions", chosen.get("regions", 3))])
        chosen["lies"] = round(lying.uniform(0.1, 0.4), 6)
        chosen["lookups"] = max(chosen["lookups"], 0.2)
    standing = Random(f"{seed}/registrars")
    if fixed.get("regions", chosen.get("regions", 3)) > 1 and standing.random() < 0.4:
        regions = REGIONS[: fixed.get("regions", chosen.get("regions", 3))]
        chosen["forks"] = standing.random() < 0.7
        chosen["false_witness"] = standing.choice(regions) if not chosen["forks"] or standing.random() < 0.7 else ""
        if chosen["forks"] and "liar" not in chosen:  # it tells no other lies
            chosen["liar"], chosen["lies"] = standing.choice(regions), 0.0
    casting = Random(f"{seed}/channels")
    if casting.random() < 0.4:
        chosen["channels"], chosen["posts"] = casting.randint(1, 3), round(casting.uniform(0.3, 2.0), 6)
        chosen["limits"] |= _narrow(casting)
    if fixed.get("liar", chosen.get("liar")):  # what was seen is asked for again, and not all of it is in memory
        chosen["limits"] |= {"DIRECTORY_CACHE": 4 * KIB, "DIRECTORY_FRESH": 5 * SECOND}
        # Mail for a group whose list its owner's region withholds takes room, 1 MiB of a sender at most
        chosen["limits"].pop("MAX_OUTBOX", None)
    return Options(**{**chosen, **fixed})


_MEANS = {
    "cut": (1.0, 20.0), "silence": (5.0, 60.0), "offline": (3.0, 30.0), "slow": (3.0, 30.0), "all_down": (40.0, 150.0),
    "kill": (5.0, 60.0), "power": (5.0, 60.0),
}  # fmt: skip


def _tight(random: Random) -> dict[str, int]:
    """Bounds so near that a small world meets them. Some worlds have the real ones."""
    limits = {
        "CHECKPOINT_BYTES": random.choice([8, 32, 128]) * KIB,
        "CARRY_STRETCH": random.choice([4, 16, 64]) * KIB,
        "CARRY_BATCH": random.choice([2, 8, 64]) * KIB,
        "RECENT_BLOCKS": random.choice([512 * KIB, 16 * MIB]),  # more than any block here: one in memory has settled
        "RECENT_FRAMES": random.choice([4 * KIB, 8 * MIB]),
        "UNACKED_BYTES": random.choice([32 * KIB, 128 * KIB, 8 * MIB]),
        "OUTBOX_BYTES": random.choice([16 * KIB, 64 * KIB, MIB]),
        "MAX_MAILBOX": random.choice([8 * KIB, 64 * KIB, 64 * MIB]),
        "MAX_OUTBOX": random.choice([16 * KIB, 64 * KIB, 1024 * MIB]),
        "ADMISSION_WINDOW": random.choice([1, 10]) * MINUTE,
    }
    return {name: value for name, value in limits.items() if random.random() < 0.7}


def _narrow(random: Random) -> dict[str, float]:
    """The same for channels."""
    limits: dict[str, float] = {
        "CHANNEL_PAGE": random.choice([1, 4]) * KIB, "CHANNEL_PAGE_POSTS": random.choice([2, 16]),
        "CHANNEL_PAGES": random.choice([2, 16]) * KIB, "CHANNEL_BYTES_LEAST": random.choice([8, 32]) * KIB,
        "CHANNEL_READS": random.choice([1, 2]), "FAR_POLL_S": random.choice([2.0, 5.0]),
    }  # fmt: skip
    return {name: value for name, value in limits.items() if random.random() < 0.7}


@contextmanager
def bounds(limits: Mapping[str, float]) -> Iterator[None]:
    """The code's own bounds, as tight as `limits` says, wherever they were imported to."""
    changed: list[tuple[Any, str, Any]] = []

    def put(place: Any, name: str, value: Any) -> None:
        changed.append((place, name, getattr(place, name)))
        setattr(place, name, value)

    try:
        for name, value in limits.items():
            before = getattr(relay.limits, name)
            for module_name, module in list(sys.modules.items()):
                ours = module_name.partition(".")[0] in ("relay", "cluster")
                if ours and getattr(module, name, None) == before and name in vars(module):
                    put(module, name, value)
        if "OUTBOX_BYTES" in limits:
            put(cluster.node, "Bounds", partial(cluster.node.Bounds, outbox_bytes=limits["OUTBOX_BYTES"]))
        if "RAFT_APPEND_ENTRIES" in limits:
            entries = limits["RAFT_APPEND_ENTRIES"]
            put(cluster.journal.opening, "Settings", partial(cluster.journal.opening.Settings, append_entries=entries))
        yield
    finally:
        for place, name, value in reversed(changed):
            setattr(place, name, value)
