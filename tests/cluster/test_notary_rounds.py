"""The rounds in which the notaries of a cell collect signatures: whose turn it is, and what is kept of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio

from cluster.core import linkwire
from relay.core import receipts
from relay.core.codec import digest
from relay.core.proven import Missing
from relay.core.wire import Code
from relay.limits import PROVE_BLOCKS
from tests.attesting import NODES, make_root
from tests.notaries import Cell, One, ask, verified


async def test_others_have_their_turn_while_blocks_are_hashed_for_what_is_not_in_them() -> None:
    cell = Cell()
    places = [cell.send(b"%d" % n)[0].position for n in range(60)]
    wanted = [One(digest(b"%d" % place), Code.STORED, place) for place in places]
    turns, left = [0], trio.Event()

    async def other() -> None:
        while not left.is_set():
            turns[0] += 1
            await trio.lowlevel.checkpoint()

    async with cell.open() as notary, trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await notary.prove(cell.name, ask(*wanted))
        left.set()
    assert turns[0] >= len(wanted)


async def test_many_at_the_same_time_share_the_rounds() -> None:
    cell = Cell()
    wanted = [one for n in range(30) for one in cell.send(b"%d" % n)]
    found = dict[bytes, receipts.Verified]()

    async def one(want: One) -> None:
        blocks, _ = await notary.prove(cell.name, ask(want))
        found.update(verified(cell, blocks))

    async with cell.open() as notary:
        async with trio.open_nursery() as nursery:
            for want in wanted:
                nursery.start_soon(one, want)
        assert set(found) == {want.id for want in wanted}
        assert sum(house.asked for house in cell.houses.values()) <= 3, "questions, for 30 blocks"


async def test_blocks_that_nobody_signs_do_not_keep_newer_ones_from_their_turn(autojump_clock: Any) -> None:
    """Whoever asks again and again for what cannot be had asks for older blocks: the others were started since."""
    cell = Cell()
    older = [cell.send(b"%d" % n)[0] for n in range(PROVE_BLOCKS)]
    for node in ("n2", "n3"):
        house = cell.houses[node]
        house.begin()
        house.notary._peers = list(house.peers())
    newer = cell.send(b"new")

    asked = [0]

    async def again() -> None:
        while asked[0] < 100:
            asked[0] += 1
            _, missing = await notary.prove(cell.name, ask(*older))
            assert len(missing) == len(older)

    async with cell.open() as notary, trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(again)
            for _ in range(10):
                await trio.lowlevel.checkpoint()
        blocks, missing = await notary.prove(cell.name, ask(*newer))
        assert not missing and len(verified(cell, blocks)) == 1 and asked[0] < 50
        nursery.cancel_scope.cancel()


async def test_signatures_that_were_collected_by_an_older_root_are_not_kept() -> None:
    cell = Cell()
    n1, n2, _ = cell.houses.values()
    grown = make_root((*NODES, "n4"))

    def forge(answer: linkwire.Attested) -> linkwire.Attested:
        n1.notary.follow(grown)  # a majority is three from now on
        n2.forge = lambda answer: answer
        return answer

    n2.forge = forge
    wanted = cell.send(b"1")
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        cell.root = grown
        assert not missing and len(verified(cell, blocks)[wanted[0].id].nodes) == 3


async def test_a_notary_rests_between_questions_but_not_long(autojump_clock: Any) -> None:
    cell = Cell()
    first, *others = (cell.send(b"%d" % n) for n in range(4))
    n1 = cell.houses["n1"]

    async def slow(node: str, message: Any, deadline_s: float) -> Any:
        await trio.sleep(took)
        return await n1.ask(node, message, deadline_s)

    n1.notary._links = SimpleNamespace(ask=slow)  # type: ignore[assignment]
    async with cell.open() as notary:
        took = 0.005
        await notary.prove(cell.name, ask(*first))
        async with trio.open_nursery() as nursery:
            for one in others:  # while it rests, sixteen times as long
                await trio.sleep(0.02)
                nursery.start_soon(notary.prove, cell.name, ask(*one))
        assert cell.houses["n2"].asked == 2 and cell.houses["n3"].asked == 0
        took = 1.4
        for body in (b"a", b"b"):
            began, wanted = trio.current_time(), cell.send(body)
            blocks, _ = await notary.prove(cell.name, ask(*wanted))
            assert len(blocks) == 1 and trio.current_time() - began < took + 0.11


async def test_more_blocks_than_one_question_is_for_are_asked_for_again() -> None:
    cell = Cell()
    wanted = [cell.send(b"%d" % n)[0] for n in range(PROVE_BLOCKS + 6)]
    async with cell.open() as notary:
        blocks, missing = await notary.prove(cell.name, ask(*wanted))
        assert len(blocks) == PROVE_BLOCKS
        assert missing == [Missing(one.id, Code.UNREACHABLE) for one in wanted[PROVE_BLOCKS:]]
        blocks, missing = await notary.prove(cell.name, ask(*wanted[PROVE_BLOCKS:]))
        assert len(verified(cell, blocks)) == 6 and not missing


async def test_signatures_of_the_newest_blocks_asked_for_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.notary.MAX_STATEMENTS", 4)
    cell = Cell()
    async with cell.open() as notary:
        for n in range(6):
            assert (await notary.prove(cell.name, ask(*cell.send(b"%d" % n))))[1] == []
        for one in (notary._own, notary._signed, cell.houses["n2"].notary._own):
            assert len(one) == 4
