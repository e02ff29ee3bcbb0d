"""A leader that is cut off: what it placed and what still waited, what that taught, and what is on its disk."""

from __future__ import annotations

from functools import partial

import trio

from cluster.core.raft import Role
from relay.errors import StoreDamaged
from tests.cluster.journal.conftest import Anything
from tests.cluster.journal.virtual import virtual_cell, virtually


@virtually
async def test_what_a_lost_leader_had_placed_leaves_nothing_behind(tmp_path):
    guards = {}
    async with virtual_cell(tmp_path, residency=lambda name: guards.setdefault(name, Anything())) as world:
        old = world.leader()
        others = [node for node in world.running.values() if node is not old]
        await old.journal.append([b"fact before"])
        with trio.CancelScope() as given_up:
            world.wires.part(old.name, *(node.name for node in others))
            async with trio.open_nursery() as nursery:
                for number in range(5):
                    nursery.start_soon(old.journal.append, [b"fact alone %d" % number])
                await trio.sleep(0.2)
                tip, log = old.journal.tip, old.journal.raft.log
                assert log.last > tip
                rows = world.machines[old.name].disk.content.rows
                assert [key for key in rows if key[0] == "fact" and key[1].startswith(b"fact alone")]  # on its disk
                await world.until(lambda: any(node.journal.leads for node in others))
                await world.leader().journal.append([b"fact together"])
                await world.until(lambda: old.journal.raft.role is not Role.LEADER)
                assert not old.journal._proposals  # whoever waited was told
                given_up.cancel()
        world.wires.heal()
        await world.until(lambda: len({node.journal.tip for node in world.running.values()}) == 1)
        await others[0].journal.append([b"fact after"])
        await world.until(lambda: len({node.journal.tip for node in world.running.values()}) == 1)
        for node in world.running.values():
            taught = [value for _, value in guards[node.name].learned]
            assert taught == [b"fact before", b"fact together", b"fact after"]
            rows = world.machines[node.name].disk.content.rows
            kept = sorted(key[1].rstrip(b"\0") for key in rows if key[0] == "fact")
            assert kept == [b"fact after", b"fact before", b"fact together"]
        assert [node.lives for node in world.running.values()] == [1, 1, 1]


@virtually
async def test_who_waits_at_a_lost_leader_is_placed_by_the_next_one(tmp_path):
    async with virtual_cell(tmp_path) as world:
        old = world.leader()
        others = [node for node in world.running.values() if node is not old]
        world.wires.part(old.name, *(node.name for node in others))
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(old.journal.append, [b"waits %d" % number])
            await world.until(lambda: any(node.journal.leads for node in others))
            world.wires.heal()
        journal = old.journal
        blocks = [await journal.read(index) for index in range(journal.first, journal.tip + 1)]
        found = [record for block in blocks for record in block.records if record.startswith(b"waits")]
        assert sorted(set(found)) == [b"waits %d" % number for number in range(5)]  # a repeat is the fold's to drop


@virtually
async def test_facts_of_blocks_that_were_not_committed_count_again_after_a_start(tmp_path):
    """They are in the store, and in no residency check: that would have to forget them when the block goes."""
    guards = {}
    async with virtual_cell(tmp_path, residency=lambda name: guards.setdefault(name, Anything())) as world:
        old = world.leader()
        others = [node for node in world.running.values() if node is not old]
        world.wires.part(old.name, *(node.name for node in others))
        with trio.move_on_after(0.2):
            await old.journal.append([b"fact alone"])
        world.kill(old.name)
        await trio.sleep(0.1)
        guards.pop(old.name)
        world.start(old.name)
        again = world.running[old.name]
        await world.until(lambda: again.journal is not None)
        chain, tip = again.journal._chain, again.journal.tip
        assert chain.last == tip + 1 and [value for _, value in chain.facts(tip + 1)] == [b"fact alone"]
        assert guards[old.name].learned == []


@virtually
async def test_what_goes_wrong_with_a_message_ends_the_journal_and_not_who_brought_it(tmp_path, monkeypatch):
    async with virtual_cell(tmp_path) as world:
        old = world.leader()
        other = next(node for node in world.running.values() if node is not old)
        other.may_end = True
        honest = other.journal.raft.receive

        def broken(message, now):
            monkeypatch.setattr(other.journal.raft, "receive", honest)
            raise StoreDamaged("block 7 is not what it was")

        monkeypatch.setattr(other.journal.raft, "receive", broken)
        await old.journal.append([b"goes on"])  # its link calls the other one's journal
        await world.until(lambda: isinstance(other.ended, StoreDamaged))
        await old.journal.append([b"and on"])


@virtually
async def test_the_next_block_is_made_while_the_one_before_waits_for_the_others(tmp_path):
    async with virtual_cell(tmp_path) as world:
        old = world.leader()
        others = [node for node in world.running.values() if node is not old]
        world.wires.part(old.name, *(node.name for node in others))
        placed = []
        async with trio.open_nursery() as nursery:
            for number in range(3):
                nursery.start_soon(old.journal.append, [b"%d" % number], partial(placed.append, number))
                await trio.sleep(0.05)
            tip, log = old.journal.tip, old.journal.raft.log
            assert placed == [0, 1, 2] and log.last == tip + 3
            world.wires.heal()
        assert old.journal.tip >= tip + 3
