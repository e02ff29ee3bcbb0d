"""A pure swarm: machines, toy shells that keep the persist contract, a network and clocks, all from one seed."""

from __future__ import annotations

import dataclasses
import random
from heapq import heappop, heappush
from typing import Any

from cluster.core.raft import (
    Amnesia, Append, BecameLeader, Freed, Member, Members, Message, NeedSnapshot, Output, Point, Raft, Role, Settings,
    StoreRemoved, Write,
)
from msgspec.structs import replace
from relay.core.codec import Decoder, digest, encode
from relay.limits import MIB
from tests.cluster.core.raft.disk import Disk
from tests.cluster.core.raft.judge import Judge

SETTINGS = Settings(
    heartbeat_ms=50, election_ms=250, append_bytes=2_000, append_entries=5, inflight_bytes=5_000, inflight_appends=4,
    tail_bytes=12_000, recent_bytes=3_000,
)  # fmt: skip
decode: Decoder[Message] = Decoder(Message, "raft message", MIB)


def store_id(number: int) -> bytes:
    return digest(b"store %d" % number)[:16]


class Node:
    """One store with its toy shell. `raft` is None while it is down."""

    def __init__(self, world: World, store: bytes, disk: Disk) -> None:
        self.world, self.id, self.disk = world, store, disk
        self.name = f"n{len(world.nodes)}"
        self.member = Member(store, self.name)
        self.raft: Any = None
        self.life = 0  # counts starts; what belongs to an older one is void
        self.offset, self.rate = world.rng.randrange(10_000), world.rng.choice((1.0, 1.0, 0.8, 1.25))
        self.slow_disk = world.rng.choice((2, 2, 10, 60))  # ms a write may take
        self.gone = False  # wiped, amnesiac or removed: it never comes back
        self.rolled_back = False
        self.removed = False
        self.held_by: bytes | None = None  # who must prove that this store forgot
        self.writing: tuple[Write, dict] | None = None
        self.wake_at = 0

    # --- life --------------------------------------------------------------------------------------
    def start(self) -> None:
        self.life += 1
        self.applied = self.seen_commit = self.disk.applied
        self.heard = dict(self.disk.heard)
        seed = self.world.rng.randbytes(8)
        self.raft = Raft(self.id, self.disk.stored(), self.world.settings, seed, self.clock())
        self.wake_at = 0
        self.wake(self.life, 0)

    def crash(self, written: bool) -> None:
        """Everything in memory goes; the transaction under way happened, or not."""
        if self.writing and written:
            self._on_disk(*self.writing)
        self.raft, self.writing = None, None

    def clock(self) -> int:
        return int(self.offset + self.world.now * self.rate)

    # --- the shell ---------------------------------------------------------------------------------
    def wake(self, life: int, at: int) -> None:
        if self.raft is None or life != self.life or at != self.wake_at:
            return
        self.raft.tick(self.clock())
        self.wake_at = 0
        self.pump()

    def receive(self, message: Message, carried: dict) -> None:
        self.raft.receive(message, self.clock())
        self.world.judge.delivered(self, message, carried)
        self.pump()

    def pump(self) -> None:
        judge, life = self.world.judge, self.life
        judge.counted(self)
        while self.raft is not None and life == self.life and (output := self.raft.take()) is not None:
            self._handle(output)
        if self.raft is None or life != self.life:
            return
        due = self.raft.next_ms
        if due is not None:
            at = self.world.now + max(int((due - self.clock()) / self.rate), 0) + 1
            if not self.wake_at or at < self.wake_at:
                self.wake_at = at
                self.world.at(at, self.wake, life, at)

    def _handle(self, output: Output) -> None:
        world = self.world
        world.judge.output(self, output)
        self.applied = output.commit
        for event in output.events:
            self._on_event(event)
        world.judge.sent(self, output.send_now)
        self._send(output.send_now)
        if output.write is None:
            world.judge.sent(self, output.send_after)
            self._send(output.send_after)
        else:
            assert self.writing is None, "two writes at a time"
            self.writing = output.write, dict(self.heard)
            delay = world.rng.randrange(self.slow_disk)
            world.at(world.now + delay, self._wrote, self.life, output)

    def _on_event(self, event: Any) -> None:
        world = self.world
        if isinstance(event, BecameLeader):
            world.judge.led(self)
            world.propose(self)
            world.on_leader(self)
        elif isinstance(event, NeedSnapshot):
            world.at(world.now + world.rng.randrange(5, 80), self._send_snapshot, self.life, event.to)
        elif isinstance(event, Freed):
            world.judge.freed(self)
        elif isinstance(event, Amnesia):
            world.judge.amnesiac(self)
            self.gone = True
        elif isinstance(event, StoreRemoved):
            self.removed = True

    def _wrote(self, life: int, output: Output) -> None:
        if self.raft is None or life != self.life:
            return
        assert output.write and self.writing
        self._on_disk(*self.writing)
        self.writing = None
        self.raft.persisted(output.write.seq)
        self.world.judge.sent(self, output.send_after)
        self._send(output.send_after)
        self.pump()

    def _on_disk(self, write: Write, heard: dict) -> None:
        if write.reset:
            self.world.judge.snapshot(write.reset.end)
        self.disk.take(write)
        if write.append:
            self.disk.heard = heard
        for entry in write.append:
            self.world.judge.written(entry, self.disk.point(entry.index - 1))

    def _send(self, messages: tuple[Message, ...]) -> None:
        for message in messages:
            if isinstance(message, Append) and any(entry.payload is None for entry in message.entries):
                kept = [e if e.payload is not None else self.disk.entry(e.index) for e in message.entries]
                if any(e is None or e.term != m.term for e, m in zip(kept, message.entries, strict=True)):
                    continue  # gone since; the peer will ask again
                message = replace(message, entries=tuple(kept))
            self.world.send(self, message)

    def checkpoint(self, keep: int) -> None:
        """Save the state as applied and let go of all but the last `keep` entries before it."""
        if self.raft is None or self.writing or self.raft.role in (Role.SILENT, Role.DOUBTFUL):
            return
        self.disk.applied = self.applied
        first = self.applied - keep
        if first > self.disk.start.index + 1:
            self.disk.compact(first)
            self.raft.compacted(first)
            self.pump()

    def take_snapshot(self, end: Point, members: Members) -> None:
        if self.raft is not None and self.raft.install(end, members):
            self.pump()

    def _send_snapshot(self, life: int, to: bytes) -> None:
        if self.raft is None or life != self.life:
            return
        world, peer = self.world, self.world.nodes[to]
        index = self.disk.applied
        end, members = self.disk.point(index), self.disk.members(index)
        done = peer.raft is not None and world.open(self.id, to) and world.rng.random() < 0.8 and index > 0
        if done:
            peer.take_snapshot(end, members)
            world.at(world.now + world.rng.randrange(1_000), peer.take_snapshot, end, members)  # somebody tries again
        if self.raft is not None and life == self.life:
            self.raft.snapshot_sent(to, index if done else 0)
            self.pump()


class World:
    """`wire`: send every message through the codec. What happens when is chaos.py's."""

    def __init__(self, seed: int, voters: int, wire: bool = False) -> None:
        self.rng = random.Random(seed)
        self.settings = dataclasses.replace(SETTINGS, append_entries=self.rng.choice((1, 5, 5)))
        self.judge = Judge(self)
        self.now = 0
        self.wire = wire
        self.events = 0
        self.loss, self.double, self.late, self.reorder = 0.0, 0.0, 0.0, False
        self.on_leader: Any = lambda node: None
        self.cut: set[tuple[bytes, bytes]] = set()  # (from, to)
        self.nodes: dict[bytes, Node] = {}
        self._queue: list[tuple[int, int, Any, tuple]] = []
        self._order = 0
        self._last_arrival: dict[tuple[bytes, bytes], int] = {}
        self._payloads = 0
        founders = Members(tuple(Member(store_id(n), f"n{n}") for n in range(voters)))
        for member in founders.voters:
            self.nodes[member.store] = Node(self, member.store, Disk(founders))
        for node in self.nodes.values():
            node.start()

    def add_node(self) -> Node:
        """An empty store, running, of which nobody knows."""
        store = store_id(len(self.nodes))
        node = self.nodes[store] = Node(self, store, Disk(Members()))
        node.start()
        return node

    # --- time and network --------------------------------------------------------------------------
    def at(self, time: int, call: Any, *args: Any) -> None:
        self._order += 1
        heappush(self._queue, (time, self._order, call, args))

    def run(self, until: int) -> None:
        while self._queue and self._queue[0][0] <= until:
            self.now, _, call, args = heappop(self._queue)
            self.events += 1
            call(*args)
        self.now = until

    def open(self, source: bytes, to: bytes) -> bool:
        return (source, to) not in self.cut

    def send(self, node: Node, message: Message) -> None:
        sure = node.held_by == message.to or ((peer := self.nodes.get(message.to)) and peer.held_by == node.id)
        carried = self.judge.carried(node, message)
        for _ in range(1 + (self.rng.random() < self.double)):
            if not sure and (self.rng.random() < self.loss or not self.open(message.source, message.to)):
                continue
            late = self.rng.random() < self.late
            delay = self.rng.randrange(10, 300) if late else self.rng.randrange(1, 12)
            arrival = self.now + (self.rng.randrange(1, 50) if sure else delay)
            if not self.reorder:
                way = message.source, message.to
                arrival = self._last_arrival[way] = max(arrival, self._last_arrival.get(way, 0))
            self.at(arrival, self._deliver, node.life, message, carried, sure)

    def _deliver(self, life: int, message: Message, carried: dict, sure: bool) -> None:
        node, source = self.nodes[message.to], self.nodes[message.source]
        stale = source.rolled_back and life != source.life  # its links broke when the old copy came back
        if node.raft is None or stale or not (sure or self.open(message.source, message.to)):
            return
        node.receive(decode(encode(message)) if self.wire else message, carried)

    # --- clients -----------------------------------------------------------------------------------
    def propose(self, node: Node) -> int:
        """Raises what the machine raises."""
        self._payloads += 1
        return node.raft.propose(b"%d" % self._payloads, self.rng.choice((10, 100, 900, 3_000)))

    def leaders(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.raft and node.raft.role is Role.LEADER]

    def up(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.raft and not node.gone]
