"""The notaries of a cell: what they prove, and whom they believe."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from msgspec.structs import replace

from cluster.core import linkwire
from cluster.core.linkwire import Peer
from cluster.pki import make_authority
from relay.core import receipts
from relay.core.codec import digest
from relay.core.proven import Missing
from relay.core.wire import Code
from relay.errors import PeerError
from relay.limits import ATTEST_S, MAX_WANTED, MINUTE
from tests import attesting
from tests.attesting import Signer
from tests.notaries import Cell, One, ask, verified


async def test_two_of_three_sign_and_one_question_serves_a_whole_block() -> None:
    cell = Cell()
    wanted = cell.send(*(b"%d" % n for n in range(20)))
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and len(blocks) == 1
        proven = verified(cell, blocks)
        assert set(proven) == {one.id for one in wanted} and len(wanted) == 20
        assert all(len(one.nodes) == 2 and "n1" in one.nodes for one in proven.values())
        await notary.prove(cell.name, ask(*wanted[:3]))  # what is known is not asked for again
        assert sum(house.asked for house in cell.houses.values()) == 1


async def test_a_cell_of_one() -> None:
    cell = Cell(nodes=("n1",))
    wanted = cell.send(b"one")
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1",)


async def test_a_node_that_is_away_is_asked_last(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n2"].up = False
    async with cell.open() as notary:
        for body in (b"1", b"2"):
            wanted = cell.send(body)
            blocks, missing = await notary.prove(cell.name, ask(*wanted))
            assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")
        assert cell.houses["n2"].asked == 1 and cell.houses["n3"].asked == 2


async def test_without_a_majority_the_client_is_told_and_may_ask_again(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n2"].up = cell.houses["n3"].up = False
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        with trio.fail_after(10):
            assert await notary.prove(cell.name, ask(*wanted)) == ([], [Missing(wanted[0].id, Code.UNREACHABLE)])
        cell.houses["n3"].up = True
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and len(verified(cell, blocks)) == 1


async def test_what_was_refused_or_never_came_has_none() -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    refused = One(digest(b"refused"), Code.STORED, wanted[0].position)
    stored, other = wanted[0], One(wanted[0].id, Code.ACCEPTED, wanted[0].position)
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(stored, refused))
        assert set(verified(cell, blocks)) == {stored.id} and missing == [Missing(refused.id, Code.UNPROVEN)]
        assert await notary.prove(cell.name, ask(other)) == ([], [Missing(stored.id, Code.UNPROVEN)])


async def test_a_node_that_does_not_have_the_block_does_not_sign_it(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1", late=("n2",))
    async with cell.open() as notary:
        blocks, _ = await notary.prove(cell.name, ask(*wanted))
        assert verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")
        assert notary._peers == ["n3", "n2"]  # who did not sign is asked last


async def test_a_node_that_started_since_has_the_others_prove_it(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    cell.houses["n1"].begin()
    cell.houses["n1"].notary._peers = ["n2", "n3"]
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n2", "n3")
    for house in cell.houses.values():  # all of them did
        house.begin()
        house.notary._peers = list(house.peers())
    async with cell.open():
        found = await cell.houses["n1"].notary.prove(cell.name, ask(*wanted))
        assert found == ([], [Missing(wanted[0].id, Code.UNPROVEN)])


async def test_a_node_behind_the_one_that_told_the_sender_waits_for_the_block(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    ahead = [One(digest(b"x"), Code.STORED, wanted[0].position + (5 << 20))]
    async with cell.open() as notary:
        with trio.fail_after(20):
            assert await notary.prove(cell.name, ask(*ahead)) == ([], [Missing(ahead[0].id, Code.UNREACHABLE)])


async def test_one_that_is_not_here_yet_is_not_denied_for_good_beside_one_that_is(autojump_clock: Any) -> None:
    cell = Cell(nodes=("n1",))  # nobody else is asked, who would wait for it
    [here] = cell.send(b"1")
    ahead = One(digest(b"x"), Code.STORED, here.position + (5 << 20))
    async with cell.open() as notary:
        _, missing = await notary.prove(cell.name, ask(here, ahead))
        assert Missing(ahead.id, Code.UNREACHABLE) in missing


async def test_a_node_that_is_a_little_behind_signs_all_that_it_is_asked_for(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n3"].up = False
    old, log = cell.send(b"1"), cell.houses["n1"].log
    young = cell.send(b"2", late=("n2",))
    async with cell.open() as notary, trio.open_nursery() as nursery:

        async def catch_up() -> None:
            await trio.sleep(ATTEST_S / 4)
            house = cell.houses["n2"]
            house.apply(house.log.submit("a1", log.seal(cell.people["bob"].id, body=b"2")))

        nursery.start_soon(catch_up)
        began = trio.current_time()
        blocks, missing = await notary.prove(cell.name, ask(*old, *young))
        assert set(verified(cell, blocks)) == {old[0].id, young[0].id} and not missing
        assert trio.current_time() < began + ATTEST_S / 2


@pytest.mark.parametrize("how", ["away", "cannot say", "all away"])
async def test_nothing_is_denied_for_good_while_one_of_the_cell_may_know_it(autojump_clock: Any, how: str) -> None:
    """Others than n2 started since; it remembers, but cannot be asked, or finds nobody who signs with it."""
    cell = Cell(nodes=("n1", "n2", "n3", "n4", "n5"))
    [one] = cell.send(b"1")
    for house in (house for name, house in cell.houses.items() if name != "n2"):
        house.begin()
        house.notary._peers = list(house.peers())
    async with cell.open() as notary:
        for name in {"away": ["n2"], "cannot say": [], "all away": ["n2", "n3", "n4", "n5"]}[how]:
            cell.houses[name].up = False
        assert await notary.prove(cell.name, ask(one)) == ([], [Missing(one.id, Code.UNREACHABLE)])


async def test_what_is_asked_for_while_a_round_is_under_way_goes_into_the_next(autojump_clock: Any) -> None:
    cell = Cell()
    cell.houses["n2"].up = False  # so that the first round takes a while
    old, young = cell.send(b"1"), cell.send(b"2")
    async with cell.open() as notary, trio.open_nursery() as nursery:
        nursery.start_soon(notary.prove, cell.name, ask(*old))
        await trio.sleep(ATTEST_S / 2)
        blocks, missing = await notary.prove(cell.name, ask(*young))
        assert set(verified(cell, blocks)) == {young[0].id} and not missing


async def test_what_was_signed_under_another_root_document_does_not_count(monkeypatch: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        assert (await notary.prove(cell.name, ask(*wanted)))[0]
        monkeypatch.setitem(attesting.AUTHORITIES, "norden", make_authority("norden", now_ms=attesting.NOW))
        notary.follow(attesting.make_root())
        assert await notary.prove(cell.name, ask(*wanted)) == ([], [Missing(wanted[0].id, Code.UNREACHABLE)])


@pytest.mark.parametrize(
    "what",
    [
        "signature", "store", "certificate", "nobody's", "another's", "the third's", "other block", "digests",
        "more digests", "half a digest",
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
            case "the third's":
                word = n3.signer.attest([n3.book.statement(index) or b"" for index in indices])
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
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")
        assert n3.asked == 1  # n2 speaks for nobody else, either


async def test_a_node_whose_fold_says_other_things_is_not_counted(autojump_clock: Any) -> None:
    cell = Cell()
    wanted = cell.send(b"1", late=("n2",))
    n2 = cell.houses["n2"]
    n2.apply(n2.log.submit("a1", n2.log.seal(cell.people["bob"].id, body=b"something else")))
    async with cell.open() as notary:
        blocks, _ = await notary.prove(cell.name, ask(*wanted))
        assert verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n3")


async def test_signatures_are_for_this_log_only() -> None:
    cell = Cell()
    cell.send(b"1")
    async with cell.open() as notary:
        with pytest.raises(PeerError):
            await notary.answer(Peer("norden", cell.name, "n2"), linkwire.Attest(bytes(16), (2,)))


async def test_a_peer_does_not_ask_for_more_than_a_client_may() -> None:
    cell = Cell()
    [one] = cell.send(b"1")
    most = (*ask(*[one] * (MAX_WANTED - 1)), *ask(one))
    async with cell.open() as notary:
        peer = Peer("sueden", "sueden/1", "s1")
        assert isinstance(await notary.answer(peer, linkwire.ProveThere(most)), linkwire.ProvenThere)
        with pytest.raises(PeerError):
            await notary.answer(peer, linkwire.ProveThere((*most, *ask(one))))


async def test_another_cell_proves_what_it_stored() -> None:
    norden, sueden = Cell(), Cell("sueden/1")
    norden.abroad[sueden.name] = sueden
    wanted = sueden.send(b"stored there")
    async with norden.open() as notary, sueden.open():
        blocks, missing = await notary.prove(sueden.name, ask(*wanted))
        assert not missing and verified(sueden, blocks)[wanted[0].id].leaf.cell == "sueden/1"
        ours = wanted[0]._replace(position=wanted[0].position + (5 << 20))  # which means nothing there
        sueden.houses["n1"].begin()  # the node that is asked has started since: it asks the others
        sueden.houses["n1"].notary._peers = ["n2", "n3"]
        blocks, missing = await notary.prove(sueden.name, ask(ours))
        assert not missing and set(verified(sueden, blocks)) == {ours.id}
        assert await notary.prove("sueden/2", ask(*wanted)) == ([], [Missing(wanted[0].id, Code.UNKNOWN_REGION)])


async def test_a_node_that_signs_for_two_stores_counts_once() -> None:
    """Clients refuse a receipt that one node stands by twice, so it would spoil what honest nodes signed."""
    cell = Cell()
    n2 = cell.houses["n2"]

    def forge(answer: linkwire.Attested) -> linkwire.Attested:
        [(indices, _)] = answer.words
        statements = [n2.book.statement(index) or b"" for index in indices]
        words = [n2.signer.attest(statements, store=bytes([n]) * 16) for n in range(2)]
        return linkwire.Attested(tuple((indices, word) for word in words))

    n2.forge = forge
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert not missing and verified(cell, blocks)[wanted[0].id].nodes == ("n1", "n2")


@pytest.mark.parametrize("whose", ["n1", "n2"])
async def test_a_block_older_than_a_certificate_keeps_no_other_from_a_receipt(autojump_clock: Any, whose: str) -> None:
    """A renewed certificate did not hold when an older block was made. What is signed together holds one by one; and
    it is signed again, once there is a certificate that does hold."""
    cell = Cell()
    house = cell.houses[whose]
    old = cell.send(b"1")
    for one in cell.houses.values():
        one.log.time += 60_000
    young = cell.send(b"2")
    good = house.signer
    house.signer = Signer("norden", whose, now_ms=house.log.time + 60 * MINUTE - 30_000)
    house.notary._credentials = house.signer
    cell.houses["n3"].up = False
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*old, *young))
        assert set(verified(cell, blocks)) == {young[0].id}
        assert missing == [Missing(old[0].id, Code.UNREACHABLE)]
        house.notary._credentials = good
        blocks, missing = await notary.prove(cell.name, ask(*old))
        assert set(verified(cell, blocks)) == {old[0].id} and not missing


async def test_the_fold_knows_the_place_of_what_was_told_at_another() -> None:
    cell = Cell()
    [one] = cell.send(b"1")
    async with cell.open() as notary:  # block 1 took nothing: there is no page to look further from
        blocks, missing = await notary.prove(cell.name, ask(one._replace(position=1 << 20)))
        assert set(verified(cell, blocks)) == {one.id} and not missing
