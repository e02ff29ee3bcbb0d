"""What must hold while a world runs, and at its end (DESIGN section 10). What is seen on one connection is checked by the
device itself (tests.simulation.devices)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from relay.core import wire
from relay.core.block import Block
from relay.core.envelope import read_header
from relay.delivery import Delivery
from relay.gateway.connection import Connection
from relay.limits import MAX_MAILBOX, MAX_OUTBOX
from tests.simulation.ledger import Ledger
from tests.simulation.network import Host
from tests.simulation.nodes import SimNode
from tests.simulation.world import Trace, Violation

DIGEST_EVERY = 16  # blocks between two looks at the state's digest
_DELIVER_TAG = 67


class Checks:
    """Sees what all nodes do."""

    def __init__(self, ledger: Ledger, trace: Trace) -> None:
        self.ledger, self.trace = ledger, trace
        self._blocks: dict[tuple[bytes, int], bytes] = {}
        self._digests: dict[tuple[bytes, int], bytes] = {}

    # --- one content per index, one state per content ------------------------------------------------
    def applied(self, delivery: Delivery, block: Block) -> None:
        """A node has applied a block: everywhere, and in every life, it is the same one and gives the same state."""
        node = delivery._clock.node  # type: ignore[attr-defined]
        node.delivery = delivery
        self.trace("applied", node.host.name, block.index, block.hash)
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
                if known is not None and known != row.hash:
                    raise Violation(f"{node}: at rest, block {row.index} is another one than was applied")

    # --- residency -----------------------------------------------------------------------------------
    def written(self, region: str, data: bytes) -> None:
        """A disk of `region` gets these bytes."""
        for letter in self.ledger.found_in(data):
            self.trace.counts["canary at rest"] += 1
            if region in letter.later - letter.regions:
                self.trace.counts["canary where only later members live"] += 1
            elif region not in letter.regions:
                raise Violation(f"letter {letter.number} of {letter.sender} rests in {region}, not only in {letter.regions}")

    def sent(self, source: Host, target: Host, data: bytes) -> None:
        """These bytes leave a host."""
        if source.is_node:
            for letter in self.ledger.found_in(data):
                if target.region not in letter.regions | letter.later:
                    raise Violation(f"letter {letter.number} of {letter.sender} is sent to {target.name}")

    def scan(self, nodes: Iterable[SimNode]) -> None:
        """All disks, as they lie there."""
        for node in nodes:
            for data in node.disk.at_rest():
                self.written(node.region, data)

    # --- expiry and bounds ---------------------------------------------------------------------------
    def pushed(self, line: Connection, frames: Iterable[bytes]) -> None:
        """A node queues frames for a client: nothing that has expired by the time of its log (rule 14)."""
        delivery = line._around.office._delivery  # type: ignore[attr-defined]
        for frame in frames:
            payload = frame[2 if frame[1] < 126 else 4 if frame[1] == 126 else 10 :]
            if payload[1] != _DELIVER_TAG:
                continue
            message = wire.decode_server(payload)
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
                if box.bytes > MAX_OUTBOX:
                    raise Violation(f"{node}: the outbox for {cell} holds {box.bytes} bytes")
            for user in state.users.values():
                if user.box.bytes > MAX_MAILBOX:
                    raise Violation(f"{node}: a mailbox holds {user.box.bytes} bytes")

    def lost(self) -> None:
        """Nothing acknowledged is missing. Run long enough after healing."""
        missing = self.ledger.missing()
        if missing:
            letter, device = missing[0]
            raise Violation(
                f"{len(missing)} lost: letter {letter.number} of {letter.sender} (group: {letter.group}), accepted at"
                f" {letter.accepted:.3f}, stored at {letter.stored}, never reached {device}"
            )


@contextmanager
def watching(checks: Checks) -> Iterator[None]:
    """The real classes tell `checks` what they do."""
    apply, push = Delivery.apply, Connection.push

    def seen_apply(self: Delivery, block: Block) -> None:
        apply(self, block)
        checks.applied(self, block)

    def seen_push(self: Connection, frames: Iterable[bytes]) -> bool:
        taken = push(self, frames)  # type: ignore[arg-type]
        if taken:
            checks.pushed(self, frames)
        return taken

    Delivery.apply, Connection.push = seen_apply, seen_push  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        Delivery.apply, Connection.push = apply, push  # type: ignore[method-assign]


