"""The intake alone: what it takes, and in which batches it goes on."""

from __future__ import annotations

import pytest
import trio

from relay.errors import Overloaded, ResidencyError
from relay.intake import LAZY_BUSY_S, LAZY_S, Intake
from relay.limits import INTAKE_AHEAD, OFFER_BYTES
from relay.observe.metrics import Metrics
from relay.observe.pulse import Pulse


async def test_a_full_intake_says_so_and_takes_nothing():
    intake = Intake(None, Metrics(), max_bytes=2 * OFFER_BYTES + 100)
    intake.offer([bytes(60)])
    with pytest.raises(Overloaded):
        intake.offer([bytes(60)])


async def test_small_records_take_room_for_what_is_kept_of_them():
    """Without a majority every lookup of nobody leaves a record of two bytes, and an object of hundreds."""
    intake = Intake(None, Metrics(), max_bytes=10 * OFFER_BYTES)
    with pytest.raises(Overloaded):
        for _ in range(10):
            intake.offer([b"x"])


async def test_a_batch_follows_as_soon_as_the_one_before_has_its_place(autojump_clock):
    class Slow:
        log, tip, first = [], 0, 1

        async def append(self, items, placed):
            self.log.append(items)
            await trio.sleep(1)
            placed()
            await trio.sleep(99)

    journal = Slow()
    intake = Intake(journal, Metrics(), max_bytes=2 * INTAKE_AHEAD * (OFFER_BYTES + 1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        intake.offer([b"0"])
        for _ in range(1, 2 * INTAKE_AHEAD):
            await trio.sleep(0.6)
            intake.offer([b"x"])
        assert journal.log[:3] == [[b"0"], [b"x"], [b"x", b"x"]]  # natural group commit
        await trio.sleep(50)
        assert len(journal.log) == INTAKE_AHEAD  # the others wait
        with pytest.raises(Overloaded):  # what is under way takes room, too
            intake.offer([b"one more"])
        await trio.sleep(200)
        assert sum(map(len, journal.log)) == 2 * INTAKE_AHEAD
        intake.offer([b"one more"])
        nursery.cancel_scope.cancel()


async def test_a_busy_node_waits_for_the_batch_before(autojump_clock):
    class Slow:
        log, tip, first, seconds = [], 0, 1, 1.0

        async def append(self, items, placed):
            self.log.append(items)
            placed()
            await trio.sleep(self.seconds)

    journal, pulse = Slow(), Pulse()
    pulse.busy = True
    intake = Intake(journal, Metrics(), pulse)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        for number in range(10):
            intake.offer([bytes([number])])
            await trio.sleep(0.3)
        assert [len(batch) for batch in journal.log] == [1, 3, 3]
        await trio.sleep(3)
        journal.log.clear()
        journal.seconds = 0.001
        for round_s in (0.0, 0.02):
            for _ in range(200):
                pulse.committed(0.001)
                pulse.gave(round_s)
            every = pulse.every_s
            journal.log.clear()
            for _ in range(2):  # the one before is long committed, but not long begun
                intake.offer([b"x"])
                await trio.sleep(every / 3)
            assert len(journal.log) == 1
            await trio.sleep(every)
            assert len(journal.log) == 2
            await trio.sleep(1)
        journal.seconds = 1
        pulse.busy = False
        await trio.sleep(1)
        intake.offer([b"x"])
        await trio.sleep(0.1)
        intake.offer([b"x"])
        await trio.sleep(0.1)
        assert len(journal.log) == 4
        nursery.cancel_scope.cancel()


async def test_what_nobody_waits_for_rides_along_and_while_the_node_is_busy_waits_longer_for_that(autojump_clock):
    class Quick:
        log, tip, first = [], 0, 1

        async def append(self, items, placed):
            self.log.append((trio.current_time(), len(items)))
            placed()

    journal, pulse = Quick(), Pulse()
    intake = Intake(journal, Metrics(), pulse)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(intake.run)
        for busy, alone_s in ((False, LAZY_S), (True, LAZY_BUSY_S)):
            pulse.busy = busy
            began = trio.current_time()
            intake.offer([b"ack"], lazily=True)
            await trio.sleep(alone_s / 2)
            intake.offer([b"ack"], lazily=True)
            await trio.sleep(alone_s)
            assert journal.log[-1] == (pytest.approx(began + alone_s), 2)
            began = trio.current_time()
            intake.offer([b"ack"], lazily=True)
            await trio.sleep(alone_s / 2)
            intake.offer([b"mail"])
            await trio.sleep(alone_s)
            assert journal.log[-1] == (pytest.approx(began + alone_s / 2), 2)
        assert len(journal.log) == 4
        nursery.cancel_scope.cancel()


async def test_what_the_disk_writer_refuses_hurts_only_its_own_batch(autojump_clock):
    class Strict:
        log, tip, first = [], 0, 1

        async def append(self, items, placed=None):
            await trio.lowlevel.checkpoint()
            if b"foreign" in items:
                raise ResidencyError("not here")
            self.log += items

    journal, told = Strict(), []
    intake = Intake(journal, Metrics())
    intake.offer([b"one"])
    intake.offer([b"two", b"foreign"], told.append)
    intake.offer([b"three"])
    with trio.move_on_after(1):
        await intake.run()
    assert journal.log == [b"one", b"three"] and len(told) == 1
