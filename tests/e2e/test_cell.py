"""`posthouse cell …` on a real cell of three: looked at, led by another, hurt, made smaller and whole again."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import trio

from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation

PATIENCE_S = 60


class Operator:
    """Who types `posthouse …` beside a running federation."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    async def types(self, *words: str, status: int = 0) -> str:
        command = [sys.executable, "-m", "cluster.cli", *words]
        with trio.fail_after(PATIENCE_S):
            done = await trio.run_process(
                command, capture_stdout=True, stderr=subprocess.STDOUT, check=False, cwd=Path(__file__).parents[2]
            )
        said = done.stdout.decode()
        assert done.returncode == status and "Traceback" not in said, (words, done.returncode, said)
        return said

    async def cell(self, *words: str, status: int = 0) -> str:
        return await self.types("cell", *words, "--dir", str(self.layout.directory), status=status)

    async def whole(self) -> dict[str, str]:
        """Node → store, once all three vote."""
        with trio.fail_after(PATIENCE_S):
            while True:
                view = json.loads(await self.types_any("cell", "status", "--json", "--dir", str(self.layout.directory)))
                stores = {one["node"]: one["store"] for one in view["voters"]}
                if sorted(stores) == ["n1", "n2", "n3"] and len(view["voters"]) == 3 and view["leader"]:
                    return stores
                await trio.sleep(0.2)

    async def types_any(self, *words: str) -> str:
        done = await trio.run_process([sys.executable, "-m", "cluster.cli", *words], capture_stdout=True, check=False)
        return done.stdout.decode()


async def test_a_cell_is_looked_after_while_it_runs(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    operator = Operator(layout)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        stores = await operator.whole()
        assert len(set(stores.values())) == 3
        shown = await operator.cell("status")
        assert shown.count(" votes") == 3 and shown.count("leads") == 1 and "any 1 of 3 may fail" in shown

        await operator.cell("transfer-leader", "n2")
        assert "n2" in next(line for line in (await operator.cell("status")).splitlines() if "leads" in line)
        assert "no voter 'n7'" in await operator.cell("transfer-leader", "n7", status=Exit.OPERATOR)

        fed.kill("amber", "n2")  # the leader, and its disk
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_come_back_empty, fed)
            said = await operator.cell("replace-node", "n2")
        assert "n2 votes with a new store" in said and "n2 has store" in said
        renewed = await operator.whole()
        assert renewed["n2"] != stores["n2"] and renewed["n1"] == stores["n1"] and renewed["n3"] == stores["n3"]

        first = str(layout.node("amber", "n1").config_path)
        said = await operator.types("cell", "status", "--config", first)
        assert "any 1 of 3 may fail" in said
        await operator.cell("remove-node", "n3")
        node, error = await fed.next_death()
        assert node.name == "n3" and "status 3" in error.text and "was removed from its cell" in error.remedy
        assert fed.carries_on("amber")
        assert "n3       –" in await operator.cell("status", status=Exit.FAILED)
        refused = await operator.cell("remove-node", "n2", status=Exit.OPERATOR)
        assert "1 of the 3 nodes that the root lists would vote" in refused
        await operator.types("journal", "repair", "--yes", str(layout.node("amber", "n3").data_dir))
        await fed.start("amber", "n3")
        await operator.cell("add-node", "n3")
        again = await operator.whole()
        assert again["n3"] != stores["n3"] and again["n2"] == renewed["n2"]


async def _come_back_empty(fed: LocalFederation) -> None:
    await trio.sleep(2.0)  # long enough that the command sees the store that is about to go
    await fed.wipe("amber", "n2")
    await fed.start("amber", "n2")


async def test_nobody_to_ask(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    said = await Operator(layout).cell("status", status=Exit.UNREACHABLE)
    assert "no node answers at 127.0.0.1" in said
