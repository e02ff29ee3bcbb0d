"""What a node takes for the log's time (rule 14), and tells its clients: they stamp what they send by it."""

from __future__ import annotations

import trio

from relay.limits import MINUTE
from tests.cluster.journal.virtual import virtual_cell, virtually


@virtually
async def test_a_node_whose_clock_is_ahead_of_the_others_does_not_go_by_it(tmp_path):
    """Whatever its clients sent would be from the future, and refused."""
    async with virtual_cell(tmp_path) as world:
        journal = next(node.journal for node in world.running.values() if not node.journal.leads)
        await journal.append([b"one"])
        await trio.sleep(5)
        newest, wall = (await journal.read(journal.tip)).time, journal.clocks._clock.wall_ms()
        for store in journal._others():
            journal.clocks.heard(store, wall)
        assert journal.time_ms() == wall > newest
        for store in journal._others():
            journal.clocks.heard(store, wall - 60 * MINUTE)
        assert journal.time_ms() == newest
