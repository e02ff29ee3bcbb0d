"""A replicated cell in one trio run: real journals over links in memory that tests cut."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cluster.core.linkwire import Peer
from cluster.journal import Rejoin, open_raft
from relay.core import records
from relay.core.wire import Code
from relay.errors import PosthouseError, Refused
from relay.journal.seal import StorageRing
from tests.patience import PATIENCE_S

NODES = ("n1", "n2", "n3")
RING = StorageRing([b"k" * 32])
CELL = "norden/1"


class Anything:
    """A residency check that lets everything pass, and remembers what it was taught."""

    def __init__(self):
        self.learned = []

    def check(self, items, above=(), *, made=False):
        return [(item[:32].ljust(32, b"\0"), item) for item in items if item.startswith(b"fact")]

    def learn(self, facts):
        self.learned += facts


class Wires:
    """Who reaches whom."""

    def __init__(self):
        self.cells, self.cut = {}, set()

    def up(self, here, there):
        return there in self.cells and not {(here, there), (there, here)} & self.cut and here in self.cells

    def part(self, node, *others):
        self.cut |= {(node, other) for other in others}

    def heal(self):
        self.cut.clear()


class FakeLinks:
    """cluster.links.Links as a journal sees them."""

    def __init__(self, wires, node, nodes):
        self._wires, self._node, self._nodes = wires, node, nodes

    def peers(self):
        return tuple(node for node in self._nodes if node != self._node)

    def count_dropped(self, node, reason, notes):
        pass

    def note(self, node, note):
        if not self._wires.up(self._node, node):
            return False
        self._wires.cells[node].journal.on_note(Peer("norden", CELL, self._node), note)
        return True

    async def ask(self, node, message, deadline_s=30.0):
        await trio.lowlevel.checkpoint()
        deadline = trio.current_time() + deadline_s
        while trio.current_time() < deadline:
            if self._wires.up(self._node, node) or (node in self._wires.cells and self._node not in self._wires.cells):
                try:
                    with trio.move_on_at(deadline):
                        return await self._wires.cells[node].answer(Peer("norden", CELL, self._node), message)
                except PosthouseError as error:
                    raise Refused(Code.OVERLOADED, error.text) from None
                except (ValueError, LookupError):  # as the real ones do with a mistake of ours: it is logged there
                    raise Refused(Code.OVERLOADED, "the cell cannot serve this now") from None
            await trio.sleep(0.05)
        raise Refused(Code.UNREACHABLE, "no answer")


def leaves(error):
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in leaves(one)]
    return [error]


class Node:
    """One node of the cell: lives again and again until it is killed."""

    def __init__(self, world, name):
        self.world, self.name = world, name
        self.env = world.make_env(name)
        self.journal, self.cell = None, None
        self.lives = 0
        self.ended, self.may_end = None, False
        self._scope, self.over = trio.CancelScope(), trio.Event()  # over: its store is closed

    async def run(self):
        try:
            await self._run()
        finally:
            self.over.set()

    async def _run(self):
        with self._scope:
            while self.ended is None:
                try:
                    await self._live()
                except* Rejoin:
                    await trio.sleep(0.2)
                except* PosthouseError as group:
                    if not self.may_end:
                        raise
                    self.ended, *_ = leaves(group)

    async def _live(self):
        self.lives += 1
        links = FakeLinks(self.world.wires, self.name, self.world.nodes)
        async with open_raft(
            self.world.path(self.name), env=self.env, ring=RING, residency=self.world.residency(self.name),
            cell=CELL, federation=bytes(range(32)), node=self.name, nodes=self.world.nodes, links=links,
        ) as self.cell:  # fmt: skip
            self.journal = self.cell.journal
            self.world.wires.cells[self.name] = self.cell
            try:
                await self.world.live(self)
            finally:
                self.world.wires.cells.pop(self.name, None)

    def kill(self):
        self._scope.cancel()
        self.world.wires.cells.pop(self.name, None)
        self.journal = self.cell = None


class World:
    """A cell whose nodes start, die and come back."""

    def __init__(self, nursery, path, make_env, nodes=NODES, residency=lambda name: Anything(), patience_s=30.0):
        self.nursery, self._path, self.make_env, self.nodes = nursery, path, make_env, nodes
        self.residency, self.patience_s = residency, patience_s
        self.wires = Wires()
        self.running = {}
        self.path(nodes[0]).mkdir(parents=True, exist_ok=True)
        (self.path(nodes[0]) / "bootstrap").touch()

    async def live(self, node):
        """What a node does with its life; tests have it do more."""
        await node.cell.run()

    def path(self, node):
        return self._path / node

    def start(self, *names):
        for name in names or self.nodes:
            self.running[name] = Node(self, name)
            self.nursery.start_soon(self.running[name].run)

    def kill(self, *names):
        for name in names:
            self.running.pop(name).kill()

    async def end(self, *names):
        """Kill, and wait until nobody holds the stores any more."""
        nodes = [self.running[name] for name in names]
        self.kill(*names)
        for node in nodes:
            await node.over.wait()

    def leader(self):
        leads = [node for node in self.running.values() if node.journal is not None and node.journal.leads]
        return max(leads, key=lambda node: node.journal.raft.term, default=None)

    async def until(self, true):
        with trio.fail_after(self.patience_s):
            while not true():  # noqa: ASYNC110 - of several journals at once
                await trio.sleep(0.02)

    async def whole(self, count=None):
        """Until so many stores vote, and all nodes that run know it."""
        count = count or len(self.nodes)
        await self.until(lambda: self.running and all(
            node.journal is not None and len(node.journal.raft.members.voters) == count
            for node in self.running.values()
        ) and self.leader() is not None)  # fmt: skip
        return self.leader()


TICK = records.encode_record(records.Tick())


@asynccontextmanager
async def a_cell(
    path, make_env, nodes=NODES, residency=lambda name: Anything(), patience_s=PATIENCE_S
) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        world = World(nursery, path, make_env, nodes, residency, patience_s)
        world.start()
        yield world
        nursery.cancel_scope.cancel()
