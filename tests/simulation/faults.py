"""What goes wrong in a world, one task a kind, at random times; and the end of it all: healing."""

from __future__ import annotations

import errno
from random import Random
from typing import Any

import trio

from tests.simulation.authors import Authors
from tests.simulation.network import Network, Weather
from tests.simulation.nodes import SimNode
from tests.simulation.options import Options
from tests.simulation.world import Violation, World

_LOSSES = {"flip", "wipe", "lost_tail", "old_copy"}  # for a time when a cell is whole: waited for
_HARMLESS = {  # to what the nodes of a cell agree on
    "flap", "offline", "slow", "forget", "enrol", "regroup", "revoke", "rotate", "move",
}  # fmt: skip


class Faults:
    """`run` until cancelled, then `heal`."""

    def __init__(self, world: World, net: Network, nodes: list[SimNode], authors: Authors, options: Options) -> None:
        self.world, self.net, self.nodes, self.authors, self.options = world, net, nodes, authors, options
        self.random: Random = world.random("faults")
        self.trace = world.trace
        self.healed = False
        self._victims: dict[str, SimNode] = {}  # cell → the one node whose disk may lose something
        self._backups: dict[str, Any] = {}  # cell → an old copy of the victim's store
        self._calm = Weather(**{name: getattr(options.weather, name) for name in Weather.__slots__})

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for kind, mean in self.options.every.items():
                nursery.start_soon(self._now_and_then, kind, mean, self.world.random(f"fault {kind}"))

    async def _now_and_then(self, kind: str, mean: float, random: Random) -> None:
        while True:
            await trio.sleep(random.expovariate(1 / mean))
            while kind in _LOSSES and self._victim(random) is None:  # noqa: ASYNC110 - it costs nothing
                await trio.sleep(0.5)
            self.world.counts["fault " + kind] += 1
            if kind == "regroup":
                await self.authors.regroup()
            else:
                getattr(self, "_" + kind)(random)

    def heal(self) -> None:
        """From here on nothing goes wrong any more, and what is away comes back."""
        self.trace("healing")
        self.healed = True
        weather = self.net.weather
        for name in Weather.__slots__:
            setattr(weather, name, getattr(self._calm, name))
        weather.loss = 0.0
        self.net.heal()
        for node in self.nodes:
            node.clock.mend()
            node.disk.mend()
            node.start()
        for device in self.authors.devices:
            device.slow_until = 0.0
            device.switch(True)

    # --- nodes -------------------------------------------------------------------------------------
    def _running(self) -> list[SimNode]:
        return [node for node in self.nodes if node.up]

    def _kill(self, random: Random) -> None:
        self._crash(random, 1, power=False)

    def _power(self, random: Random) -> None:
        self._crash(random, 1, power=True)

    def _all_down(self, random: Random) -> None:
        """The whole federation, or all nodes of a cell, at once."""
        region = random.choice([None, random.choice(self.nodes).region])
        together = [node for node in self._running() if region in (None, node.region)]
        away = random.uniform(0.0, self.options.down)
        self.trace("all down", region or "", len(together))
        for node in together:
            node.crash(power=True)
            self.world.agenda.after(away + random.uniform(0.0, 2.0), self._back, node)

    def _crash(self, random: Random, count: int, *, power: bool) -> None:
        running = self._running()
        for node in random.sample(running, min(count, len(running))):
            node.crash(power=power)
            self.world.agenda.after(random.uniform(0.0, self.options.down), self._back, node)

    def _drain(self, random: Random) -> None:
        running = self._running()
        if running:
            node = random.choice(running)
            node.drain()
            self.world.agenda.after(random.uniform(0.0, 20.0), self._back, node)

    def _back(self, node: SimNode) -> None:
        if not node.up:
            node.start()

    # --- disks -------------------------------------------------------------------------------------
    def _stall(self, random: Random) -> None:
        """A disk does nothing for a while, now and then longer than a node waits for it."""
        node = random.choice(self.nodes)
        seconds = random.choice([random.uniform(0.1, 5.0), random.uniform(5.0, 40.0)])
        self.trace("disk stall", node.host.name, round(seconds, 3))
        node.disk.stall(seconds)

    def _broken_disk(self, random: Random) -> None:
        """A disk gives I/O errors, or is full; the node ends (rule 7), and comes back when the disk is well."""
        node = random.choice(self.nodes)
        number = random.choice([errno.EIO, errno.ENOSPC])
        self.trace("disk will fail", node.host.name, number)
        node.disk.fail(number, random.randrange(20))
        self.world.agenda.after(random.uniform(1.0, 20.0), node.disk.mend)

    def _victim(self, random: Random) -> SimNode | None:
        """A node whose disk may lose something now: always the same one of a cell, and only while the cell has all its
        voters. What more than a minority loses is lost."""
        cell = random.choice(sorted({node.cell for node in self.nodes}))
        together = [node for node in self.nodes if node.cell == cell]
        victim = self._victims.setdefault(cell, random.choice(together))
        return victim if len(together) > 2 and self.whole(cell) else None

    def whole(self, cell: str) -> bool:
        """All nodes of the cell run, and agree that their stores are its members and vote; and that is committed."""
        journals = [self._journal(node) for node in self.nodes if node.cell == cell]
        if None in journals:
            return False
        stores = {journal.own.store for journal in journals}
        members = [journal.raft.members for journal in journals]
        if any(journal.raft.commit < journal.raft.log.members_at.index for journal in journals):
            return False  # on a disk it may be the members of before that count, and they may be fewer
        return all({*one.ids} == stores == {*one.voter_ids} for one in members)

    @staticmethod
    def _journal(node: SimNode) -> Any:
        journal: Any = node.delivery._journal if node.up and node.delivery is not None else None
        return None if journal is None or journal.closed or node.disk.content is None else journal

    def _flip(self, random: Random) -> None:
        """A bit of a row flips."""
        if (node := self._victim(random)) and (row := node.disk.flip()):
            self.trace("bit flipped", node.host.name, str(row))

    def _wipe(self, random: Random) -> None:
        if node := self._victim(random):
            node.crash(power=True)
            node.disk.wipe()
            self.trace("disk wiped", node.host.name)
            self.world.agenda.after(random.uniform(0.0, self.options.down), self._back, node)

    def _lost_tail(self, random: Random) -> None:
        """The power goes for a whole cell, and one disk has lost the end of its write-ahead log."""
        if victim := self._victim(random):
            for node in self.nodes:
                if node.cell == victim.cell:
                    node.crash(power=True)
                    self.world.agenda.after(random.uniform(0.0, self.options.down), self._back, node)
            if count := victim.disk.lose_tail(2):
                self.trace("tail lost", victim.host.name, count)

    def _old_copy(self, random: Random) -> None:
        """A store is copied; some seconds later the copy takes its place, with its mark."""
        node = self._victim(random)
        if node is not None and node.cell not in self._backups:
            node.crash(power=False)
            self._backups[node.cell] = node.disk.copy()
            self.world.agenda.after(random.uniform(0.0, 1.0), self._back, node)
            self.world.agenda.after(random.uniform(1.0, 5.0), self._restore, node, random)

    def _restore(self, node: SimNode, random: Random) -> None:
        if self.healed:
            return
        if not self.whole(node.cell):
            self.world.agenda.after(0.5, self._restore, node, random)
            return
        backup = self._backups[node.cell]
        if backup.meta.store == node.disk.content.meta.store:
            has, others = backup.has(), [one for one in self.nodes if one.cell == node.cell and one is not node]
            known = [one.disk.content.state.known.get(has.store, 0) for one in others if one.disk.content]
            mine = has.term << 40 | has.index
            if min(known) <= mine < max(known):  # rule 5 does not catch that, while who remembers is away
                self.world.agenda.after(0.5, self._restore, node, random)
                return
            node.crash(power=False)
            if mine < min(known):  # whoever is asked knows better
                node.disk.rolled_back.add(has.store)
            node.disk.restore(backup, mark=True)
            self.trace("old copy restored", node.host.name)
        else:
            node.crash(power=False)
        del self._backups[node.cell]
        self.world.agenda.after(random.uniform(0.0, self.options.down), self._back, node)

    # --- the network -------------------------------------------------------------------------------
    def _cut(self, random: Random) -> None:
        """A connection is reset, in the midst of whatever it carries."""
        connections = self.net.connections()
        if connections:
            end = random.choice(connections)
            self.trace("connection cut", end.number, end.host.name, end.other.name)
            (end if random.random() < 0.5 else end.peer).reset()

    def _silence(self, random: Random) -> None:
        """A connection becomes half-open."""
        connections = self.net.connections()
        if connections:
            end = random.choice(connections)
            self.trace("half-open", end.number, end.host.name, end.other.name)
            end.silence()

    def _block(self, random: Random) -> None:
        """A path between two nodes is blocked, often in one direction only."""
        if len(self.nodes) > 1:
            one, other = (node.host.name for node in random.sample(self.nodes, 2))
            self._block_paths(random, [(one, other)] if random.random() < 0.5 else [(one, other), (other, one)])

    def _flap(self, random: Random) -> None:
        """A node that does not lead is cut off from the others of its cell for a few seconds. Where nothing else
        befalls nodes its return deposes nobody (PreVote, rule 3)."""
        led = [node for node in self.nodes if (journal := self._journal(node)) is not None and journal.leads]
        if not led or self.options.nodes == 1:
            return
        leader = random.choice(led)
        others = [node for node in self.nodes if node.cell == leader.cell and node is not leader]
        away = random.choice(others)
        cell = [leader, *others]
        paths = [pair for node in cell if node is not away
                 for pair in ((away.host.name, node.host.name), (node.host.name, away.host.name))]  # fmt: skip
        raft, seconds = self._journal(leader).raft, random.uniform(2.0, 6.0)
        term, lives = raft.term, [node.lives for node in cell]
        self.trace("flap", away.host.name)
        for path in paths:
            self.net.block(*path)
        self.world.agenda.after(seconds, self._unblock, paths)

        def look() -> None:
            alone = self.options.every.keys() <= _HARMLESS and lives == [node.lives for node in cell]
            if alone and not self.healed and raft.term != term:
                raise Violation(f"{away}, which came back, has deposed {leader}, which led and could")

        self.world.agenda.after(seconds + 3.0, look)

    def _isolate(self, random: Random) -> None:
        """A host reaches nobody, or nobody reaches it, or both."""
        alone = random.choice(sorted(self.net.hosts))
        others = [name for name in self.net.hosts if name != alone]
        out, back = random.choice([(True, True), (True, False), (False, True)])
        paths = [(alone, name) for name in others if out] + [(name, alone) for name in others if back]
        self._block_paths(random, paths)

    def _block_paths(self, random: Random, paths: list[tuple[str, str]]) -> None:
        self.trace("partition", *paths[0], len(paths))
        for path in paths:
            self.net.block(*path)
        self.world.agenda.after(random.uniform(0.0, self.options.away), self._unblock, paths)

    def _unblock(self, paths: list[tuple[str, str]]) -> None:
        if not self.healed:
            for path in paths:
                self.net.unblock(*path)

    def _weather(self, random: Random) -> None:
        """For a while everything is slow and lossy."""
        weather = self.net.weather
        factor = random.uniform(2.0, 20.0)
        weather.near, weather.far, weather.access = (
            self._calm.near * factor, self._calm.far * factor, self._calm.access * factor,
        )  # fmt: skip
        weather.loss = random.uniform(0.0, 0.2)
        self.trace("storm", round(factor, 3), round(weather.loss, 4))
        self.world.agenda.after(random.uniform(1.0, 20.0), self._clear_up)

    def _clear_up(self) -> None:
        if not self.healed:
            for name in Weather.__slots__:
                setattr(self.net.weather, name, getattr(self._calm, name))

    # --- clocks ------------------------------------------------------------------------------------
    def _skew(self, random: Random) -> None:
        """Somebody sets a node's clock, wrongly or rightly."""
        node = random.choice(self.nodes)
        if random.random() < 0.3:
            node.clock.mend()
            self.trace("clock set right", node.host.name)
        else:
            aim = random.uniform(-1.0, 1.0) * self.options.skew_ms
            node.clock.set(jump_ms=aim - node.clock.wrong_ms())
            self.trace("clock jump", node.host.name, round(node.clock.wrong_ms()))

    def _drift(self, random: Random) -> None:
        """A clock, of a node or of a device, runs too fast or too slow (quartz is 100 ppm off; this is worse)."""
        clock = random.choice([one.clock for one in (*self.nodes, *self.authors.devices)])
        clock.set(drift=random.uniform(-0.01, 0.01))
        self.trace("clock drifts")

    # --- devices -----------------------------------------------------------------------------------
    def _offline(self, random: Random) -> None:
        device = random.choice(self.authors.devices)
        self.trace("went away", device.name)
        device.switch(False)
        self.world.agenda.after(random.uniform(0.0, self.options.away), device.switch, True)

    def _slow(self, random: Random) -> None:
        """A device reads nothing for a while."""
        device = random.choice(self.authors.devices)
        device.slow_until = trio.current_time() + random.uniform(1.0, self.options.away)
        self.trace("reads nothing", device.name)

    def _forget(self, random: Random) -> None:
        device = random.choice(self.authors.devices)
        self.trace("forgot its cursor", device.name)
        device.forget_cursor()
        device.switch(False)
        device.switch(True)

    def _move(self, random: Random) -> None:
        self.authors.move(random)

    def _enrol(self, random: Random) -> None:
        self.authors.enrol()

    def _revoke(self, random: Random) -> None:
        self.authors.revoke()

    def _rotate(self, random: Random) -> None:
        self.authors.rotate()
