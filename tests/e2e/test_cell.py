"""`posthouse cell …` on real cells: looked at, led by another, hurt, made smaller and whole again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import trio

from cluster.cli.exits import Exit
from cluster.config_keys import Address
from cluster.control.pages import Unanswered, ask_view
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.processes import _ask_ready
from tests.keeping import keeping
from tests.patience import PATIENCE_S
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]


class Operator:
    """Who types `posthouse …` beside a running federation."""

    def __init__(self, layout: Layout | None) -> None:
        self.layout = layout

    async def types(self, *words: str, status: int = 0, until: str = "", then: Callable[[], object] = bool) -> str:
        """What the command says. `then` is called once it has said `until`."""
        command, heard = [sys.executable, "-m", "cluster.cli", *words], b""
        with trio.fail_after(PATIENCE_S):
            process = await trio.lowlevel.open_process(command, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, cwd=ROOT)
            assert process.stdout is not None
            try:
                async for part in process.stdout:
                    known, heard = heard, heard + part
                    if until.encode() in heard and until.encode() not in known:
                        then()
                await process.wait()
            finally:
                process.kill()
        said = heard.decode()
        assert process.returncode == status and "Traceback" not in said, (words, process.returncode, said)
        return said

    async def cell(self, *words: str, **more: Any) -> str:
        assert self.layout is not None
        return await self.types("cell", *words, "--dir", str(self.layout.directory), **more)

    async def whole(self) -> dict[str, str]:
        """Node → store, once all three vote and nobody is silent."""
        assert self.layout is not None
        return await whole(*(node.admin_addr for node in self.layout.nodes("amber")))


async def whole(*admins: Address) -> dict[str, str]:
    """The same of the nodes that show their cell there, whoever of them runs."""
    with trio.fail_after(PATIENCE_S):
        while True:
            for admin in admins:
                with suppress(Unanswered):
                    view = await ask_view(admin)
                    if view.whole() and view.leader == view.node:
                        return {store.node: store.store for store in view.voters}
            await trio.sleep(0.1)


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
            said = await operator.cell(
                "replace-node", "n2", until="n2 has store", then=partial(nursery.start_soon, _come_back_empty, fed)
            )
        assert "n2 votes with a new store" in said and "n2 has store" in said
        renewed = await operator.whole()
        assert renewed["n2"] != stores["n2"] and renewed["n1"] == stores["n1"] and renewed["n3"] == stores["n3"]

        first = str(layout.node("amber", "n1").config_path)
        said = await operator.types("cell", "status", "--config", first)
        assert "any 1 of 3 may fail" in said
        refused = await operator.cell("remove-node", "n3", status=Exit.OPERATOR)
        assert "two voters would be left" in refused and "added and promoted" in refused
        assert await operator.whole() == renewed


async def test_a_node_is_not_ready_while_its_cell_has_no_majority(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    n1 = layout.node("amber", "n1")

    async def loses_the_others(fed: LocalFederation) -> None:
        fed.kill("amber", "n2")
        fed.kill("amber", "n3")
        lost = "not ready: waiting for a majority of the cell: nobody leads it"
        while await _ask_ready(n1.admin_addr) != lost:  # noqa: ASYNC110 - of a process
            await trio.sleep(0.1)

    async with LocalFederation(layout) as fed:
        with trio.fail_after(2 * PATIENCE_S):
            await fed.start_all()
            await loses_the_others(fed)
            await fed.start("amber", "n2")  # which waits for a majority, too
            await fed.ready("amber", "n1")
            await fed.start("amber", "n3")
            await loses_the_others(fed)
            assert await fed.stop("amber", "n1") == Exit.OK
    log = n1.log_path.read_text()
    assert log.count('"cannot_commit"') >= 2 and log.count('"commits_again"') >= 1  # more often on a slow machine
    assert '"drained"' in log, "its clients are still served to the end"


async def test_a_node_that_was_removed_stays_away_until_it_is_let_in_again(tmp_path: Path) -> None:
    """Of five, for the three of a smaller cell are never made two."""
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=5)
    operator = Operator(layout)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        stores = await operator.whole()
        assert "any 2 of 5 may fail" in await operator.cell("status")
        for name in ("n5", "n4"):
            await operator.cell("remove-node", name)
            node, error = await fed.next_death()
            assert node.name == name and "status 3" in error.text and "was removed from its cell" in error.remedy
            assert fed.carries_on("amber")
            assert f"{name}       –" in await operator.cell("status", status=Exit.FAILED)
        refused = await operator.cell("remove-node", "n3", status=Exit.OPERATOR)
        assert "2 of the 5 nodes that the root lists would vote" in refused
        for name in ("n4", "n5"):
            await operator.types("journal", "repair", "--yes", str(layout.node("amber", name).data_dir))
            await fed.start("amber", name)
            await operator.cell("add-node", name)
        again = await operator.whole()
        kept = {"n1", "n2", "n3"}
        assert {name for name in again if again[name] == stores[name]} == kept


async def _come_back_empty(fed: LocalFederation) -> None:
    await fed.wipe("amber", "n2")
    await fed.start("amber", "n2")


async def test_nobody_to_ask(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    said = await Operator(layout).cell("status", status=Exit.UNREACHABLE)
    assert "no node answers at 127.0.0.1" in said


class Servers:
    """The nodes of a region that `posthouse init` made, each in a process."""

    def __init__(self, region: Path, nursery: trio.Nursery) -> None:
        self.region, self.nursery = region, nursery
        self.running: dict[str, trio.Process] = {}

    async def start(self, *names: str) -> None:
        for name in names:
            config = self.region / f"server-{name}" / "node.toml"
            command = [sys.executable, "-m", "cluster.cli", "node", "run", str(config)]
            with (self.region / f"{name}.log").open("ab") as log:
                process = await trio.lowlevel.open_process(command, stdout=log, stderr=log, cwd=ROOT)
            self.running[name] = process
            self.nursery.start_soon(self._reap, process)

    async def _reap(self, process: trio.Process) -> None:
        try:
            await process.wait()
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def stop(self, name: str) -> None:
        process = self.running.pop(name)
        process.terminate()
        with trio.fail_after(PATIENCE_S):
            await process.wait()

    def config(self, name: str) -> str:
        return str(self.region / f"server-{name}" / "node.toml")


async def knows_four(admin: Address) -> None:
    """The node runs with the new root document, and its cell has a leader again."""
    with trio.fail_after(PATIENCE_S):
        while True:
            with suppress(Unanswered):
                view = await ask_view(admin)
                if len(view.nodes) == 4 and view.leader and len(view.voters) == 3:
                    return
            await trio.sleep(0.1)


async def test_another_machine_takes_a_nodes_place(tmp_path: Path) -> None:
    operator, region, first = Operator(None), tmp_path / "r", free_ports(14)[0]
    where = ["--host", "127.0.0.1", "--listen", "127.0.0.1", "--dir", str(region)]

    def ports(base: int) -> list[str]:
        return ["--clients", str(base), "--links", str(base + 5), "--admin", str(base + 10)]

    async def sign() -> None:
        for words in keeping(tmp_path / "keeper", region / "amber.region"):
            await operator.types(*words)
        await operator.types("init", "join", str(tmp_path / "keeper/root.bin"), "--dir", str(region))

    await operator.types("init", "region", "amber", "--nodes", "3", *where, *ports(first))
    await sign()
    async with trio.open_nursery() as nursery:
        servers = Servers(region, nursery)
        await servers.start("n1", "n2", "n3")
        admins = [Address("127.0.0.1", first + 10 + number) for number in range(4)]
        await whole(*admins)
        await operator.types("init", "node", "n4", *where, *ports(first + 3))
        await sign()
        for name in ("n3", "n2", "n1"):  # one after the other, each with the new root document
            await servers.stop(name)
            await servers.start(name)
            await knows_four(admins[int(name[1]) - 1])
        await servers.start("n4")
        leader = (await ask_view(admins[0])).leader
        old = "n2" if leader != "n2" else "n1"
        said = await operator.types("cell", "replace-node", old, "n4", "--config", servers.config(leader))
        assert f"n4 votes in the place of {old}" in said
        with trio.fail_after(PATIENCE_S):
            assert await servers.running[old].wait() == Exit.OPERATOR
        assert "was removed from its cell" in (region / f"{old}.log").read_text()
        await operator.types("init", "drop-node", old, "--dir", str(region))
        await sign()
        members = [store.node for store in (await ask_view(admins[3])).voters]
        assert sorted(members) == sorted({"n1", "n2", "n3", "n4"} - {old})
        nursery.cancel_scope.cancel()
