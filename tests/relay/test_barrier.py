"""What a node has not applied yet it does not deny."""

from __future__ import annotations

import pytest
import trio

from relay.core import records
from relay.errors import Overloaded
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
