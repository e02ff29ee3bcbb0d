"""A cell of three loses two disks for good: `posthouse journal repair --alone` makes a cell of the one that is left."""

from __future__ import annotations

import json
from pathlib import Path

import trio

from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user
from relay.client import open_client
from tests.e2e.test_cell import Operator
from tests.e2e.test_journal import collect, post, send

NODES = ("n1", "n2", "n3")


async def inspect(layout: Layout, name: str) -> dict[str, int | str]:
    return json.loads(await post("inspect", "--json", str(layout.node("amber", name).directory)))  # type: ignore[no-any-return]


async def test_a_cell_is_made_of_the_store_that_is_left(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    for name in ("alice", "bob"):
        create_user(layout.home, name, "amber", RealEnv().clock.wall_ms())
    operator = Operator(layout)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        before = await operator.whole()
        async with open_client(layout.home.store("bob")) as bob:
            await bob.caught_up()
        await send(layout, "bob", "one", "two", "three")
        for name in NODES:
            fed.kill("amber", name)
        await trio.sleep(0.5)
        seen = {name: await inspect(layout, name) for name in NODES}
        left = max(NODES, key=lambda name: (seen[name]["term"], seen[name]["tip"]))
        stale, wiped = [name for name in NODES if name != left]  # one disk is empty, one is brought back later
        assert seen[left]["term"] > 0
        node = str(layout.node("amber", left).directory)
        shown = await post("inspect", node)
        assert f"block {seen[left]['tip']} of term {seen[left]['term']}" in shown
        await fed.wipe("amber", wiped)

        said = await post("repair", "--alone", node, status=Exit.OPERATOR)
        assert f"the stores of {stale}, {wiped}" in said or f"the stores of {wiped}, {stale}" in said
        assert "is lost" in said and "needs --yes" in said and await inspect(layout, left) == seen[left]
        said = await post("repair", "--alone", "--yes", node)
        assert f"with blocks {seen[left]['first']} to {seen[left]['tip']}" in said
        after = await inspect(layout, left)
        assert after["log"] != seen[left]["log"] and after["voters"] == [f"{left} {after['store']}"]
        assert "good  " in await post("verify", node)

        await fed.launch("amber", left)
        await fed.launch("amber", stale)  # with its store of the old log: it ends, and its store stays as it is
        died, error = await fed.next_death()
        assert died.name == stale and "status 3" in error.text and "its cell goes on with log" in error.remedy
        assert seen[stale]["log"] == (await inspect(layout, stale))["log"]
        await post("repair", "--yes", str(layout.node("amber", stale).directory))
        for name in (stale, wiped):
            await fed.launch("amber", name)
        for name in NODES:
            await fed.ready("amber", name)
        stores = await operator.whole()
        assert set(stores) == set(NODES) and not set(stores.values()) & set(before.values())
        assert stores[left] == after["store"]
        assert await collect(layout, "bob", 3) == ["one", "two", "three"]
        await send(layout, "bob", "four")
        assert await collect(layout, "bob", 1) == ["four"]
        assert "any 1 of 3 may fail" in await operator.cell("status")


async def test_where_alone_makes_no_sense_nothing_is_changed(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv())
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        node = str(layout.node("amber").directory)
        await fed.stop("amber")
    said = await post("repair", "--alone", "--yes", node, status=Exit.OPERATOR)
    assert "is a cell of one node" in said
    assert not (layout.node("amber").data_dir / "quarantine").exists()
