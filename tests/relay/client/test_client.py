"""The SDK through an honest fake federation: what is sent arrives once, in order, whatever happens on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relay.client import Card, SendRefused, TooLarge, add_device
from relay.client.store import Store
from relay.core.envelope import read_header
from relay.core.wire import Code
from relay.limits import CHUNK, DAY, MAX_LIFETIME
from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import collect, enrol, opened, rest, tell, texts


@pytest.mark.parametrize("home", ["norden", "sueden"])
async def test_a_message_arrives(clock: MockClock, fed: Federation, tmp_path: Path, home: str) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", home)
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        sent = await alice.send(bob.card, b"hello", wait="stored")
        (message,) = await collect(bob, 1)
        assert (message.content, message.user, message.device) == (b"hello", alice.user, alice.device)
        assert (message.id, message.counter, message.gap, message.late) == (sent.id, 1, 0, False)
        assert message.group is None and message.to == bob.user
        await bob.caught_up()
        await alice.drained()
        assert alice.stats.stored == 1 and not alice.failures
        await trio.sleep(1)
    assert fed.cells[f"{home}/1"].cursors[bob.device] >= 1


async def test_texts_of_the_world_and_names(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    words = ["Zażółć gęślą jaźń", "Съешь ещё этих мягких булок", "Tôi có thể ăn thủy tinh",
             "나는 유리를 먹을 수 있어요", "👩‍👩‍👧‍👦", "\u202eabc", "a\u0000b", "", "é", "e\u0301"]  # fmt: skip
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        for word in words:
            await alice.send(bob.card, word.encode(), name=word)
        got = await collect(bob, len(words))
        assert texts(got) == words and [message.name for message in got] == words


@pytest.mark.parametrize("size", [CHUNK - 1, CHUNK, CHUNK + 1, 20 * CHUNK + 5])
async def test_big_content_is_chunked(clock: MockClock, fed: Federation, tmp_path: Path, size: int) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    content = bytes(i * 7 % 251 for i in range(size))
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, content, name="big.bin", wait="stored")
        await alice.send(bob.card, b"after")
        big, after = await collect(bob, 2)
        assert big.content == content and big.name == "big.bin"
        assert after.counter == 1 + -(-size // CHUNK)
        with pytest.raises(TooLarge):
            await alice.send(bob.card, bytes(33 * 1024 * 1024))


async def test_who_is_away_collects_later(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    async with opened(fed, b) as bob:
        card = bob.card
    async with opened(fed, a) as alice:
        for i in range(40):
            await alice.send(card, str(i).encode(), wait="queued")
        await alice.drained()
    async with opened(fed, b) as bob:
        await bob.caught_up()
        assert texts(await collect(bob, 40)) == [str(i) for i in range(40)]
    async with opened(fed, b) as bob:  # the last one was not settled: it comes again after a restart
        assert texts(await rest(bob)) == ["39"]


async def test_offline_sends_go_when_the_node_is_back(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.cells["norden/1"].down = True
    async with opened(fed, b) as bob:
        async with opened(fed, a) as alice:
            await alice.send(bob.card, b"one", wait="queued")
            await trio.sleep(10)
            assert not alice.connected
        fed.cells["norden/1"].down = False
        async with opened(fed, a) as alice:
            await alice.send(bob.card, b"two")
            assert texts(await collect(bob, 2)) == ["one", "two"]


async def test_what_was_turned_away_is_not_overtaken(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """Else a later message arrives first and is held back for one that its sender may not be there to try again."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, b) as bob, opened(fed, a) as alice:
        await alice.send(bob.card, b"0", wait="stored")
        cell.faults.overloaded = 3
        for i in range(1, 4):
            await alice.send(bob.card, str(i).encode(), wait="queued")
        await trio.sleep(0.02)
        assert cell.faults.overloaded == 0
        await alice.send(bob.card, b"4", wait="stored")
        assert alice.stats.stored == 5
    async with opened(fed, b) as bob:
        with trio.fail_after(1):
            assert texts(await collect(bob, 5)) == ["0", "1", "2", "3", "4"]


async def test_a_retry_set_by_a_clock_that_was_put_back(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, b) as bob:
        async with opened(fed, a) as alice:
            cell.faults.refuse[bob.user] = Code.OVERLOADED
            await alice.send(bob.card, b"1", wait="queued")
            await trio.sleep(1)
        cell.faults.refuse.clear()
        store = Store(a, inline=True)
        store.transact(lambda db: db.execute("UPDATE parcels SET retry_at=retry_at+86400000"))
        store.close()
        async with opened(fed, a) as alice:
            with trio.fail_after(5):
                await alice.send(bob.card, b"2", wait="stored")
            assert texts(await collect(bob, 2)) == ["1", "2"]


async def test_connections_that_die_at_any_moment(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    north, south = fed.cells["norden/1"], fed.cells["sueden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob, trio.open_nursery() as nursery:

        async def havoc() -> None:
            for i in range(12):
                await trio.sleep(0.07)
                (north, south)[i % 2].drop_connections()
                north.faults.drop_after_submit += i % 3 == 0
                north.faults.swallow_submit += i % 3 == 1

        nursery.start_soon(havoc)
        for i in range(100):
            await alice.send(bob.card, str(i).encode(), wait="queued")
            await trio.sleep(0.01)
        got = await collect(bob, 100)
        assert texts(got) == [str(i) for i in range(100)]
        assert not any(message.gap or message.late for message in got)
        await alice.drained()
        assert alice.stats.reconnects > 3
        assert not await rest(bob)
    assert len(north.submitted) > len(set(north.submitted)) == 100  # again means: the same bytes


async def test_frames_repeated_and_reordered_on_the_wire(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    fed.cells["sueden/1"].faults.deliver = lambda frames: [*reversed(frames), *frames]
    fed.cells["sueden/1"].faults.cut = True
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"0", wait="queued")
        for i in range(1, 30):
            await alice.send(bob.card, str(i).encode(), wait="queued")
        await trio.sleep(5)
        fed.heal()
        got = await collect(bob, 30)
        assert texts(got) == [str(i) for i in range(30)]
        assert not await rest(bob)
        assert bob.stats.duplicates_dropped == 30 and bob.stats.gaps == 0


async def test_dedup_off_shows_the_duplicates(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """The defect that the demo's test plants."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.cells["norden/1"].faults.deliver = lambda frames: [*frames, *frames]
    async with opened(fed, a) as alice, opened(fed, b, dedup=False) as bob:
        await alice.send(bob.card, b"x")
        assert texts(await collect(bob, 2)) == ["x", "x"]


async def test_a_lost_message_is_a_marked_gap_and_late_when_it_comes(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"1")
        kept: list[bytes] = []
        cell.faults.deliver = lambda frames: kept.extend(frames) or []  # type: ignore[func-returns-value]
        await alice.send(bob.card, b"2")
        cell.faults.deliver = lambda frames: frames
        began = trio.current_time()
        await alice.send(bob.card, b"3")
        got = await collect(bob, 2)
        assert [(m.content, m.gap) for m in got] == [(b"1", 0), (b"3", 1)]
        assert 4.9 < trio.current_time() - began < 6
        for frame in kept:
            cell.sessions[bob.device].socket.say(frame)
        (late,) = await rest(bob)
        assert (late.content, late.late) == (b"2", True)
        assert bob.stats.gaps == 1 and bob.stats.late == 1


async def test_stale_is_sealed_anew_under_the_same_counter(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.cells["norden/1"].faults.stale = 3
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        for i in range(5):
            await alice.send(bob.card, str(i).encode(), wait="queued")
        assert texts(await collect(bob, 5)) == ["0", "1", "2", "3", "4"]
        assert alice.stats.resealed == 3 and bob.stats.gaps == 0


@pytest.mark.parametrize("told", [True, False])
async def test_a_region_that_keeps_mail_for_days_gets_a_shorter_lifetime(
    clock: MockClock, fed: Federation, tmp_path: Path, told: bool
) -> None:
    """By what WELCOME says; or, where the refusing region is another one, by what the refusal says."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    faults = fed.cells["norden/1"].faults
    faults.longest = 3 * DAY
    faults.says = 3 * DAY if told else MAX_LIFETIME
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"x", wait="stored")
        assert texts(await collect(bob, 1)) == ["x"]
        assert alice.stats.resealed == (0 if told else 1) and alice.stats.refused == 0
    lives = [header.expires - header.created for header in map(read_header, fed.cells["norden/1"].submitted)]
    assert 2 * DAY < lives[-1] <= 3 * DAY


async def test_a_wrong_clock_does_not_matter(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.skew = 3_600_000
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"x", wait="stored")
        assert alice.stats.resealed == 0
        await collect(bob, 1)


async def test_a_client_that_was_away_for_hours_seals_anew(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """The envelope was taken, the answer lost, and the node has forgotten its id: the repeat is removed by counter."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"first")
        cell.faults.drop_after_submit = 1
        await alice.send(bob.card, b"x", wait="queued")
        await trio.sleep(0.01)
        cell.down = True
        await trio.sleep(3_600)
        cell.outcomes.clear()
        cell.down = False
        await alice.drained()
        assert texts(await rest(bob)) == ["first", "x"]
        assert alice.stats.resealed == 1 and bob.stats.duplicates_dropped == 1


async def test_retryable_refusals_are_retried(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.cells["norden/1"].faults.overloaded = 4
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"x", wait="stored")
        assert texts(await collect(bob, 1)) == ["x"]


async def test_final_refusals_are_typed(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        with pytest.raises(SendRefused) as unknown:
            await alice.send(Card("norden", b"?" * 32), b"x")
        assert unknown.value.code == Code.UNKNOWN_USER and "address card" in str(unknown.value)
        with pytest.raises(SendRefused) as region:
            await alice.send(Card("atlantis", b"!" * 32), b"x")
        assert region.value.code == Code.UNKNOWN_REGION
        fed.cells["sueden/1"].faults.refuse[bob.user] = Code.MAILBOX_FULL
        await alice.look_up(bob.card)
        fed.cells["sueden/1"].faults.cut = True
        await alice.send(bob.card, b"x", wait="accepted")
        fed.heal()
        with pytest.raises(SendRefused) as full:
            await alice.send(bob.card, b"y", wait="stored")
        assert full.value.code == Code.MAILBOX_FULL
        await alice.drained()
        (failure,) = alice.failures
        assert isinstance(failure.error, SendRefused) and failure.error.code == Code.MAILBOX_FULL
        fed.cells["sueden/1"].faults.refuse.clear()
        await alice.send(bob.card, b"z")
        (message,) = await collect(bob, 1)
        assert message.content == b"z"


async def test_a_region_that_is_cut_off_gets_its_mail_later(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    fed.cells["sueden/1"].faults.cut = True
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"before the lookup", wait="queued")
        await trio.sleep(30)
        assert not fed.cells["norden/1"].submitted
        fed.heal()
        await alice.send(bob.card, b"then", wait="stored")
        fed.cells["sueden/1"].faults.cut = True
        await alice.send(bob.card, b"cut", wait="accepted")
        with trio.move_on_after(60):
            await alice.drained()
            raise AssertionError("nothing confirmed it")
        fed.heal()
        await alice.drained()
        assert texts(await collect(bob, 3)) == ["before the lookup", "then", "cut"]


async def test_other_devices_of_both_get_it(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    paths = {name: enrol(fed, tmp_path / name, region) for name, region in (("a", "norden"), ("b", "sueden"))}
    for name, region in (("a", "norden"), ("b", "sueden")):
        of = paths[name]
        add_device(tmp_path / f"{name}2", of=of, registrar=fed.registrars[region], now_ms=fed.client_now())
        tell(fed, of)
    async with (
        opened(fed, paths["a"]) as alice, opened(fed, tmp_path / "a2") as alice2,
        opened(fed, paths["b"]) as bob, opened(fed, tmp_path / "b2") as bob2,
    ):  # fmt: skip
        await alice.send(bob.card, b"one", wait="stored")
        await alice2.send(bob.card, b"two", wait="stored")
        await bob2.send(alice.card, b"three", wait="stored")
        await trio.sleep(1)
        for client in (alice, alice2, bob, bob2):
            got = await rest(client)
            sent = {alice.device: "one", alice2.device: "two", bob2.device: "three"}.get(client.device)
            assert sorted(texts(got)) == sorted({"one", "two", "three"} - {sent})
            assert {m.conversation for m in got} == {got[0].conversation} and not any(m.gap for m in got)
        assert alice.stats.unreadable == bob.stats.unreadable == 0


async def test_a_device_that_the_sender_did_not_know_is_sealed_for(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"old", wait="stored")
        add_device(tmp_path / "b2", of=b, registrar=fed.registrars["sueden"], now_ms=fed.client_now())
        tell(fed, b)
        async with opened(fed, tmp_path / "b2") as bob2:
            for i in range(5):
                await alice.send(bob.card, str(i).encode(), wait="queued")
            await alice.drained()
            got = await rest(bob2)
            assert texts(got) == ["0", "1", "2", "3", "4"] and not any(m.gap or m.late for m in got)
            assert texts(await rest(bob)) == ["old", "0", "1", "2", "3", "4"]


async def test_a_version_that_nobody_has_is_not_waited_for(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    fed.cells["norden/1"].faults.newest = 9
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.send(bob.card, b"x")
        with trio.fail_after(120):
            await alice.drained()
