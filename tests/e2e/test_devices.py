"""Devices that come and go, on real processes: a cell of three nodes, and mail under way all the time (ADR 24)."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.devices import recover, revoke, rotate_device
from cluster.local.people import create_device, create_user
from cluster.local.recovery import Recovery
from relay.client import Card, Client, Message, Revoked, open_client
from relay.client.identity import own_records
from tests.patience import PATIENCE_S

ENDS_S = 30.0  # seconds in which a revoked device's session has to end, on whichever node it is: nothing else ends it


def now() -> int:
    return int(time.time() * 1000)


class Town:
    """One region of three nodes, and clients of it."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.home = layout, layout.home

    @asynccontextmanager
    async def open(self, name: str, node: str) -> AsyncIterator[Client]:
        url = f"wss://{self.layout.node('amber', node).clients_addr}"
        async with open_client(self.home.store(name), connect_to=[url]) as client:
            yield client

    async def tells(self, name: str, node: str) -> None:
        """`name` brings its newest record to a node."""
        async with self.open(name, node) as client:
            while not client.connected:  # noqa: ASYNC110 - the client has no bell for it
                await trio.sleep(0.01)


@asynccontextmanager
async def open_town(tmp_path: Path) -> AsyncIterator[Town]:
    layout = make_federation(tmp_path / "f", ["amber"], RealEnv(), nodes=3)
    for name in ("alice", "bob"):
        create_user(layout.home, name, "amber", now(), tmp_path / f"{name}.paper")
    create_device(layout.home, "phone", "alice", now())
    with trio.fail_after(PATIENCE_S):
        async with LocalFederation(layout) as fed:
            await fed.start_all()
            yield Town(layout)


async def keep(client: Client, got: list[Message]) -> None:
    async for message in client.messages():
        got.append(message)  # noqa: PERF401  a comprehension would lose what came before the end


@asynccontextmanager
async def writing(client: Client, to: Card, pause_s: float = 0.01) -> AsyncIterator[list[bytes]]:
    """Writes to `to` all the time; at the end everything is accepted."""
    sent: list[bytes] = []

    async def write(stop: trio.Event) -> None:
        while not stop.is_set():
            sent.append(b"%d" % len(sent))
            await client.send(to, sent[-1], wait="queued")
            await trio.sleep(pause_s)

    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        nursery.start_soon(write, stop)
        yield sent
        stop.set()
    await client.drained()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - of another process
        await trio.sleep(0.02)


async def ends(client: Client) -> float:
    """When the client learned that it was revoked."""
    try:
        await client.drained()
        while True:
            await client.caught_up()
            await trio.sleep(0.01)
    except Revoked:
        return trio.current_time()


async def test_a_revoked_device_is_out_at_once_on_another_node(tmp_path: Path) -> None:
    async with open_town(tmp_path) as town:
        await _a_revoked_device_is_out_at_once_on_another_node(town)


async def _a_revoked_device_is_out_at_once_on_another_node(town: Town) -> None:
    got: list[Message] = []
    seen: list[Message] = []
    async with (
        town.open("bob", "n2") as bob, town.open("alice", "n1") as alice, town.open("alice+phone", "n3") as phone,
    ):  # fmt: skip
        async with writing(bob, alice.card) as sent, trio.open_nursery() as nursery:
            nursery.start_soon(keep, alice, got)
            nursery.start_soon(swallow, phone, seen)
            await until(lambda: len(seen) >= 20)
            await trio.to_thread.run_sync(revoke, town.home, "alice+phone", None, now())
            before = trio.current_time()
            await town.tells("alice", "n2")
            assert await ends(phone) - before < ENDS_S
            known = len(sent)
            await until(lambda: len(got) > known + 20)
            assert len(seen) < len(sent)
            nursery.cancel_scope.cancel()
        with pytest.raises(Revoked):
            await phone.send(bob.card, b"I was found")
    async with town.open("alice", "n1") as alice:
        await until_all(alice, got, sent)
    assert unrepeated(got) == sent and not any(message.gap or message.late for message in got)
    with pytest.raises(Revoked):  # nor may it come back
        async with town.open("alice+phone", "n2") as phone:
            await keep(phone, [])


async def swallow(client: Client, got: list[Message]) -> None:
    with suppress(Revoked):
        await keep(client, got)


async def until_all(client: Client, got: list[Message], sent: list[bytes]) -> None:
    async for message in client.messages():
        got.append(message)
        if len(unrepeated(got)) >= len(sent):
            return


async def test_rotations_under_load_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """alice's device gets new keys five times, each time on another node, while bob writes to her and she to him."""
    async with open_town(tmp_path) as town:
        await _rotations_under_load_lose_nothing_and_repeat_nothing(town)


async def _rotations_under_load_lose_nothing_and_repeat_nothing(town: Town) -> None:
    got_alice: list[Message] = []
    got_bob: list[Message] = []
    sent_alice: list[bytes] = []
    async with town.open("alice", "n1") as alice:
        card = alice.card
    ids = set()
    async with town.open("bob", "n2") as bob, trio.open_nursery() as nursery:
        nursery.start_soon(keep, bob, got_bob)
        async with writing(bob, card) as sent_bob:
            for turn in range(6):
                async with town.open("alice", f"n{turn % 3 + 1}") as alice:
                    ids.add(alice.device)
                    known = len(got_alice)
                    async for message in alice.messages():
                        got_alice.append(message)
                        if len(got_alice) % 3 == 0:
                            sent_alice.append(b"%d" % len(sent_alice))
                            await alice.send(bob.card, sent_alice[-1], wait="queued")
                        if len(got_alice) == known + 25:
                            break
                if turn < 5:  # at once: what is under way is under way
                    await trio.to_thread.run_sync(rotate_device, town.home, "alice", now())
        async with town.open("alice", "n1") as alice:
            await until_all(alice, got_alice, sent_bob)
            await alice.drained()
            await until(lambda: len(got_bob) >= len(sent_alice))
            assert alice.stats.unreadable == bob.stats.unreadable == 0
        nursery.cancel_scope.cancel()
    assert len(ids) == 6 and len(sent_alice) > 10
    assert unrepeated(got_alice) == sent_bob and unrepeated(got_bob) == sent_alice
    assert not any(message.gap or message.late for message in (*got_alice, *got_bob))


def unrepeated(got: list[Message]) -> list[bytes]:
    """A message that the app had in hand when it closed its client comes again: the iterator says so."""
    last = [n for n, message in enumerate(got) if n and message.id == got[n - 1].id]
    return [message.content for n, message in enumerate(got) if n not in last]


async def test_the_paper_brings_back_who_lost_everything(tmp_path: Path) -> None:
    async with open_town(tmp_path) as town:
        await _the_paper_brings_back_who_lost_everything(town, tmp_path)


async def _the_paper_brings_back_who_lost_everything(town: Town, tmp_path: Path) -> None:
    async with town.open("bob", "n1") as bob, town.open("alice", "n2") as alice:
        await bob.send(alice.card, b"one", wait="stored")
        alices = alice.card
    async with town.open("bob", "n1") as bob:
        await bob.send(alices, b"for a device that is at the bottom of the sea", wait="stored")
        key = Recovery.read(tmp_path / "alice.paper")
        changed = await trio.to_thread.run_sync(lambda: recover(town.home, "alice+new", key, now()))
        assert changed.record.version == 3 == len(own_records(town.home.store("alice+new")))
        async with town.open("alice+new", "n3") as alice:
            await alice.caught_up()
            assert await alice.unread() == (0, 0)
            await bob.send(alice.card, b"welcome back", wait="stored")
            await bob.drained()
            async for message in alice.messages():
                assert message.content == b"welcome back"
                break
            await alice.send(bob.card, b"it is me", wait="stored")
        async for message in bob.messages():
            assert message.content == b"it is me"
            break
    logs = "".join(node.log_path.read_text() for node in town.layout.nodes("amber"))
    assert '"device_revoked"' in logs and '"waited":2' in logs
