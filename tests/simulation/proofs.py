"""Receipts in a simulated federation: what senders ask for, and what every receipt in the world has to be true to."""

from __future__ import annotations

from random import Random

import trio

from relay.core import wire
from relay.core.proven import question, told, verify_block
from relay.core.receipts import Certified
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import TrustError
from relay.limits import MAX_BATCH, SLOT_BITS
from tests.simulation.keys import public
from tests.simulation.ledger import Ledger
from tests.simulation.world import Violation, World

AGAIN_S = 5.0  # seconds until what could not be proven is asked for again


def certify(certificate: bytes, root: Root) -> Certified:
    """What the certificates of tests.simulation.nodes say."""
    cell, _, node = certificate.decode().partition(" ")
    return Certified(cell.partition("/")[0], cell, node, public(certificate.decode()), 0, 2**53)


class Proofs:
    """Every receipt of the world is shown here. `share`: of the outcomes that are wanted signed."""

    def __init__(self, world: World, ledger: Ledger, root: Root, share: float) -> None:
        self._world, self._ledger, self._root, self._share = world, ledger, root, share
        self._random: Random = world.random("proofs")
        self._statements: dict[tuple[str, bytes, int], bytes] = {}
        self._places: dict[tuple[str, bytes, bytes, int], int] = {}

    def wants(self) -> bool:
        """Is the next outcome to be proven?"""
        return self._share > 0 and self._random.random() < self._share

    def came(self, block: wire.ProvenBlock, cell: str, asked: dict[bytes, int]) -> list[bytes]:
        """A node says that this holds; the ids. Raises Violation where it does not, or cannot be."""
        try:
            found = verify_block(block, self._root, certify)
        except TrustError as error:
            raise Violation(f"a node of {cell} gave a receipt that does not hold: {error}") from None
        for one, _ in found:
            leaf, said = one.leaf, one.statement
            letter = self._ledger.of(leaf.id)
            if letter is None or leaf.cell != cell or asked.get(leaf.id) != leaf.code:
                raise Violation(f"a receipt of {leaf.cell} for something that was not asked for")
            before = self._statements.setdefault((cell, said.log_id, said.index), block.statement)
            if before != block.statement:
                raise Violation(f"two statements of block {said.index} of {cell} are signed by majorities")
            place = self._places.setdefault((cell, said.log_id, leaf.id, leaf.code), leaf.position)
            if place != leaf.position:
                raise Violation(f"letter {letter.number} was taken twice by {cell}, at {place} and {leaf.position}")
            self._world.counts["proven"] += 1
            self._world.trace("proven", letter.number, cell, Code(leaf.code).name.lower(), *one.nodes)
        return [one.leaf.id for one, _ in found]


class Asking:
    """What one connection has asked for, and is about to."""

    def __init__(self, proofs: Proofs) -> None:
        self._proofs = proofs
        self._open: dict[str, dict[bytes, tuple[int, int, float]]] = {}  # cell → id → (code, position, not before)
        self._asked: dict[int, tuple[str, dict[bytes, int]]] = {}
        self._request = 0

    def outcome(self, id_: bytes, code: int, cell: str, position: int) -> None:
        if code in (Code.ACCEPTED, Code.STORED) and self._proofs.wants():
            self._open.setdefault(cell, {})[id_] = (code, position, 0.0)

    def next(self) -> wire.Prove | None:
        """One question at a time."""
        now = trio.current_time()
        for cell, wanted in self._open.items():
            due = [(own, *one) for own, one in wanted.items() if one[2] <= now][:MAX_BATCH]
            if due and not self._asked:
                self._request += 1
                self._asked[self._request] = cell, {own: code for own, code, _, _ in due}
                for own, *_ in due:
                    del wanted[own]
                asked = question((at >> SLOT_BITS, told(own, code)) for own, code, at, _ in due)
                return wire.Prove(self._request, cell, asked)
        return None

    def answered(self, proof: wire.Proof) -> None:
        """Raises Violation."""
        cell, asked = self._asked.pop(proof.request)
        named = {one.id for one in proof.missing}
        for block in proof.blocks:
            named.update(self._proofs.came(block, cell, asked))
        if named != asked.keys():
            raise Violation(f"{cell} was asked about {len(asked)} envelopes, and answered about {len(named)}")
        for one in proof.missing:
            if not Code(one.code).final:
                again = trio.current_time() + AGAIN_S
                self._open.setdefault(cell, {})[one.id] = (asked[one.id], 0, again)
