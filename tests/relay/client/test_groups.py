"""Groups through the fake federation: rosters, sender keys, members who come later."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relay.client import Card, Client, Group, NotOwner, SendRefused, UnknownGroup, add_device
from relay.client.groups import draft
from relay.client.shapes import read_roster_news
from relay.client.store import Db, Store
from relay.core.codec import digest
from relay.core.envelope import read_header
from relay.core.wire import Code
from relay.errors import Refused
from tests.relay.client.fake_cell import Cell, Federation
from tests.relay.client.helpers import collect, enrol, opened, rest, tell, texts

HOMES = {"a": "norden", "b": "norden", "c": "sueden", "d": "sueden"}


async def people(stack: AsyncExitStack, fed: Federation, tmp_path: Path, names: str = "abcd") -> list[Client]:
    paths = [enrol(fed, tmp_path / name, HOMES[name]) for name in names]
    return [await stack.enter_async_context(opened(fed, path)) for path in paths]


async def known(client: Client, version: int) -> Group:
    with trio.fail_after(60):
        while True:
            for group in await client.groups():
                if group.version >= version:
                    return group
            await trio.sleep(0.1)


async def test_everybody_in_both_regions_gets_it(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, bob, cyd, dan = await people(stack, fed, tmp_path)
        group = await alice.create_group("Ämter", [bob.card, cyd.card, dan.card])
        assert group.title == "Ämter" and len(group.members) == 4 and group.mine
        await alice.send_group(group.id, b"welcome", wait="stored")
        for client in (bob, cyd, dan):
            (message,) = await collect(client, 1)
            assert (message.content, message.group, message.user) == (b"welcome", group.id, alice.user)
            seen = await known(client, 1)
            assert set(seen.members) == set(group.members) and not seen.mine and seen.title == "Ämter"
        await dan.send_group(group.id, b"thanks", wait="stored")
        await dan.send_group(group.id, bytes(300_000), name="big", wait="stored")
        for client in (alice, bob, cyd):
            small, big = await collect(client, 2)
            assert small.content == b"thanks" and big.content == bytes(300_000)
            assert not any(m.gap or m.late for m in (small, big))
        await alice.drained()
        await dan.drained()
        assert not await rest(alice) and not await rest(dan)
        for client in (alice, bob, cyd, dan):
            assert not client.failures and client.stats.unreadable == 0 and client.stats.duplicates_dropped == 0


async def test_a_group_envelope_does_not_show_the_groups_size(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        alice, bob, cyd, dan = await people(stack, fed, tmp_path)
        small = await alice.create_group("s", [bob.card])
        large = await alice.create_group("l", [client.card for client in (bob, cyd, dan)])
        for group in (small, large):
            await alice.send_group(group.id, b"x", wait="stored")
        sizes = {len(e) for e in fed.cells["norden/1"].submitted if read_header(e).to in (small.id, large.id)}
        assert len(sizes) == 1


async def test_who_is_added_reads_on_from_there(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, bob, cyd, dan = await people(stack, fed, tmp_path)
        group = await alice.create_group("g", [bob.card, cyd.card])
        await alice.send_group(group.id, b"before", wait="stored")
        assert texts(await collect(cyd, 1)) == ["before"]
        await cyd.send_group(group.id, b"cyd before", wait="stored")
        with pytest.raises(NotOwner):
            await bob.add_to_group(group.id, [dan.card])
        second = await alice.add_to_group(group.id, [dan.card])
        assert second.version == 2 and len(second.members) == 4 and second.id == group.id
        await alice.send_group(group.id, b"after", wait="stored")
        await known(cyd, 2)
        await cyd.send_group(group.id, b"cyd after", wait="stored")
        got = await rest(dan)
        assert texts(got) == ["after", "cyd after"] and not any(m.gap or m.late for m in got)
        assert texts(await rest(bob)) == ["before", "cyd before", "after", "cyd after"]


async def test_what_is_on_its_way_while_the_roster_changes_reaches_who_was_added(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """cyd does not know of version 2 yet; the receipt says so, and dan gets a one-to-one copy, same counter."""
    async with AsyncExitStack() as stack:
        alice, bob, cyd, dan = await people(stack, fed, tmp_path)
        group = await alice.create_group("g", [bob.card, cyd.card])
        await known(cyd, 1)
        await alice.look_up(dan.card)
        fed.cells["norden/1"].faults.cut = True  # the owner's news do not come across; its roster does (the fake's)
        await alice.add_to_group(group.id, [dan.card])
        for i in range(3):
            await cyd.send_group(group.id, str(i).encode(), wait="queued")
        await trio.sleep(2)
        assert not await rest(dan, 5)
        fed.heal()
        await cyd.drained()
        got = await rest(dan)
        assert texts(got) == ["0", "1", "2"] and not any(m.gap or m.late for m in got)
        assert {m.group for m in got} == {group.id}
        await known(cyd, 2)
        await cyd.send_group(group.id, b"3", wait="stored")
        (message,) = await rest(dan)
        assert message.content == b"3" and not message.gap and not message.late
        assert texts(await rest(bob)) == ["0", "1", "2", "3"]


async def test_an_envelope_before_its_key_waits_in_the_store(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await people(stack, fed, tmp_path, "ab")
        group = await alice.create_group("g", [bob.card])
        await known(bob, 1)
        kept: list[bytes] = []
        cell = fed.cells["norden/1"]

        def no_mail(frames: list[bytes]) -> list[bytes]:
            """Group envelopes pass, one-to-one ones come later."""
            late = [frame for frame in frames if group.id not in frame]
            kept.extend(late)
            return [frame for frame in frames if frame not in late]

        cell.faults.deliver = no_mail
        await alice.send_group(group.id, b"locked", wait="queued")
        await alice.send_group(group.id, b"too", wait="queued")
        await alice.drained()
        await trio.sleep(20)
        assert bob.stats.received == 0 and kept
        fed.cells["norden/1"].faults.deliver = lambda frames: frames
    async with opened(fed, tmp_path / "b") as bob:  # it survived a restart
        await bob.caught_up()
        for frame in kept:
            cell.sessions[bob.device].socket.say(frame)
        got = await collect(bob, 2)
        assert texts(got) == ["locked", "too"] and not any(m.gap or m.late for m in got)


async def test_other_devices_take_part(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    enrol(fed, tmp_path / "a", "norden")
    add_device(tmp_path / "a2", of=tmp_path / "a", registrar=fed.registrars["norden"], now_ms=fed.client_now())
    tell(fed, tmp_path / "a")
    async with AsyncExitStack() as stack:
        alice = await stack.enter_async_context(opened(fed, tmp_path / "a"))
        alice2 = await stack.enter_async_context(opened(fed, tmp_path / "a2"))
        (cyd,) = await people(stack, fed, tmp_path, "c")
        group = await alice.create_group("g", [cyd.card])
        await alice.send_group(group.id, b"one", wait="stored")
        await known(cyd, 1)
        await cyd.send_group(group.id, b"two", wait="stored")
        await known(alice2, 1)
        await alice2.send_group(group.id, b"three", wait="stored")
        assert sorted(texts(await rest(alice))) == ["three", "two"]
        assert sorted(texts(await rest(alice2))) == ["one", "two"]
        assert sorted(texts(await rest(cyd))) == ["one", "three"]
        with pytest.raises(NotOwner):
            await alice2.add_to_group(group.id, [])


async def test_a_new_device_is_told_by_its_sister(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, cyd = await people(stack, fed, tmp_path, "ac")
        group = await alice.create_group("g", [cyd.card])
        await alice.send_group(group.id, b"old", wait="stored")
        await collect(cyd, 1)
        add_device(tmp_path / "c2", of=tmp_path / "c", registrar=fed.registrars["sueden"], now_ms=fed.client_now())
        tell(fed, tmp_path / "c")
        cyd2 = await stack.enter_async_context(opened(fed, tmp_path / "c2"))
        await known(cyd2, 1)
        await alice.send_group(group.id, b"new", wait="stored")
        (message,) = await rest(cyd2)
        assert message.content == b"new" and not message.gap and not message.late
        await cyd2.send_group(group.id, b"from the new one", wait="stored")
        assert "from the new one" in texts(await rest(alice))


async def test_groups_and_keys_survive_a_restart(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, cyd = await people(stack, fed, tmp_path, "ac")
        group = await alice.create_group("g", [cyd.card])
        await alice.send_group(group.id, b"1", wait="stored")
        await collect(cyd, 1)
    async with opened(fed, tmp_path / "a") as alice, opened(fed, tmp_path / "c") as cyd:
        await alice.send_group(group.id, b"2", wait="stored")
        assert texts(await rest(cyd)) == ["1", "2"]  # 1 was not settled


async def test_mistakes(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await people(stack, fed, tmp_path, "ab")
        with pytest.raises(UnknownGroup):
            await alice.send_group(b"g" * 32, b"x")
        with pytest.raises(UnknownGroup):
            await alice.add_to_group(b"g" * 32, [bob.card])
        with pytest.raises(Refused) as unknown:
            await alice.create_group("g", [bob.card, Card("sueden", b"?" * 32)])
        assert unknown.value.code == Code.UNKNOWN_USER
        cell: Cell = fed.cells["norden/1"]
        cell.faults.refuse[b"roster"] = Code.NOT_PERMITTED
        with pytest.raises(SendRefused) as refused:
            await alice.create_group("g", [bob.card])
        assert refused.value.code == Code.NOT_PERMITTED and await alice.groups() == []
        cell.faults.refuse.clear()
        group = await alice.create_group("g", [bob.card])
        cell.faults.refuse[group.id] = Code.NOT_MEMBER
        with pytest.raises(SendRefused) as not_member:
            await alice.send_group(group.id, b"x")
        assert not_member.value.code == Code.NOT_MEMBER


@pytest.mark.parametrize("refused", [False, True])
async def test_a_change_waits_for_the_outcome_of_the_one_before(
    clock: MockClock, fed: Federation, tmp_path: Path, refused: bool
) -> None:
    """An `add` timed out and is still on its way: the next one follows it, or what it followed if it is refused."""
    async with AsyncExitStack() as stack:
        alice, bob, cyd, dan = await people(stack, fed, tmp_path)
        group = await alice.create_group("g", [bob.card])
        for client in (cyd, dan):
            await alice.look_up(client.card)
        cell: Cell = fed.cells["norden/1"]
        cell.faults.refuse[group.id] = Code.OVERLOADED
        for client in (cyd, dan):
            with trio.move_on_after(5) as scope:
                await alice.add_to_group(group.id, [client.card])
            assert scope.cancelled_caught
        cell.faults.refuse[group.id] = Code.NOT_PERMITTED
        if refused:
            await alice.drained()
        cell.faults.refuse.clear()
        last = await alice.add_to_group(group.id, [dan.card])
        expected = {alice.card, bob.card, dan.card} | (set() if refused else {cyd.card})
        assert set(last.members) == expected and last.version == (2 if refused else 3)
        assert set(cell.rosters[group.id]) == set(range(1, last.version + 1))
        for client in (bob, dan):
            assert set((await known(client, last.version)).members) == expected
        await dan.send_group(group.id, b"all", wait="stored")
        for client in (alice, bob, *(() if refused else (cyd,))):
            assert texts(await collect(client, 1)) == ["all"]


async def test_a_roster_is_kept_once_however_many_are_told(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told in parts, over a border that is cut meanwhile: the store of who tells grows by about one roster."""
    monkeypatch.setattr("relay.client.outgoing.CHUNK", 100)
    async with AsyncExitStack() as stack:
        (alice,) = await people(stack, fed, tmp_path, "a")
        cards = [(await _card(fed, tmp_path / f"m{i}")) for i in range(30)]
        for card in cards:
            await alice.look_up(card)
        fed.cells["norden/1"].faults.cut = True
        group = await alice.create_group("g", cards)
        await alice.send_group(group.id, b"x", wait="queued")
        await trio.sleep(5)
        roster, everything = _sizes(tmp_path / "a")
        assert roster > 1_000 and everything < 2 * roster + 30 * 20 * 200
        fed.heal()
        await alice.drained()
        assert _sizes(tmp_path / "a") == (roster, 0)
    async with opened(fed, tmp_path / "m7") as member:
        assert texts(await collect(member, 1)) == ["x"]
        assert (await known(member, 1)).members == group.members


async def _card(fed: Federation, path: Path) -> Card:
    async with opened(fed, enrol(fed, path, "sueden"), receive=False) as client:
        return client.card


def _sizes(path: Path) -> tuple[int, int]:
    """Bytes of (the only roster, all that is still to be sent) in a store."""
    store = Store(path, inline=True)
    query = (
        "SELECT (SELECT length(news) FROM groups), (SELECT total(length(content)) FROM letters)"
        " + (SELECT total(length(envelope)) FROM parcels) + (SELECT total(length(data)) FROM news)"
    )
    roster, rest = store.transact(lambda db: db.execute(query).fetchone())
    store.close()
    return int(roster), int(rest)


async def test_an_owner_who_moved_brings_the_version_before_along(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """To a cell that the group did not name: else nobody tells the cells that the next version leaves out."""
    async with AsyncExitStack() as stack:
        alice, bob = await people(stack, fed, tmp_path, "ab")
        group = await alice.create_group("g", [bob.card])
        await alice.drained()
        desk = alice._desk

        def drafted(cell: str) -> Callable[[Db], list[tuple[object, ...]]]:
            def work(db: Db) -> list[tuple[object, ...]]:
                db.execute("SAVEPOINT tried")
                old = digest(read_roster_news(bytes(db.execute("SELECT news FROM groups").fetchone()[0])).head)
                made = draft(db, replace(desk.own, cell=cell), "", (), 0, b"", group.id)
                assert made is not None
                rows = db.execute("SELECT own, version, id, envelope FROM parcels ORDER BY pid").fetchall()
                assert [row[2] == old for row in rows] == [bool(row[0]) for row in rows]
                db.execute("ROLLBACK TO tried")
                return [(row[0], row[1], row[3] is not None) for row in rows]

            return work

        assert await desk.run(drafted("norden/1")) == [(0, 2, True)]
        assert await desk.run(drafted("west/1")) == [(1, 1, True), (0, 2, True)]
