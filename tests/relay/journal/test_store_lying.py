"""What one checkpoint has as the one before had it lies in the store once: the contract of every store."""

from __future__ import annotations

from relay.journal.api import CheckpointHead, LogStore, Place, Write
from tests.relay.journal.rigs import Rig, cleared, opened, rows


async def generation_of(store: LogStore, generation: int) -> list[bytes]:
    found = list[bytes]()
    while batch := await store.checkpoint_rows(generation, len(found)):
        found += [row.sealed for row in batch]
    return found


async def test_what_two_checkpoints_have_lies_there_once(rig: Rig) -> None:
    old = [b"0" * 9_000, b"1" * 9_000, b"2" * 9_000]
    async with opened(rig) as store:
        await store.write(Write(rows(1, 9)))
        await store.add_checkpoint_rows(1, 0, old)
        await store.finish_checkpoint(CheckpointHead(1, 1, 3, b"x" * 32))
        await store.add_checkpoint_rows(2, 0, [b"new", Place(1, 1)])
        await store.add_checkpoint_rows(2, 2, [Place(1, 0)])
        await cleared(store, 1)
        assert await generation_of(store, 1) == old and await store.checkpoint_rows(2, 0) == []
        await store.add_checkpoint_rows(2, 0, [b"new", Place(1, 1)])
        await store.add_checkpoint_rows(2, 2, [Place(1, 0)])
        await store.finish_checkpoint(CheckpointHead(2, 2, 3, b"y" * 32))
        await cleared(store, 2, 1)  # somebody reads the one before
        assert await generation_of(store, 1) == old
    async with opened(rig) as store:
        await cleared(store, 2)
        assert await generation_of(store, 2) == [b"new", old[1], old[0]]
        assert [(await store.checkpoint_rows(2, at))[0].place for at in (1, 2)] == [(1, 1), (1, 0)]
        await store.add_checkpoint_rows(3, 0, [Place(1, 1), Place(2, 0)])
        await store.finish_checkpoint(CheckpointHead(3, 3, 2, b"z" * 32))
        await cleared(store, 3)
        assert await generation_of(store, 3) == [old[1], b"new"]
        assert [row.sealed for row in await store.checkpoint_rows(1, 1)] == [old[1]]
        assert await store.checkpoint_rows(2, 1) == []
        assert await cleared(store, 3) == 1


async def test_a_row_whose_bytes_are_gone_says_so(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write(rows(1, 2)))
        await store.add_checkpoint_rows(1, 0, [b"1", Place(7, 7)])
        place, sealed = (await store.checkpoint_rows(1, 1))[0]
        assert place == (7, 7) and not sealed
