"""The scrubber: everything is read, at its pace; what rotted is found, mended where it can be, told where it cannot."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
import trio

from relay.errors import StoreDamaged
from relay.journal.api import LogStore, Meta
from relay.journal.files import STORE_FILE
from relay.journal.scrub import Scrubber
from relay.journal.seal import StorageRing
from relay.journal.solo import SoloJournal, open_solo
from relay.limits import SCRUB_BLOCK, SCRUB_EVERY_S, SCRUB_FIRST_S, SCRUB_RATE
from relay.observe.metrics import Metrics
from tests.relay.journal.checkpoints import load_checkpoint
from tests.relay.journal.conftest import CELL, FEDERATION, RING, FakeEnv
from tests.residency import AnythingGoes
from tests.simulation.store import SimDisk


class SimEnv(FakeEnv):
    """Whose disk is simulated, so that time can be."""

    def __init__(self) -> None:
        super().__init__()
        self.disk, self.process = SimDisk(Random(1)), SimpleNamespace(dead=False)

    async def open_store(self, directory: Path, fresh: Meta) -> LogStore:
        return await self.disk.open(self.process, directory, fresh)


@asynccontextmanager
async def journal_on(env: SimEnv, ring: StorageRing = RING) -> AsyncIterator[SoloJournal]:
    async with open_solo(
        Path("/simulated"), env=env, ring=ring, residency=AnythingGoes(), cell=CELL, federation=FEDERATION
    ) as journal:
        yield journal


async def fill(journal: Any, count: int = 40) -> None:
    for number in range(count):
        await journal.append([b"record %d" % number])
    await journal.save_checkpoint(journal.tip, [b"row %d" % number for number in range(5)])


def change(path: Path, statement: str) -> None:
    database = sqlite3.connect(path / STORE_FILE)
    assert database.execute(statement).rowcount == 1
    database.commit()
    database.close()


def value(metrics: Metrics, name: str) -> float:
    found = metrics.registry.get_sample_value(f"posthouse_{name}")
    assert found is not None
    return found


async def test_a_pass_reads_everything_at_its_pace(autojump_clock: Any) -> None:
    metrics = Metrics()
    async with journal_on(SimEnv()) as journal:
        await fill(journal)
        begun = trio.current_time()
        assert await Scrubber(journal.disk, metrics).scrub() == 0
        read = value(metrics, "scrubbed_bytes_total")
        assert read > 40 * SCRUB_BLOCK
        assert trio.current_time() - begun == pytest.approx(read / SCRUB_RATE)


async def test_it_runs_on_and_on(autojump_clock: Any) -> None:
    metrics = Metrics()
    async with journal_on(SimEnv()) as journal, trio.open_nursery() as nursery:
        await fill(journal)
        scrubber, passes = Scrubber(journal.disk, metrics), list[float]()
        scrub = scrubber.scrub

        async def counted() -> int:
            passes.append(trio.current_time())
            return await scrub()

        scrubber.scrub = counted  # type: ignore[method-assign]
        began = trio.current_time()
        nursery.start_soon(scrubber.run)
        await trio.sleep(SCRUB_FIRST_S + 2.5 * SCRUB_EVERY_S)
        assert [round(at - began) for at in passes] == [
            round(SCRUB_FIRST_S + number * SCRUB_EVERY_S) for number in range(3)
        ]
        nursery.cancel_scope.cancel()


async def test_what_is_released_meanwhile_is_not_missed(autojump_clock: Any) -> None:
    metrics = Metrics()
    async with journal_on(SimEnv()) as journal, trio.open_nursery() as nursery:
        await fill(journal, 200)
        damaged: list[int] = []

        async def scrub() -> None:
            damaged.append(await Scrubber(journal.disk, metrics).scrub())

        nursery.start_soon(scrub)
        for below in range(10, 200, 10):
            await trio.sleep(0.05)
            await journal.release(below)
        await trio.sleep(10)
        assert damaged == [0] and value(metrics, "repaired_total") == 0


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET sealed = zeroblob(50) WHERE idx = 20",
        "UPDATE block SET hash = zeroblob(32) WHERE idx = 20",
        "UPDATE block SET time = 'x' WHERE idx = 20",
        "DELETE FROM block WHERE idx = 20",
    ],
)
async def test_a_cell_of_one_tells_and_serves_the_rest(tmp_path: Path, solo: Any, quick: None, statement: str) -> None:
    async with solo(tmp_path) as journal:
        await fill(journal)
    change(tmp_path, statement)
    metrics = Metrics()
    async with solo(tmp_path) as journal:
        scrubber = Scrubber(journal.disk, metrics)
        for _ in range(2):
            with structlog.testing.capture_logs() as logs:
                assert await scrubber.scrub() == 1
            (told,) = [entry for entry in logs if entry["event"] == "block_damaged"]
            assert told["index"] == 20 and str(tmp_path) in told["text"] and "restore nothing old" in told["remedy"]
        with pytest.raises(StoreDamaged, match="block 20"):
            await journal.read(20)
        assert (await journal.read(19)).index == 19 and (await journal.read(21)).index == 21
        await journal.append([b"it goes on"])


async def test_a_block_that_memory_still_has_is_put_back(tmp_path: Path, solo: Any, quick: None) -> None:
    metrics = Metrics()
    async with solo(tmp_path) as journal:
        await fill(journal)
        for statement in ("UPDATE block SET hash = zeroblob(32) WHERE idx = 40", "DELETE FROM block WHERE idx = 20"):
            await journal.disk.store._db.run(lambda connection, what: connection.execute(what), statement)
        assert await Scrubber(journal.disk, metrics).scrub() == 0
        assert value(metrics, "repaired_total") == 2
    async with solo(tmp_path) as journal:
        assert [(await journal.read(index)).records for index in (20, 40)] == [(b"record 19",), (b"record 39",)]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE checkpoint_row SET sealed = zeroblob(50) WHERE ordinal = 3",
        "UPDATE checkpoint_row SET sealed = 'x' WHERE ordinal = 3",
        "DELETE FROM checkpoint_row WHERE ordinal = 4",
        "UPDATE checkpoint_row SET ordinal = 9 WHERE ordinal = 2",
    ],
)
async def test_a_damaged_checkpoint_is_to_be_saved_anew(tmp_path: Path, solo: Any, quick: None, statement: str) -> None:
    async with solo(tmp_path) as journal:
        await fill(journal)
        asked: list[bool] = []
        journal.disk.renew_checkpoint = lambda: asked.append(True)
        scrubber = Scrubber(journal.disk, Metrics())
        assert await scrubber.scrub() == 0 and asked == []
        await journal.disk.store._db.run(lambda connection: connection.execute(statement))
        assert await scrubber.scrub() == 1 and asked == [True]
        await journal.append([b"more"])
        await journal.save_checkpoint(journal.tip, [b"row"])
        assert await scrubber.scrub() == 0


async def test_a_missing_key_is_told_and_nothing_is_overwritten(tmp_path: Path, solo: Any, quick: None) -> None:
    """An operator can mend that, by putting the key's line back."""
    other = StorageRing([b"o" * 32, b"k" * 32])
    async with solo(tmp_path) as journal:
        await fill(journal, 10)
    async with solo(tmp_path, ring=other) as journal:
        await fill(journal, 10)
        await journal.save_checkpoint(journal.tip, [b"state"])
    async with solo(tmp_path, ring=other) as journal:
        journal.disk.sealer = type(journal.disk.sealer)(RING, journal.log_id, FakeEnv().random_bytes)
        with structlog.testing.capture_logs() as logs:
            assert await Scrubber(journal.disk, Metrics()).scrub() == 11
        assert all("Put that key's line back" in entry["remedy"] for entry in logs if entry["event"] == "block_damaged")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.journal.scrub.SCRUB_RATE", 1 << 40)


async def test_what_rotted_is_not_kept_for_the_next_checkpoint(tmp_path: Path, solo: Any, quick: None) -> None:
    """Its bytes would be read again: all of a damaged checkpoint is written anew."""
    async with solo(tmp_path) as journal:
        await fill(journal)
        rows = [b"%d" % number * 40 for number in range(5)]
        await journal.save_checkpoint(journal.tip, rows)
        rot = "UPDATE checkpoint_row SET sealed = zeroblob(50) WHERE ordinal = 3"
        await journal.disk.store._db.run(lambda connection: connection.execute(rot))
        scrubber = Scrubber(journal.disk, Metrics())
        assert await scrubber.scrub() == 1
        await journal.append([b"more"])
        await journal.save_checkpoint(journal.tip, rows)
        assert await scrubber.scrub() == 0


async def test_a_checkpoint_writes_what_the_one_before_has_not(tmp_path: Path, solo: Any, quick: None) -> None:
    async with solo(tmp_path) as journal:
        await fill(journal)
        rows = [b"%d" % number * 40 for number in range(5)]
        await journal.save_checkpoint(journal.tip, rows)
    async with solo(tmp_path) as journal:
        assert await load_checkpoint(journal) == (journal.tip, rows)
        await journal.append([b"more"])
        rows = [b"new", *rows[:4]]
        await journal.save_checkpoint(journal.tip, rows)
        query = "SELECT generation, count(*), count(nullif(sealed, x'')) FROM checkpoint_row GROUP BY generation"
        found = await journal.disk.store._db.run(lambda connection: connection.execute(query).fetchall())
        assert found == [(2, 4, 4), (3, 5, 1)], "four rows lie where they lay, one is new, and the fifth has gone"
    async with solo(tmp_path) as journal:
        assert await load_checkpoint(journal) == (journal.tip, rows)


async def test_what_is_found_damaged_while_the_next_is_saved_is_not_kept_either(
    tmp_path: Path, solo: Any, quick: None
) -> None:
    async with solo(tmp_path) as journal:
        await fill(journal)
        rows = [b"%d" % number * 40 for number in range(5)]
        await journal.save_checkpoint(journal.tip, rows)

        async def slowly() -> AsyncIterator[bytes]:
            yield rows[0]
            journal.disk.distrust_checkpoint()
            for row in rows[1:]:
                yield row

        for again in (slowly(), rows):
            await journal.append([b"more"])
            await journal.save_checkpoint(journal.tip, again)
        query = "SELECT count(*) FROM checkpoint_row WHERE sealed != x'' AND lies = (SELECT generation FROM checkpoint)"
        assert await journal.disk.store._db.run(lambda connection: connection.execute(query).fetchall()) == [(5,)]
