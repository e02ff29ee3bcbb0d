"""When a live connection is given up: its clock is wrong, or nobody answers what was submitted. And its last ack."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relay.core import wire
from relay.ws import Closed
from tests.relay.client.fake_cell import Federation
from tests.relay.client.fake_socket import Socket
from tests.relay.client.helpers import collect, enrol, opened, texts


@pytest.mark.parametrize("count", [1, 50])
async def test_a_clock_that_is_set_meanwhile_does_not_matter(
    clock: MockClock, fed: Federation, tmp_path: Path, count: int
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"before", wait="stored")
        for skew in (7_200_000, 0):
            before = alice.stats.reconnects
            fed.skew = skew
            with trio.fail_after(5):
                for i in range(count):
                    await alice.send(bob.card, str(i).encode(), wait="queued")
                await alice.drained()
            assert alice.stats.reconnects == before + 1
        assert texts(await collect(bob, 2 * count + 1)) == ["before", *(2 * [str(i) for i in range(count)])]
        assert not alice.failures


async def test_a_node_that_pongs_and_does_not_answer_is_left(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.look_up(bob.card)
        fed.cells["norden/1"].faults.mute = 1
        with trio.fail_after(40):
            await alice.send(bob.card, b"x", wait="stored")
        assert texts(await collect(bob, 1)) == ["x"] and alice.stats.reconnects == 1
        await trio.sleep(300)
        assert alice.stats.reconnects == 1  # nothing waits for an answer: silence is no fault


async def test_who_closes_at_once_has_acked(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """Acks are paced, and the app is done with the only message before the next one is due."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice:
        async with opened(fed, b) as bob:
            await alice.send(bob.card, b"x", wait="stored")
            assert texts(await collect(bob, 1)) == ["x"]
            assert bob.device not in cell.cursors
        assert cell.cursors[bob.device] == len(cell.log)


@pytest.mark.parametrize("broken", [False, True])
async def test_closing_does_not_wait_long_for_a_node_that_does_not_read(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    honest = Socket.send
    stuck = trio.Event()

    async def send(self: Socket, message: bytes) -> None:
        if isinstance(wire.decode_client(message), wire.Ack):
            stuck.set()
            if broken:
                raise Closed(1006)
            await trio.sleep_forever()
        await honest(self, message)

    monkeypatch.setattr(Socket, "send", send)
    async with opened(fed, a, receive=False) as alice:
        async with opened(fed, b) as bob:
            await alice.send(bob.card, b"x", wait="stored")
            await collect(bob, 1)
            closing = trio.current_time()
        assert stuck.is_set() and trio.current_time() - closing < 5


async def test_deliveries_are_acked_by_their_bytes_too(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before UNACKED_BYTES, past which the node would wait; and counted anew after each ack."""
    monkeypatch.setattr("relay.client.line.ACK_BYTES", 10_000)
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    acked, honest, began = list[float](), Socket.send, trio.current_time()

    async def send(self: Socket, message: bytes) -> None:
        if isinstance(wire.decode_client(message), wire.Ack):
            acked.append(trio.current_time() - began)
        await honest(self, message)

    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.look_up(bob.card)
        monkeypatch.setattr(Socket, "send", send)
        counts = []
        for number in range(9):
            await alice.send(bob.card, str(number).encode() * 4_000, wait="stored")
            await collect(bob, 1)
            counts.append(len(acked))
        assert counts == [0, 0, 1, 1, 1, 2, 2, 2, 3]  # three of them are more than 10,000 bytes, two are not
        assert acked[-1] < 0.5  # before a pause would have told
