"""Devices are revoked, their keys rotated, all of them lost: what the SDK makes of it (ADR 24)."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
import trio
from nacl.signing import SigningKey
from trio.testing import MockClock

from relay.client import (
    Revoked, add_device, new_user, recover_user, revoke_devices, rotate_device_keys, rotate_user_key, share_user_key,
    take_records,
)  # fmt: skip
from relay.client.identity import Seeds, ask, following, identity, own_records, user_key_of
from relay.client.people import newest
from relay.client.shapes import MESSAGE, Own, Part, pair
from relay.client.store import Store, load_own
from relay.core import wire
from relay.core.codec import encode
from relay.core.envelope import To
from relay.core.sealing import Inner, make_header, seal_mailbox
from relay.core.trust import Device, HomeRecord, read_home
from relay.errors import BrokenChain, ForeignDevice, OperatorError, StoreLocked
from relay.limits import DAY, MINUTE
from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import collect, enrol, opened, rest, tell, texts


def own_of(fed: Federation, path: Path) -> Own:
    store = Store(path, inline=True)
    own = store.transact(lambda db: load_own(db, fed.client_now()))
    store.close()
    return own


def second(fed: Federation, of: Path, region: str, name: str = "2") -> Path:
    path = of.with_name(of.name + name)
    add_device(path, of=of, registrar=fed.registrars[region], now_ms=fed.client_now())
    tell(fed, of)
    return path


def known(fed: Federation, path: Path, user: bytes) -> HomeRecord:
    own, store = own_of(fed, path), Store(path, inline=True)
    record = store.transact(lambda db: newest(db, own, user))
    store.close()
    assert record is not None
    return record


# --- rotated -------------------------------------------------------------------------------------
async def test_a_rotation_loses_nothing_and_repeats_nothing(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """Again and again, on both sides, with mail under way in both directions and nobody told."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    to_bob, to_alice, got_bob, got_alice = [], [], [], []
    async with opened(fed, b) as bob:
        card_b = bob.card
        await rest(bob, 1)
    for turn in range(6):
        async with opened(fed, a) as alice:
            for n in range(4):
                to_bob.append(f"{turn}.{n}")
                await alice.send(card_b, to_bob[-1].encode(), wait="queued" if n % 2 else "accepted")
            if turn % 2:
                await alice.drained()
            got_alice += await rest(alice, 1)
            card_a = alice.card
        for path, region, when in ((b, "sueden", (0, 2, 3, 5)), (a, "norden", (1, 3, 4))):
            if turn in when:
                before = own_of(fed, path)
                record = rotate_device_keys(path, registrar=fed.registrars[region], now_ms=fed.client_now())
                after = own_of(fed, path)
                assert after.stem == before.stem and after.device != before.device in after.ids
                assert record.stem(before.device) == after.stem and len(record.devices) == 1
        fed.cells["sueden/1"].faults.drop_after_submit = turn % 2
        async with opened(fed, b) as bob:
            for n in range(3):
                to_alice.append(f"{turn}.{n}")
                await bob.send(card_a, to_alice[-1].encode(), wait="queued")
            got_bob += await rest(bob, 0.5 if turn % 2 else 2)
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await alice.drained()
        await bob.drained()
        got_bob += await rest(bob)
        got_alice += await rest(alice)
        assert alice.stats.unreadable == bob.stats.unreadable == 0
    assert texts(got_bob) == to_bob and texts(got_alice) == to_alice
    assert not any(message.gap or message.late for message in got_bob + got_alice)
    assert len({message.device for message in got_bob}) == 1, "the app sees one device"


async def test_groups_go_on_after_a_rotation(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    c = enrol(fed, tmp_path / "c", "norden")
    async with opened(fed, a) as alice, opened(fed, b) as bob, opened(fed, c) as carol:
        group = (await alice.create_group("crew", [bob.card])).id
        await alice.send_group(group, b"one", wait="stored")
        assert texts(await collect(bob, 1)) == ["one"]
        await bob.send_group(group, b"two", wait="stored")
        assert texts(await rest(alice, 5)) == ["two"] and await rest(bob, 5) == []
        carols = carol.card
    for path, region in ((a, "norden"), (b, "sueden")):
        async with opened(fed, path) as client:
            await client.send_group(group, b"on its way", wait="queued")
            queued = client.device
        rotate_device_keys(path, registrar=fed.registrars[region], now_ms=fed.client_now())
        assert own_of(fed, path).device != queued
    async with opened(fed, a) as alice, opened(fed, b) as bob, opened(fed, c) as carol:
        await bob.send_group(group, b"three", wait="stored")
        assert texts(await rest(alice, 5)) == ["on its way", "three"]
        await alice.send_group(group, b"four", wait="stored")
        assert texts(await rest(bob, 5)) == ["on its way", "four"]
        assert (await alice.groups())[0].mine, "the device's old key owns the group, and the device still has it"
        await alice.add_to_group(group, [carols])
        await bob.send_group(group, b"five", wait="stored")
        assert texts(await rest(alice)) == ["five"] and texts(await rest(carol)) == ["five"]
        assert alice.stats.unreadable == bob.stats.unreadable == carol.stats.unreadable == 0


async def test_what_is_queued_is_not_sealed_with_a_key_that_a_revoked_device_was_told(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    """The message was written, and its key told, before; it goes out after."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        group = (await alice.create_group("crew", [bob.card])).id
        await alice.send_group(group, b"one", wait="stored")
        assert texts(await collect(bob, 1)) == ["one"]
        mine = alice.device
    fed.cells["norden/1"].down = True
    async with opened(fed, a) as alice:
        await alice.send_group(group, b"two", wait="queued")
    fed.cells["norden/1"].down = False
    with closing(Store(a, inline=True)) as store:  # as groups.devices_changed does when a member's device has gone
        store.transact(lambda db: db.execute("UPDATE sender_keys SET stale=1 WHERE device=?", (mine,)))
    async with opened(fed, a), opened(fed, b) as bob:
        assert texts(await rest(bob))[-1:] == ["two"]
    with closing(Store(a, inline=True)) as store:
        query = "SELECT count(*) FROM sender_keys WHERE device=? AND stale=0"
        assert store.transact(lambda db: db.execute(query, (mine,)).fetchone()[0]) == 1, "drawn for it"


async def test_nobody_lists_another_users_device(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """Not under a key of one's own, and not as the stem of a device of one's own. Who has it keeps it."""
    b, m = (enrol(fed, tmp_path / name, "norden") for name in "bm")
    sign, now, bobs = fed.registrars["norden"], fed.client_now(), own_of(fed, b).device
    with closing(Store(m, inline=True)) as store:
        own, chain = store.transact(lambda db: identity(db, now))
        key, seeds = store.transact(lambda db: user_key_of(db, chain[-1])), Seeds(os.urandom)
    bare = Device(bobs, seeds.public, 2, b"", b"")
    for stolen, error in ((bare, ForeignDevice), (seeds.device(2, bobs), BrokenChain)):
        devices = (chain[0].devices[0], stolen)
        with pytest.raises(error):
            ask(sign, following(chain, now, devices=devices), key, chain, own.root, seeds)
    async with opened(fed, b) as bob, opened(fed, m) as mallory:
        await mallory.send(bob.card, b"still yours", wait="stored")
        assert texts(await collect(bob, 1)) == ["still yours"]


async def test_old_keys_go_when_nothing_can_come_for_them(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    old = own_of(fed, a)
    rotate_device_keys(a, registrar=fed.registrars["norden"], now_ms=fed.client_now())
    assert own_of(fed, a).older == ((old.device, old.private),)
    store = Store(a, inline=True)
    later = store.transact(lambda db: load_own(db, fed.client_now() + 31 * DAY))
    assert later.older == ((old.device, b""),) and later.private
    store.close()


async def test_a_rotation_that_broke_off_is_taken_up_or_done_again(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    signed: list[bytes] = []

    def dies_before(request: bytes, before: object) -> bytes:
        raise OperatorError("no registrar")

    def dies_after(request: bytes, before: list[bytes]) -> bytes:
        signed.append(fed.registrars["norden"](request, before))
        raise OperatorError("the line broke")

    first = own_of(fed, a)
    for rotate in (rotate_device_keys, rotate_user_key):
        with pytest.raises(OperatorError):
            rotate(a, registrar=dies_before, now_ms=fed.client_now())
        assert own_of(fed, a).device == first.device
    for rotate in (rotate_device_keys, rotate_user_key, rotate_device_keys):
        with pytest.raises(OperatorError):
            rotate(a, registrar=dies_after, now_ms=fed.client_now())
        assert take_records(a, [*own_records(a), signed[-1]], fed.client_now()).version == len(own_records(a))
    assert own_of(fed, a).device == read_home(signed[-1]).devices[0].id
    tell(fed, a)
    async with opened(fed, a) as alice:
        await alice.caught_up()


async def test_no_rotation_under_an_open_client(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    async with opened(fed, a) as alice:
        await alice.caught_up()
        with pytest.raises(StoreLocked, match="old key"):
            rotate_device_keys(a, registrar=fed.registrars["norden"], now_ms=fed.client_now())


# --- revoked -------------------------------------------------------------------------------------
async def test_a_revoked_device_is_told_and_keeps_what_it_has(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    b2 = second(fed, b, "sueden")
    async with opened(fed, a) as alice, opened(fed, b) as bob, opened(fed, b2) as bob2:
        for n in range(3):
            await alice.send(bob.card, str(n).encode(), wait="stored")
        assert texts(await collect(bob2, 1)) == ["0"]
        await trio.sleep(1)
        record = revoke_devices(b, [bob2.device], registrar=fed.registrars["sueden"], now_ms=fed.client_now())
        assert len(record.devices) == 1
        tell(fed, b)
        await trio.sleep(1)
        with pytest.raises(Revoked, match=r"revoked.*can still be read"):
            await bob2.caught_up()
        assert texts(await collect(bob2, 2)) == ["1", "2"]
        with pytest.raises(Revoked):
            await collect(bob2, 1)
        with pytest.raises(Revoked):
            await bob2.send(alice.card, b"no")
        # alice learns it from the receipt of what she sends next, and seals for one device from then on
        await alice.send(bob.card, b"3", wait="stored")
        await alice.drained()
        await trio.sleep(2)
        await alice.send(bob.card, b"4", wait="stored")
        assert texts(await collect(bob, 5)) == ["0", "1", "2", "3", "4"]
    assert known(fed, a, bob.user).version == 3
    with pytest.raises(Revoked):
        async with opened(fed, b2) as bob2:
            await collect(bob2, 1)
    take_records(b2, own_records(b), fed.client_now())
    with pytest.raises(OperatorError, match="changed on another one"):
        rotate_user_key(b2, registrar=fed.registrars["sueden"], now_ms=fed.client_now())
    with pytest.raises(OperatorError, match="not enrolled any more"):
        rotate_device_keys(b2, registrar=fed.registrars["sueden"], now_ms=fed.client_now())


async def test_a_revoked_device_is_not_believed(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    """What it made before is; what it makes after is not, whoever carries it."""
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    b2 = second(fed, b, "norden")
    thief = own_of(fed, b2)
    cell = fed.cells["norden/1"]

    def carried(envelope: bytes, position: int) -> wire.Deliver:
        return wire.Deliver(position, envelope)

    def forged(counter: int, created: int) -> bytes:
        to = cell.newest(alice.user)
        part = encode(Part(alice.user, b"", "", 0, 1, b"%d" % counter))
        inner = Inner(1, thief.user, thief.device, "norden", pair(thief.user, alice.user), counter, MESSAGE, 0, part)
        header = make_header(To.MAILBOX, alice.user, to.version, created, created + DAY)
        expecting = [(device, 1) for device in to.devices]
        return seal_mailbox(header, inner, thief.signing, expecting, bytes(32))

    async with opened(fed, a) as alice, opened(fed, b) as bob, opened(fed, b2) as bob2:
        await bob2.send(alice.card, b"before", wait="stored")
        assert texts(await collect(alice, 1)) == ["before"]
        revoke_devices(b, [thief.device], registrar=fed.registrars["norden"], now_ms=fed.client_now())
        revoked_at = fed.client_now()
        tell(fed, b)
        await alice.send(bob.card, b"hello", wait="stored")  # alice learns of it
        await trio.sleep(2)
        for counter, after in ((2, -1), (3, 12), (4, 20)):
            cell.append(frozenset([alice.device]), partial(carried, forged(counter, revoked_at + after * MINUTE)))
        cell.pump()
        assert texts(await rest(alice)) == ["2"]
        assert alice.stats.unreadable == 2


async def test_a_group_goes_on_under_other_keys_when_a_member_loses_a_device(
    clock: MockClock, fed: Federation, tmp_path: Path
) -> None:
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "sueden")
    b2 = second(fed, b, "sueden")
    lost = own_of(fed, b2).device
    async with opened(fed, a) as alice, opened(fed, b) as bob, opened(fed, b2) as bob2:
        group = (await alice.create_group("crew", [bob.card])).id
        await alice.send_group(group, b"one", wait="stored")
        assert texts(await collect(bob2, 1)) == texts(await collect(bob, 1)) == ["one"]
        revoke_devices(b, [lost], registrar=fed.registrars["sueden"], now_ms=fed.client_now())
        tell(fed, b)
        await alice.send(bob.card, b"learns", wait="stored")
        await trio.sleep(2)
        await alice.send_group(group, b"two", wait="stored")
        assert texts(await collect(bob, 2)) == ["learns", "two"]
    keys = "SELECT count(DISTINCT kid) FROM sender_keys WHERE device=?"
    counts = []
    for path in (a, b, b2):
        store = Store(path, inline=True)
        counts.append(store.transact(lambda db: db.execute(keys, (alice.device,)).fetchone()[0]))
        store.close()
    assert counts == [2, 2, 1], "the revoked device was not told the new key"


async def test_who_may_revoke_whom(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a = enrol(fed, tmp_path / "a", "norden")
    a2, a3 = second(fed, a, "norden"), second(fed, a, "norden", "3")
    sign, now = fed.registrars["norden"], fed.client_now()
    one, two, three = (own_of(fed, path).device for path in (a, a2, a3))
    with pytest.raises(OperatorError, match="cannot revoke itself"):
        revoke_devices(a, [one], registrar=sign, now_ms=now)
    with pytest.raises(OperatorError, match=r"all devices.*recovery key"):
        revoke_devices(a, [one, two, three], registrar=sign, now_ms=now)
    with pytest.raises(OperatorError, match="no such device"):
        revoke_devices(a, [b"x" * 32], registrar=sign, now_ms=now)
    revoke_devices(a, [three], registrar=sign, now_ms=now)
    with pytest.raises(OperatorError, match="no such device"):
        revoke_devices(a, [three], registrar=sign, now_ms=now)
    take_records(a2, own_records(a), now)
    with pytest.raises(OperatorError, match="changed on another one"):
        revoke_devices(a2, [one], registrar=sign, now_ms=now)
    share_user_key(a, [a2], now)
    assert revoke_devices(a2, [one], registrar=sign, now_ms=now).version == 5
    assert take_records(a2, own_records(a), now).version == 5, "older ones change nothing"
    fork = rotate_user_key(a, registrar=sign, now_ms=now)
    with pytest.raises(BrokenChain, match="fork"):
        take_records(a2, [*own_records(a)[:4], fork.signed], now)


# --- all lost ------------------------------------------------------------------------------------
async def test_the_recovery_key_brings_a_user_back(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, paper, sign = enrol(fed, tmp_path / "a", "norden"), SigningKey(b"p" * 32), fed.registrars["sueden"]
    now, root = fed.client_now(), fed.root.signed
    b = tmp_path / "b"
    card = new_user(b, root=root, region="sueden", cell="sueden/1", registrar=sign, now_ms=now,
                    recovery=bytes(paper.verify_key))  # fmt: skip
    tell(fed, b)
    async with opened(fed, a) as alice:
        await alice.send(card, b"nobody reads this any more", wait="stored")
        stolen = rotate_user_key(b, registrar=sign, now_ms=now)  # by the thief
        records = own_records(b)
        wrong = SigningKey(b"q" * 32)
        with pytest.raises(OperatorError, match="another user's"):
            recover_user(tmp_path / "x", root=root, records=records, recovery=wrong, registrar=sign, now_ms=now)
        with pytest.raises(OperatorError, match="no recovery key"):
            recover_user(tmp_path / "x", root=root, records=own_records(a), recovery=paper, registrar=sign, now_ms=now)
        assert not (tmp_path / "x").exists()
        back = recover_user(tmp_path / "b9", root=root, records=records, recovery=paper, registrar=sign, now_ms=now)
        assert back == card
        tell(fed, tmp_path / "b9")
        async with opened(fed, tmp_path / "b9") as bob:
            await alice.send(card, b"welcome back", wait="stored")
            await alice.drained()
            got = await rest(bob)
            assert texts(got) == ["welcome back"]
            assert not any(message.late for message in got)
            await bob.send(alice.card, b"it is me", wait="stored")
            assert texts(await collect(alice, 1)) == ["it is me"]
            assert [one.id for one in known(fed, tmp_path / "b9", card.user).devices] == [bob.device]
        with pytest.raises(Revoked):
            async with opened(fed, b) as thief:
                await collect(thief, 1)
    assert stolen.version == 2
