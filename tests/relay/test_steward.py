"""The steward: checkpoints are of the blocks at which they were due, and hold nobody up; the log follows what waits; a
carry that did not work is put off, tried again, and loses nothing meanwhile."""

from __future__ import annotations

import pytest
import trio

from relay import steward
from relay.core import wire
from relay.core.mailroom import Mailroom
from relay.core.mailroom.effects import CheckpointDue
from relay.core.records import Carry, decode_record
from relay.errors import Overloaded, ResidencyError, StoreDamaged
from tests.relay.journal.checkpoints import load_checkpoint
from tests.relay.test_office import people, seal, submit


class Trouble:
    """What stands in the way of carries until `over`; `tries` are the times of those that failed."""

    def __init__(self, cell, kind, monkeypatch) -> None:
        self.tries, self.over = [], False
        read, append, offer = cell.journal.read, cell.journal.append, cell.intake.offer

        def fails(*items: bytes) -> bool:
            if self.over or not any(isinstance(decode_record(item), Carry) for item in items):
                return False
            if trio.current_time() not in self.tries:  # the intake tries the batches of a refused block one by one
                self.tries.append(trio.current_time())
            return True

        async def damaged(index):
            if not self.over:
                self.tries.append(trio.current_time())
                raise StoreDamaged(f"block {index} is missing")
            return await read(index)

        async def refusing(items, placed):
            if fails(*items):
                raise ResidencyError("not here")
            await append(items)

        def full(items, *rest, **more):
            if fails(*items):
                raise Overloaded("too much waits")
            offer(items, *rest, **more)

        def swallowing(items, *rest, **more):
            if not fails(*items):
                offer(items, *rest, **more)

        what, name, way = {
            "damaged": (cell.journal, "read", damaged),
            "refused": (cell.journal, "append", refusing),
            "full": (cell.intake, "offer", full),
            "not applied in time": (cell.intake, "offer", swallowing),
        }[kind]
        monkeypatch.setattr(what, name, way)


def checkpoints_every(size, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.fold.CHECKPOINT_BYTES", size)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_BYTES", size)


@pytest.mark.parametrize("ahead", [300, 1_000_000])
async def test_a_checkpoint_is_of_the_very_block_at_which_it_was_due(open_cell, autojump_clock, monkeypatch, ahead):
    """However many blocks come meanwhile; and whoever else wants to run does, between any two rows."""
    checkpoints_every(8_000, monkeypatch)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.ROW_BYTES", 100)
    monkeypatch.setattr(steward, "CHECKPOINT_AHEAD", ahead)
    saved, blocks, passes, at = {}, [], [0], []
    alice, bob = people()

    async def turn_round():
        while True:
            passes[0] += 1
            await trio.lowlevel.checkpoint()

    async with open_cell() as (cell, nursery):
        keep = cell.journal.save_checkpoint

        async def slowly(index, rows):
            saved[index] = [row async for row in rows]
            await trio.sleep(0.3)  # the log goes on
            await keep(index, saved[index])

        make = cell.delivery.room.checkpoint

        def watched():
            for row in make():
                at.append(passes[0])
                yield row

        monkeypatch.setattr(cell.journal, "save_checkpoint", slowly)
        monkeypatch.setattr(cell.delivery.room, "checkpoint", watched)
        apply = cell.delivery.apply
        monkeypatch.setattr(cell.delivery, "apply", lambda block: (blocks.append(block), apply(block)))
        a1, _ = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        async with trio.open_nursery() as round_about:
            round_about.start_soon(turn_round)
            for n in range(60):
                await cell.office.submit(a1, [wire.SubmitItem("", seal(cell, bob.id, body=n.to_bytes(2) * 200))])
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            round_about.cancel_scope.cancel()
        await trio.sleep(3)
    room, due = Mailroom(cell.journal.cell, cell.journal.log_id), {}
    for block in blocks:
        if CheckpointDue() in room.apply(block):
            due[block.index] = list(room.checkpoint())
    assert saved == due and len(due) >= 2
    first = at[: len(next(iter(saved.values())))]
    assert first[-1] - first[0] >= len(first) - 2 > 3


async def test_the_log_follows_what_waits_not_what_has_passed(open_cell, autojump_clock, monkeypatch):
    """Also where its oldest stretch is full of what nobody collects."""
    checkpoints_every(20_000, monkeypatch)
    monkeypatch.setattr(steward, "CARRY_STRETCH", 20_000)
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, _ = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        waiting = [seal(cell, bob.id, body=n.to_bytes(2) * 300) for n in range(40)]
        for one in waiting:
            await submit(cell, a1, one)
        kept = []
        for n in range(600):
            await submit(cell, a1, seal(cell, alice.id, body=n.to_bytes(2) * 300))
            cell.office.ack(a1, a1.of(wire.Deliver)[-1].position)
            await trio.sleep(0.05)
            kept.append(cell.state.blocks.bytes)
        assert cell.state.log_bytes > 450_000 and max(kept) < 40 * 800 * 4 + 4 * 20_000
        assert cell.metrics.carried._value.get() >= 40
        again = await cell.join(nursery, bob, "b2")
        await trio.sleep(1)
        assert [deliver.envelope for deliver in again.of(wire.Deliver)] == waiting


@pytest.mark.parametrize("kind", ["damaged", "refused", "full", "not applied in time"])
async def test_a_carry_that_failed_is_tried_again(open_cell, autojump_clock, monkeypatch, kind):
    checkpoints_every(20_000, monkeypatch)
    monkeypatch.setattr(steward, "CARRY_STRETCH", 20_000)
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, _ = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        waiting = seal(cell, bob.id, body=b"nobody of bob's acks it")
        await submit(cell, a1, waiting)
        trouble = Trouble(cell, kind, monkeypatch)
        for n in range(300):
            await submit(cell, a1, seal(cell, alice.id, body=n.to_bytes(2) * 300))
            cell.office.ack(a1, a1.of(wire.Deliver)[-1].position)
            await trio.sleep(0.05)
        first = cell.journal.first
        await trio.sleep(100 - (trio.current_time() - trouble.tries[0]))
        put_off = [after - before for before, after in zip(trouble.tries, trouble.tries[1:], strict=False)]
        assert len(put_off) == (2 if kind == "not applied in time" else 3)  # 30 s, and 5 s where it is waited for
        assert min(put_off) >= steward._PUT_OFF_S and cell.journal.first == first
        assert not cell.metrics.carried._value.get()

        trouble.over = True
        await trio.sleep(steward._PUT_OFF_S + 2 * steward._LOOK_S)
        assert cell.metrics.carried._value.get() >= 1
        await cell.steward.save()
        assert cell.journal.first > first  # what nobody needs any more has gone
        again = await cell.join(nursery, bob, "b2")
        await trio.sleep(1)
        assert [deliver.envelope for deliver in again.of(wire.Deliver)] == [waiting]


async def test_what_is_found_to_rot_while_a_checkpoint_is_saved_has_another_saved(
    open_cell, autojump_clock, monkeypatch
):
    """It may have rows of the one before, which are the rotten ones."""
    async with open_cell() as (cell, _):
        keep, saved = cell.journal.save_checkpoint, []

        async def found(index, rows):
            saved.append(index)
            if len(saved) == 1:
                cell.steward.renew()
            await keep(index, rows)

        monkeypatch.setattr(cell.journal, "save_checkpoint", found)
        cell.steward.renew()
        await trio.sleep(20)
        assert len(saved) == 2


async def test_a_checkpoint_that_rotted_is_saved_anew_even_when_nobody_writes(open_cell, autojump_clock):
    async with open_cell() as (cell, _):
        await cell.steward.save()
        before = await load_checkpoint(cell.journal)
        cell.steward.renew()
        await trio.sleep(10)
        saved = await load_checkpoint(cell.journal)
        assert saved[0] == (before[0] if before else 0) + 1  # of a block that is sure to be there
        await trio.sleep(10)
        assert await load_checkpoint(cell.journal) == saved


async def test_waiting_for_the_checkpoint_before_counts_as_standing_still(open_cell, autojump_clock, monkeypatch):
    """Whatever is written or let go for that one: no block is applied meanwhile."""
    async with open_cell() as (cell, nursery):
        async def stood_still():
            return cell.metrics.registry.get_sample_value("posthouse_checkpoint_still_seconds_sum") or 0.0

        await cell.join(nursery, people()[0], "a1")
        keep = cell.journal.save_checkpoint

        async def slowly(index, rows):
            await keep(index, rows)
            await trio.sleep(7)

        monkeypatch.setattr(cell.journal, "save_checkpoint", slowly)
        nursery.start_soon(cell.steward.save)
        await trio.sleep(1)
        before = await stood_still()
        cell.delivery._due = True
        cell.steward._tick()
        await trio.sleep(20)
        assert await stood_still() - before == pytest.approx(6, abs=0.5)
