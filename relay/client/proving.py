"""The shell around relay.client.receipts: asks the node, and verifies what comes by the root."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import lru_cache

import structlog
import trio

from relay.certificates import certify
from relay.client.desk import Desk
from relay.client.errors import NotProven
from relay.client.receipts import open_wants, receipts_of, take_receipts
from relay.core import wire
from relay.core.proven import Wanted, all_told, told, verify_block
from relay.core.receipts import Certified
from relay.core.trust import Root
from relay.core.wire import Code
from relay.errors import TrustError
from relay.limits import LINK_DEADLINE_S

log = structlog.get_logger("relay.client")

ANSWER_S = LINK_DEADLINE_S  # seconds for a PROOF; the node takes PROVE_S


class Proving:
    """Asks for receipts on one connection. `say` sends a message; `newer`: is there a newer root document than this
    one, by which something does not verify?"""

    def __init__(
        self, desk: Desk, say: Callable[[wire.ClientMessage], Awaitable[None]],
        newer: Callable[[Root], Awaitable[bool]],
    ) -> None:  # fmt: skip
        self._desk = desk
        self._say = say
        self._newer = newer
        self._request = 0
        self._answer: wire.Proof | None = None
        self._answered = trio.Event()

    def answered(self, proof: wire.Proof) -> None:
        """A PROOF came."""
        if proof.request == self._request:
            self._answer = proof
            self._answered.set()

    async def run(self) -> None:
        """Ask for what is wanted, a batch at a time, until cancelled."""
        desk = self._desk
        while True:
            armed = desk.proofs.armed()
            cell, wanted, due = await desk.run(lambda db: open_wants(db, desk.now), lazily=True)
            if wanted:
                await self._ask(cell, wanted)
                continue
            with trio.move_on_after(max(0.01, (due - desk.now) / 1000) if due else 60.0):
                await armed.wait()

    async def _ask(self, cell: str, wanted: tuple[Wanted, ...]) -> None:
        desk = self._desk
        self._request += 1
        self._answer, self._answered = None, trio.Event()
        await self._say(wire.Prove(self._request, cell, wanted))
        with trio.move_on_after(ANSWER_S):
            await self._answered.wait()
        answer: wire.Proof | None = self._answer
        if answer is None:
            return
        root = desk.own.root
        found, held = self._verified(cell, wanted, answer)
        if not held and await self._newer(root):
            found, _ = self._verified(cell, wanted, answer)
        await desk.run(lambda db: take_receipts(db, found, answer.missing))
        desk.changed.ring()

    def _verified(
        self, cell: str, wanted: tuple[Wanted, ...], answer: wire.Proof
    ) -> tuple[list[tuple[bytes, bytes]], bool]:
        """Of what came, what holds and was asked for (the rest is asked for again); and whether all of it held."""
        asked = set(all_told(wanted))
        found, held = [], True
        for block in answer.blocks:
            try:
                for verified, receipt in verify_block(block, self._desk.own.root, _certify):
                    leaf = verified.leaf
                    if leaf.cell == cell and told(leaf.id, leaf.code) in asked:
                        found.append((leaf.id, receipt))
            except TrustError as error:
                held = False
                log.error("receipt_refused", cell=cell, reason=error.text)
        return found, held


@lru_cache(maxsize=64)
def _certify(certificate: bytes, root: Root) -> Certified:
    """The same few certificates come with every block."""
    return certify(certificate, root)


async def receipts(desk: Desk, sid: int) -> list[bytes]:
    """The signed receipts of a send whose outcome is known. Raises NotProven, or why the client ended."""
    while True:
        armed = desk.changed.armed()
        found, codes, more = await desk.run(lambda db: receipts_of(db, sid), lazily=True)
        if codes:
            name = Code(codes[0]).name if codes[0] in Code.__members__.values() else f"code {codes[0]}"
            of = len(codes) + len(found)
            what = f"the message was taken, but {len(codes)} of its {of} receipts cannot be had: {name}"
            raise NotProven(codes[0], what, "It is not lost: the nodes do not remember it, or too few of them run")
        if not more:
            return found
        desk.check()
        await armed.wait()
