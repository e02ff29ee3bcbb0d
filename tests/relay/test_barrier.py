"""What a node has not applied yet it does not deny."""

from __future__ import annotations

import pytest
import trio

from relay.barrier import Barrier
from relay.core import records
from relay.errors import Overloaded
from relay.limits import BARRIER_EVERY_S, BARRIER_S
from tests.relay.core.mailroom.conftest import User


async def test_what_was_committed_before_is_applied_after(open_cell, autojump_clock):
    async with open_cell() as (cell, _):
        bob = User("bob", cell.journal.cell)
        await cell.journal.append([records.encode_record(records.Home(bob.record("b1")))])
        assert bob.id not in cell.state.users
        await cell.barrier.reach()
        assert bob.id in cell.state.users


async def test_those_who_ask_at_the_same_time_share_a_block(open_cell, autojump_clock):
    async with open_cell() as (cell, _):
        before = cell.journal.tip
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(cell.barrier.reach)
        assert cell.journal.tip - before <= 2


async def test_without_an_answer_of_the_cell_nothing_can_be_said(open_cell, autojump_clock, monkeypatch):
    async with open_cell() as (cell, _):
        monkeypatch.setattr(cell.journal, "append", hang)
        with pytest.raises(Overloaded):
            await cell.barrier.reach()


async def hang(items, placed):
    await trio.sleep_forever()


async def test_what_is_written_is_applied_before_anything_is_denied(autojump_clock):
    class Behind:
        tip, index = 7, 6

        def offer(self, batch, written):
            written()

        async def applied(self, index):
            await trio.sleep(1)
            self.index = index

    cell = Behind()
    await Barrier(cell, cell, cell).reach()
    assert cell.index == cell.tip


# --- for other cells -----------------------------------------------------------------------------
async def test_another_cell_causes_a_block_a_second_at_most(open_cell, autojump_clock):
    """However often, and by however many of its nodes, it asks for nobody; the others do not wait for it."""
    async with open_cell() as (cell, _):
        before, began = cell.journal.tip, trio.current_time()

        async def ask() -> None:
            while trio.current_time() < began + 10:
                await cell.barrier.reach("sauda/1")

        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(ask)
            await trio.sleep(5.5)
            asked = trio.current_time()
            await cell.barrier.reach("vika/1")
            await cell.barrier.reach()
            assert trio.current_time() - asked < BARRIER_EVERY_S / 2
        assert cell.journal.tip - before <= 2 + 1 + (trio.current_time() - began) / BARRIER_EVERY_S


async def test_who_shares_a_block_has_everything_that_was_committed_when_he_asked(open_cell, autojump_clock):
    async with open_cell() as (cell, _):
        await cell.barrier.reach("sauda/1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cell.barrier.reach, "sauda/1")  # waits for its turn
            await trio.sleep(BARRIER_EVERY_S / 2)
            bob = User("bob", cell.journal.cell)
            await cell.journal.append([records.encode_record(records.Home(bob.record("b1")))])
            await cell.barrier.reach("sauda/1")  # and so does this one: with it
            assert bob.id in cell.state.users


async def test_whoever_leads_is_cancelled_and_another_one_asks(open_cell, autojump_clock):
    async with open_cell() as (cell, _):
        await cell.barrier.reach("sauda/1")
        done = []

        async def follow() -> None:
            await cell.barrier.reach("sauda/1")
            done.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(BARRIER_EVERY_S / 2):
                nursery.start_soon(follow)
                await cell.barrier.reach("sauda/1")
        assert done


async def test_without_a_majority_nobody_waits_for_those_before_him(open_cell, autojump_clock, monkeypatch):
    async with open_cell() as (cell, _):
        monkeypatch.setattr(cell.journal, "append", hang)
        refused = []

        async def ask() -> None:
            with pytest.raises(Overloaded):
                await cell.barrier.reach("sauda/1")
            refused.append(trio.current_time())

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(ask)
        assert len(refused) == 10 and max(refused) - began <= BARRIER_S + BARRIER_EVERY_S
