"""What goes wrong on a simulated disk, and that it does so the same way every time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from cluster.directory.seen import Sighting
from relay.core.block import GENESIS, make_block
from relay.core.codec import digest
from relay.errors import DiskFailed, StoreDamaged, StoreError
from relay.journal.api import CheckpointHead, Hard, Place, Write
from relay.journal.rows import Sealer, check_rows, checkpoint_checksum, verify_checkpoint
from relay.limits import DISK_DEADLINE_S
from tests.relay.journal.conftest import RING
from tests.relay.journal.rigs import FRESH, another, row, rows
from tests.simulation.store import SimDisk, SimStore

HERE = Path("/simulated")


def process() -> Any:
    return SimpleNamespace(dead=False)


async def crashed(seed: int, writes: int = 3) -> tuple[SimDisk, int]:
    """A disk whose process died at some time while it wrote, and the last block that it was told of."""
    random = Random(seed)
    disk, alive = SimDisk(random, lambda: random.uniform(0.001, 0.01)), process()
    acknowledged = 0

    async def work() -> None:
        nonlocal acknowledged
        store = await disk.open(alive, HERE, FRESH)
        for number in range(1, writes + 1):
            await store.write(Write([row(number)], hard=Hard(number), facts=[(b"k" * 32, number, b"%d" % number)]))
            acknowledged = number

    async def until_death() -> None:
        with suppress(DiskFailed):
            await work()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(until_death)
        await trio.sleep(random.uniform(0.005, 0.06))
        alive.dead = True
        nursery.cancel_scope.cancel()
    return disk, acknowledged


async def test_a_crash_leaves_a_write_or_does_not(autojump_clock: Any) -> None:
    seen = set()
    for seed in range(150):
        disk, acknowledged = await crashed(seed)
        store = await disk.open(process(), HERE, FRESH)
        found = store.hard.term
        assert store.behind is None and acknowledged <= found <= acknowledged + 1
        blocks = await store.blocks(1, 9) if found else []
        assert [one.index for one in blocks] == list(range(1, found + 1))
        assert await store.facts(b"") == ([(b"k" * 32, found, b"%d" % found)] if found else [])
        seen.add((acknowledged, found))
    assert {(1, 1), (1, 2), (2, 2), (2, 3)} <= seen


async def test_the_dead_write_nothing(autojump_clock: Any) -> None:
    disk, alive = SimDisk(Random(1), lambda: 0.01), process()
    store = await disk.open(alive, HERE, FRESH)
    told: list[DiskFailed] = []
    store.on_failure = told.append

    async def write() -> None:
        with pytest.raises(DiskFailed, match="dead"):
            await store.write(Write([row(1)]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        await trio.sleep(0.005)
        alive.dead = True
        again = await disk.open(process(), HERE, FRESH)  # at once; what the dead process began has ended by then
        before = again.hard, await again.ends()
        await trio.sleep(1)
        assert before == (again.hard, await again.ends()) and not told
    with pytest.raises(DiskFailed, match="dead"):
        store.check()


@pytest.mark.parametrize(("number", "text"), [(errno.EIO, "Input/output error"), (errno.ENOSPC, "No space left")])
async def test_a_failing_disk_fails_the_store_for_good(number: int, text: str) -> None:
    for after in range(6):
        disk = SimDisk(Random(after))
        store = await disk.open(process(), HERE, FRESH)
        told: list[DiskFailed] = []
        store.on_failure = told.append
        disk.fail(number, after)
        acknowledged = 0
        with pytest.raises(DiskFailed, match=text):
            for index in range(1, 9):
                await store.write(Write([row(index)]))
                acknowledged = index
        disk.mend()
        with pytest.raises(DiskFailed, match=text):
            await store.ends()
        assert len(told) == 1
        await store.close()
        again = await disk.open(process(), HERE, FRESH)
        ends = await again.ends()
        assert again.behind is None and acknowledged <= (ends[1] if ends else 0) <= acknowledged + 1
        assert acknowledged == after // 2


async def test_a_full_disk_can_be_read(autojump_clock: Any) -> None:
    disk = SimDisk(Random(1))
    store = await disk.open(process(), HERE, FRESH)
    await store.write(Write([row(1)]))
    disk.fail(errno.ENOSPC)
    assert await store.ends() == (1, 1)


async def test_a_stall_delays_and_a_long_one_fails(autojump_clock: Any) -> None:
    disk = SimDisk(Random(1), lambda: 0.001)
    store = await disk.open(process(), HERE, FRESH)
    disk.stall(5)
    began = trio.current_time()
    await store.write(Write([row(1)]))
    assert 5 <= trio.current_time() - began < 5.1
    with trio.move_on_after(1) as scope:
        disk.stall(3)
        await store.write(Write([row(2)]))  # what began completes
        assert trio.current_time() - began > 8
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught and await store.ends() == (1, 2)
    disk.stall(DISK_DEADLINE_S + 1)
    with pytest.raises(DiskFailed, match="did not end"):
        await store.ends()
    with pytest.raises(DiskFailed, match="did not end"):
        await store.write(Write())


async def a_sealed_log(disk: SimDisk) -> tuple[SimStore, Sealer, CheckpointHead]:
    sealer = Sealer(RING, FRESH.log_id, Random(1).randbytes)
    store = await disk.open(process(), HERE, FRESH)
    prev = GENESIS
    for index in range(1, 6):
        block = make_block(FRESH.log_id, index, prev, index, [b"record", bytes(50)])
        prev = block.hash
        fact = (bytes([index]) * 32, index, sealer.fact(bytes([index]) * 32, b"value"))
        await store.write(Write([sealer.block_row(block, 3)], facts=[fact]))
    plain = [b"one", b"two"]
    await store.add_checkpoint_rows(1, 0, [sealer.checkpoint_row(Place(1, n), one) for n, one in enumerate(plain)])
    head = CheckpointHead(1, 4, 2, checkpoint_checksum(FRESH.log_id, 4, [digest(row) for row in plain]))
    await store.finish_checkpoint(head)
    return store, sealer, head


async def read_all(store: SimStore, sealer: Sealer, head: CheckpointHead) -> None:
    """As a journal does. Raises StoreError."""
    blocks = await store.blocks(1, 5)
    check_rows(blocks, 1)
    for one in blocks:
        sealer.block(one)
    for key, _, sealed in await store.facts(b""):
        sealer.open_fact(key, sealed)
    opened = list(map(sealer.open_checkpoint_row, await store.checkpoint_rows(1, 0)))
    verify_checkpoint(head, FRESH.log_id, opened)


async def test_every_flipped_bit_is_found() -> None:
    kinds = set()
    for seed in range(120):
        disk = SimDisk(Random(seed))
        store, sealer, head = await a_sealed_log(disk)
        await read_all(store, sealer, head)
        kinds.add(disk.flip()[0])
        with pytest.raises(StoreError):
            await read_all(store, sealer, head)
    assert kinds == {"block", "fact", "row"}


async def test_a_lost_tail_and_an_old_copy_are_behind(autojump_clock: Any) -> None:
    disk = SimDisk(Random(1))
    store = await disk.open(process(), HERE, FRESH)
    await store.write(Write(rows(1, 5)))
    await store.close()
    assert disk.lose_tail() == 0  # it was folded
    backup, alive = disk.copy(), process()
    store = await disk.open(alive, HERE, FRESH)
    await store.write(Write([row(6)]))
    await store.write(Write([row(7)]))
    alive.dead = True
    assert disk.lose_tail(1) == 1
    store = await disk.open(alive := process(), HERE, FRESH)
    assert store.behind is not None and await store.ends() == (1, 6)
    alive.dead = True
    disk.restore(backup, mark=False)
    store = await disk.open(alive := process(), HERE, FRESH)
    assert store.behind is not None and await store.ends() == (1, 5)
    with pytest.raises(StoreDamaged, match="confirmed history is missing"):
        await store.write(Write())
    await store.close()
    disk.set_aside()
    assert not disk.store_exists() and len(list(disk.at_rest())) == 5 and not list(disk.rows())
    disk.wipe()
    assert not list(disk.at_rest())
    store = await disk.open(process(), HERE, another(store=b"T" * 16))
    assert store.behind is None and store.meta.store == b"T" * 16


async def test_what_was_seen_is_kept(autojump_clock: Any) -> None:
    disk, alive = SimDisk(Random(1), lambda: 0.01), process()
    async with disk.open_seen(alive) as seen, trio.open_nursery() as nursery:
        for version in (1, 3, 2):
            nursery.start_soon(seen.raise_to, b"user", Sighting(version, b""))
    async with disk.open_seen(process()) as seen:
        assert await seen.highest(b"user") == Sighting(3, b"") == await seen.raise_to(b"user", Sighting(2, b""))
        disk.fail(errno.EIO)
        for call in (lambda: seen.highest(b"user"), lambda: seen.highest(b"other"), seen.failed):
            with pytest.raises(DiskFailed):
                await call()


async def test_the_same_seed_gives_the_same_end(autojump_clock: Any) -> None:
    async def state(seed: int, change: Callable[[SimDisk], object]) -> object:
        disk = SimDisk(Random(seed))
        await a_sealed_log(disk)
        change(disk)
        assert disk.content is not None
        return disk.content.rows

    assert await state(7, SimDisk.flip) == await state(7, SimDisk.flip) != await state(8, SimDisk.flip)
