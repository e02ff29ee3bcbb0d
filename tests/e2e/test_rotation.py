"""The registrar of a region gets another key while the federation runs: what its users have holds, and they go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from cluster.env import RealEnv
from cluster.federation.regionfile import load_region_file, sign_region
from cluster.federation.keys import load_signer
from cluster.local import Layout, LocalFederation
from cluster.local.people import create_user, find_card
from cluster.registrar.config import load_config
from relay.client import Card, Client, open_client
from relay.client.identity import own_records
from relay.client.store import Store, get
from relay.core.trust import RootRegion, check_stapled, read_home, reopen_root
from relay.errors import ConfigError
from tests.e2e.test_logged import REGIONS, make_logged, patiently, registrars
from tests.e2e.test_new_root import publish, taken
from tests.e2e.test_registrar import posthouse
from tests.patience import PATIENCE_S

now_ms = RealEnv().clock.wall_ms


async def types(*words: object) -> str:
    """A command, once the registrars answer."""
    with trio.fail_after(PATIENCE_S):
        while True:
            done = await trio.to_thread.run_sync(lambda: posthouse(*words, check=False))
            if done.returncode == 0:
                return done.stdout
            print(done.stderr)
            await trio.sleep(0.3)


async def writes(one: Client, other: Client, card: Card, text: bytes) -> None:
    with trio.fail_after(PATIENCE_S):
        await one.send(card, text, wait="stored")
        async for message in other.messages():  # what was taken last before a store was closed comes once more
            if message.content == text:
                break


def operators(layout: Layout, entry: RootRegion, place: Path) -> Path:
    """Where `posthouse init region` was run."""
    (place / "secrets").mkdir(parents=True)
    key = layout.home.secrets / f"{entry.name}.region.pem"
    (place / "secrets" / key.name).symlink_to(key)
    (place / f"{entry.name}.region").write_bytes(sign_region(entry, [load_signer(key)], now_ms()))
    return place


async def refused(*words: object) -> str:
    done = await trio.to_thread.run_sync(lambda: posthouse(*words, check=False))
    assert done.returncode != 0
    return done.stderr


async def another_key(at: Path, operator: Path) -> RootRegion:
    """The registrar at `at` stands still: what the region says of itself with another key."""
    said = await types("registrar", "replace-key", "--at", at)
    assert "the one of before ends at entry" in said and "log of birch" in said
    with pytest.raises(ConfigError, match="names another registrar"):  # it cannot sign on with the old one
        load_config(at, now_ms())
    assert "names another registrar" in await refused("registrar", "replace-key", "--at", at)
    assert "before it" in await types("init", "statement", "--registrar-key", at / "amber.replaced", "--dir", operator)
    return load_region_file(operator / "amber.region").region


async def test_users_log_in_write_and_move_while_their_registrar_gets_another_key(tmp_path: Path) -> None:
    layout = make_logged(tmp_path / "f")
    home, at = layout.home, tmp_path / "f" / "registrar-amber"
    for region in REGIONS:
        config = tmp_path / "f" / f"registrar-{region}" / "registrar.toml"
        config.write_text(config.read_text().replace("[listen]\n", "[listen]\nopen = true\n"))
    amber, birch = reopen_root(home.root_path.read_bytes(), now_ms()).payload.regions
    operator = operators(layout, amber, tmp_path / "operator")
    async with LocalFederation(layout) as fed:
        for region in REGIONS:
            await fed.start(region)
        with registrars(layout):
            for region, names in (("amber", ("alice", "mover", "late")), ("birch", ("bob", "clara"))):
                for name in names:
                    await patiently(create_user, home, name, region, now_ms())
            await types("registrar", "move", "mover", "--to", "birch/1", "--dir", home.directory)
            assert "another process holds this store" in await refused("registrar", "replace-key", "--at", at)
        async with people(layout, "clara") as (clara,):  # on one line all the while
            changed = await another_key(at, operator)
            signed = await while_it_stands_still(layout, [changed, birch])
            with registrars(layout):
                await patiently(create_user, home, "dora", "amber", now_ms())
                await types("registrar", "rotate", "--as", "alice", "--at", at, "--dir", home.directory)
                await types("registrar", "move", "late", "--to", "birch/1", "--dir", home.directory)
                await types("registrar", "move", "mover", "--to", "amber/1", "--dir", home.directory)
                root = reopen_root(signed, now_ms())
                for name, version in (("alice", 2), ("late", 2), ("mover", 3), ("dora", 1)):
                    newest = read_home(own_records(home.store(name))[-1])
                    check_stapled(newest, root)
                    assert newest.version == version
                async with people(layout, "late", "mover", "dora", "bob") as (late, mover, dora, bob):
                    await writes(mover, late, find_card(home, "late"), b"each from where the other was")
                    await writes(late, mover, find_card(home, "mover"), b"and back")
                    await writes(dora, bob, find_card(home, "bob"), b"from who is new")
                    await writes(clara, dora, find_card(home, "dora"), b"from who had not heard of that key")
                    assert await kept(layout, "clara") == signed
                await types(
                    "registrar", "audit", f"unix:{at / 'inner'}", "--region", "amber", "--root", home.root_path,
                    "--dir", tmp_path / "audit",
                )  # fmt: skip


async def while_it_stands_still(layout: Layout, regions: list[RootRegion]) -> bytes:
    """The new document is published, and everybody goes on: on open lines, and who logs in by a record of before."""
    home = layout.home
    cards = {name: find_card(home, name) for name in ("alice", "bob", "mover")}
    async with people(layout, "alice", "bob") as (alice, bob):
        await writes(alice, bob, cards["bob"], b"before")
        signed = publish(layout, regions)
        await taken(layout, signed, *REGIONS)
        await writes(bob, alice, cards["alice"], b"after, on the lines of before")
    async with people(layout, "alice", "bob", "mover", "late") as (alice, bob, mover, _):
        with trio.fail_after(PATIENCE_S):
            for name in ("alice", "bob", "mover", "late"):
                while True:
                    if await kept(layout, name) == signed:  # their nodes gave it to them
                        break
                    await trio.sleep(0.1)
        await writes(bob, alice, cards["alice"], b"by records of before")
        await writes(alice, mover, cards["mover"], b"to whom the old key let go")
    return signed


async def kept(layout: Layout, name: str) -> bytes:
    """The root document in a user's store."""

    def look() -> bytes:
        with closing(Store(layout.home.store(name))) as store:
            return store.transact(lambda db: get(db, "root"))

    return await trio.to_thread.run_sync(look)


@asynccontextmanager
async def people(layout: Layout, *names: str) -> AsyncIterator[list[Client]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_client(layout.home.store(name))) for name in names]
