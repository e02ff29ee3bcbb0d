"""A cell's notaries, with real folds and real keys, over links that do what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import trio

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.notary import Notary
from relay.certificates import certify
from relay.core import receipts, records
from relay.core.book import Book
from relay.core.proven import ProvenBlock, Wanted, question, told, verify_block
from relay.core.receipts import verify_receipt
from relay.core.wire import Code
from relay.errors import Refused
from relay.limits import BOOK_BYTES, SLOT_BITS
from tests.attesting import NODES, Signer, make_root
from tests.relay.core.mailroom.conftest import Log, User


class House:
    """One node: its fold, its book, its notary. `hears`: what it answers with instead."""

    def __init__(self, cell: Cell, node: str) -> None:
        self.cell, self.node = cell, node
        self.signer = Signer(cell.name.partition("/")[0], node)
        self.log = Log(cell.name)
        self.up = True
        self.forge: Callable[[linkwire.Attested], linkwire.Attested] = lambda answer: answer
        self.asked = 0
        self.applied = trio.Event()
        self.begin()

    def begin(self, max_bytes: int = BOOK_BYTES) -> None:
        """A new life, with an empty book."""
        self.book = Book(self.cell.name, self.log.log_id, max_bytes)
        delivery: Any = SimpleNamespace(room=self.log.room, book=self.book, applied=self.reached)
        links: Any = SimpleNamespace(peers=self.peers, ask=self.ask, request=self.request)
        self.notary = Notary(
            self.cell.name, self.signer.store, delivery, self.cell.root, self.signer, certify, links
        )

    def apply(self, *items: Any) -> None:
        self.log.apply(*items)
        self.book.keep(self.log.blocks[-1], self.log.room.taken)
        self.applied.set()
        self.applied = trio.Event()

    async def reached(self, index: int) -> None:
        while self.log.room.state.index < index:
            await self.applied.wait()

    def peers(self) -> tuple[str, ...]:
        return tuple(name for name in self.cell.houses if name != self.node) if hasattr(self.cell, "houses") else ()

    async def ask(self, node: str, message: Any, deadline_s: float) -> Any:
        await trio.lowlevel.checkpoint()
        other = self.cell.houses[node]
        other.asked += isinstance(message, linkwire.Attest)
        if not other.up:
            await trio.sleep(deadline_s)
            raise Refused(Code.UNREACHABLE, "it is away")
        answer = await other.notary.answer(Peer("norden", self.cell.name, self.node), message)
        return other.forge(answer) if isinstance(answer, linkwire.Attested) else answer

    async def request(self, cell: str, message: Any, deadline_s: float) -> Any:
        if cell not in self.cell.abroad:
            raise Refused(Code.UNKNOWN_REGION, "no such cell")
        other = self.cell.abroad[cell].houses["n1"]
        return await other.notary.answer(Peer("norden", self.cell.name, self.node), message)


class One(NamedTuple):
    """What a sender was told about an envelope."""

    id: bytes
    code: int
    position: int


def ask(*ones: One) -> tuple[Wanted, ...]:
    """The question for their receipts."""
    return question((one.position >> SLOT_BITS, told(one.id, one.code)) for one in ones)


class Cell:
    """The houses of one cell, which apply the same blocks."""

    def __init__(self, name: str = "norden/1", nodes: tuple[str, ...] = NODES) -> None:
        self.name = name
        self.root = make_root(nodes)
        self.abroad: dict[str, Cell] = {}
        self.houses: dict[str, House] = {}
        self.people = {who: User(who, name) for who in ("alice", "bob")}
        homes = {who: user.record(who[0] + "1") for who, user in self.people.items()}
        for node in nodes:
            self.houses[node] = House(self, node)
        for house in self.houses.values():
            house.notary._peers = list(house.peers())
            house.apply(*(records.Home(signed) for signed in homes.values()))

    def send(self, *bodies: bytes, late: tuple[str, ...] = ()) -> list[One]:
        """alice's envelopes to bob, in one block, on every node but the late ones."""
        log = self.houses["n1"].log
        sealed = [log.seal(self.people["bob"].id, body=body) for body in bodies]
        for name, house in self.houses.items():
            if name not in late:
                house.apply(*(house.log.submit("a1", one) for one in sealed))
        return [One(one.id, one.code, one.position) for one in log.room.taken]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Notary]:
        async with trio.open_nursery() as nursery:
            for house in self.houses.values():
                nursery.start_soon(house.notary.run)
            yield self.houses["n1"].notary
            nursery.cancel_scope.cancel()


def verified(cell: Cell, blocks: list[ProvenBlock]) -> dict[bytes, receipts.Verified]:
    log_id = cell.houses["n1"].log.log_id
    found = {}
    for block in blocks:
        for one, data in verify_block(block, cell.root, certify):
            assert verify_receipt(data, cell.root, certify, envelope_id=one.leaf.id, log_id=log_id) == one
            found[one.leaf.id] = one
    return found
