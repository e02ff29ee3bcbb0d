"""`posthouse journal …` on the stores of real nodes: whole, damaged, an older copy; and what goes on after a repair."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner

from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.local import Layout, LocalFederation
from relay.client import open_client
from relay.errors import OperatorError
from tests.e2e.letters import send
from tests.flipping import flipped
from tests.patience import PATIENCE_S


async def post(*words: str, status: int = 0, types: str = "") -> str:
    done = await trio.to_thread.run_sync(lambda: CliRunner().invoke(app, ["journal", *words], input=types))
    assert done.exit_code == status, done.output
    return done.output


async def collect(layout: Layout, name: str, count: int) -> list[str]:
    got: list[str] = []
    async with open_client(layout.home.store(name)) as client:
        with trio.move_on_after(PATIENCE_S) as scope:
            async for message in client.messages():
                got.append(message.content.decode())
                if len(got) == count:
                    scope.deadline = trio.current_time() + 0.3  # what is more than that would come now
    return got


def tip(data: Path, which: str = "max") -> int:
    """The newest block, or the oldest."""
    with closing(sqlite3.connect(data / "log.sqlite")) as database:
        return int(database.execute(f"SELECT {which}(idx) FROM block").fetchone()[0])


def flip(data: Path, which: str = "max", index: int = 0) -> int:
    """One byte of a sealed block (the newest, the oldest, or that one) changes."""
    index = index or tip(data, which)
    with closing(sqlite3.connect(data / "log.sqlite")) as database, database:
        (sealed,) = database.execute("SELECT sealed FROM block WHERE idx = ?", (index,)).fetchone()
        sealed = flipped(sealed)
        database.execute("UPDATE block SET sealed = ? WHERE idx = ?", (sealed, index))
    return index


async def test_a_damaged_log_of_a_cell_of_one_goes_on_under_a_new_id(layout: Layout) -> None:
    data, node = layout.node("amber").data_dir, str(layout.node("amber").directory)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        for name in ("bob", "carol"):
            async with open_client(layout.home.store(name)) as client:
                await client.caught_up()
        await send(layout, "bob", "one", "two")
        await send(layout, "carol", "three")
        assert await collect(layout, "carol", 1) == ["three"]
        await fed.stop("birch")
        await send(layout, "carol", "four", "five", wait="accepted")
        fed.kill("amber")
        await fed.ended()

        assert "good  " in await post("verify", str(data)) and "good  " in await post("verify", node)
        before = json.loads(await post("inspect", "--json", node))
        assert before["cell"] == "amber/1" and before["users"] == 2 and before["records"]["Submit"] == 5
        assert before["waiting"] >= 4 and not before["findings"] and len(before["store"]) == 32
        assert f"blocks       1 to {before['tip']}" in await post("inspect", str(data))

        index = flip(data)
        assert index == before["tip"] and f"block {index}" in await post("verify", node, status=Exit.FAILED)
        assert "BAD" in await post("inspect", node, status=Exit.FAILED)
        said = await post("repair", "--yes", node)
        assert f"with blocks 1 to {index - 1}" in said and "What came after is lost: block" in said
        assert "good  " in await post("verify", node)
        after = json.loads(await post("inspect", "--json", node))
        assert after["log"] != before["log"] and after["store"] != before["store"] and after["users"] == 2
        assert after["checkpoint"] == after["tip"] == index - 1 and before["store"] in after["quarantine"][0]

        await fed.start("amber")
        await fed.start("birch")
        assert await collect(layout, "bob", 2) == ["one", "two"]
        await send(layout, "bob", "six")
        assert await collect(layout, "bob", 1) == ["six"]
        await send(layout, "carol", "seven")
        got = await collect(layout, "carol", 2 + ("Submit" in _kinds_of(before, after)))
        assert got[0] == "four" and got[-1] == "seven"


def _kinds_of(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> set[str]:
    """Kinds of records of which nothing was lost."""
    return {kind for kind, count in before["records"].items() if after["records"].get(kind) == count}


async def test_other_regions_go_on_with_a_log_that_lost_what_they_had_handed_over(layout: Layout) -> None:
    """And say so: what was stored and is lost is lost. What is sent from then on arrives (rule 13)."""
    data, node = layout.node("birch").data_dir, str(layout.node("birch").directory)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        async with open_client(layout.home.store("carol")) as client:
            await client.caught_up()
        await send(layout, "carol", "one")
        assert await collect(layout, "carol", 1) == ["one"]
        fed.kill("birch")
        await fed.ended()
        before = tip(data)
        await fed.start("birch")
        await send(layout, "carol", "two", "three")  # stored, and then lost
        fed.kill("birch")
        await fed.ended()
        flip(data, index=before + 1)
        assert "What came after is lost" in await post("repair", "--yes", node)
        await fed.start("birch")
        await send(layout, "carol", "four", "five")
        assert (await collect(layout, "carol", 2))[-2:] == ["four", "five"]
        said = layout.node("amber").log_path.read_text()
        assert "hand_over_lost" in said and "hand_over_stopped" not in said


async def test_an_older_copy_is_known_by_its_mark(layout: Layout) -> None:
    data, node = layout.node("amber").data_dir, str(layout.node("amber").directory)
    async with LocalFederation(layout) as fed:
        await fed.start("amber")
        await fed.stop("amber")
        shutil.copytree(data, data.with_name("old"))
        await fed.start("amber")
        async with open_client(layout.home.store("bob")) as client:
            await client.caught_up()
        assert "StoreLocked" not in await post("verify", node, status=Exit.OPERATOR)
        assert "another process holds this store" in await post("repair", "--yes", node, status=Exit.OPERATOR)
        await fed.stop("amber")
        (data / "log.sqlite-wal").unlink(missing_ok=True)
        for file in data.with_name("old").glob("log.sqlite*"):
            if file.suffix != ".mark":
                shutil.copy(file, data)
        assert "its mark says that it came to block" in await post("verify", node, status=Exit.FAILED)
        said = await post("repair", "--yes", node)
        assert "What came after is lost: it came to write" in said
        await fed.start("amber")
        async with open_client(layout.home.store("bob")) as client:
            await client.caught_up()  # the log that is left has never heard of bob
        await send(layout, "bob", "hello")


async def test_a_copy_beside_the_data_of_a_node_is_looked_at_itself(layout: Layout) -> None:
    """`mv data data.old`, and a new one: what is said, and done, is about the directory that was named."""
    node = layout.node("amber")
    data, old = node.data_dir, node.data_dir.with_name("data.old")
    async with LocalFederation(layout) as fed:
        await fed.start("amber")
        fed.kill("amber")  # no last checkpoint: there are blocks
        await fed.ended()
    shutil.copytree(data, old)
    flip(old)
    said = await post("verify", str(old), status=Exit.FAILED)
    assert str(old) in said and "BAD" in said
    assert json.loads(await post("inspect", "--json", str(old), status=Exit.FAILED))["directory"] == str(old)
    assert "good  " in await post("verify", str(data)) and "good  " in await post("verify", str(node.config_path))
    before = {path: path.read_bytes() for path in data.iterdir() if path.is_file()}
    said = await post("repair", "--yes", str(old), status=Exit.OPERATOR)
    assert f"{old} is not where the node" in said and str(data) in said
    assert {path: path.read_bytes() for path in data.iterdir() if path.is_file()} == before
    key = layout.home.secrets / "amber.storage.key"
    node.config_path.write_text("no config")
    assert "good  " in await post("verify", "--storage-key", str(key), str(data))


async def test_what_cannot_be_repaired_is_left_alone(layout: Layout, tmp_path: Path) -> None:
    data, node = layout.node("amber").data_dir, str(layout.node("amber").directory)
    assert "there is nothing to repair" in (await post("repair", node, status=Exit.OPERATOR)).lower()
    async with LocalFederation(layout) as fed:
        await fed.start("amber")
        async with open_client(layout.home.store("bob")) as client:
            await client.caught_up()
        await send(layout, "bob", "one", wait="accepted")
        await fed.stop("amber")  # its last checkpoint is of its last block
    flip(data, "min")
    files = {path: path.read_bytes() for path in data.iterdir() if path.is_file() and path.suffix != ".shm"}
    said = await post("repair", "--yes", node, status=Exit.OPERATOR)
    assert "nothing was changed" in said and "needs what is missing" in said
    assert all((data / path.name).exists() for path in files) and not (data / "quarantine").exists()
    assert "nothing was changed" in await post("repair", node, status=Exit.FAILED, types="n\n")
    said = await post("repair", node, status=Exit.INTERRUPTED)  # nobody is there
    assert "nothing was changed" in said and "--yes" in said
    assert "no node.toml" in await post("verify", str(tmp_path), status=Exit.OPERATOR)
    assert "no store here" in await post("verify", str(layout.node("birch").directory), status=Exit.OPERATOR)


class Killed(BaseException):
    """The process is no more."""


async def test_a_repair_that_is_cut_short_is_finished_by_the_next_one(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever file was moved last. Until then no node starts beside it: it would begin an empty log."""
    data, node = layout.node("amber").data_dir, str(layout.node("amber").directory)
    async with LocalFederation(layout) as fed:
        await fed.start("amber")
        async with open_client(layout.home.store("bob")) as client:
            await client.caught_up()
        fed.kill("amber")
        await fed.ended()
        shutil.copytree(data, tmp_path / "before")
        rename, left = Path.rename, 0

        def rename_some(path: Path, target: Path) -> Path:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", rename_some)
        for count in range(20):
            shutil.rmtree(data)
            shutil.copytree(tmp_path / "before", data)
            left = count
            try:
                await post("repair", "--yes", node)
                break
            except Killed:
                left = -1
            if (data / "repaired").exists():
                with pytest.raises(OperatorError, match="was cut short"):
                    await fed.start("amber")
                assert "was cut short" in await post("verify", node, status=Exit.OPERATOR)
            await post("repair", "--yes", node)
            assert "good  " in await post("verify", node)
            assert json.loads(await post("inspect", "--json", node))["users"] == 1
            assert sorted(path.name for path in data.glob("quarantine/*/log.sqlite")) == ["log.sqlite"]
        assert count > 4
        await fed.start("amber")
