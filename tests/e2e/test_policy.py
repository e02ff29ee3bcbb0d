"""Policies of the signed root with real nodes: what they forbid does not cross or rest, and people are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from click.testing import CliRunner

from cluster.audit.shelf import held_in
from cluster.cli import app
from cluster.env import RealEnv
from cluster.federation.keys import load_signer
from cluster.federation.making import Keyring, make_federation_root
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user, find_card
from relay.client import SendRefused, open_client
from relay.core.envelope import envelope_id
from relay.core.records import Passed, Submit, decode_record
from relay.core.trust import Policy, reopen_root
from relay.core.wire import Code
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing
from tests.e2e.test_journal import collect
from tests.patience import PATIENCE_S

now_ms = RealEnv().clock.wall_ms


def decree(layout: Layout, **policies: Policy) -> None:
    """Sign and publish another root document, in which these regions have these policies. Nodes take it at a start."""
    home = layout.home
    before = home.root_path.read_bytes()
    regions = [
        msgspec.structs.replace(region, policy=policies.get(region.name, region.policy))
        for region in reopen_root(before, now_ms()).payload.regions
    ]
    keys = Keyring(
        (load_signer(home.secrets / "root-1.pem"),), (load_signer(home.secrets / "keeper-1.pem"),),
        load_signer(home.secrets / "online.pem"),
        {region.name: load_signer(home.secrets / f"{region.name}.region.pem") for region in regions},
    )  # fmt: skip
    home.root_path.write_bytes(make_federation_root("local", regions, keys, now_ms(), before=before))


async def post(*words: str | Path) -> str:
    done = await trio.to_thread.run_sync(lambda: CliRunner(env={"COLUMNS": "200"}).invoke(app, [str(w) for w in words]))
    assert done.exit_code == 0, done.output
    return done.output


async def audit(layout: Layout) -> dict[str, dict[str, Any]]:
    """What rests on the disks of stopped nodes, by region; all of it belongs there."""
    file = layout.directory.parent / "report.json"
    await post("audit", "residency", layout.directory, "--json", file)
    return dict(zip(layout.regions, json.loads(file.read_text())["nodes"], strict=True))


def envelopes_in(layout: Layout, region: str) -> set[bytes]:
    """The ids of all envelopes in the log of a stopped node."""
    ring = StorageRing.load(layout.home.secrets / f"{region}.storage.key")
    with open_stopped(layout.node(region).data_dir, ring) as store:
        found = [held for block in store.blocks() for one in block.records for held in held_in(decode_record(one))]
    return {envelope_id(held) for record, held, _ in found if isinstance(record, Submit | Passed)}


async def log_of(layout: Layout, region: str) -> dict[str, Any]:
    return dict(json.loads(await post("journal", "inspect", "--json", layout.node(region).directory)))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_federation(tmp_path / "f", ["amber", "birch"], RealEnv())


def people(layout: Layout) -> None:
    for name, region in (("alice", "amber"), ("bob", "amber"), ("carol", "birch")):
        create_user(layout.home, name, region, now_ms())


async def enrol(layout: Layout, *names: str) -> None:
    for name in names:
        with trio.fail_after(PATIENCE_S):
            async with open_client(layout.home.store(name)) as client:
                await client.caught_up()


async def test_what_may_not_go_does_not_cross_and_does_not_rest(layout: Layout) -> None:
    people(layout)
    carol, bob, alice = (find_card(layout.home, name) for name in ("carol", "bob", "alice"))
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await enrol(layout, "alice", "bob", "carol")
        async with open_client(layout.home.store("alice"), receive=False) as client:
            await client.send(carol, b"before", wait="stored")
            await fed.stop("birch")
            await client.send(carol, b"waits", wait="accepted")
        decree(layout, amber=Policy(send_to=()))
        await fed.stop("amber")
        await fed.start_all()
        said = await post("directory", "verify", "--dir", layout.directory)
        assert "policy region amber: sends to no other region only" in said
        said = await post("config", "check", layout.node("amber").config_path)
        assert "policy of region amber: sends to no other region only" in said

        async with open_client(layout.home.store("alice")) as client:  # she hears of what waited, too
            with trio.fail_after(PATIENCE_S):
                with pytest.raises(SendRefused, match="NOT_PERMITTED") as refused:
                    await client.send(carol, b"after")
                assert refused.value.code == Code.NOT_PERMITTED and "policy" in refused.value.remedy
                with pytest.raises(SendRefused, match="NOT_PERMITTED"):
                    await client.create_group("friends", [bob, carol])
                await client.drained()
                await client.send(bob, b"near", wait="stored")
            assert [error.error.code for error in client.failures] == [Code.NOT_PERMITTED]
        async with open_client(layout.home.store("carol"), receive=False) as client:
            with trio.fail_after(PATIENCE_S):
                await client.send(alice, b"the other way", wait="stored")
        assert "withheld" in layout.node("amber").log_path.read_text()
        for region in layout.regions:
            fed.kill(region)
        await fed.ended()
        assert (await audit(layout))["birch"]["at_home"] == 1, "the one from before, which nobody has collected"
        await fed.start_all()
        assert await collect(layout, "carol", 1) == ["before"]
        assert await collect(layout, "alice", 1) == ["the other way"]


async def test_what_may_not_wait_goes_at_once_or_later_and_once(layout: Layout) -> None:
    """With the destination up, down, and killed in between: nothing lost, nothing twice, nothing at rest at home."""
    decree(layout, amber=Policy(hold="deny"))
    people(layout)
    carol = find_card(layout.home, "carol")
    expected: list[str] = []
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await enrol(layout, "alice", "carol")
        async with open_client(layout.home.store("alice")) as client:

            async def send(text: str, wait: str = "stored") -> None:
                expected.append(text)
                with trio.fail_after(PATIENCE_S):
                    await client.send(carol, text.encode(), wait=wait)

            for number in range(5):
                await send(f"up {number}")
            expected.append("proven")
            with trio.fail_after(PATIENCE_S):
                sent = await client.send(carol, b"proven", receipt="stored")
                assert len(await client.receipts(sent)) == 1, "signed by the recipient's cell"
            fed.kill("birch")
            for number in range(5):
                await send(f"down {number}", "queued")
            await trio.sleep(2)
            assert client.stats.stored == 6
            await fed.start("birch")
            for number in range(40):
                await send(f"killed {number}", "queued")
                if number % 10 == 5:
                    fed.kill("birch")
                if number % 10 == 9:
                    await fed.start("birch")
                await trio.sleep(0.05)
            fed.kill("amber")
            await send("the sender's node is killed", "queued")
            await fed.start("amber")
            with trio.fail_after(PATIENCE_S):
                await client.drained()
            assert client.stats.refused == 0 and client.stats.stored == len(expected)
        fed.kill("amber")
        fed.kill("birch")
        await fed.ended()
        found, logs = await audit(layout), [await log_of(layout, region) for region in layout.regions]
        assert found["amber"]["in_outbox"] == found["amber"]["at_home"] == 0 and logs[0]["first"] == 1
        assert not {"Submit", "Handed"} & logs[0]["records"].keys(), "not in any block that was ever written"
        assert len(envelopes_in(layout, "birch")) == len(expected), "each of them is there"
        assert found["birch"]["at_home"] >= len(expected), "the fold drops repeats, of what has lost its answer"
        await fed.start_all()
        async with open_client(layout.home.store("carol")) as client:
            got = []
            with trio.move_on_after(PATIENCE_S) as scope:
                async for message in client.messages():
                    got.append(message.content.decode())
                    if len(got) == len(expected):
                        scope.deadline = trio.current_time() + 0.5
            assert got == expected and client.stats.gaps == 0


async def test_mail_lives_no_longer_than_the_regions_keep_it(layout: Layout) -> None:
    create_user(layout.home, "alice", "amber", now_ms())  # her root document says nothing of it
    decree(layout, amber=Policy(retention_days=5), birch=Policy(retention_days=2))
    for name, region in (("bob", "amber"), ("carol", "birch")):
        create_user(layout.home, name, region, now_ms())
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await enrol(layout, "alice", "bob", "carol")
        for name, other, resealed in (("alice", "carol", 1), ("alice", "bob", 0), ("carol", "bob", 0)):
            async with open_client(layout.home.store(name), receive=False) as client:
                with trio.fail_after(PATIENCE_S):
                    await client.send(find_card(layout.home, other), b"x", wait="stored")
                assert client.stats.resealed <= resealed  # none where the newer root document came first (ADR 43)
        await fed.stop_all()
