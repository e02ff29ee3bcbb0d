"""The client dies at any point, before or after any commit, and is opened again: nothing lost, nothing twice."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relay.client import Client
from relay.client.store import Store
from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import enrol, opened, rest, texts

MESSAGES = 25


class Killed(Exception):
    """The process is gone."""


class Fate:
    """Kills a store's process at a commit that the test chose: nothing reaches the disk after that."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: dict[Path, int] = {}  # store → commits until it dies; missing: never
        self.after: dict[Path, bool] = {}  # the commit itself still happens
        self._do = Store._do
        fate = self

        def do(store: Store, jobs: Sequence[object]) -> None:
            left = fate.left.get(store.path)
            if left is None:
                return fate._do(store, jobs)  # type: ignore[arg-type]
            fate.left[store.path] = left - 1
            if left > 0 or (left == 0 and fate.after[store.path]):
                fate._do(store, jobs)  # type: ignore[arg-type]
            if left <= 0:
                raise Killed
            return None

        monkeypatch.setattr(Store, "_do", do)

    def plan(self, path: Path, commits: int, *, after: bool) -> None:
        self.left[path], self.after[path] = commits, after

    def spare(self, path: Path) -> None:
        self.left.pop(path, None)


def only_killed(group: BaseException) -> bool:
    if isinstance(group, BaseExceptionGroup):
        return all(only_killed(one) for one in group.exceptions)
    return isinstance(group, Killed | trio.Cancelled)


async def live(fed: Federation, path: Path, do: object) -> bool:
    """One life of a client; False when it was killed."""
    try:
        async with opened(fed, path) as client:
            await do(client)  # type: ignore[operator]
    except Exception as error:
        assert only_killed(error), error
        return False
    return True


@pytest.mark.parametrize("seed", range(6))
async def test_sender_and_recipient_die_again_and_again(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", ("norden", "sueden")[seed % 2])
    fate, dice = Fate(monkeypatch), random.Random(seed)
    async with opened(fed, b) as bob:
        card = bob.card
    said = 0
    lives: list[list[int]] = []
    deaths = {a: 0, b: 0}

    async def speak(client: Client) -> None:
        nonlocal said
        while said < MESSAGES:
            await client.send(card, b"x" * dice.randrange(120_000), wait="queued")
            said += 1
        await client.drained()

    async def listen(client: Client) -> None:
        lives.append([])
        with trio.move_on_after(60):
            async for message in client.messages():
                assert not message.gap and not message.late
                lives[-1].append(message.counter)
                await trio.sleep(0.05)

    async def again(path: Path, do: object) -> None:
        for _ in range(12):
            fate.plan(path, dice.randrange(1, 25), after=dice.random() < 0.5)
            deaths[path] += not await live(fed, path, do)
        fate.spare(path)
        assert await live(fed, path, do)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(again, a, speak)
        nursery.start_soon(again, b, listen)
    assert min(deaths.values()) > 2
    yielded: list[int] = []
    for counters in lives:
        if yielded and counters and counters[0] == yielded[-1]:
            counters = counters[1:]  # it was not settled when the process died: it is yielded again, and only it
        yielded += counters
    assert yielded == sorted(set(yielded)) and len(yielded) >= MESSAGES


async def test_a_group_survives_a_sender_that_dies(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, c = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "c", "sueden")
    fate, dice = Fate(monkeypatch), random.Random(7)
    async with opened(fed, c) as cyd:
        async with opened(fed, a) as alice:
            group = await alice.create_group("g", [cyd.card])
        said = 0

        async def speak(client: Client) -> None:
            nonlocal said
            while said < MESSAGES:
                await client.send_group(group.id, str(said).encode(), wait="queued")
                said += 1
            await client.drained()

        for _ in range(15):
            fate.plan(a, dice.randrange(1, 12), after=dice.random() < 0.5)
            await live(fed, a, speak)
        fate.spare(a)
        assert await live(fed, a, speak)
        got = await rest(cyd, 60)
        assert [m.counter for m in got] == list(range(1, len(got) + 1)) and len(got) >= MESSAGES
        assert not any(m.gap or m.late for m in got)


async def test_a_cancelled_send_is_sent_all_the_same_or_not_at_all(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, b) as bob:
        card = bob.card
    cell.down = True
    async with opened(fed, a) as alice:
        with trio.move_on_after(1) as scope:
            await alice.send(card, b"queued, and nobody waits")
        assert scope.cancelled_caught
        with trio.CancelScope() as scope:
            scope.cancel()
            await alice.send(card, b"never")
        cell.down = False
        await alice.drained()
    async with opened(fed, b) as bob:
        assert texts(await rest(bob)) == ["queued, and nobody waits"]


async def test_what_a_closed_client_had_sent_is_sent_by_another(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, b) as bob, opened(fed, a) as receiver:
        async with opened(fed, a, receive=False) as submitter:
            await submitter.look_up(bob.card)
            submitter._desk.sealer.carrier = os.getppid()  # as if it were a process of its own, and alive
            fed.cells["norden/1"].faults.mute = 1
            await submitter.send(bob.card, b"x", wait="queued")
            await trio.sleep(1)
            assert not fed.cells["norden/1"].faults.mute
        with trio.fail_after(5):
            await receiver.drained()
        assert texts(await rest(bob)) == ["x"]


async def test_what_a_process_had_sent_whose_id_another_has_now_is_sent(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, b) as bob:
        async with opened(fed, a) as alice:
            await alice.look_up(bob.card)
            fed.cells["norden/1"].down = True
            fed.cells["norden/1"].sessions[alice.device].socket.kill()
            await alice.send(bob.card, b"x", wait="queued")
        store = Store(a, inline=True)
        store.transact(lambda db: db.execute("UPDATE parcels SET state=1, carrier=?", (os.getppid(),)))
        store.close()
        fed.cells["norden/1"].down = False
        async with opened(fed, a) as alice:
            with trio.fail_after(200):
                await alice.drained()
        assert texts(await rest(bob)) == ["x"]
