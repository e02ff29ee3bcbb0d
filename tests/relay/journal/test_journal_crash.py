"""Real processes: SIGKILL in mid-append, a failing disk, a lock that another one holds, a truncated log."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.core.block import check_follows
from relay.errors import StoreDamaged, StoreLocked
from relay.journal.inspect import open_stopped
from relay.journal.files import STORE_FILE
from relay.journal.seal import StorageRing
from tests.patience import PATIENCE_S
from tests.relay.journal.checkpoints import load_checkpoint

CHILD = Path(__file__).with_name("writer_child.py")
RING = StorageRing([b"k" * 32])


@contextmanager
def writer(directory: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(CHILD), str(directory), *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(CHILD.parent), str(CHILD.parents[3])])}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def acked(lines: list[str]) -> int:
    return max(int(line.split()[1]) for line in lines if line.startswith("acked"))


def killed_after(directory: Path, count: int) -> int:
    """The highest acknowledged index of a writer that got a SIGKILL after `count` acknowledgements."""
    with writer(directory) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while sum(line.startswith("acked") for line in lines) < count:
            lines.append(process.stdout.readline())
        process.kill()
        lines += [line for line in process.stdout if line.endswith("\n")]
    return acked(lines)


async def test_sigkill_keeps_every_acknowledged_block(tmp_path: Path, solo) -> None:
    last = 0
    for count in (3, 120, 7, 60):
        acknowledged = killed_after(tmp_path, count)
        with open_stopped(tmp_path, RING) as store:
            blocks = list(store.blocks())
            checkpoint = store.checkpoint()
        assert blocks[-1].index >= acknowledged >= last + count
        async with solo(tmp_path) as journal:
            assert (journal.first, journal.tip) == (blocks[0].index, blocks[-1].index)
            assert await load_checkpoint(journal) == checkpoint
            for index, block in enumerate(blocks, journal.first):
                assert await journal.read(index) == block
                assert block.records[0] == b"%d" % index
        last = blocks[-1].index


async def test_a_disk_error_fails_the_store_for_good(tmp_path: Path, solo) -> None:
    with writer(tmp_path, str(2_000_000)) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    lines = out.splitlines()
    assert lines[-1].startswith("failed 8 1 "), out[-500:] + err[-2000:]  # every call, by the same error
    assert str(tmp_path / STORE_FILE) in lines[-1]
    assert "disk_failed" in err + out
    async with solo(tmp_path) as journal:  # the disk has room again
        assert journal.tip >= acked(lines)
        assert (await journal.read(journal.tip)).records[0] == b"%d" % journal.tip
        await journal.append([b"on"])


async def test_a_store_that_another_process_holds(tmp_path: Path, solo) -> None:
    with writer(tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(StoreLocked, match="another process holds this store"):
            async with solo(tmp_path):
                pass
        with pytest.raises(StoreLocked), open_stopped(tmp_path, RING):
            pass
        assert process.poll() is None
    async with solo(tmp_path) as journal:
        with pytest.raises(StoreLocked):
            async with solo(tmp_path):
                pass
        await journal.append([b"still mine"])


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.5, 0.77, 0.999])
async def test_what_a_truncated_log_leaves_is_a_chain(tmp_path: Path, solo, keep: float) -> None:
    """And it is known for what it is, unless what is missing was never acknowledged (rule 5)."""
    acknowledged = killed_after(tmp_path / "a", 20)
    wal = tmp_path / "a" / (STORE_FILE + "-wal")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    cut = tmp_path / "b" / wal.name
    with cut.open("r+b") as file:
        file.truncate(int(wal.stat().st_size * keep))
    with open_stopped(tmp_path / "b", RING) as store:
        blocks = list(store.blocks())
    for block, last in zip(blocks, [None, *blocks], strict=False):
        check_follows(block, last)
    if len(blocks) >= acknowledged:
        await on(solo, tmp_path / "b")
        return
    for _ in range(2):  # looking at it takes nothing from what is known
        with pytest.raises(StoreDamaged, match=f"it came to write .* has only .* blocks to {len(blocks)}"):
            await on(solo, tmp_path / "b")


async def on(solo, directory: Path) -> None:
    async with solo(directory) as journal:
        await journal.append([b"on"])
