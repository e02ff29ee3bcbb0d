"""Nodes whose folds differ (rule 10): a minority begins anew with the others' state; without a majority all stop."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio

from cluster.env import RealEnv
from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.wire import ReceiptItem
from relay.delivery import Delivery
from relay.errors import OperatorError, PosthouseError
from relay.intake import Intake
from relay.journal.portal import open_portal
from relay.limits import MINUTE
from relay.observe.metrics import Metrics
from relay.steward import Steward
from tests.relay.journal.checkpoints import load_checkpoint
from tests.cluster.journal.conftest import CELL, NODES, a_cell

STRAY = records.encode_record(records.Submit(bytes(32), CELL, b"from a device that nobody knows" * 20))


class Whimsical(Mailroom):
    """A fold that remembers what only its own node knows."""

    whim = b""

    def apply(self, block):
        effects = super().apply(block)
        own = self.whim.ljust(32)
        if own not in self.state.outcomes:
            self.state.outcomes.add(block.time // MINUTE, ReceiptItem(own, 2, 0, 0, CELL))
        return effects


@pytest.fixture
async def cell(tmp_path, monkeypatch):
    """Three nodes that fold; those of `cell.whims` each in its own way, in their first life."""
    for place in ("fold", "checkpoint"):
        monkeypatch.setattr(f"relay.core.mailroom.{place}.CHECKPOINT_BYTES", 2_000)
    monkeypatch.setattr("cluster.journal.opening._LEFT_S", 0.5)
    async with open_portal() as portal, a_cell(tmp_path, lambda name: RealEnv(portal)) as world:
        world.whims = {}

        async def live(node):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.cell.run)
                saved, kind = await load_checkpoint(node.journal), Mailroom
                if node.name in world.whims and node.lives == 1:
                    kind = type("Own", (Whimsical,), {"whim": world.whims[node.name]})
                room = kind.from_checkpoint(saved[1]) if saved else kind(CELL, node.journal.log_id)
                delivery = Delivery(node.journal, room, Metrics(), node.env.clock)
                Steward(node.journal, delivery, Intake(node.journal, Metrics()), Metrics())
                await delivery.run()

        world.live = live
        yield world


async def write(world, true):
    """Blocks, until it is so."""
    with trio.fail_after(world.patience_s):
        while not true():
            for node in world.running.values():
                with suppress(PosthouseError, trio.ClosedResourceError), trio.move_on_after(1):  # its life may end
                    if node.journal is not None and node.journal.leads and not node.journal.closed:
                        await node.journal.append([STRAY])
            await trio.sleep(0.01)


def digests(node):
    return node.cell._digests


async def test_nodes_that_fold_alike_take_the_same_checkpoints_and_agree(cell):
    await cell.whole()
    nodes = list(cell.running.values())

    def compared():
        own = [set(digests(node)._own) for node in nodes]
        heard = [set(known) for node in nodes for known in digests(node)._others.values()]
        return len(heard) == 6 and len(set.intersection(*own, *heard)) >= 3

    await write(cell, compared)
    for index in set.intersection(*(set(digests(node)._own) for node in nodes)):
        assert len({digests(node)._own[index] for node in nodes}) == 1
    assert [node.lives for node in nodes] == [1, 1, 1]


@pytest.mark.parametrize("victim", NODES)  # n1 leads
async def test_one_that_differs_begins_anew_with_the_state_of_the_others(cell, victim, tmp_path):
    cell.whims = {victim: b"a whim"}
    await cell.whole()
    node = cell.running[victim]
    old = node.journal.own.store
    await write(cell, lambda: node.lives > 1 and node.journal is not None and node.journal.own.store != old)
    await write(cell, lambda: (lead := cell.leader()) is not None and old not in lead.journal.raft.members.ids
        and node.journal is not None and len(node.journal.raft.members.voters) == 3)  # fmt: skip
    assert {other.lives for name, other in cell.running.items() if name != victim} == {1}
    assert [path.name for path in (tmp_path / victim / "quarantine").iterdir()] != []
    fresh = digests(node)
    await write(cell, lambda: len(fresh._own) >= 2)
    await cell.until(lambda: any(
        fresh._own.get(index) == digest
        for other in cell.running.values() if other is not node
        for index, digest in digests(other)._own.items()
    ))  # fmt: skip


async def test_where_no_majority_agrees_everything_stops_and_nothing_is_set_aside(cell, tmp_path):
    cell.whims = {name: name.encode() for name in NODES}
    await cell.whole()
    nodes = list(cell.running.values())
    for node in nodes:
        node.may_end = True
    await write(cell, lambda: all(node.ended is not None for node in nodes))
    for node in nodes:
        assert isinstance(node.ended, OperatorError) and "no majority" in node.ended.text
        assert "Keep every node's data" in node.ended.remedy and node.lives == 1
        assert not (tmp_path / node.name / "quarantine").exists()
