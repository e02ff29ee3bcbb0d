"""A cell in a test's hands: machines with disks that write at once, and a network that moves when told."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cluster.core.raft import (
    BecameLeader, Event, HardState, Member, Members, Message, Output, Point, Raft, Role, Settings, Stored, Stub,
    VoteReply,
)
from cluster.core.raft.entry import ORIGIN
from cluster.core.raft.messages import Recall, Recollection

SETTINGS = Settings(
    heartbeat_ms=100, election_ms=1_000, append_bytes=1_000, append_entries=100, inflight_bytes=2_000,
    inflight_appends=4, tail_bytes=5_000, recent_bytes=1_000,
)  # fmt: skip


def sid(name: str) -> bytes:
    return name.encode().ljust(16, b".")


def of(voters: str, learners: str = "") -> Members:
    """One letter a store."""
    return Members(tuple(Member(sid(v), v) for v in voters), tuple(Member(sid(x), x) for x in learners))


ABC = of("abc")


def stored(terms: Iterable[int], members: Members, term: int | None = None, vote: str = "", **more: Any) -> Stored:
    terms = list(terms)
    hard = HardState(max([0, *terms]) if term is None else term, sid(vote) if vote else None)
    return Stored(hard=hard, members=members, entries=[Stub(t, 10) for t in terms], **more)


def machine(name: str, disk: Stored, free: bool = True, now: int = 0) -> Raft:
    """A started machine; `free`: everybody it asked has answered that nothing is known of it."""
    raft = Raft(sid(name), disk, SETTINGS, b"seed of " + name.encode(), now)
    raft.tick(now)
    if free:
        for recall in drain(raft)[0]:
            assert isinstance(recall, Recall)
            raft.receive(answer(recall), now)
        assert raft.role is Role.FOLLOWER
        drain(raft)
    return raft


def elected(terms: list[int], members: Members = ABC, term: int | None = None) -> Raft:
    """`a`, just elected, its first block proposed and on disk; everything it said so far is lost."""
    raft = machine("a", stored(terms, members, term))
    raft.tick(10_000)
    for pre in (True, False):
        for voter in members.voter_ids[1 : members.majority]:
            raft.receive(VoteReply(voter, sid("a"), raft.term + pre, pre, True), 10_000)
        drain(raft)
    assert raft.role is Role.LEADER
    raft.propose(b"first", 10)
    drain(raft)
    return raft


def answer(recall: Recall, figure: Point = ORIGIN, members: Members | None = None, at: Point = ORIGIN) -> Message:
    return Recollection(recall.to, recall.source, 0, recall.nonce, figure, at, members or of(""))


def drain(raft: Raft) -> tuple[list[Message], list[Event], list[Output]]:
    """Take everything, as a shell whose disk is instant: (messages, events, outputs)."""
    messages: list[Message] = []
    events: list[Event] = []
    outputs = []
    while output := raft.take():
        outputs.append(output)
        events += output.events
        messages += output.send_now
        if output.write:
            raft.persisted(output.write.seq)
        messages += output.send_after
    return messages, events, outputs


class Cell:
    """Machines by name. Messages between them wait in `under_way` until `settle`; those over a cut are lost."""

    def __init__(self, logs: dict[str, Stored]) -> None:
        self.now = 0
        self.cut: set[tuple[str, str]] = set()
        self.events: dict[str, list[Event]] = {name: [] for name in logs}
        self.commit = dict.fromkeys(logs, 0)
        self.sent: list[Message] = []
        self.under_way: list[Message] = []
        self.rafts = {name: Raft(sid(name), disk, SETTINGS, b"seed" + name.encode(), 0) for name, disk in logs.items()}
        for raft in self.rafts.values():
            raft.tick(0)
        self.settle()

    def __getitem__(self, name: str) -> Raft:
        return self.rafts[name]

    def add(self, name: str, disk: Stored | None = None) -> Raft:
        self.events[name], self.commit[name] = [], 0
        self.rafts[name] = Raft(sid(name), disk or Stored(), SETTINGS, b"seed" + name.encode(), self.now)
        self.rafts[name].tick(self.now)
        return self.rafts[name]

    def collect(self) -> None:
        """Let every machine say what it has to say; leaders begin their term with a block."""
        for name, raft in list(self.rafts.items()):
            messages, events, outputs = drain(raft)
            while any(isinstance(event, BecameLeader) for event in events):
                self.events[name] += events
                raft.propose(b"first", 10)
                more, events, later = drain(raft)
                messages, outputs = messages + more, outputs + later
            self.events[name] += events
            self.commit[name] = max([self.commit[name], *(output.commit for output in outputs)])
            self.under_way += messages
            self.sent += messages

    def settle(self) -> None:
        """Deliver until nothing moves."""
        for _ in range(1_000):
            self.collect()
            if not self.under_way:
                return
            moving, self.under_way = self.under_way, []
            for message in moving:
                self.deliver(message)
        raise AssertionError("the cell does not come to rest")

    def deliver(self, message: Message) -> None:
        way = chr(message.source[0]), chr(message.to[0])
        if way not in self.cut and way[1] in self.rafts:
            self.rafts[way[1]].receive(message, self.now)

    def run(self, ms: int, step: int = 50) -> None:
        for _ in range(ms // step):
            self.now += step
            for raft in list(self.rafts.values()):
                raft.tick(self.now)
            self.settle()

    def elect(self, name: str) -> Raft:
        """Make `name` the leader: the others' clocks stand still until it is."""
        for _ in range(100):
            self.now += 100
            self[name].tick(self.now)
            self.settle()
            if self[name].role is Role.LEADER:
                return self[name]
        raise AssertionError(f"{name} is not elected")

    def separate(self, *sides: str) -> None:
        """Names of one side hear each other, and nobody else."""
        side = {name: number for number, names in enumerate(sides) for name in names}
        self.cut = {(a, b) for a in self.rafts for b in self.rafts if side.get(a) != side.get(b)}

    def terms(self, name: str) -> list[int]:
        log = self[name].log
        return [log.term(index) or 0 for index in range(log.start.index + 1, log.last + 1)]
