"""Signed receipts of real cells: asked for, verified offline, and still to be had while nodes die."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import trio

from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user, find_card
from relay.certificates import certify
from relay.client import NotProven, open_client
from relay.core.receipts import Verified, verify_receipt
from relay.core.wire import Code
from tests.e2e.test_cell import Operator, whole
from tests.patience import PATIENCE_S



def people(layout: Layout) -> None:
    for name, region in (("alice", layout.regions[0]), ("bob", layout.regions[-1])):
        create_user(layout.home, name, region, RealEnv().clock.wall_ms())


async def bob_shows_up(layout: Layout) -> None:
    """His cell does not know him before."""
    with trio.fail_after(PATIENCE_S):
        async with open_client(layout.home.store("bob")) as bob:
            await bob.caught_up()


async def verified(layout: Layout, data: list[bytes]) -> list[Verified]:
    root = layout.home.root(RealEnv().clock.wall_ms())
    return [verify_receipt(one, root, certify) for one in data]


async def sends(layout: Layout, text: bytes, level: str) -> list[Verified]:
    """alice sends to bob and has it proven."""
    with trio.fail_after(PATIENCE_S):
        async with open_client(layout.home.store("alice"), receive=True) as alice:
            sent = await alice.send(find_card(layout.home, "bob"), text, wait="queued", receipt=level)
            return await verified(layout, await alice.receipts(sent))


async def test_two_regions_of_three_and_a_killed_node_in_each(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber", "birch"], RealEnv(), nodes=3)
    people(layout)
    operator = Operator(None)
    where = ("--dir", str(layout.directory))
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await bob_shows_up(layout)
        [accepted] = await sends(layout, b"one", "accepted")
        assert (accepted.leaf.code, accepted.leaf.cell, accepted.needed, accepted.of) == (1, "amber/1", 2, 3)
        [stored] = await sends(layout, b"two", "stored")
        assert (stored.leaf.code, stored.leaf.cell, len(stored.nodes)) == (2, "birch/1", 2)

        file = tmp_path / "receipt"
        source = tmp_path / "large"
        source.write_bytes(bytes(150_000))  # travels in two envelopes
        said = await operator.types(
            "send", "--as", "alice", "--to", "bob", "--wait", "stored", "--receipt", str(file), *where, str(source)
        )
        assert f"receipt: {file}\n" in said and f"receipt: {file}.2\n" in said
        for path in (file, Path(f"{file}.2")):
            said = await operator.types("receipt", "verify", str(path), *where)
            assert "this receipt holds" in said and "2 of 3" in said and "does not prove" in said
        log = re.search(r"of log ([0-9a-f]{32})", said)
        assert log is not None
        await operator.types("receipt", "verify", str(path), "--log-id", log[1], *where)
        said = await operator.types("receipt", "verify", str(path), "--log-id", "0" * 32, *where, status=Exit.UNTRUSTED)
        assert "of log" in said
        damaged = bytearray(file.read_bytes())
        damaged[len(damaged) // 2] ^= 1
        file.write_bytes(damaged)
        await operator.types("receipt", "verify", str(file), *where, status=Exit.UNTRUSTED)

        fed.kill("amber", "n2")
        fed.kill("birch", "n3")
        [stored] = await sends(layout, b"three", "stored")
        assert "n3" not in stored.nodes and stored.leaf.cell == "birch/1"
        [accepted] = await sends(layout, b"four", "accepted")
        assert "n2" not in accepted.nodes


async def test_what_a_killed_node_proves_when_it_is_back(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    people(layout)
    nodes = [node.name for node in layout.nodes("amber")]
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await bob_shows_up(layout)
        with trio.fail_after(PATIENCE_S):
            async with open_client(layout.home.store("alice"), receive=False) as alice:
                sent = await alice.send(find_card(layout.home, "bob"), b"one", wait="accepted", receipt="stored")
                for name in nodes:  # all of them, before or while it is asked for: whoever is back folds it again
                    fed.kill("amber", name)
                for name in nodes:
                    await fed.launch("amber", name)
                for name in nodes:
                    await fed.ready("amber", name)
                [stored] = await verified(layout, await alice.receipts(sent))
        assert stored.leaf.code == Code.STORED and len(stored.nodes) == 2
        await whole(*(node.admin_addr for node in layout.nodes("amber")))


async def test_a_cell_of_one_proves_until_it_is_stopped(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=1)
    people(layout)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        await bob_shows_up(layout)
        [stored] = await sends(layout, b"one", "stored")
        assert (stored.nodes, stored.needed, stored.of) == (("n1",), 1, 1)
        with trio.fail_after(PATIENCE_S):
            async with open_client(layout.home.store("alice"), receive=False) as alice:
                sent = await alice.send(find_card(layout.home, "bob"), b"two", wait="accepted", receipt="stored")
                assert len(await alice.receipts(sent)) == 1
                # A checkpoint is saved when a node is stopped; it has folded nothing since, and remembers nothing.
                await fed.stop("amber")
                await fed.start("amber")
                await alice._desk.run(lambda db: db.execute("UPDATE receipts SET receipt=NULL, retry_at=0"))
                alice._desk.proofs.ring()
                with pytest.raises(NotProven) as refused:
                    await alice.receipts(sent)
                assert refused.value.code == Code.UNPROVEN
