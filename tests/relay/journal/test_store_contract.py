"""What every store of a log means: one suite over the real one and the simulator's."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import Any

import pytest
import trio

from relay.errors import DiskFailed, StoreDamaged, StoreForeign, StoreLocked
from relay.journal.api import BlockRow, CheckpointHead, FactRow, Hard, LogStore, Write
from tests.relay.journal.rigs import FRESH, Rig, another, cleared, opened, row, rows
from tests.relay.journal.store_model import A, B, C, VOTER, Model


async def all_blocks(store: LogStore) -> list[BlockRow]:
    """Everything that is kept, by as many reads as it takes."""
    ends = await store.ends()
    found: list[BlockRow] = []
    while ends and ends[0] + len(found) <= ends[1]:
        batch = await store.blocks(ends[0] + len(found), ends[1])
        assert batch
        found += batch
    return found


async def all_facts(store: LogStore, upto: int | None = None) -> list[FactRow]:
    found: list[FactRow] = []
    while batch := await store.facts(found[-1][0] if found else b"", upto):
        found += batch
    return found


# --- the log -------------------------------------------------------------------------------------
async def test_a_new_store_is_empty(rig: Rig) -> None:
    for _ in range(2):
        async with opened(rig) as store:
            assert (store.meta, store.hard, store.known, store.commit) == (FRESH, Hard(), {}, 0)
            assert store.behind is None and await store.ends() is None and await store.checkpoint() is None
            assert await store.blocks(1, 9) == await store.terms(1, 9) == await store.facts(b"") == []


async def test_what_is_written_is_there_again(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write(rows(1, 3), hard=Hard(3, VOTER), known={VOTER: 2**50, A[:16]: 0}, commit=2))
        await store.write(Write([row(4, 3)]))
        await store.write(Write())
        await store.write(Write(hard=Hard(4)))
    async with opened(rig, another(store=b"T" * 16, log_id=b"M" * 16)) as store:
        assert store.meta == FRESH  # `fresh` is for a new one
        assert (store.hard, store.known, store.commit) == (Hard(4), {VOTER: 2**50, A[:16]: 0}, 2)
        assert await store.ends() == (1, 4)
        assert await store.blocks(1, 9) == [*rows(1, 3), row(4, 3)]
        assert await store.terms(2, 4) == [(one.index, one.term, one.hash) for one in [*rows(2, 3), row(4, 3)]]
        await store.write(Write(known={VOTER: 9}))
        assert store.known == {VOTER: 9}


async def test_reads_come_in_bounded_batches(rig: Rig) -> None:
    async with opened(rig) as store:
        for first in range(1, 5_000, 500):
            await store.write(Write(rows(first, first + 499, 7)))
        terms: list[Any] = []
        while batch := await store.terms(len(terms) + 1, 5_000):
            assert len(batch) < 5_000
            terms += batch
        assert [(index, term) for index, term, _ in terms] == [(index, 7) for index in range(1, 5_001)]
        await store.write(Write(rows(5_001, 5_004, size=700_000)))
        assert 0 < len(await store.blocks(5_001, 5_004)) < 4
        assert await all_blocks(store) == [*rows(1, 5_000, 7), *rows(5_001, 5_004, size=700_000)]


async def test_truncation_takes_blocks_and_the_facts_they_taught(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write(rows(1, 3, 1), facts=[(A, 1, b"a1"), (B, 2, b"b2")]))
        await store.write(Write(rows(4, 6, 1), facts=[(A, 5, b"a5"), (C, 6, b"c6")]))
        assert await store.facts(b"") == [(A, 5, b"a5"), (B, 2, b"b2"), (C, 6, b"c6")]
        assert await store.facts(b"", 4) == [(A, 1, b"a1"), (B, 2, b"b2")]
        fork = rows(4, 5, 2, fork="other")
        await store.write(Write(fork, 4, Hard(2, VOTER), facts=[(B, 5, b"b5")]))
    async with opened(rig) as store:
        assert await all_blocks(store) == [*rows(1, 3, 1), *fork]
        assert await store.facts(b"") == [(A, 1, b"a1"), (B, 5, b"b5")]
        assert await store.facts(b"", 4) == [(A, 1, b"a1"), (B, 2, b"b2")]
        await store.write(Write(truncate_from=2))
        assert await store.ends() == (1, 1) and await store.facts(b"") == [(A, 1, b"a1")]
        await store.write(Write(truncate_from=2))  # nothing is there
        await store.write(Write(truncate_from=1))
        assert await store.ends() is None and await store.facts(b"") == []
    async with opened(rig) as store:
        assert store.behind is None and store.hard == Hard(2, VOTER)


async def test_no_block_is_overwritten(rig: Rig) -> None:
    store = await rig.open()
    await store.write(Write(rows(1, 3)))
    with pytest.raises(StoreDamaged):
        await store.write(Write([row(3, fork="other"), row(4)]))
    with pytest.raises(DiskFailed):  # it is in doubt now
        await store.write(Write([row(4)]))
    await store.close()
    async with opened(rig) as store:
        assert await all_blocks(store) == rows(1, 3)


async def test_a_damaged_row_is_repaired(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write([row(1), replace(row(2), sealed=b"damaged"), row(3)]))
        await store.repair(row(2))
    async with opened(rig) as store:
        assert store.behind is None and await all_blocks(store) == rows(1, 3)


# --- release and facts ---------------------------------------------------------------------------
async def test_release_goes_step_by_step_and_keeps_the_end_of_what_went(rig: Rig) -> None:
    async with opened(rig) as store:
        for first in range(1, 601, 100):
            await store.write(Write(rows(first, first + 99, 5)))
        first, steps = 1, 0
        while first < 501:
            first, steps = await store.release(first, 501, b"members"), steps + 1
            assert store.meta.first == first <= 501 and await store.ends() == (first, 600)
        assert steps > 1
    async with opened(rig) as store:
        end = row(500, 5)
        expected = another(first=501, prev=end.hash, prev_term=5, time=end.time, members=b"members")
        assert store.meta == expected
        assert await all_blocks(store) == rows(501, 600, 5)
        while store.meta.first < 601:
            await store.release(store.meta.first, 601)
    async with opened(rig) as store:
        assert store.behind is None and await store.ends() is None
        assert (store.meta.first, store.meta.prev, store.meta.members) == (601, row(600).hash, b"members")
        await store.write(Write([row(601)]))
        await store.write(Write([row(601, 2, fork="other")], truncate_from=601))
    async with opened(rig) as store:
        assert await all_blocks(store) == [row(601, 2, fork="other")]


async def test_versions_of_facts_go_with_the_blocks_that_need_them(rig: Rig) -> None:
    async with opened(rig) as store:
        facts = [(A, index, b"a%d" % index) for index in (2, 4, 6, 8)] + [(B, 1, b"b1")]
        await store.write(Write(rows(1, 9), facts=facts))
        await store.release(1, 6)
        assert await store.facts(b"", 5) == [(A, 4, b"a4"), (B, 1, b"b1")]
        assert await store.facts(b"", 7) == [(A, 6, b"a6"), (B, 1, b"b1")]
        assert await store.facts(b"", 3) == [(B, 1, b"b1")]  # nobody needs that any more
        await store.release(6, 10)
        await store.write(Write(rows(10, 10), facts=[(A, 10, b"a10")]))
        await store.write(Write(truncate_from=10))
        assert await store.facts(b"") == [(A, 8, b"a8"), (B, 1, b"b1")]


async def test_many_facts_come_in_order(rig: Rig) -> None:
    keys = [bytes([number % 7, number]) * 16 for number in range(120)]
    async with opened(rig) as store:
        await store.write(Write([row(1)], facts=[(key, 1, key[:3]) for key in keys]))
        assert await all_facts(store) == [(key, 1, key[:3]) for key in sorted(keys)]


# --- checkpoints and snapshots -------------------------------------------------------------------
async def checkpoint_of(store: LogStore) -> list[bytes]:
    head, found = await store.checkpoint(), list[bytes]()
    while head and (batch := await store.checkpoint_rows(head.generation, len(found))):
        found += [row.sealed for row in batch]
    return found


async def test_a_checkpoint_replaces_the_one_before(rig: Rig) -> None:
    one, two = CheckpointHead(1, 1, 2, b"x" * 32), CheckpointHead(2, 2, 3, b"y" * 32)
    async with opened(rig) as store:
        await store.write(Write(rows(1, 2)))
        await store.add_checkpoint_rows(1, 0, [b"1", b"2"])
        assert await store.checkpoint() is None
        await store.finish_checkpoint(one)
        await store.add_checkpoint_rows(2, 0, [b"unfinished"])
    async with opened(rig) as store:
        assert await store.checkpoint() == one and await checkpoint_of(store) == [b"1", b"2"]
        await cleared(store, 1)
        await store.add_checkpoint_rows(2, 0, [b"3"])
        await store.add_checkpoint_rows(2, 1, [b"4" * 900_000, b"5" * 900_000])
        assert await checkpoint_of(store) == [b"1", b"2"]
        await store.finish_checkpoint(two)
    async with opened(rig) as store:
        assert await store.checkpoint() == two and len(await store.checkpoint_rows(1, 0)) == 2
        await cleared(store, 2)
        assert await checkpoint_of(store) == [b"3", b"4" * 900_000, b"5" * 900_000]
        assert await store.checkpoint_rows(1, 0) == []
        await store.add_checkpoint_rows(3, 0, [b"6"])
        await cleared(store, 2, 3)
        await store.finish_checkpoint(CheckpointHead(3, 8, 1, b"d" * 32))
        await cleared(store, 3, 2)  # the one before is read by somebody
        assert await checkpoint_of(store) == [b"6"] and (await store.checkpoint_rows(2, 0))[0] == ((2, 0), b"3")
        await cleared(store, 3)
        assert await checkpoint_of(store) == [b"6"] and await store.checkpoint_rows(2, 0) == []


async def test_a_snapshot_replaces_everything(rig: Rig) -> None:
    end = row(50, 6)
    meta = another(first=51, prev=end.hash, prev_term=6, time=end.time, members=b"members")
    head = CheckpointHead(2, 50, 1, b"x" * 32)
    async with opened(rig) as store:
        await store.write(Write(rows(1, 9, 1), hard=Hard(7, VOTER), facts=[(A, 2, b"a2"), (B, 3, b"b3")], commit=4))
        await store.add_checkpoint_rows(1, 0, [b"old"])
        await store.finish_checkpoint(CheckpointHead(1, 4, 1, b"o" * 32))
        await store.add_checkpoint_rows(2, 0, [b"new"])
        await store.install(meta, head, [(A, 40, b"a40"), (C, 1, b"c1")], {VOTER: 50}, 50)
        assert await store.ends() is None
    async with opened(rig) as store:
        assert (store.meta, store.hard, store.known, store.commit) == (meta, Hard(7, VOTER), {VOTER: 50}, 50)
        assert store.behind is None and await store.ends() is None
        assert await store.checkpoint() == head and await checkpoint_of(store) == [b"new"]
        assert await store.facts(b"") == [(A, 40, b"a40"), (C, 1, b"c1")]
        await store.write(Write([row(51, 7)]))
        assert await store.blocks(51, 60) == [row(51, 7)]


async def test_a_snapshot_brings_blocks(rig: Rig) -> None:
    first, end = row(40, 6, fork="new"), row(50, 6, fork="new")
    meta = another(first=40, prev=first.prev, prev_term=6, time=first.time, members=b"members")
    head = CheckpointHead(1, 50, 0, b"x" * 32)
    async with opened(rig) as store:
        await store.write(Write(rows(1, 45, 1)))
        await store.stage_blocks(rows(40, 44, 6, fork="given up"))
        await cleared(store, 0)
        await store.stage_blocks(rows(40, 44, 6, fork="new"))
        await store.stage_blocks(rows(45, 50, 6, fork="new"))
        assert await all_blocks(store) == rows(1, 45, 1)
    async with opened(rig) as store:
        assert store.behind is None and await all_blocks(store) == rows(1, 45, 1)
        await store.install(meta, head, [], {}, 50)
        assert await store.ends() == (40, 50)
    async with opened(rig) as store:
        assert store.behind is None and store.meta == meta
        assert await store.blocks(1, 60) == rows(40, 50, 6, fork="new")
        assert await store.terms(50, 60) == [(50, 6, end.hash)]
        await store.write(Write([row(51, 7)]))
        await store.install(another(first=61), CheckpointHead(2, 60, 0, b"y" * 32), [], {}, 60)
        assert await store.ends() is None  # what was staged came once


# --- whose it is ---------------------------------------------------------------------------------
async def test_a_foreign_store_is_refused(rig: Rig) -> None:
    async with opened(rig) as store:
        await store.write(Write([row(1)]))
        with pytest.raises(StoreLocked):
            await rig.open()
    for fresh in (another(cell="sud/1"), another(federation=b"f" * 32)):
        with pytest.raises(StoreForeign):
            await rig.open(fresh)
    async with opened(rig) as store:
        assert await all_blocks(store) == [row(1)]


async def test_a_closed_store_serves_nobody(rig: Rig) -> None:
    store = await rig.open()
    await store.close()
    for call in (lambda: store.write(Write()), store.ends, store.checkpoint, lambda: store.facts(b"")):
        with pytest.raises(trio.ClosedResourceError):
            await call()
    with pytest.raises(trio.ClosedResourceError):
        store.check()


# --- the mark (rule 5) ---------------------------------------------------------------------------
async def refused(rig: Rig, match: str) -> None:
    """A store that is behind says so every time, and is not written."""
    for _ in range(2):
        async with opened(rig) as store:
            assert store.behind is not None
            with pytest.raises(StoreDamaged, match=match):
                await store.write(Write(hard=Hard(9)))


async def test_a_killed_process_leaves_all_that_was_acknowledged(rig: Rig) -> None:
    for count in (1, 2, 3):
        store = await rig.open()
        await store.write(Write([row(count)], hard=Hard(count)))
        await rig.killed(store)
    async with opened(rig) as store:
        assert (store.behind, store.hard, await store.ends()) == (None, Hard(3), (1, 3))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (Write([row(3)]), "blocks to 3, and has only write 1 with term 1 and blocks to 2"),
        (Write(hard=Hard(2)), "write 2 with term 2 .* only write 1 with term 1"),
        (Write(hard=Hard(1, VOTER)), "confirmed history is missing"),
        (Write([row(2, 1, fork="x")], truncate_from=2), "confirmed history is missing"),
        (Write(), "confirmed history is missing"),
    ],
)
async def test_an_old_copy_beside_a_newer_mark_is_behind(rig: Rig, more: Write, match: str) -> None:
    async with opened(rig) as store:
        await store.write(Write(rows(1, 2, 1), hard=Hard(1)))
    backup = rig.copy()
    async with opened(rig) as store:
        await store.write(more)
    rig.restore(backup, mark=False)
    await refused(rig, match)
    rig.restore(backup, mark=True)  # nobody can tell by what is there
    async with opened(rig) as store:
        assert store.behind is None


async def test_a_write_ahead_log_that_lost_its_tail_is_behind(rig: Rig) -> None:
    store = await rig.open()
    for number in range(1, 9):
        await store.write(Write([row(number)]))
    await rig.killed(store)
    rig.lose_tail()
    await refused(rig, "it came to write 8 with term 0 and blocks to 8")


async def test_a_store_without_its_mark_is_behind(rig: Rig) -> None:
    async with opened(rig):
        pass
    rig.lose_mark()
    async with opened(rig) as store:  # a crash in its first moments
        assert store.behind is None
        await store.write(Write([row(1)]))
    rig.lose_mark()
    await refused(rig, "its mark is missing")


@pytest.mark.parametrize("write", [Write([row(3, 2, fork="x")], truncate_from=3), Write(rows(6, 7), hard=Hard(3))])
async def test_an_error_of_the_mark_fails_the_store(rig: Rig, write: Write) -> None:
    """And what it did not mark was not acknowledged: it may be there, and nothing is missing."""
    told: list[DiskFailed] = []
    store = await rig.open()
    await store.write(Write(rows(1, 5), hard=Hard(2)))
    store.on_failure = told.append
    rig.failing_mark()
    for call in (lambda: store.write(write), lambda: store.write(Write()), store.ends):
        with pytest.raises(DiskFailed, match=r"log.sqlite.*Input/output error"):
            await call()
    assert len(told) == 1
    await store.close()
    rig.mend()
    async with opened(rig) as store:
        assert store.behind is None and store.hard == (write.hard or Hard(2))
        assert await all_blocks(store) == [*rows(1, 5)[: (write.truncate_from or 6) - 1], *write.rows]
        await store.write(Write(hard=Hard(8)))


@pytest.mark.parametrize("seed", range(4))
async def test_any_sequence_leaves_what_it_should(rig: Rig, seed: int) -> None:
    random, model = Random(seed), Model()
    store = await rig.open()
    for number in range(1, 150):
        dice = random.random()
        if dice < 0.06:
            await store.close()
            store = await rig.open()
        elif dice < 0.1:
            await rig.killed(store)
            store = await rig.open()
        elif dice < 0.2 and model.blocks:
            model.first = await store.release(model.first, random.randint(model.first + 1, model.last + 1))
            model.blocks = {index: one for index, one in model.blocks.items() if index >= model.first}
        else:
            await store.write(model.random_write(random, number))
        assert store.behind is None
        assert (store.meta.first, store.hard, store.commit) == (model.first, model.hard, model.commit)
        assert await all_blocks(store) == list(model.blocks.values())
        for upto in range(model.first - 1, model.last + 1):
            assert await store.facts(b"", upto) == model.newest(upto)
    await store.close()
