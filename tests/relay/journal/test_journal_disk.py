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
