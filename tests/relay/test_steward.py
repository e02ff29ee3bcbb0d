"""The steward: a carry that did not work is put off, tried again, and loses nothing meanwhile."""

from __future__ import annotations

import pytest
import trio

from relay import steward
from relay.core import wire
from relay.core.records import Carry, decode_record
from relay.errors import Overloaded, ResidencyError, StoreDamaged
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

        async def refusing(items):
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


@pytest.mark.parametrize("kind", ["damaged", "refused", "full", "not applied in time"])
async def test_a_carry_that_failed_is_tried_again(open_cell, autojump_clock, monkeypatch, kind):
    monkeypatch.setattr(steward, "CHECKPOINT_BYTES", 20_000)
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
