"""`posthouse audit residency` on the disks of real nodes: what belongs there is proven, what does not is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import trio
from click.testing import CliRunner

from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user, find_card
from relay.client import open_client
from relay.core.envelope import envelope_id
from tests.e2e.letters import send
from tests.e2e.planting import plant


async def audit(*words: str | Path, status: int = 0) -> str:
    command = ["audit", "residency", *map(str, words)]
    done = await trio.to_thread.run_sync(lambda: CliRunner(env={"COLUMNS": "200"}).invoke(app, command))
    assert done.exit_code == status, done.output
    return done.output


async def report(directory: Path, *words: str, status: int = 0) -> dict[str, Any]:
    file = directory.parent / "report.json"
    await audit(directory, *words, "--json", file, status=status)
    return dict(json.loads(file.read_text()))


async def test_what_rests_is_proven_and_what_is_foreign_is_named(layout: Layout) -> None:
    top, amber = layout.directory, layout.node("amber")
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        for name in ("bob", "carol"):
            async with open_client(layout.home.store(name)) as client:
                await client.caught_up()
        await send(layout, "bob", "one", "two")
        await send(layout, "carol", "three")
        fed.kill("birch")
        await send(layout, "carol", "four", "five", wait="accepted")
        assert "another process holds this store" in await audit(top, status=Exit.OPERATOR)
        fed.kill("amber")
        await trio.sleep(0.2)

    said = await audit(top, "--each")
    assert "belong there, by signed records. Looked at: 2 stores of 2 nodes" in said
    assert said.count("in the outbox for birch/1") >= 3 and "it waits" in said and "by home record 1" in said
    found = await report(top)
    here, there = found["nodes"]
    assert found["clean"] and here["foreign"] == there["foreign"] == here["in_the_open"] == 0
    assert here["at_home"] == 2 and here["in_outbox"] == 3 and there["at_home"] == 1 and there["in_outbox"] == 0
    assert here["stores"] == ["data/log.sqlite"] and here["blocks"] and here["files"] and found["pieces"] == 5
    carol = find_card(layout.home, "carol").user
    (home,) = there["envelopes"]
    assert home["whose"] == f"user {carol.hex()[:8]}" and home["by"].startswith("by home record 1 (")
    assert all(one["since_ms"] > 0 for one in here["envelopes"])

    own = envelope_id(await plant(layout, "amber", carol, "birch"))
    said = await audit(top, status=Exit.FAILED)
    what = f"amber-n1: foreign envelope {own.hex()[:8]}"
    assert what in " ".join(said.split()) and "who is at home in birch by home record 1" in " ".join(said.split())
    found = await report(top, status=Exit.FAILED)
    (foreign,) = found["nodes"][0]["foreign_envelopes"]
    assert foreign["envelope"] == own.hex() and foreign["home_region"] == "birch" and foreign["record"] == 1
    assert foreign["file"] == "data/log.sqlite" and foreign["block"] == found["nodes"][0]["blocks"]
    assert not found["clean"] and not found["nodes"][1]["foreign"]

    (alone,) = (await report(amber.data_dir, status=Exit.FAILED))["nodes"]  # nobody here knows where carol lives
    assert alone["foreign_envelopes"][0]["home_region"] is None and alone["at_home"] == 2
    assert "no home record was found" in await audit("--config", amber.config_path, status=Exit.FAILED)


async def test_a_cell_of_three_that_was_stopped_is_proven_by_its_checkpoints(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    for name in ("alice", "bob"):
        create_user(layout.home, name, "amber", RealEnv().clock.wall_ms())
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        async with open_client(layout.home.store("bob")) as bob:
            await bob.caught_up()
        async with open_client(layout.home.store("alice"), receive=False) as alice:
            group = await alice.create_group("friends", [find_card(layout.home, "bob")])
            await alice.send_group(group.id, b"hello, all")
        await send(layout, "bob", "one", "two")
        await fed.stop_all()
    found = await report(layout.directory)
    assert found["clean"] and len(found["nodes"]) == 3
    for node in found["nodes"]:
        assert node["checkpoint_rows"] and node["at_home"] >= 3 and not node["in_outbox"]
        (group_mail,) = (one for one in node["envelopes"] if one["whose"] == f"group {group.id.hex()[:8]}")
        assert "is a member by roster version 1" in group_mail["by"]
