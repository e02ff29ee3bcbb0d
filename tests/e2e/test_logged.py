"""Two regions whose registrars log, cosign for each other and run, as processes: what is not logged gets nowhere."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from cluster.config_keys import Address
from cluster.env import RealEnv
from cluster.federation.keys import load_signer
from cluster.federation.making import Keyring, make_federation_root
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.book import Book
from cluster.local.people import create_user, find_card, move_user, new_store
from cluster.provision import load_signing_key
from cluster.registrar.asking import Registrar
from cluster.registrar.config import load_config, load_key
from cluster.registrar.make import make_registrar
from cluster.registrar.witness import origin_hash
from relay.client import new_user, open_client
from relay.client.identity import own_records
from relay.core.tlog import ED25519, AddCheckpoint, Checkpoint, NotLogged, parse_checkpoint, parse_note
from relay.core.trust import Policy, read_home, reopen_root, split_home
from relay.errors import PosthouseError
from tests.patience import PATIENCE_S
from tests.ports import free_ports

REGIONS = ("amber", "birch")
now_ms = RealEnv().clock.wall_ms


def make_logged(place: Path, regions: Sequence[str] = REGIONS) -> Layout:
    """A federation on one machine, whose root names the logs of all regions, each witnessed by one of the others."""
    layout = make_federation(place, regions, RealEnv())
    secrets, root = layout.home.secrets, reopen_root(layout.home.root_path.read_bytes(), now_ms())
    entries = []
    for region, port in zip(regions, free_ports(len(regions)), strict=True):
        entry = root.region(region)
        authority = entry.authority, (secrets / f"{region}.authority.pem").read_bytes()
        directory = place / f"registrar-{region}"
        peer = make_registrar(
            directory, region, authority, Address("127.0.0.1", port), f"{region}.example", port=port, witnesses=None,
            now_ms=now_ms(),
        )  # fmt: skip
        config = directory / "registrar.toml"
        config.write_text(config.read_text().replace("0.0.0.0", "127.0.0.1"))
        entries.append(structs.replace(
            entry, log_key=str(peer.log), witness_key=str(peer.witness), registrar_url=peer.url, policy=Policy(quorum=1)
        ))  # fmt: skip
    keys = Keyring(
        (load_signer(secrets / "root-1.pem"),), (load_signer(secrets / "keeper-1.pem"),),
        load_signer(secrets / "online.pem"),
        {region: load_signer(secrets / f"{region}.region.pem") for region in regions},
    )  # fmt: skip
    layout.home.root_path.write_bytes(make_federation_root("local", entries, keys, now_ms(), before=root.signed))
    return layout


@contextmanager
def registrars(layout: Layout, regions: Sequence[str] = REGIONS) -> Iterator[Callable[[str], None]]:
    """They run. Gives what kills one of them and starts it anew."""
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(region: str) -> None:
        with (layout.home.directory / f"{region}.registrar.log").open("ab") as log:
            directory = layout.home.directory / f"registrar-{region}"
            words = [sys.executable, "-m", "cluster.cli", "registrar", "run", str(directory)]
            processes[region] = subprocess.Popen(words, stderr=log, stdout=log, stdin=subprocess.DEVNULL)

    def end(region: str) -> None:
        processes[region].kill()
        processes[region].wait()

    def again(region: str) -> None:
        end(region)
        start(region)

    try:
        for region in regions:
            start(region)
        yield again
    finally:
        for region in processes:
            end(region)


async def patiently(work: Any, *arguments: Any) -> Any:
    """In a thread, until the registrars answer."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                return await trio.to_thread.run_sync(work, *arguments)
            except PosthouseError as error:
                last = error
                await trio.sleep(0.3)
                if isinstance(last, NotLogged):
                    raise


async def test_users_with_proofs_write_and_move_and_those_without_get_nowhere(tmp_path: Path) -> None:
    layout = make_logged(tmp_path / "f")
    home = layout.home
    with registrars(layout):
        for name, region in (("alice", "amber"), ("bob", "birch"), ("carol", "birch")):
            await patiently(create_user, home, name, region, now_ms())
            signed, staple = split_home(own_records(home.store(name))[-1])
            assert staple.startswith(b"c2sp.org/tlog-proof@v1\n") and len(staple) < 2_048 and read_home(signed)

        def in_secret() -> None:
            """Whoever has the registrar's key, and does not ask the log."""
            book, key = Book(tmp_path / "book"), load_signing_key(home.secrets / "birch.registrar.key")
            root = home.root(now_ms())
            new_user(
                new_store(home, "mallory"), root=root.signed, region="birch", cell="birch/1", now_ms=now_ms(),
                registrar=lambda request, before: book.sign(request, before, root, key, now_ms())[0].signed,
            )  # fmt: skip

        with pytest.raises(NotLogged):
            in_secret()
        async with LocalFederation(layout) as federation:
            await federation.start_all()
            await exchange(layout, "one")
            await patiently(move_user, home, "bob", "amber/1", now_ms())
            records = own_records(home.store("bob"))
            assert [read_home(signed).cell for signed in records] == ["birch/1", "amber/1"]
            await exchange(layout, "two")
            proof = await Registrar.of(load_config(home.directory / "registrar-amber", now_ms())).prove(
                find_card(home, "bob").user, now_ms()
            )
            assert proof.record is not None and proof.record.cell == "amber/1" and len(proof.records) == 2
            await birch_forks(layout)


async def birch_forks(layout: Layout) -> None:
    """Birch's log shows amber's witness another root of one size: nothing goes there any more."""
    home = layout.home
    log = load_key(home.directory / "registrar-birch" / "secrets" / "log.key", ED25519)
    amber = Registrar.of(load_config(home.directory / "registrar-amber", now_ms())).caller
    _, seen = await amber.ask("GET", f"/{origin_hash(log.name)}/checkpoint")
    before = parse_checkpoint(parse_note(seen).text)
    lie = Checkpoint(before.origin, before.size, bytes(32)).sign(log)
    status, said = await amber.ask("POST", "/add-checkpoint", AddCheckpoint(before.size, (), lie).encode())
    assert status == 422 and b"Fork" in said
    admin = layout.node("amber", "n1").admin_addr
    with trio.fail_after(PATIENCE_S):  # GOSSIP_S is held to in tests/cluster/test_halted_in_time.py
        while b"warning: federation with birch is halted" not in await page(admin, "/readyz"):  # noqa: ASYNC110
            await trio.sleep(0.5)
    assert b'posthouse_region_halted{region="birch"} 1.0' in await page(admin, "/metrics")
    async with open_client(home.store("alice"), receive=False) as alice:
        with trio.move_on_after(3) as waited:
            await alice.send(find_card(home, "carol"), b"nobody takes this", wait="accepted")
        assert waited.cancelled_caught
        with trio.fail_after(PATIENCE_S):  # and everybody else is served
            await alice.send(find_card(home, "bob"), b"still here", wait="stored")


async def page(address: Address, path: str) -> bytes:
    def fetch() -> bytes:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as answer:
            return bytes(answer.read())

    return await trio.to_thread.run_sync(fetch)


async def exchange(layout: Layout, text: str) -> None:
    """Alice writes to bob, who answers."""
    home = layout.home
    with trio.fail_after(PATIENCE_S):
        async with (
            open_client(home.store("alice"), receive=True) as alice,
            open_client(home.store("bob"), receive=True) as bob,
        ):
            await alice.send(find_card(home, "bob"), text.encode(), wait="stored")
            await anext(m async for m in bob.messages() if m.content == text.encode())
            await bob.send(find_card(home, "alice"), text.encode(), wait="stored")
            await anext(m async for m in alice.messages() if m.content == text.encode())
