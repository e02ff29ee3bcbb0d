"""The notaries of a cell, with real folds and real keys, over links that do what a test says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from msgspec.structs import replace

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.notary import Notary
from relay.certificates import certify
from relay.core import receipts, records
from relay.core.book import Book
from relay.core.codec import digest
from relay.core.proven import Missing, ProvenBlock, verify_block
from relay.core.receipts import verify_receipt
from relay.core.wire import Code, Wanted
from relay.errors import PeerError, Refused
from relay.limits import BOOK_BYTES
from tests.attesting import NODES, Signer, make_root
from tests.relay.core.mailroom.conftest import Log, User

ROOT = make_root()


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

    def send(self, *bodies: bytes, late: tuple[str, ...] = ()) -> list[Wanted]:
        """alice's envelopes to bob, in one block, on every node but the late ones."""
        log = self.houses["n1"].log
        sealed = [log.seal(self.people["bob"].id, body=body) for body in bodies]
        for name, house in self.houses.items():
            if name not in late:
                house.apply(*(house.log.submit("a1", one) for one in sealed))
        return [Wanted(one.id, one.code, one.position) for one in log.room.taken]

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


async def test_two_of_three_sign_and_one_question_serves_a_whole_block() -> None:
    cell = Cell()
    wanted = cell.send(*(b"%d" % n for n in range(20)))
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, wanted)
        assert not missing and len(blocks) == 1
        proven = verified(cell, blocks)
        assert set(proven) == {one.id for one in wanted} and len(wanted) == 20
        assert all(len(one.nodes) == 2 and "n1" in one.nodes for one in proven.values())
        await notary.prove(cell.name, wanted[:3])  # what is known is not asked for again
        assert sum(house.asked for house in cell.houses.values()) == 1


async def test_a_cell_of_one() -> None:
    cell = Cell(nodes=("n1",))
    wanted = cell.send(b"one")
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, wanted)
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1",)


async def test_a_node_that_is_away_is_asked_last(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n2"].up = False
    async with cell.open() as notary:
        for body in (b"1", b"2"):
            wanted = cell.send(body)
            blocks, missing = await notary.prove(cell.name, wanted)
            assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")
        assert cell.houses["n2"].asked == 1 and cell.houses["n3"].asked == 2


async def test_without_a_majority_the_client_is_told_and_may_ask_again(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n2"].up = cell.houses["n3"].up = False
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        with trio.fail_after(10):
            assert await notary.prove(cell.name, wanted) == ([], [Missing(wanted[0].id, Code.UNREACHABLE)])
        cell.houses["n3"].up = True
        blocks, missing = await notary.prove(cell.name, wanted)
        assert not missing and len(verified(cell, blocks)) == 1


async def test_what_was_refused_or_never_came_has_none() -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    refused = Wanted(digest(b"refused"), Code.STORED, wanted[0].position)
    stored, other = wanted[0], Wanted(wanted[0].id, Code.ACCEPTED, wanted[0].position)
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, [stored, refused])
        assert set(verified(cell, blocks)) == {stored.id} and missing == [Missing(refused.id, Code.UNPROVEN)]
        assert await notary.prove(cell.name, [other]) == ([], [Missing(stored.id, Code.UNPROVEN)])


async def test_a_node_that_does_not_have_the_block_does_not_sign_it(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1", late=("n2",))
    async with cell.open() as notary:
        blocks, _ = await notary.prove(cell.name, wanted)
        assert verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")


async def test_a_node_that_started_since_has_the_others_prove_it(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    cell.houses["n1"].begin()
    cell.houses["n1"].notary._peers = ["n2", "n3"]
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, wanted)
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n2", "n3")
    for house in cell.houses.values():  # all of them did
        house.begin()
        house.notary._peers = list(house.peers())
    async with cell.open():
        found = await cell.houses["n1"].notary.prove(cell.name, wanted)
        assert found == ([], [Missing(wanted[0].id, Code.UNPROVEN)])


async def test_a_node_behind_the_one_that_told_the_sender_waits_for_the_block(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    ahead = [Wanted(digest(b"x"), Code.STORED, wanted[0].position + (5 << 20))]
    async with cell.open() as notary:
        with trio.fail_after(20):
            assert await notary.prove(cell.name, ahead) == ([], [Missing(ahead[0].id, Code.UNREACHABLE)])


@pytest.mark.parametrize(
    "what",
    [
        "signature", "store", "certificate", "nobody's", "another's", "other block", "digests", "more digests",
        "half a digest",
    ],
)  # fmt: skip
async def test_a_dishonest_node_is_not_counted(autojump_clock: Any, what: str) -> None:
    cell = Cell()
    n1, n2, n3 = cell.houses.values()
    cell.send(b"0")

    def forge(answer: linkwire.Attested) -> linkwire.Attested:
        [(indices, word)] = answer.words
        match what:
            case "signature":
                word = replace(word, signature=bytes(64))
            case "store":
                word = replace(word, store=n1.signer.store)
            case "certificate":
                word = replace(word, certificate=n3.signer.certificate)
            case "nobody's":
                word = replace(word, certificate=b"junk")
            case "another's":
                word = n1.signer.attest([n1.book.statement(index) or b"" for index in indices])
            case "other block":
                indices = tuple(index - 1 for index in indices)
            case "digests":
                word = n2.signer.attest([b"something else" for _ in indices])
            case "more digests":
                word = n2.signer.attest([*(n2.book.statement(index) or b"" for index in indices), b"more"])
            case "half a digest":
                digests = word.digests + b"0" * 16
                signed = n2.signer.key.sign(receipts.signed_bytes(digests, word.store, word.certificate))
                word = replace(word, digests=digests, signature=signed)
        return linkwire.Attested(((indices, word),))

    n2.forge = forge
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, wanted)
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")


async def test_a_node_whose_fold_says_other_things_is_not_counted(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1", late=("n2",))
    n2 = cell.houses["n2"]
    n2.apply(n2.log.submit("a1", n2.log.seal(cell.people["bob"].id, body=b"something else")))
    async with cell.open() as notary:
        blocks, _ = await notary.prove(cell.name, wanted)
        assert verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")


async def test_signatures_are_for_this_log_only() -> None:
    cell = Cell()
    cell.send(b"1")
    async with cell.open() as notary:
        with pytest.raises(PeerError):
            await notary.answer(Peer("norden", cell.name, "n2"), linkwire.Attest(bytes(16), (2,)))


async def test_others_have_their_turn_while_blocks_are_hashed_for_what_is_not_in_them() -> None:
    cell = Cell()
    places = [cell.send(b"%d" % n)[0].position for n in range(60)]
    wanted = [Wanted(digest(b"%d" % place), Code.STORED, place) for place in places]
    turns, left = [0], trio.Event()

    async def other() -> None:
        while not left.is_set():
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    async with cell.open() as notary, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await notary.prove(cell.name, wanted)
        left.set()
    assert turns[0] >= len(wanted)


async def test_another_cell_proves_what_it_stored() -> None:
    norden, sueden = Cell(), Cell("sueden/1")
    norden.abroad[sueden.name] = sueden
    wanted = sueden.send(b"stored there")
    async with norden.open() as notary, sueden.open():
        blocks, missing = await notary.prove(sueden.name, wanted)
        assert not missing and verified(sueden, blocks)[wanted[0].id].leaf.cell == "sueden/1"
        assert await notary.prove("sueden/2", wanted) == ([], [Missing(wanted[0].id, Code.UNKNOWN_REGION)])


async def test_many_at_the_same_time_share_the_rounds() -> None:
    cell = Cell()
    wanted = [one for n in range(30) for one in cell.send(b"%d" % n)]
    found = dict[bytes, receipts.Verified]()

    async def one(want: Wanted) -> None:
        blocks, _ = await notary.prove(cell.name, [want])
        found.update(verified(cell, blocks))

    async with cell.open() as notary:
        async with trio.open_nursery() as nursery:
            for want in wanted:
                nursery.start_soon(one, want)
        assert set(found) == {want.id for want in wanted}
        assert sum(house.asked for house in cell.houses.values()) <= 3, "questions, for 30 blocks"
