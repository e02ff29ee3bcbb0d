"""What every journal means: one suite over all implementations. `base` is the tip when a test begins: 0 but for the
replicated ones, whose log begins with blocks of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import trio

from relay.core.block import Block, check_follows
from relay.errors import ResidencyError
from relay.limits import MAX_BLOCK, MAX_BLOCK_RECORDS, MAX_CHECKPOINT_ROW, MINUTE
from relay.ports import Journal
from tests.patience import PATIENCE_S
from tests.relay.journal.checkpoints import load_checkpoint


async def take(journal: Journal, after: int, count: int) -> list[Block]:
    follower = journal.follow(after)
    with trio.fail_after(PATIENCE_S):
        return [await anext(follower) for _ in range(count)]


async def test_a_new_log_is_empty(open_journal, kind: str) -> None:
    async with open_journal() as journal:
        base = journal.tip if kind.startswith("raft") else 0
        assert (journal.first, journal.tip, len(journal.log_id)) == (1, base, 16)
        assert await load_checkpoint(journal) is None
        with pytest.raises(LookupError):
            await journal.read(base + 1)


async def test_appends_come_back_in_order_in_one_chain(open_journal) -> None:
    batches: list[list[bytes]] = [[b"a"], [b"b", b"", b"c" * 5_000], [bytes(range(256))]]
    async with open_journal() as journal:
        base = journal.tip
        for batch in batches:
            await journal.append(batch)
        assert (journal.first, journal.tip) == (1, base + 3)
        blocks = await take(journal, base, 3)
        assert [list(block.records) for block in blocks] == batches
        assert [block.index for block in blocks] == [base + 1, base + 2, base + 3]
        whole = await take(journal, 0, base + 3)
        for prev, block in zip([None, *whole], whole, strict=False):
            check_follows(block, prev)
        assert [await journal.read(index) for index in range(1, base + 4)] == whole
        assert await take(journal, base + 1, 2) == blocks[1:] == whole[-2:]


async def test_what_has_its_place_comes_before_what_is_appended_next(open_journal) -> None:
    async with open_journal() as journal:
        base = journal.tip
        async with trio.open_nursery() as nursery:
            for number in range(30):
                placed = trio.Event()

                async def append(record: bytes, placed: trio.Event) -> None:
                    await journal.append([record], placed.set)
                    placed.set()

                nursery.start_soon(append, b"%d" % number, placed)
                await placed.wait()
        blocks = [await journal.read(index) for index in range(base + 1, journal.tip + 1)]
        assert [record for block in blocks for record in block.records] == [b"%d" % number for number in range(30)]


async def test_follow_waits_for_what_is_appended_later(open_journal) -> None:
    async with open_journal() as journal:
        base = journal.tip
        got: dict[int, list[bytes]] = {1: [], 2: []}

        async def follow(name: int) -> None:
            got[name] = [block.records[0] for block in await take(journal, base, 20)]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, 1)
            nursery.start_soon(follow, 2)
            for number in range(20):
                await journal.append([b"%d" % number])
        assert got[1] == got[2] == [b"%d" % number for number in range(20)]


async def test_a_cancelled_follower_leaves_the_rest_alone(open_journal) -> None:
    async with open_journal() as journal:
        follower = journal.follow(journal.tip)
        with trio.move_on_after(0.01):
            await anext(follower)
        await journal.append([b"x"])
        assert (await anext(follower)).records == (b"x",)


@pytest.mark.parametrize("beyond", [None, 1, 2])
async def test_follow_refuses_what_the_log_cannot_have(open_journal, beyond: int | None) -> None:
    async with open_journal() as journal:
        await journal.append([b"1"])
        await journal.append([b"2"])
        with pytest.raises(LookupError):
            journal.follow(-1 if beyond is None else journal.tip + beyond)


async def test_release_forgets_the_prefix(open_journal) -> None:
    async with open_journal() as journal:
        base = journal.tip
        for number in range(10):
            await journal.append([b"%d" % number])
        slow = journal.follow(0)
        await journal.save_checkpoint(base + 7, [b"state"])
        await journal.release(base + 6)
        assert (journal.first, journal.tip) == (base + 6, base + 10)
        with pytest.raises(LookupError):
            await journal.read(base + 5)
        with pytest.raises(LookupError):
            journal.follow(base + 4)
        with pytest.raises(LookupError):
            await anext(slow)
        assert [block.index - base for block in await take(journal, base + 5, 5)] == [6, 7, 8, 9, 10]
        await journal.release(base + 3)  # already gone
        assert journal.first == base + 6


async def test_everything_may_be_released(open_journal) -> None:
    async with open_journal() as journal:
        for number in range(3):
            await journal.append([b"%d" % number])
        tip = journal.tip
        last = await journal.read(tip)
        await journal.save_checkpoint(tip, [])
        await journal.release(tip + 1)
        assert (journal.first, journal.tip) == (tip + 1, tip)
        follower = journal.follow(tip)
        await journal.append([b"next"])
        check_follows(await anext(follower), last)


async def test_nothing_above_the_checkpoint_is_released(open_journal) -> None:
    async with open_journal() as journal:
        base = journal.tip
        for number in range(3):
            await journal.append([b"%d" % number])
        with pytest.raises(ValueError, match="checkpoint"):
            await journal.release(base + 2)
        await journal.save_checkpoint(base + 2, [b"s"])
        with pytest.raises(ValueError, match="checkpoint"):
            await journal.release(base + 4)
        await journal.release(base + 3)


async def test_a_checkpoint_replaces_the_one_before(open_journal) -> None:
    large = [b"x" * MAX_CHECKPOINT_ROW, b"y" * MAX_CHECKPOINT_ROW]
    rows = [b"", b"one", *large, b"last", *(b"%d" % number for number in range(600))]
    async with open_journal() as journal:
        base = journal.tip
        await journal.save_checkpoint(base, [b"empty log"])
        await journal.append([b"a"])
        await journal.save_checkpoint(base + 1, rows)
        assert await load_checkpoint(journal) == (base + 1, rows)
        await journal.save_checkpoint(base + 1, [b"again"])
        assert await load_checkpoint(journal) == (base + 1, [b"again"])
        await journal.save_checkpoint(base + 1, [])
        assert await load_checkpoint(journal) == (base + 1, [])
        await journal.append([b"b"])
        await journal.save_checkpoint(base + 2, [b"s"])
        for index, row in ((1, b""), (3, b""), (2, b"x" * (MAX_CHECKPOINT_ROW + 1))):
            with pytest.raises(ValueError, match="checkpoint"):
                await journal.save_checkpoint(base + index, [row])
        assert await load_checkpoint(journal) == (base + 2, [b"s"])


@pytest.mark.parametrize("records", [[], [b""] * (MAX_BLOCK_RECORDS + 1), [b"x" * MAX_BLOCK, b"y"]])
async def test_a_block_has_bounds(open_journal, records: Sequence[bytes]) -> None:
    async with open_journal() as journal:
        base = journal.tip
        with pytest.raises(ValueError, match="records"):
            await journal.append(records)
        await journal.append([b""] * MAX_BLOCK_RECORDS)
        await journal.append([b"x" * MAX_BLOCK])
        assert [len(block.records) for block in await take(journal, base, 2)] == [MAX_BLOCK_RECORDS, 1]


async def test_a_cancelled_append_is_whole_or_nothing(open_journal) -> None:
    async with open_journal() as journal:
        base = journal.tip
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.append([b"never"])
        assert scope.cancelled_caught
        assert journal.tip == base
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.append, [b"perhaps"])
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await journal.append([b"after"])
        blocks = await take(journal, base, journal.tip - base)
        assert [block.records[0] for block in blocks] == [b"perhaps", b"after"][base - journal.tip :]


async def test_appends_and_checkpoints_and_releases_at_once(open_journal) -> None:
    async with open_journal() as journal:
        base, seen = journal.tip, list[int]()

        async def follow() -> None:
            async for block in journal.follow(base):
                seen.append(block.index - base)
                if seen[-1] % 10 == 0:
                    await journal.save_checkpoint(block.index, [b"r" * 1_000] * 3)
                    await journal.release(block.index - 5)
                if seen[-1] == 100:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            for number in range(100):
                await journal.append([b"%d" % number])
        assert seen == list(range(1, 101))
        assert journal.first == base + 95


# --- time (rule 14) ------------------------------------------------------------------------------
async def stamp(journal: Journal) -> int:
    await journal.append([b"t"])
    return (await journal.read(journal.tip)).time


async def test_time_is_the_wall_clock_and_never_goes_back(open_journal, env) -> None:
    async with open_journal() as journal:
        assert (first := await stamp(journal)) == env.clock.wall_ms()
        env.clock.pass_ms(10)
        assert await stamp(journal) == env.clock.wall_ms() == first + 10
        env.clock.wall -= 5  # set back a little
        assert await stamp(journal) == env.clock.wall_ms() + 5 == first + 10
        env.clock.pass_ms(100)
        assert await stamp(journal) == env.clock.wall_ms() == first + 105


@pytest.mark.parametrize("jump", [MINUTE + 1, -MINUTE - 1, 10**12, -(10**12)])
async def test_a_jump_of_the_wall_clock_is_refused(open_journal, env, jump: int) -> None:
    async with open_journal() as journal:
        assert (first := await stamp(journal)) == env.clock.wall_ms()
        env.clock.wall += jump
        env.clock.pass_ms(20)
        assert await stamp(journal) == first + 20  # by the monotonic clock
        env.clock.pass_ms(20)
        assert await stamp(journal) == first + 40
        env.clock.wall -= jump - 7
        before = env.clock.monotonic_ms()
        await trio.sleep(1)  # until the other clocks have been heard again
        assert await stamp(journal) == env.clock.wall_ms() == first + 47 + env.clock.monotonic_ms() - before



# --- residency -----------------------------------------------------------------------------------
class Picky:
    """Refuses b"bad"; learns the others."""

    def __init__(self) -> None:
        self.known: list[bytes] = []

    def check(
        self, records: Sequence[bytes], above: Sequence[tuple[bytes, bytes]] = (), *, made: bool = False
    ) -> Sequence[tuple[bytes, bytes]]:
        if b"bad" in records:
            raise ResidencyError("not here", ordinal=records.index(b"bad"))
        return [(record.ljust(32), record) for record in records]

    def learn(self, facts: Sequence[tuple[bytes, bytes]]) -> None:
        self.known += [value for _, value in facts]


async def test_the_disk_writer_refuses_a_whole_batch(open_journal: Callable) -> None:
    guard = Picky()
    async with open_journal(residency=guard) as journal:
        base, known = journal.tip, len(guard.known)
        await journal.append([b"good"])
        with pytest.raises(ResidencyError) as refused:
            await journal.append([b"fine", b"bad"])
        assert refused.value.ordinal == 1
        assert journal.tip == base + 1
        assert guard.known[known:] == [b"good"]
        await journal.append([b"fine"])
        assert [block.records for block in await take(journal, base, 2)] == [(b"good",), (b"fine",)]
