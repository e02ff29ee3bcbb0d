"""The files of a store: quarantine and the bootstrap flag."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from relay.errors import DiskFailed
from relay.journal import files
from relay.journal.api import Write
from relay.journal.portal import open_portal
from relay.journal.store import open_store
from tests.relay.journal.rigs import FRESH, another, row

NOW = 1_800_000_000_000
WHERE = "quarantine/20270115T080000Z-" + FRESH.store.hex()


async def killed(directory: Path, portal: Any) -> None:
    """A store as a killed process leaves it, in `directory`."""
    work = directory / "work"
    work.mkdir()
    store = await open_store(portal, work / files.STORE_FILE, FRESH)
    await store.write(Write([row(1)]))
    kept = {file.name: file.read_bytes() for file in work.iterdir()}
    await store.close()
    for file in work.iterdir():
        file.unlink()
    work.rmdir()
    for name, data in kept.items():
        (directory / name).write_bytes(data)


async def test_a_store_is_set_aside_whole(tmp_path: Path) -> None:
    assert not files.store_exists(tmp_path)
    async with open_portal() as portal:
        await killed(tmp_path, portal)
        (tmp_path / "directory.sqlite").touch()
        assert files.store_exists(tmp_path)
        assert files.set_aside(tmp_path, FRESH.store, NOW) == tmp_path / WHERE
        assert not files.store_exists(tmp_path)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["directory.sqlite", "quarantine"]
        assert (tmp_path / WHERE).stat().st_mode & 0o777 == 0o700
        new = another(store=b"T" * 16)
        store = await open_store(portal, tmp_path / files.STORE_FILE, new)
        assert store.behind is None and store.meta == new
        await store.close()
        old = await open_store(portal, tmp_path / WHERE / files.STORE_FILE, new)  # somebody may want to look at it
        assert old.behind is None and await old.blocks(1, 1) == [row(1)]
        await old.close()


@pytest.mark.parametrize("moves", [1, 2])
async def test_a_crash_while_it_is_set_aside_leaves_what_is_known_for_it(
    tmp_path: Path, monkeypatch: Any, moves: int
) -> None:
    class Crash(Exception):
        pass

    def rename(self: Path, target: Path) -> None:
        if rename.left == 0:
            raise Crash
        os.rename(self, target)
        rename.left -= 1

    rename.left = moves
    async with open_portal() as portal:
        await killed(tmp_path, portal)
        with monkeypatch.context() as patch, pytest.raises(Crash):
            patch.setattr(Path, "rename", rename)
            files.set_aside(tmp_path, FRESH.store, NOW)
        store = await open_store(portal, tmp_path / files.STORE_FILE, another(store=b"T" * 16))
        assert store.meta.store == b"T" * 16 or store.behind is not None
        await store.close()


async def test_the_bootstrap_flag_goes_once(tmp_path: Path, monkeypatch: Any) -> None:
    assert not files.bootstrap(tmp_path)
    files.bootstrapped(tmp_path)
    (tmp_path / "bootstrap").touch()
    assert files.bootstrap(tmp_path)
    files.bootstrapped(tmp_path)
    assert not files.bootstrap(tmp_path)


def test_errors_of_the_disk_are_ours(tmp_path: Path) -> None:
    (tmp_path / "quarantine").touch()
    with pytest.raises(DiskFailed, match="quarantine"):
        files.set_aside(tmp_path, FRESH.store, NOW)
    (tmp_path / "bootstrap").mkdir()
    with pytest.raises(DiskFailed, match="bootstrap"):
        files.bootstrapped(tmp_path)
