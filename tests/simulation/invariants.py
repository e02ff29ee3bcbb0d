"""What must hold while a world runs, and at its end (DESIGN section 10). What is seen on one connection is checked by
the device itself (tests.simulation.session)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import trio

from cluster.core.raft import Role
from cluster.core.raft.leading import Leading
from relay.core import records, wire
from relay.core.block import Block
from relay.core.envelope import To, read_header
from relay.core.trust import verify_roster
from relay.delivery import Delivery
from relay.errors import ProtocolError
from relay.gateway.connection import Connection
from relay.limits import MAX_MAILBOX, MAX_OUTBOX
from tests.frames import payload, split
from tests.simulation.ledger import Ledger, Letter
from tests.simulation.network import Host
from tests.simulation.nodes import SimNode
from tests.simulation.rules import Rules
from tests.simulation.world import START_MS, Trace, Violation

DIGEST_EVERY = 16  # blocks between two looks at the state's digest
_DELIVER_TAG = 67
_TAKING_PART = (Role.FOLLOWER, Role.ASKING, Role.CANDIDATE, Role.LEADER)
_TELLING = (6, 7)  # tags of the records that bring versions of rosters
_CLOCK_MS = 2_000  # ms of grace for the time of a log


class Checks:
    """Sees what all nodes do."""

    def __init__(self, ledger: Ledger, trace: Trace) -> None:
        self.ledger, self.trace = ledger, trace
        self._blocks: dict[tuple[bytes, int], bytes] = {}
        self._digests: dict[tuple[bytes, int], bytes] = {}
        self._grown: set[bytes] = set()  # logs that had three voters
        self._founded: dict[bytes, int] = {}  # the newest time in a log before that, Unix ms
        self._versions: dict[tuple[str, bytes], int] = {}  # region, group → newest version that a disk there ever got
        self.nodes: Sequence[SimNode] = ()
        self.names: Mapping[bytes, str] = {}  # user → name
        self.rules = Rules({})
        self.crossed: Callable[[Host, Host], None] = lambda source, target: None  # a letter leaves a host for another

    # --- one content per index, one state per content ------------------------------------------------
    def applied(self, delivery: Delivery, block: Block) -> None:
        """A node has applied a block: everywhere, and in every life, it is the same one and gives the same state."""
        node = delivery._clock.node  # type: ignore[attr-defined]
        node.delivery = delivery
        self.trace("applied", node.host.name, block.index, block.hash)
        self._stamped(node, block)
        self.ledger.channels.applied(node, delivery, block)
        place = (block.log_id, block.index)
        if self._blocks.setdefault(place, block.hash) != block.hash:
            raise Violation(f"{node}: block {block.index} is another one than was applied elsewhere or earlier")
        if block.index % DIGEST_EVERY == 0:
            digest = delivery.room.digest()
            self.trace("state", node.host.name, block.index, digest)
            if self._digests.setdefault(place, digest) != digest:
                raise Violation(f"{node}: another state after block {block.index} than elsewhere or earlier")

    def at_rest(self, nodes: Iterable[SimNode]) -> None:
        """Every store has, at every index that was ever applied, that block. Run when all stores are quiet."""
        for node in nodes:
            content = node.disk.content
            for row in node.disk.rows():
                known = self._blocks.get((content.meta.log_id, row.index))
                if known not in (None, row.hash) and ("block", row.index) not in node.disk.flipped:
                    raise Violation(f"{node}: at rest, block {row.index} is another one than was applied")

    def _stamped(self, node: SimNode, block: Block) -> None:
        """Rule 14: no clock that is wrong alone moves the log of a cell of several."""
        raft: Any = getattr(node.delivery._journal, "raft", None) if node.delivery else None
        if raft is None:
            return
        if len(raft.members.voters) < 3 and block.log_id not in self._grown:
            self._founded[block.log_id] = block.time  # a founder has nobody to compare with; the time never goes back
            return
        self._grown.add(block.log_id)
        if block.time <= self._founded.get(block.log_id, 0):
            return
        peaks = [other.clock.peak_ms() for other in self.nodes if other.cell == node.cell]
        ahead = block.time - START_MS - trio.current_time() * 1000
        if ahead > sorted(peaks)[len(peaks) // 2] + _CLOCK_MS:
            raise Violation(f"{node}: block {block.index} is stamped {ahead / 1000:.1f} s ahead of the time")

    # --- residency -----------------------------------------------------------------------------------
    def written(self, region: str, data: bytes, is_record: bool = False) -> None:
        """A disk of `region` gets these bytes: a record of a block, or something else."""
        if is_record and len(data) > 1 and data[0] >> 4 == 9 and data[1] in _TELLING:
            with suppress(ProtocolError):  # the head of a checkpoint may begin like that, too
                self._told_of_group(region, records.decode_record(data))
        for letter in self.ledger.found_in(data):
            self.trace.counts["canary at rest"] += 1
            if letter.may_rest is not None and region not in letter.may_rest() and self._is_honest(letter, region):
                raise Violation(f"letter {letter.number} of {letter.sender} rests in {region}, against a policy")
            if region in letter.later - letter.regions:
                self.trace.counts["canary where only later members live"] += 1
            elif region not in letter.regions:
                allowed = sorted(letter.regions)
                raise Violation(f"letter {letter.number} of {letter.sender} rests in {region}, not only in {allowed}")

    def _is_honest(self, letter: Letter, region: str) -> bool:
        """Is it none of the liar's doing what becomes of this letter there?"""
        target = self.names.get(letter.target) or self.ledger.owners.get(letter.target, "")
        return region != self.ledger.liar and self.ledger.trusts(letter, target)

    def _told_of_group(self, region: str, record: records.Record) -> None:
        """Section 5, rule 3: before a cell knows the version that a group's letter names, it cannot know whether it may
        write it."""
        if isinstance(record, records.Roster):
            self._learned(region, record.head)
        elif isinstance(record, records.HandIn):
            if record.what in (records.HANDIN_ROSTER, records.HANDIN_NOBODY):
                self._learned(region, record.item)
            elif record.what == records.HANDIN_ENVELOPE:
                header = read_header(record.item)
                if header.kind is To.ROSTER and self._versions.get((region, header.to), 0) < header.to_version:
                    raise Violation(f"a group's letter rests in {region} before its version, {header.to_version}")

    def _learned(self, region: str, head: bytes) -> None:
        roster = verify_roster(head)
        place = (region, roster.group)
        self._versions[place] = max(self._versions.get(place, 0), roster.head.version)

    def sent(self, source: Host, target: Host, data: bytes) -> None:
        """These bytes leave a host."""
        if source.is_node and source.region != self.ledger.liar:
            for letter in self.ledger.found_in(data):
                if target.is_node and not self.rules.open(source.region, target.region):
                    raise Violation(f"letter {letter.number} goes to {target.name}, where {source.region} may not send")
                self.crossed(source, target)
                if target.region not in letter.regions | letter.later:
                    raise Violation(f"letter {letter.number} of {letter.sender} is sent to {target.name}")

    def scan(self, nodes: Iterable[SimNode]) -> None:
        """All disks, as they lie there."""
        for node in nodes:
            for data in node.disk.at_rest():
                self.written(node.region, data)

    # --- amnesia ---------------------------------------------------------------------------------------
    def amnesia(self, nodes: Iterable[SimNode]) -> None:
        """Rules 4 and 5: a store that has forgotten something takes part in nothing any more."""
        for node in nodes:
            journal: Any = node.delivery._journal if node.delivery and node.disk.rolled_back else None
            if journal and journal.own.store in node.disk.rolled_back and journal.raft.role in _TAKING_PART:
                raise Violation(f"{node}: a store that was rolled back is a {journal.raft.role.value} again")

    # --- expiry and bounds ---------------------------------------------------------------------------
    def pushed(self, line: Connection, frames: Iterable[bytes]) -> None:
        """A node queues frames for a client: nothing that has expired by the time of its log (rule 14)."""
        delivery = line._around.office._delivery  # type: ignore[attr-defined]
        for encoded in map(payload, split(b"".join(frames))):
            if encoded[1] != _DELIVER_TAG:
                continue
            message = wire.decode_server(encoded)
            assert isinstance(message, wire.Deliver)
            if read_header(message.envelope).expires <= delivery.room.state.time:
                raise Violation(f"an expired envelope is delivered at {message.position}")

    def bounded(self, nodes: Iterable[SimNode]) -> None:
        """What a node holds in memory stays below its bounds."""
        for node in nodes:
            if node.delivery is None:
                continue
            state = node.delivery.room.state
            for cell, box in state.outboxes.items():
                sent_on = sum(item.size for item in box.items.values() if item.user)  # it was admitted once
                if box.bytes - sent_on > MAX_OUTBOX:
                    raise Violation(f"{node}: the outbox for {cell} holds {box.bytes} bytes")
            for user in state.users.values():
                if not self.honest(user.record.user):
                    continue  # the liar was its home, and sends on what it likes
                if user.box.bytes > MAX_MAILBOX * (1 + user.record.payload.move_epoch):
                    raise Violation(f"{node}: a mailbox holds {user.box.bytes} bytes")

    def at_home_once(self, nodes: Iterable[SimNode]) -> None:
        """Whoever moved is at home in one cell only, and nothing waits in another. Run long enough after healing."""
        homes: dict[bytes, str] = {}
        for node in newest_of(nodes):
            state = node.delivery.room.state
            for user in filter(self.honest, state.users):
                if homes.setdefault(user, node.cell) != node.cell:
                    raise Violation(f"user {user[:4].hex()} is at home in {node.cell} and in {homes[user]}")
            for user, moved in state.moved.items():
                if moved.items and self.honest(user):
                    raise Violation(f"{node}: {moved.items} things wait for user {user[:4].hex()}, who has left")

    def honest(self, user: bytes) -> bool:
        """Has the liar never been this user's home?"""
        return not self.ledger.exposed(self.names.get(user, ""))

    def lost(self) -> None:
        """Nothing acknowledged is missing. Run long enough after healing."""
        missing = self.ledger.missing()
        if missing:
            letter, device = missing[0]
            raise Violation(
                f"{len(missing)} lost: letter {letter.number} of {letter.sender} (group: {letter.group}), accepted at"
                f" {letter.accepted:.3f}, stored at {letter.stored}, never reached {device}"
            )


def newest_of(nodes: Iterable[SimNode]) -> list[SimNode]:
    """Of each cell the node that has applied most."""
    cells: dict[str, SimNode] = {}
    for node in nodes:
        if node.delivery is not None and node.delivery.room.state.index >= _index(cells.get(node.cell)):
            cells[node.cell] = node
    return list(cells.values())


def _index(node: SimNode | None) -> int:
    return node.delivery.room.state.index if node is not None and node.delivery is not None else 0


@contextmanager
def watching(checks: Checks) -> Iterator[None]:
    """The real classes tell `checks` what they do."""
    apply, push, count = Delivery.apply, Connection.push, Leading.committed

    def seen_apply(self: Delivery, block: Block) -> None:
        apply(self, block)
        checks.applied(self, block)

    def seen_push(self: Connection, frames: Iterable[bytes]) -> bool:
        taken = push(self, frames)  # type: ignore[arg-type]
        if taken:
            checks.pushed(self, frames)
        return taken

    def seen_count(self: Leading, commit: int, stored: int) -> int:
        """Rule 3: copies of an older term's entries decide nothing (Raft 3.6.2), whether that does harm or not."""
        upto = count(self, commit, stored)
        if upto > commit and self._log.term(upto) != self._term:
            raise Violation(f"a leader of term {self._term} commits entry {upto} of an older term by counting")
        return upto

    Delivery.apply, Connection.push = seen_apply, seen_push  # type: ignore[method-assign, assignment]
    Leading.committed = seen_count  # type: ignore[method-assign]
    try:
        yield
    finally:
        Delivery.apply, Connection.push = apply, push  # type: ignore[method-assign]
        Leading.committed = count  # type: ignore[method-assign]


