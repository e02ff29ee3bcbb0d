"""The chapters of the demo. Each acts on the stage, waits until all is delivered, and returns a line about it."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice

import trio

from cluster.control.api import CellView
from cluster.demo.stage import Gadget, Person, Stage
from cluster.local.layout import FIRST

SETTLE_S = 40.0  # seconds in which everything accepted must have reached everybody; far more than it takes
UNANSWERED = 50  # submits that must be without an answer when the node is killed
KILLS = 4  # times that it is tried at most, until that many were unanswered for certain
FAILOVER_S = 0.7  # seconds that a node of several stalls at most: others would take over, and answer
STALL_S = 5.0  # seconds in which eight times as many are on the wire
REJOINED_S = 30.0  # seconds for a node with an empty disk to vote again
CUT_S = 1.0  # seconds the region stays cut off after everything bound for it was accepted


@dataclass(frozen=True)
class Chapter:
    """A title, and what happens."""

    title: str
    play: Callable[[Stage], Awaitable[str]]


Pair = tuple[Gadget, Person]


def spread(pairs: Iterable[Pair], count: int) -> Iterator[Pair]:
    """`count` messages over all pairs, in turn."""
    return islice(cycle(list(pairs)), count)


def pairs_of(stage: Stage, fits: Callable[[Person, Person], bool]) -> list[Pair]:
    """(a device of the sender, the recipient) for each two people that fit; each writes from all of its devices."""
    return [
        (person.gadgets[turn % len(person.gadgets)], to)
        for person in stage.people
        for turn, to in enumerate(to for to in stage.people if to is not person and fits(person, to))
    ]


# --- the chapters --------------------------------------------------------------------------------
async def arrive(stage: Stage) -> str:
    await stage.come_online(stage.gadgets)
    return f"{len(stage.gadgets)} devices of {len(stage.people)} people in {len(stage.regions)} regions"


async def within_a_region(stage: Stage) -> str:
    pairs = pairs_of(stage, lambda one, other: one.region == other.region)
    count = await stage.volley(spread(pairs, 320))
    await stage.settled(SETTLE_S, "within a region")
    return f"{count} messages"


async def across_a_border(stage: Stage) -> str:
    pairs = pairs_of(stage, lambda one, other: one.region != other.region)
    count = await stage.volley(spread(pairs, 360))
    await stage.settled(SETTLE_S, "across a border")
    return f"{count} messages"


async def in_a_group(stage: Stage) -> str:
    owner, *others = stage.people
    title = f"Posthouse ({secrets.token_hex(16)})"
    stage.book.plaintexts.append(title[-33:-1].encode())
    group = await owner.gadgets[0].online().create_group(title, [person.card for person in others])
    stage.book.groups[group.id] = frozenset(stage.regions)
    stage.book.names[group.id] = "the group"
    await stage.tell(owner.gadgets[0], group.id)
    await stage.settled(SETTLE_S, "the group's first message")  # from here on everybody knows the group
    writers = [person.gadgets[-1] for person in stage.people]
    async with trio.open_nursery() as nursery:
        for writer in writers * 8:
            nursery.start_soon(stage.tell, writer, group.id)
    await stage.settled(SETTLE_S, "in a group")
    return f"{8 * len(writers) + 1} messages, each to {len(stage.gadgets) - 1} devices"


async def while_somebody_moves(stage: Stage) -> str:
    """Somebody's home becomes another region while everybody writes to and from there."""
    old, new = stage.regions[:2]
    mover = stage.of(old)[-1]
    pairs = pairs_of(stage, lambda one, other: mover in (one, other))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.volley, spread(pairs, 160))
        await trio.sleep(0.2)
        await stage.move(mover, new)
    await stage.volley(spread(pairs, 20))
    await stage.settled(SETTLE_S, "the move")
    signed = await stage.erased(mover, old)
    stage.book.leaves(mover.card.user, new, signed)
    mover.region = new
    went = f"{mover.name} went from {old} to {new}, 180 messages meanwhile"
    return f"{went}; {len(signed)} stores of {old} signed that nothing is left there"


async def while_some_are_offline(stage: Stage) -> str:
    absent = [stage.of(region)[0] for region in stage.regions]
    gadgets = [gadget for person in absent for gadget in person.gadgets]
    await stage.go_offline(gadgets)
    pairs = pairs_of(stage, lambda one, other: one not in absent and other in absent)
    count = await stage.volley(spread(pairs, 280))
    waiting = stage.ledger.awaited()
    if sum(waiting[gadget.id] for gadget in gadgets) != sum(len(to.gadgets) for _, to in spread(pairs, 280)):
        stage.failures.append("offline: mail reached a device that was offline")
    await stage.come_online(gadgets)
    await stage.settled(SETTLE_S, "offline")
    return f"{count} messages waited for {len(gadgets)} devices, which collected them"


async def through_a_crash(stage: Stage) -> str:
    region, left = stage.regions[0], 0
    for _ in range(KILLS):
        async with trio.open_nursery() as writing:
            left = await _crash(stage, writing, region, FIRST, back=True)
        if left >= UNANSWERED:
            break
    else:
        stage.failures.append(f"the crash: never were {UNANSWERED} submits unanswered, the last time {left}")
    await stage.settled(SETTLE_S, "the crash")
    return f"{region} stalled and was killed with {left} submits unanswered, and restarted"


async def with_a_store_wiped(stage: Stage) -> str:
    """A node is killed and its disk emptied while everybody writes, and it is started again: the rest is its own."""
    region = stage.regions[1]
    before = await stage.cell(region)
    name = next(name for name in stage.names(region) if name != before.leader)
    lost = before.voter(name)
    if lost is None:
        stage.failures.append(f"the wipe: {region}-{name} had no vote")
        return "nothing to wipe"
    pairs = pairs_of(stage, lambda one, other: region in (one.region, other.region))
    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.volley, spread(pairs, 200))
        stage.kill(region, name)
        await stage.federation.wipe(region, name)
        stage.stores_wiped += 1
        stage.renewed[region, name] = lost.store
        await stage.federation.start(region, name)
    with trio.move_on_after(REJOINED_S) as scope:
        while text := _not_renewed(await stage.cell(region), name, lost.store):  # noqa: ASYNC110 - it has no bell
            await trio.sleep(0.1)
    if scope.cancelled_caught:
        stage.failures.append(f"the wipe: {text}")
    await stage.settled(SETTLE_S, "the wipe")
    took = trio.current_time() - begun
    return f"{region}-{name} lost its disk, and votes again with a new store {took:.1f} s later"


def _not_renewed(view: CellView, name: str, lost: str) -> str:
    """What is missing until a wiped node is a member again; empty when nothing is."""
    stores = [store for store in (*view.voters, *view.learners) if store.node == name]
    voter = view.voter(name)
    if lost in [store.store for store in stores]:
        return f"the store that {name} lost is still a member"
    if voter is None:
        return f"{name} does not vote"
    if not voter.current:
        return f"{name} is {voter.behind} blocks behind, and silent for {voter.silent} ms"
    return ""


async def with_one_dead_in_every_region(stage: Stage) -> str:
    """Who leads dies in every other region, somebody else in the others; nobody comes back."""
    dead = []
    async with trio.open_nursery() as writing:  # what one region writes is still being answered when the next is hit
        for number, region in enumerate(stage.regions):
            leader = await stage.leader(region)
            kept = {name for where, name in stage.renewed if where == region}  # looked at once more at the end
            others = [name for name in stage.names(region) if name not in kept | {leader}]
            name = leader if number % 2 == 0 and leader not in kept else others[0]
            left = await _crash(stage, writing, region, name, back=False)
            dead.append(f"{region}-{name}{' (leading)' if name == leader else ''} with {left} submits unanswered")
    await stage.volley(spread(pairs_of(stage, lambda one, other: True), 150))
    await stage.settled(SETTLE_S, "the losses")
    return f"killed for good: {', '.join(dead)}"


async def _crash(stage: Stage, writing: trio.Nursery, region: str, name: str, *, back: bool) -> int:
    """Have everybody of the region write while a node of it stalls; let it go on for a moment, and kill it among its
    work. Returns how many submits were on the wire that no receipt came for: what the dead node had still answered is
    read before they are counted, and others may have answered in its place by then. `writing` ends when all are."""
    writers = [gadget for person in stage.of(region) for gadget in person.gadgets]
    pairs = [(writer, to) for to in stage.people for writer in writers if to is not writer.owner]
    hanging, node = stage.unanswered[region], stage.federation.pid(region, name)
    os.kill(node, signal.SIGSTOP)
    writing.start_soon(stage.volley, spread(pairs, 560 if back else 160))
    enough, seconds = (8 * UNANSWERED, STALL_S) if back else (2 * UNANSWERED, FAILOVER_S)
    await stage.until(lambda: len(hanging & stage.written) >= enough, seconds)
    os.kill(node, signal.SIGCONT)
    await trio.sleep(0.02)
    on_the_wire = hanging & stage.written
    stage.kill(region, name)
    await trio.sleep(0.5 if back else 0.1)
    left = len(on_the_wire & hanging)
    if back:
        await stage.federation.start(region, name)
    return left


async def while_a_region_is_cut_off(stage: Stage) -> str:
    region = stage.regions[-1]
    border = stage.federation.border(region)
    border.cut()
    over = pairs_of(stage, lambda one, other: (one.region == region) != (other.region == region))
    home = pairs_of(stage, lambda one, other: one.region == other.region == region)
    count = await stage.volley(spread(over, 260))
    count += await stage.volley(spread(home, 40))
    await trio.sleep(CUT_S)
    waiting = stage.ledger.open
    if waiting != sum(len(to.gadgets) for _, to in spread(over, 260)):
        stage.failures.append(f"the cut: {waiting} deliveries waited, which is not what was sent over the border")
    border.heal()
    healed = trio.current_time()
    await stage.settled(SETTLE_S, "the cut")
    took = trio.current_time() - healed
    return f"{count} messages; {waiting} deliveries waited at {region}'s border and came {took:.1f} s after it opened"


async def while_the_lights_are_out(stage: Stage) -> str:
    """All nodes are killed while mail waits, at home and in outboxes: the richest moment to look at the disks."""
    absent = [stage.of(region)[0] for region in stage.regions]
    gadgets = [gadget for person in absent for gadget in person.gadgets]
    border = stage.federation.border(stage.regions[-1])
    await stage.go_offline(gadgets)
    border.cut()
    pairs = pairs_of(stage, lambda one, other: one not in absent)
    count = await stage.volley(spread(pairs, 100))
    running = stage.federation.running()
    for node in running:
        stage.kill(node.region, node.name)
    await stage.federation.ended()
    look = await trio.to_thread.run_sync(stage.auditor, "after all nodes were killed with mail waiting")
    async with trio.open_nursery() as nursery:
        for region in stage.regions:
            await trio.to_thread.run_sync(look, region)  # while the region before gets up
            for node in running:
                if node.region == region:
                    nursery.start_soon(stage.federation.start, region, node.name)
    border.heal()
    await stage.come_online(gadgets)
    await stage.settled(SETTLE_S, "the lights")
    return f"all nodes were killed while {count} messages were under way; the disks were looked at; all arrived"


async def drain(stage: Stage) -> str:
    await stage.settled(SETTLE_S, "at the end")
    await trio.sleep(0.5)  # what would come twice would come now
    await stage.go_offline(stage.gadgets)
    for (region, name), lost in stage.renewed.items():
        if text := _not_renewed(await stage.cell(region), name, lost):
            stage.failures.append(f"at the end: {text} in {region}")
    if not stage.renewed:
        await stage.federation.stop_all()
        return "every device has everything; clients and nodes are stopped"
    for node in stage.federation.running():  # who is stopped lets go of what is settled; who is killed has it
        stage.kill(node.region, node.name)
    await stage.federation.ended()
    return "every device has everything; clients are stopped, and all nodes killed"


async def look_at_the_disks(stage: Stage) -> str:
    look = await trio.to_thread.run_sync(stage.auditor, "when everything is delivered")
    for region in stage.regions:
        await trio.to_thread.run_sync(look, region)
    if stage.nodes_killed:  # who was stopped has let go of what is settled; who was killed has it
        shelves = [shelf for audit in stage.audits for shelf in audit.shelves]
        found = {(shelf.region, shelf.node) for shelf in shelves if shelf.home}
        empty = sorted({(shelf.region, shelf.node) for shelf in shelves} - found)
        stage.failures += [f"the audit: no envelope was found on {'-'.join(node)}: it shows nothing" for node in empty]
    return "every store is unsealed and decoded, every file scanned"


_BEFORE = (
    Chapter("Everybody comes online", arrive),
    Chapter("One to one, inside a region", within_a_region),
    Chapter("One to one, across a border", across_a_border),
    Chapter("A group with members in every region", in_a_group),
    Chapter("Somebody moves to another region", while_somebody_moves),
    Chapter("Some are offline, and collect later", while_some_are_offline),
)
_OF_ONE = (Chapter("A node is killed in the middle of it", through_a_crash),)
_OF_SEVERAL = (
    Chapter("A node loses its disk, and comes back", with_a_store_wiped),
    Chapter("In every region a node dies for good", with_one_dead_in_every_region),
)
_CUT = Chapter("A region is cut off for a while", while_a_region_is_cut_off)
_DARK = Chapter("The lights go out", while_the_lights_are_out)  # of several, some stay dead, and are looked at
_AFTER = (
    Chapter("Drain, and stop", drain),
    Chapter("The last audit", look_at_the_disks),
)


def chapters(nodes: int) -> tuple[Chapter, ...]:
    """The story of regions with so many nodes each."""
    return (*_BEFORE, *((*_OF_ONE, _CUT, _DARK) if nodes == 1 else (*_OF_SEVERAL, _CUT)), *_AFTER)
