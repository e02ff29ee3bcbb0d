"""A user moves between two regions while everybody writes, on real processes: nothing lost, doubled or out of order."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.people import create_device, create_user, move_user, sign_move
from relay.client import Card, Client, open_client, take_records
from tests.patience import PATIENCE_S



class Town:
    """Who is online, what each was sent, and what each got."""

    def __init__(self, layout: Layout, nursery: trio.Nursery) -> None:
        self.home, self.nursery = layout.home, nursery
        self.now = RealEnv().clock.wall_ms
        self.cards: dict[str, Card] = {}
        self.online: dict[str, Client] = {}
        self.sent: dict[str, list[bytes]] = defaultdict(list)  # recipient → texts that were accepted
        self.got: dict[str, list[bytes]] = defaultdict(list)  # device → texts, in the order of the iterator
        self.late: list[bytes] = []
        self._leave: dict[str, trio.CancelScope] = {}

    def enrol(self, name: str, region: str, devices: int = 1) -> None:
        self.cards[name] = create_user(self.home, name, region, self.now())
        for extra in range(2, devices + 1):
            create_device(self.home, str(extra), name, self.now())

    async def come(self, *names: str) -> None:
        for name in names:
            await self.nursery.start(self._live, name)
        for name in names:
            with trio.fail_after(PATIENCE_S):
                await self.online[name].caught_up()

    async def go(self, name: str) -> None:
        self._leave.pop(name).cancel()
        while name in self.online:  # noqa: ASYNC110 - it has no bell
            await trio.sleep(0.01)

    async def _live(self, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with open_client(self.home.store(name), receive=True) as client:
                self.online[name], self._leave[name] = client, trio.CancelScope()
                task_status.started()
                with self._leave[name]:
                    async for message in client.messages():
                        self.got[name].append(message.content)
                        if message.late or message.gap:
                            self.late.append(message.content)
        finally:
            self.online.pop(name, None)

    async def say(self, sender: str, to: str, count: int, *, pause: float = 0.01, tag: str = "") -> None:
        for number in range(count):
            text = f"{sender}{tag} {number}".encode()
            with trio.fail_after(PATIENCE_S):
                await self.online[sender].send(self.cards[to], text)
            self.sent[to].append(text)
            await trio.sleep(pause)

    async def everything(self, to: str, *devices: str) -> None:
        """Each of the devices has all that was sent to the user, once, and in order from each sender."""
        want = sorted(self.sent[to])

        def got(device: str) -> list[bytes]:
            return [text for text in self.got[device] if not text.startswith(to.encode())]  # without own copies

        with trio.move_on_after(PATIENCE_S):
            while any(len(got(device)) < len(want) for device in devices):  # noqa: ASYNC110
                await trio.sleep(0.05)
        for device in devices:
            assert sorted(got(device)) == want, f"{device}: {len(got(device))} of {len(want)}"
            for tag in {text.rpartition(b" ")[0] for text in want}:
                numbers = [int(text.rpartition(b" ")[2]) for text in self.got[device] if text.startswith(tag + b" ")]
                assert numbers == sorted(numbers), f"{device} got {tag!r} out of order"
        assert not self.late

    async def cell_of(self, name: str, cell: str) -> None:
        with trio.fail_after(PATIENCE_S):
            while f"posthouse:{cell.partition('/')[0]}:" not in str(self.online[name].card):  # noqa: ASYNC110
                await trio.sleep(0.02)


@asynccontextmanager
async def town(tmp_path: Path, nodes: int = 1):
    layout = make_federation(tmp_path / "f", ["norden", "sauda"], RealEnv(), nodes=nodes)
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        async with trio.open_nursery() as nursery:
            made = Town(layout, nursery)
            made.enrol("alice", "norden")
            made.enrol("bob", "norden", devices=2)
            made.enrol("carol", "sauda")
            yield made, fed
            nursery.cancel_scope.cancel()


async def test_a_user_moves_under_load(tmp_path: Path) -> None:
    async with town(tmp_path) as (place, fed):
        await place.come("alice", "bob", "bob+2", "carol")
        await place.say("alice", "bob", 1, tag="-")  # bob's home knows both devices
        await place.everything("bob", "bob+2")
        while (await place.online["bob+2"].unread())[0]:  # noqa: ASYNC110 - until it is settled: else it comes again
            await trio.sleep(0.05)
        await place.go("bob+2")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.say, "alice", "bob", 200)
            nursery.start_soon(place.say, "carol", "bob", 200)
            nursery.start_soon(place.say, "bob", "carol", 100)
            await trio.sleep(0.7)
            records = sign_move(place.home, "bob", "sauda/1", place.now())
            take_records(place.home.store("bob"), records, place.now())  # bob+2 learns it from the cell that is left
            await place.cell_of("bob", "sauda/1")
        await place.come("bob+2")
        await place.say("alice", "bob", 20, tag="+")
        await place.everything("bob", "bob", "bob+2")
        await place.everything("carol", "carol")
        for name in ("alice", "bob", "carol"):
            with trio.fail_after(PATIENCE_S):
                await place.online[name].drained()
            assert not place.online[name].failures
        await nothing_is_left(tmp_path, fed)


async def nothing_is_left(tmp_path: Path, fed: LocalFederation) -> None:
    """The old region's stores give receipts, and their disks bear them out; a receipt that lies is found out."""
    home, receipts = tmp_path / "f", tmp_path / "receipts"
    of_bob = ("cell", "erasure", "bob", "--region", "norden", "--dir", str(home))
    said = await types(*of_bob, "--now", "--out", str(receipts))
    assert "n1: nothing of the user below block" in said
    fed.kill("norden", "n1")
    await fed.stop_all()
    assert "nothing of user" in await types("audit", "erasure", str(receipts), str(home))
    await types("audit", "residency", str(home))


async def types(*words: str, status: int = 0) -> str:
    command = [sys.executable, "-m", "cluster.cli", *words]
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(command, capture_stdout=True, stderr=subprocess.STDOUT, check=False)
    said = done.stdout.decode()
    assert done.returncode == status and "Traceback" not in said, (words, done.returncode, said)
    return said


async def test_nodes_are_killed_in_the_middle_of_a_move_and_of_the_way_back(tmp_path: Path) -> None:
    async with town(tmp_path) as (place, fed):
        await place.come("alice", "bob", "carol")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.say, "alice", "bob", 160)
            nursery.start_soon(place.say, "carol", "bob", 160)
            await trio.sleep(0.5)
            await trio.to_thread.run_sync(move_user, place.home, "bob", "sauda/1", place.now())
            await trio.sleep(0.05)
            fed.kill("norden", "n1")
            await fed.start("norden", "n1")
            await place.cell_of("bob", "sauda/1")
            await trio.to_thread.run_sync(move_user, place.home, "bob", "norden/1", place.now())
            fed.kill("sauda", "n1")
            await fed.start("sauda", "n1")
            await place.cell_of("bob", "norden/1")
        await place.everything("bob", "bob", "bob")
        for name in ("alice", "carol"):
            with trio.fail_after(PATIENCE_S):
                await place.online[name].drained()
            assert not place.online[name].failures
