"""The solo journal on a disk that hangs, fails or is slow, and what happens at the same time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio

from relay.errors import DiskFailed
from relay.journal.portal import open_portal
from relay.journal.files import STORE_FILE
from tests.patience import PATIENCE_S
from tests.relay.journal.checkpoints import load_checkpoint


async def test_a_directory_that_cannot_be_written(tmp_path: Path, solo) -> None:
    (tmp_path / STORE_FILE).mkdir()
    with pytest.raises(DiskFailed, match="unable to open"):
        async with solo(tmp_path):
            pytest.fail("opened")


async def test_a_hanging_disk_has_failed(tmp_path: Path, solo, monkeypatch) -> None:
    async with open_portal(deadline_s=2.0) as portal, solo(tmp_path, portal=portal) as journal:
        await journal.append([b"x"])
        follower = journal.follow(1)
        monkeypatch.setattr(journal._disk.store._db._connection, "submit", lambda function: None)
        for call in (lambda: journal.append([b"y"]), lambda: journal.append([b"z"]), lambda: anext(follower)):
            with pytest.raises(DiskFailed, match="did not end within"):
                await call()
        assert journal.tip == 1
    for thread in threading.enumerate():
        if "connection_worker" in thread.name:
            thread.join(PATIENCE_S)  # one that stays would keep the process from ending
            assert not thread.is_alive()


async def test_a_write_that_fails_in_any_way_ends_the_journal(tmp_path: Path, solo, monkeypatch) -> None:
    """The transaction stays open: a later block would look committed, and be gone after the next crash."""
    async with solo(tmp_path) as journal:
        await journal.append([b"x"])

        def no_memory(*_: object) -> None:
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(type(journal._disk.store._db._connection), "handle", property(no_memory))
            with pytest.raises(DiskFailed, match="MemoryError"):
                await journal.save_checkpoint(1, [b"state"])
        with pytest.raises(DiskFailed):
            await journal.append([b"y"])
        assert journal.tip == 1


async def test_a_block_that_is_released_while_it_is_read_is_not_damaged(tmp_path: Path, solo, monkeypatch) -> None:
    monkeypatch.setattr("relay.journal.solo.RECENT_BLOCKS", 0)
    async with solo(tmp_path) as journal:
        for number in range(5):
            await journal.append([b"record %d" % number])
        await journal.save_checkpoint(5, [b"state"])
        release, deleted, go = journal._disk.store.release, trio.Event(), trio.Event()

        async def slow_release(*step: Any) -> int:
            floor: int = await release(*step)
            deleted.set()
            await go.wait()
            return floor

        async def read(index: int) -> None:
            with pytest.raises(LookupError):
                await journal.read(index)

        monkeypatch.setattr(journal._disk.store, "release", slow_release)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(journal.release, 5)
            await deleted.wait()
            for index in range(1, 5):
                nursery.start_soon(read, index)
            await trio.sleep(0.05)
            go.set()
        assert (await journal.read(5)).index == 5


async def test_who_is_cancelled_while_a_checkpoint_is_made_the_current_one_knows_it(
    tmp_path: Path, solo, monkeypatch
) -> None:
    """Else the next one begins by letting go of its rows, while the store's head still stands for them."""
    async with solo(tmp_path) as journal:
        for number in range(3):
            await journal.append([b"%d" % number])
        await journal.save_checkpoint(1, [b"one"])
        with trio.CancelScope() as scope:
            store = journal.disk.store
            monkeypatch.setattr(store, "finish_checkpoint", cut(store.finish_checkpoint, scope))
            await journal.save_checkpoint(2, [b"two"])
        assert journal.disk.head == await journal.disk.store.checkpoint()
        await journal.disk.clean()
        assert await load_checkpoint(journal) == (2, [b"two"])


async def test_who_is_cancelled_while_blocks_are_released_knows_them(tmp_path: Path, solo, monkeypatch) -> None:
    async with solo(tmp_path) as journal:
        for number in range(600):
            await journal.append([b"%d" % number])
        await journal.save_checkpoint(600, [b"state"])
        with trio.CancelScope() as scope:
            monkeypatch.setattr(journal.disk.store, "release", cut(journal.disk.store.release, scope))
            await journal.release(500)
        assert 1 < journal.first < 500 and journal.first == journal.disk.store.meta.first
        monkeypatch.undo()
        await journal.release(600)
        assert journal.first == 600 and (await journal.read(600)).records == (b"599",)


def cut(call: Any, scope: trio.CancelScope) -> Any:
    """The call completes in its thread, and who waits for it is cancelled meanwhile."""

    async def cancelled(*args: Any) -> Any:
        scope.cancel()
        with trio.CancelScope(shield=True):
            result = await call(*args)
        await trio.lowlevel.checkpoint_if_cancelled()
        return result

    return cancelled


async def test_rows_of_the_checkpoint_before_go_with_the_next_one(tmp_path: Path, solo) -> None:
    async with solo(tmp_path) as journal:
        for index in (1, 2):
            await journal.append([b"x"])
            await journal.save_checkpoint(index, [b"state %d" % index])
        store = journal.disk.store
        assert not await store.checkpoint_rows(1, 0) and len(await store.checkpoint_rows(2, 0)) == 1


async def test_cleaning_up_takes_what_a_crash_left_of_a_checkpoint(tmp_path: Path, solo) -> None:
    """An erasure receipt says that nothing is left, and users who have left lie in its rows."""
    async with solo(tmp_path) as journal:
        await journal.append([b"x"])
        await journal.save_checkpoint(1, [b"state"])
        await journal.disk.stage_rows(2, 0, [b"left by a crash"])
        await journal.disk.clean()
        store = journal.disk.store
        assert not await store.checkpoint_rows(2, 0) and len(await store.checkpoint_rows(1, 0)) == 1
