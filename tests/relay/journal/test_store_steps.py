"""What is let go goes in steps: the log waits for each transaction, and SQLite overwrites all that one deletes."""

from __future__ import annotations

from dataclasses import replace


from relay.journal.api import BlockRow, CheckpointHead, Write
from tests.relay.journal.rigs import Rig, cleared, opened, row


def large(first: int, last: int) -> list[BlockRow]:
    return [replace(row(index), sealed=b"x" * 400_000) for index in range(first, last + 1)]


async def test_a_large_checkpoint_goes_in_steps(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write([row(1)]))
        for ordinal in range(12):
            await store.add_checkpoint_rows(1, ordinal, [b"x" * 400_000])
        await store.finish_checkpoint(CheckpointHead(1, 1, 12, b"x" * 32))
        assert await cleared(store, 1) == 1
        assert await cleared(store, 2) > 3
        assert await store.checkpoint_rows(1, 0) == []


async def test_staged_blocks_go_in_steps(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.stage_blocks(large(2, 13))
        assert await cleared(store, 0) > 3
        assert await cleared(store, 0) == 1


async def test_large_blocks_are_released_in_steps(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write([row(1), *large(2, 13)]))
        first = await store.release(1, 14)
        assert 1 < first < 8
        assert await store.ends() == (first, 13)
        while first < 14:
            first = await store.release(first, 14)
        assert first == 14 and await store.ends() is None


async def test_what_a_kill_between_two_steps_leaves_is_there_from_its_beginning_and_goes_later(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write([row(1), *large(2, 13)]))
        for ordinal in range(12):
            await store.add_checkpoint_rows(1, ordinal, [bytes([ordinal]) * 400_000])
        await store.finish_checkpoint(CheckpointHead(1, 13, 12, b"x" * 32))
        await store.add_checkpoint_rows(2, 0, [b"new"])
        await store.finish_checkpoint(CheckpointHead(2, 13, 1, b"y" * 32))
        assert await store.clear_unfinished(2)
        first = await store.release(1, 14, b"members")
        await rig.killed(store)
    async with opened(rig) as store:
        assert store.behind is None and await store.checkpoint() == CheckpointHead(2, 13, 1, b"y" * 32)
        assert await store.checkpoint_rows(2, 0) == [((2, 0), b"new")]
        assert (await store.checkpoint_rows(1, 0))[0].sealed == bytes(400_000)
        assert (store.meta.first, store.meta.members) == (first, b"members")
        assert store.meta.prev == row(first - 1).hash and await store.ends() == (first, 13)
        while first < 14:
            first = await store.release(first, 14)
        assert await cleared(store, 2) > 1
        assert await store.checkpoint_rows(1, 0) == [] and await store.checkpoint_rows(2, 0) == [((2, 0), b"new")]
