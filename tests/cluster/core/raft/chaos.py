"""What befalls a swarm: a phase of faults and operators, then healing, and what must then be true."""

from __future__ import annotations

from cluster.core.raft import Role
from cluster.core.raft.members import Members
from cluster.core.raft.refusals import ChangeRefused, NotLeader
from relay.errors import Overloaded
from tests.cluster.core.raft.disk import Disk
from tests.cluster.core.raft.judge import insist
from tests.cluster.core.raft.world import Node, World

FAULTS_MS, HEAL_MS = 4_000, 2_000
REFUSED = (ChangeRefused, NotLeader, Overloaded)


class Swarm:
    """One seed. `run` raises judge.Violation, or whatever the machines raise, where something is wrong."""

    def __init__(self, seed: int, wire: bool = False) -> None:
        self.world = World(seed, voters=3 if seed % 2 else 5, wire=wire)
        self.rng = self.world.rng
        self.copies: dict[bytes, Disk] = {}  # of live stores' disks, as backups are
        self.spare: list[Node] = []  # stores that wait to be added
        self.isolated: tuple[Node, int] | None = None
        self.healing = False
        self.fired = {"restored": 0, "amnesia": 0, "wiped": 0, "changed": 0, "snapshots": 0}
        world = self.world
        world.loss, world.double = self.rng.choice((0, 0.02, 0.15)), self.rng.choice((0, 0.05))
        world.late = self.rng.choice((0, 0.03))
        world.reorder = self.rng.random() < 0.5
        churn = self.rng.choice((0, 40, 150, 400))  # ms between two attempts of the operator
        self._every(self.rng.choice((15, 40, 80)), self._propose)
        self._every(self.rng.choice((60, 200, 600)), self._fault)
        self.doomed = self.rng.choice((0, 0, 0, 0.3, 0.8))  # how many leaders fall soon after they began
        world.on_leader = self._doom
        self._every(300, self._checkpoint)
        if churn:
            self._every(churn, self._operate)

    def run(self) -> Swarm:
        world = self.world
        world.run(FAULTS_MS)
        self._heal()
        world.run(world.now + HEAL_MS)
        self._check_alive()
        self.fired["amnesia"] = sum(node.rolled_back and node.gone for node in world.nodes.values())
        self.fired["snapshots"] = sum(node.disk.start.index > 0 for node in world.nodes.values())
        return self

    def _every(self, ms: int, action: object) -> None:
        def again() -> None:
            action()  # type: ignore[operator]
            self.world.at(self.world.now + self.rng.randrange(1, 2 * ms), again)

        self.world.at(self.rng.randrange(1, 2 * ms), again)

    # --- clients and operators -----------------------------------------------------------------------
    def _propose(self) -> None:
        for node in self.world.leaders():
            try:
                for _ in range(self.rng.randrange(1, 4)):
                    self.world.propose(node)
            except REFUSED:
                pass
            node.pump()

    def _checkpoint(self) -> None:
        node = self.rng.choice(list(self.world.nodes.values()))
        node.checkpoint(self.rng.choice((0, 5, 30)))

    def _operate(self) -> None:
        """Add, promote, remove, hand over; replace first who is gone for good."""
        leaders = self.world.leaders()
        if not leaders or self.healing:
            return
        node, rng = self.rng.choice(leaders), self.rng
        members: Members = node.raft.members
        gone = [store for store in members.ids if self.world.nodes[store].gone]
        choice = rng.random()
        try:
            if choice < 0.15:
                node.raft.transfer(rng.choice(members.voter_ids))
            elif choice < 0.2:
                node.raft.step_down()
            else:
                self._change(node, members, gone)
        except REFUSED:
            pass
        node.pump()

    def _change(self, node: Node, members: Members, gone: list[bytes]) -> None:
        rng = self.rng
        new = None
        if members.learners and rng.random() < 0.6:
            new = members.promoted(rng.choice(members.learners).store)
        elif gone and rng.random() < 0.7:
            new = members.without(rng.choice(gone))
        elif len(members.ids) < 7 and not (len(members.voters) > 5 and not gone):
            spare = next((spare for spare in self.spare if spare.id not in members.ids), None)
            if spare is None:
                self.spare.append(spare := self.world.add_node())
            new = members.with_learner(spare.member)
        elif len(members.voters) > 3 or members.learners:
            new = members.without(rng.choice(members.ids))
        if new is not None:
            node.raft.propose(b"members %d" % self.world.now, 50, new)
            self.spare = [spare for spare in self.spare if spare.id not in new.ids]
            self.fired["changed"] += 1

    # --- faults --------------------------------------------------------------------------------------
    def _fault(self) -> None:
        if self.healing:
            return
        fault = self.rng.choice((
            self._crash, self._crash, self._crash, self._start, self._start, self._start, self._cut_one_way,
            self._partition, self._mend, self._mend, self._isolate, self._copy, self._copy, self._restore,
            self._restore, self._wipe, self._blackout, self._slow,
        ))  # fmt: skip
        fault()

    def _any(self) -> Node:
        return self.rng.choice([node for node in self.world.nodes.values() if not node.gone])

    def _crash(self) -> None:
        node = self._any()
        if node.raft and not self._holds(node):
            node.crash(self.rng.random() < 0.5)

    def _doom(self, node: Node) -> None:
        """A leader falls with its first entries half spread, and comes back (figure 8 of the Raft paper)."""
        if self.rng.random() < self.doomed:
            fall = self.world.now + self.rng.randrange(1, 25)
            self.world.at(fall, self._fall, node, node.life)
            self.world.at(fall + self.rng.randrange(50, 800), self._rise, node, node.life)

    def _fall(self, node: Node, life: int) -> None:
        if node.raft and node.life == life and not self.healing and not self._holds(node):
            node.crash(self.rng.random() < 0.5)

    def _rise(self, node: Node, life: int) -> None:
        if node.raft is None and node.life == life and not node.gone:
            node.start()

    def _start(self) -> None:
        node = self._any()
        if node.raft is None:
            node.start()

    def _slow(self) -> None:
        self._any().slow_disk = self.rng.choice((2, 10, 150))

    def _ids(self) -> list[bytes]:
        return list(self.world.nodes)

    def _cut_one_way(self) -> None:
        source, to = self.rng.sample(self._ids(), 2)
        self.world.cut.add((source, to))

    def _partition(self) -> None:
        side = set(self.rng.sample(self._ids(), self.rng.randrange(1, len(self._ids()))))
        self._cut_between(side)

    def _cut_between(self, side: set[bytes]) -> None:
        ids = self._ids()
        self.world.cut |= {(a, b) for a in ids for b in ids if (a in side) != (b in side)}

    def _isolate(self) -> None:
        """Cut one off wholly, for some election timeouts: its term must not run away (PreVote)."""
        node = self.rng.choice(self.world.leaders() or [self._any()])
        if self.isolated or node.raft is None or self._holds(node):
            return
        self._cut_between({node.id})
        self.isolated = node, node.raft.term
        self.world.at(self.world.now + self.rng.randrange(400, 1_500), self._rejoin)

    def _rejoin(self) -> None:
        if self.isolated:
            node, term = self.isolated
            self.isolated = None
            if node.raft:
                # it may have been about to stand, and what was under way still came in
                insist(node.raft.term <= term + 2, f"alone, its term rose from {term} to {node.raft.term}")
                alone = node.raft.role is Role.LEADER and len(node.raft.members.voters) > 1
                insist(not alone, "it leads although nobody answers (CheckQuorum)")
            self._mend()

    def _mend(self) -> None:
        if not self.isolated:
            self.world.cut.clear()

    def _blackout(self) -> None:
        """Everybody at once; some come back at once."""
        if any(self._holds(node) for node in self.world.up()):
            return
        for node in self.world.up():
            node.crash(self.rng.random() < 0.5)
        if self.rng.random() < 0.6:
            self._restore()
        for node in self.world.nodes.values():
            if not node.gone and node.raft is None and self.rng.random() < 0.8:
                node.start()

    # --- lost stores ---------------------------------------------------------------------------------
    def _may_lose(self, node: Node) -> bool:
        """A cell bears one lost store at a time here: no member of any disk's cell may be lost already."""
        cells = [n.disk.members() for n in self.world.nodes.values() if not n.gone]
        ids = {store for cell in cells for store in cell.ids}
        lost = any(self.world.nodes[store].gone or self.world.nodes[store].rolled_back for store in ids)
        return not lost and node.id in ids and all(len(cell.voters) != 2 for cell in cells) and not self.isolated

    def _wipe(self) -> None:
        """A disk dies. Its node comes back with an empty store of another name (rule 4)."""
        node = self._any()
        if self._may_lose(node) and not self._holds(node):
            node.crash(written=False)
            node.gone = True
            self.fired["wiped"] += 1
            self.spare.append(self.world.add_node())

    def _copy(self) -> None:
        node = self._any()
        self.copies[node.id] = node.disk.copy()

    def _restore(self) -> None:
        """A disk comes back as an old copy, where a voter whom the copy knows has heard more, and can be asked."""
        for store, copy in list(self.copies.items()):
            node = self.world.nodes[store]
            if node.gone or self._holds(node) or not self._may_lose(node):
                continue
            witnesses = [n for n in self._witnesses(copy) if n is not node and self._knows(n, store) > copy.standing]
            if not witnesses or copy.standing >= node.disk.standing:
                continue
            if node.raft:
                node.crash(written=False)
            witness = self.rng.choice(witnesses)
            for leader in self.world.leaders():  # who was told by the store itself; the others were told by it
                if leader is not witness and self.rng.random() < 0.5:
                    leader.crash(written=True)
            node.disk, node.rolled_back, node.held_by = copy.copy(), True, witness.id
            if witness.raft is None:
                witness.start()
            node.start()
            self.fired["restored"] += 1
            del self.copies[store]
            return

    def _witnesses(self, copy: Disk) -> list[Node]:
        nodes = (self.world.nodes[voter] for voter in copy.members().voter_ids)
        return [node for node in nodes if not node.gone and not node.rolled_back]

    def _knows(self, witness: Node, store: bytes) -> tuple[int, int]:
        memory = witness.heard if witness.raft else witness.disk.heard
        return memory.get(store, (0, 0))

    def _holds(self, node: Node) -> bool:
        """Must it stay up now, because a rolled-back store has it to ask?"""
        asking = [n for n in self.world.nodes.values() if n.rolled_back and n.raft and n.raft.role is Role.DOUBTFUL]
        return any(node is n or n.held_by == node.id for n in asking)

    # --- afterwards ----------------------------------------------------------------------------------
    def _heal(self) -> None:
        world = self.world
        self.healing, self.isolated = True, None
        world.cut.clear()
        world.loss = world.double = world.late = 0.0
        for node in world.nodes.values():
            node.slow_disk = 2
            if node.raft is None and not node.gone:
                node.start()

    def _check_alive(self) -> None:
        """One leads, all follow, and what is proposed now is applied by every member that is left."""
        world = self.world
        leaders = world.leaders()
        insist(bool(leaders), f"nobody leads {HEAL_MS} ms after healing")
        leader = max(leaders, key=lambda node: node.raft.term)
        goal = leader.raft.log.last
        insist(leader.applied >= goal - 30, f"the leader has {goal} entries and applied {leader.applied}")
        world.run(world.now + 600)
        for store in leader.raft.members.ids:
            node = world.nodes[store]
            if not node.gone and node.raft and not node.rolled_back:
                insist(node.applied >= goal, f"{node.name} applied {node.applied} of {goal}: {node.raft.role}")
