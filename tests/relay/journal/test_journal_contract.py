"""What every journal means: one suite over all implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from relay.core.block import Block, check_follows
from relay.errors import ResidencyError
from relay.limits import MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_CHECKPOINT_ROW, MINUTE
from relay.ports import Journal

START = 1_800_000_000_000


async def take(journal: Journal, after: int, count: int) -> list[Block]:
    follower = journal.follow(after)
    with trio.fail_after(20):
        return [await anext(follower) for _ in range(count)]


async def test_a_new_log_is_empty(open_journal) -> None:
    async with open_journal() as journal:
        assert (journal.first, journal.tip, len(journal.log_id)) == (1, 0, 16)
        assert await journal.load_checkpoint() is None
        with pytest.raises(LookupError):
            await journal.read(1)


async def test_appends_come_back_in_order_in_one_chain(open_journal) -> None:
    batches: list[list[bytes]] = [[b"a"], [b"b", b"", b"c" * 5_000], [bytes(range(256))]]
    async with open_journal() as journal:
        for batch in batches:
            await journal.append(batch)
        assert (journal.first, journal.tip) == (1, 3)
        blocks = await take(journal, 0, 3)
        assert [list(block.records) for block in blocks] == batches
        for prev, block in zip([None, *blocks], blocks, strict=False):
            check_follows(block, prev)
        assert [await journal.read(index) for index in (1, 2, 3)] == blocks
        assert await take(journal, 1, 2) == blocks[1:]


async def test_follow_waits_for_what_is_appended_later(open_journal) -> None:
    async with open_journal() as journal:
        got: dict[int, list[bytes]] = {1: [], 2: []}

        async def follow(name: int) -> None:
            got[name] = [block.records[0] for block in await take(journal, 0, 20)]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, 1)
            nursery.start_soon(follow, 2)
            for number in range(20):
                await journal.append([b"%d" % number])
        assert got[1] == got[2] == [b"%d" % number for number in range(20)]


async def test_a_cancelled_follower_leaves_the_rest_alone(open_journal) -> None:
    async with open_journal() as journal:
        follower = journal.follow(0)
        with trio.move_on_after(0.01):
            await anext(follower)
        await journal.append([b"x"])
        assert (await anext(follower)).records == (b"x",)


@pytest.mark.parametrize("after", [-1, 3, 4])
async def test_follow_refuses_what_the_log_cannot_have(open_journal, after: int) -> None:
    async with open_journal() as journal:
        await journal.append([b"1"])
        await journal.append([b"2"])
        with pytest.raises(LookupError):
            journal.follow(after)


async def test_release_forgets_the_prefix(open_journal) -> None:
    async with open_journal() as journal:
        for number in range(10):
            await journal.append([b"%d" % number])
        slow = journal.follow(0)
        await journal.save_checkpoint(7, [b"state"])
        await journal.release(6)
        assert (journal.first, journal.tip) == (6, 10)
        with pytest.raises(LookupError):
            await journal.read(5)
        with pytest.raises(LookupError):
            journal.follow(4)
        with pytest.raises(LookupError):
            await anext(slow)
        assert [block.index for block in await take(journal, 5, 5)] == [6, 7, 8, 9, 10]
        await journal.release(3)  # already gone
        assert journal.first == 6


async def test_everything_may_be_released(open_journal) -> None:
    async with open_journal() as journal:
        for number in range(3):
            await journal.append([b"%d" % number])
        last = await journal.read(3)
        await journal.save_checkpoint(3, [])
        await journal.release(4)
        assert (journal.first, journal.tip) == (4, 3)
        follower = journal.follow(3)
        await journal.append([b"next"])
        check_follows(await anext(follower), last)


async def test_nothing_above_the_checkpoint_is_released(open_journal) -> None:
    async with open_journal() as journal:
        for number in range(3):
            await journal.append([b"%d" % number])
        with pytest.raises(ValueError, match="checkpoint"):
            await journal.release(2)
        await journal.save_checkpoint(2, [b"s"])
        with pytest.raises(ValueError, match="checkpoint"):
            await journal.release(4)
        await journal.release(3)


async def test_a_checkpoint_replaces_the_one_before(open_journal) -> None:
    large = [b"x" * MAX_CHECKPOINT_ROW, b"y" * MAX_CHECKPOINT_ROW]
    rows = [b"", b"one", *large, b"last", *(b"%d" % number for number in range(600))]
    async with open_journal() as journal:
        await journal.save_checkpoint(0, [b"empty log"])
        await journal.append([b"a"])
        await journal.save_checkpoint(1, rows)
        assert await journal.load_checkpoint() == (1, rows)
        await journal.save_checkpoint(1, [b"again"])
        assert await journal.load_checkpoint() == (1, [b"again"])
        await journal.save_checkpoint(1, [])
        assert await journal.load_checkpoint() == (1, [])
        await journal.append([b"b"])
        await journal.save_checkpoint(2, [b"s"])
        for index, row in ((1, b""), (3, b""), (2, b"x" * (MAX_CHECKPOINT_ROW + 1))):
            with pytest.raises(ValueError, match="checkpoint"):
                await journal.save_checkpoint(index, [row])
        assert await journal.load_checkpoint() == (2, [b"s"])


@pytest.mark.parametrize("records", [[], [b""] * (MAX_BLOCK_RECORDS + 1), [b"x" * MAX_BLOCK, b"y"]])
async def test_a_block_has_bounds(open_journal, records: Sequence[bytes]) -> None:
    async with open_journal() as journal:
        with pytest.raises(ValueError, match="records"):
            await journal.append(records)
        await journal.append([b""] * MAX_BLOCK_RECORDS)
        await journal.append([b"x" * MAX_BLOCK])
        assert [len(block.records) for block in await take(journal, 0, 2)] == [MAX_BLOCK_RECORDS, 1]


async def test_a_cancelled_append_is_whole_or_nothing(open_journal) -> None:
    async with open_journal() as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.append([b"never"])
        assert scope.cancelled_caught
        assert journal.tip == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.append, [b"perhaps"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await journal.append([b"after"])
        blocks = await take(journal, 0, journal.tip)
        assert [block.records[0] for block in blocks] == [b"perhaps", b"after"][-journal.tip :]


async def test_appends_and_checkpoints_and_releases_at_once(open_journal) -> None:
    async with open_journal() as journal:
        seen: list[int] = []

        async def follow() -> None:
            async for block in journal.follow(0):
                seen.append(block.index)
                if block.index % 10 == 0:
                    await journal.save_checkpoint(block.index, [b"r" * 1_000] * 3)
                    await journal.release(block.index - 5)
                if block.index == 100:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(100):
                await journal.append([b"%d" % number])
        assert seen == list(range(1, 101))
        assert journal.first == 95


# --- time (rule 14) ------------------------------------------------------------------------------
async def stamp(journal: Journal) -> int:
    await journal.append([b"t"])
    return (await journal.read(journal.tip)).time - START


async def test_time_is_the_wall_clock_and_never_goes_back(open_journal, env) -> None:
    async with open_journal() as journal:
        assert await stamp(journal) == 0
        env.clock.pass_ms(10)
        assert await stamp(journal) == 10
        env.clock.wall -= 5  # set back a little
        assert await stamp(journal) == 10
        env.clock.pass_ms(100)
        assert await stamp(journal) == 105


@pytest.mark.parametrize("jump", [MINUTE + 1, -MINUTE - 1, 10**12, -(10**12)])
async def test_a_jump_of_the_wall_clock_is_refused(open_journal, env, jump: int) -> None:
    async with open_journal() as journal:
        assert await stamp(journal) == 0
        env.clock.wall += jump
        env.clock.pass_ms(20)
        assert await stamp(journal) == 20  # by the monotonic clock
        env.clock.pass_ms(20)
        assert await stamp(journal) == 40
        env.clock.wall -= jump - 7
        assert await stamp(journal) == 47


# --- residency -----------------------------------------------------------------------------------
class Picky:
    """Refuses b"bad"; learns the others."""

    def __init__(self) -> None:
        self.known: list[bytes] = []

    def check(
        self, records: Sequence[bytes], above: Sequence[tuple[bytes, bytes]] = ()
    ) -> Sequence[tuple[bytes, bytes]]:
        if b"bad" in records:
            raise ResidencyError("not here", ordinal=records.index(b"bad"))
        return [(record.ljust(32), record) for record in records]

    def learn(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        self.known += [value for _, value in facts]


async def test_the_disk_writer_refuses_a_whole_batch(open_journal: Callable) -> None:
    guard = Picky()
    async with open_journal(residency=guard) as journal:
        await journal.append([b"good"])
        with pytest.raises(ResidencyError) as refused:
            await journal.append([b"fine", b"bad"])
        assert refused.value.ordinal == 1
        assert journal.tip == 1
        assert guard.known == [b"good"]
        await journal.append([b"fine"])
        assert [block.records for block in await take(journal, 0, 2)] == [(b"good",), (b"fine",)]
