"""A new root document reaches nodes and registrars that run: a region that comes is written to, and witnesses; a policy
that changes counts; and no process is started again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import trio

from cluster.env import RealEnv
from cluster.federation.keys import load_signer
from cluster.federation.making import Keyring, make_federation_root
from cluster.kept import KEPT_ROOT
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_user, find_card
from relay.client import SendRefused, open_client
from relay.client.identity import own_records
from relay.core.tlog import TooFewWitnesses
from relay.core.trust import Policy, RootRegion, check_stapled, read_home, reopen_root, verify_root
from relay.core.wire import Code
from tests.e2e.test_ceremony import fresh_until
from tests.e2e.test_logged import make_logged, patiently, registrars
from tests.patience import PATIENCE_S

now_ms = RealEnv().clock.wall_ms


def publish(layout: Layout, regions: Sequence[RootRegion]) -> bytes:
    """The next root document, with these regions; put where all nodes of this machine look."""
    home = layout.home
    keys = Keyring(
        (load_signer(home.secrets / "root-1.pem"),), (load_signer(home.secrets / "keeper-1.pem"),),
        load_signer(home.secrets / "online.pem"),
        {region.name: load_signer(home.secrets / f"{region.name}.region.pem") for region in regions},
    )  # fmt: skip
    signed = make_federation_root("local", regions, keys, now_ms(), before=home.root_path.read_bytes())
    fresh = home.root_path.with_suffix(".new")
    fresh.write_bytes(signed)
    os.replace(fresh, home.root_path)
    return signed


async def taken(layout: Layout, signed: bytes, *regions: str) -> None:
    """Until all nodes of these regions have it."""
    with trio.fail_after(PATIENCE_S):
        for node in [node for region in regions for node in layout.nodes(region)]:
            while True:
                if (node.data_dir / KEPT_ROOT).read_bytes() == signed:
                    break
                await trio.sleep(0.1)
            await fresh_until(node.admin_addr)  # it answers when it is done with what it wrote down


async def test_a_region_comes_and_a_policy_changes_and_no_node_is_started_again(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber", "birch", "cedar"], RealEnv())
    amber, birch, cedar = reopen_root(layout.home.root_path.read_bytes(), now_ms()).payload.regions
    signed = publish(layout, [amber, birch])
    create_user(layout.home, "alice", "amber", now_ms())
    async with LocalFederation(layout) as fed:
        await fed.start("amber")
        await fed.start("birch")
        async with open_client(layout.home.store("alice")) as alice:
            with trio.fail_after(PATIENCE_S):
                await alice.caught_up()
        signed = publish(layout, [amber, birch, cedar])
        await taken(layout, signed, "amber", "birch")
        await fed.start("cedar")
        for name, region in (("carol", "cedar"), ("dora", "amber")):  # their root document has all three
            create_user(layout.home, name, region, now_ms())
        carol, dora = find_card(layout.home, "carol"), find_card(layout.home, "dora")
        async with (
            open_client(layout.home.store("carol")) as there, open_client(layout.home.store("dora")) as here,
        ):  # fmt: skip
            with trio.fail_after(PATIENCE_S):
                await there.caught_up()
                await here.send(carol, b"welcome", wait="stored")
                assert (await anext(there.messages())).content == b"welcome"
                await there.send(dora, b"thank you", wait="stored")
                assert (await anext(here.messages())).content == b"thank you"
                strict = msgspec.structs.replace(amber, policy=Policy(send_to=("birch",)))
                await taken(layout, publish(layout, [strict, birch, cedar]), "amber", "birch", "cedar")
                with pytest.raises(SendRefused, match="NOT_PERMITTED") as refused:
                    await here.send(carol, b"and more")
                assert refused.value.code == Code.NOT_PERMITTED
                await taken(layout, publish(layout, [amber, birch, cedar]), "amber", "birch", "cedar")
                await here.send(carol, b"as before", wait="stored")


async def test_registrars_take_other_witnesses_and_no_process_is_started_again(tmp_path: Path) -> None:
    """Two cosignatures are asked for from now on, of which one is of the region that came."""
    layout = make_logged(tmp_path / "f", ["amber", "birch", "cedar"])
    home = layout.home
    three = reopen_root(home.root_path.read_bytes(), now_ms()).payload.regions
    publish(layout, three[:2])
    with registrars(layout, ["amber", "birch"]):
        await patiently(create_user, home, "alice", "amber", now_ms())
        more = msgspec.structs.replace(three[0].policy, quorum=2)
        signed = publish(layout, [msgspec.structs.replace(three[0], policy=more), *three[1:]])
        with registrars(layout, ["cedar"]):
            with trio.fail_after(PATIENCE_S):
                for region in ("amber", "birch"):
                    while True:
                        if (home.directory / f"registrar-{region}/data" / KEPT_ROOT).read_bytes() == signed:
                            break
                        await trio.sleep(0.1)
            root = verify_root(signed, now_ms())
            with pytest.raises(TooFewWitnesses):
                check_stapled(read_home(own_records(home.store("alice"))[-1]), root)
            await patiently(create_user, home, "bela", "amber", now_ms())  # a record that holds by the new document
            check_stapled(read_home(own_records(home.store("bela"))[-1]), root)
