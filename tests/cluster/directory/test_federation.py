"""The directory: verified completely, remembered, then used; whatever another region answers."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest
import trio
import trio.testing
from nacl.signing import SigningKey

from cluster.core.linkwire import Done, LookUp, Records
from cluster.directory.seen import Sighting, open_seen
from relay.core.wire import Code
from relay.errors import (
    BadSignature, BrokenChain, DiskFailed, NotValidNow, Refused, RegionHalted, Rollback, StoreForeign, StoreLocked,
    TrustError,
)
from relay.journal.portal import open_portal
from relay.limits import DIRECTORY_CACHE, DIRECTORY_FRESH, DIRECTORY_RETRY
from tests.flipping import flipped
from tests.patience import PATIENCE_S


async def test_own_users_are_answered_from_the_cell_and_nobody_is_asked(world: Any) -> None:
    alice = world.user(1, "norden/1")
    alice.grow()
    world.own.users[alice.id] = alice
    async with world.open() as directory:
        assert await directory.lookup(alice.id, "") == alice.newest
        assert await directory.chain(alice.id, "sueden", 1) == alice.chain[1:]
    assert not world.cells.asked


async def test_a_foreign_user_is_found_by_hint_once_and_kept_while_fresh(world: Any) -> None:
    bob = world.user(2)
    bob.grow()
    world.cells.serve(bob)
    async with world.open() as directory:
        for _ in range(3):
            assert await directory.lookup(bob.id, "sueden") == bob.newest
        assert await directory.chain(bob.id, "sueden", 0) == bob.chain
        assert await directory.chain(bob.id, "sueden", 1) == bob.chain[1:]
        assert world.cells.asked == [("sueden/1", LookUp(bob.id, 0))]
        bob.grow()
        world.env.settable.now += DIRECTORY_FRESH
        assert (await directory.lookup(bob.id, "sueden")).version == 3
        assert world.cells.asked[1:] == [("sueden/1", LookUp(bob.id, 2))]
        assert await directory.chain(bob.id, "sueden", 0) == bob.chain


async def test_who_has_heard_of_a_newer_version_is_not_answered_from_the_cache(world: Any) -> None:
    user = world.user(2)
    world.cells.serve(user)
    async with world.open() as directory:
        assert await directory.chain(user.id, "sueden", 0) == user.chain
        user.grow()
        assert await directory.chain(user.id, "sueden", 1) == []  # asked a moment ago
        world.env.settable.now += 2_001
        assert await directory.chain(user.id, "sueden", 0) == user.chain[:1]
        assert await directory.chain(user.id, "sueden", 1) == user.chain[1:]
        asked = len(world.cells.asked)
        assert await directory.chain(user.id, "sueden", 2) == []
        assert len(world.cells.asked) == asked


async def test_every_cell_of_the_hinted_region_is_asked_and_the_own_one_never(world: Any) -> None:
    bob, carol = world.user(2, "sueden/2"), world.user(3, "norden/2")
    world.cells.serve(bob, carol)
    async with world.open() as directory:
        assert (await directory.lookup(bob.id, "sueden")).cell == "sueden/2"
        assert (await directory.lookup(carol.id, "norden")).cell == "norden/2"
    assert [cell for cell, _ in world.cells.asked] == ["sueden/1", "sueden/2", "norden/2"]


@pytest.mark.parametrize("hint", ["", "osten", "sueden/1", "Sueden", "\x00"])
async def test_an_unknown_region_is_refused(world: Any, hint: str) -> None:
    async with world.open() as directory:
        with pytest.raises(Refused) as caught:
            await directory.lookup(bytes(32), hint)
    assert caught.value.code == Code.UNKNOWN_REGION


async def test_a_wrong_hint_is_refused_and_asked_again_only_after_a_while(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:
        for _ in range(3):
            with pytest.raises(Refused) as caught:
                await directory.lookup(bob.id, "norden")
            assert caught.value.code == Code.UNKNOWN_USER
        assert len(world.cells.asked) == 1
        assert await directory.lookup(bob.id, "sueden") == bob.newest
        with pytest.raises(Refused):
            await directory.lookup(bytes(32), "norden")
        world.env.settable.now += DIRECTORY_RETRY
        with pytest.raises(Refused):
            await directory.lookup(bytes(32), "norden")
    assert len(world.cells.asked) == 4


async def test_who_cannot_be_reached_is_not_unknown(world: Any) -> None:
    world.cells.serve()
    del world.cells.answers["sueden/2"]
    async with world.open() as directory:
        with pytest.raises(Refused) as caught:
            await directory.lookup(bytes(32), "sueden")
    assert caught.value.code == Code.UNREACHABLE


async def test_a_known_user_of_a_region_that_is_cut_off_stays_known_until_the_record_expires(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        world.cells.answers.clear()
        world.env.settable.now += 10 * DIRECTORY_FRESH
        assert await directory.lookup(bob.id, "sueden") == bob.newest
        assert len(world.cells.asked) == 1
        world.env.settable.now = bob.expires
        with pytest.raises(Refused) as caught:
            await directory.lookup(bob.id, "sueden")
        assert caught.value.code == Code.UNREACHABLE


async def test_what_is_kept_of_a_region_that_is_halted_is_shown_to_nobody(world: Any) -> None:
    """Its log signs two histories: no proof in it says anything any more."""
    bob, own = world.user(2), world.user(1, "norden/1")
    world.cells.serve(bob)
    world.own.users[own.id] = own

    def halted(cell: str) -> None:
        if cell == "sueden/1":
            raise RegionHalted(Code.UNREACHABLE, "federation with sueden is halted: its log forked", cell)

    async with world.open() as directory:
        assert await directory.lookup(bob.id, "sueden") == bob.newest
        directory.halted = halted
        for ask in (directory.lookup(bob.id, "sueden"), directory.chain(bob.id, "sueden", 0)):
            with pytest.raises(RegionHalted):
                await ask
        assert await directory.lookup(own.id, "norden") == own.newest
        directory.halted = lambda cell: None  # the root names a new log
        assert await directory.chain(bob.id, "sueden", 0) == bob.chain


async def test_a_link_that_breaks_during_the_refresh_leaves_the_known_record(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        world.env.settable.now += DIRECTORY_FRESH

        def breaks(ask: LookUp) -> Records:
            raise Refused(Code.UNREACHABLE, "the link ended")

        world.cells.answers["sueden/1"] = breaks
        for _ in range(3):
            assert await directory.lookup(bob.id, "sueden") == bob.newest
        assert len(world.cells.asked) == 2


async def test_concurrent_lookups_share_one_request_and_survive_a_cancelled_leader(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    world.cells.gate = trio.Event()
    found: list[int] = []
    async with world.open() as directory:

        async def look(scope: trio.CancelScope) -> None:
            with scope:
                found.append((await directory.lookup(bob.id, "sueden")).version)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                leader = trio.CancelScope()
                nursery.start_soon(look, leader)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(5):
                    nursery.start_soon(look, trio.CancelScope())
                await trio.testing.wait_all_tasks_blocked()
                assert len(world.cells.asked) == 1
                leader.cancel()
                await trio.testing.wait_all_tasks_blocked()
                world.cells.gate.set()
    assert found == [1] * 5 and len(world.cells.asked) == 2


# --- answers that lie ----------------------------------------------------------------------------
async def refused(world: Any, user: bytes, kind: type[TrustError]) -> None:
    async with world.open() as directory:
        with pytest.raises(kind):
            await directory.lookup(user, "sueden")
        assert not directory._known


async def test_forged_records_are_refused(world: Any) -> None:
    bob, mallory = world.user(2), world.user(3)
    world.cells.say(bob.sign(None, registrar=SigningKey(b"x" * 32)))
    await refused(world, bob.id, BadSignature)
    world.cells.say(flipped(bob.chain[0]))
    await refused(world, bob.id, BadSignature)
    world.cells.say(*mallory.chain)
    await refused(world, bob.id, BrokenChain)
    world.cells.say(bob.chain[0], mallory.sign(bob.newest))
    await refused(world, bob.id, BadSignature)


@pytest.mark.parametrize("chain", [(), (b"",), (b"garbage",), (b"\x93\xc4\x00\xc4\x00\xc4\x00",)])
async def test_what_is_no_record_is_refused(world: Any, chain: tuple[bytes, ...]) -> None:
    world.cells.say(*chain)
    await refused(world, bytes(32), TrustError)


async def test_gaps_and_expired_records_are_refused(world: Any) -> None:
    bob = world.user(2)
    bob.grow()
    bob.grow()
    world.cells.say(bob.chain[0], bob.chain[2])
    await refused(world, bob.id, BrokenChain)
    world.cells.say(*bob.chain[1:])
    await refused(world, bob.id, TrustError)
    old = world.user(4, expires=world.now - 1)
    world.cells.say(*old.chain)
    await refused(world, old.id, NotValidNow)


async def test_another_kind_of_answer_is_refused(world: Any) -> None:
    world.cells.answers["sueden/1"] = lambda ask: Done()
    await refused(world, bytes(32), TrustError)


async def test_a_rollback_is_caught_after_a_restart(world: Any, capsys: Any) -> None:
    bob = world.user(2)
    bob.grow()
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
    world.cells.say(bob.chain[0])
    await refused(world, bob.id, Rollback)
    assert "home_record_refused" in capsys.readouterr().out
    world.cells.serve(bob)
    async with world.open() as directory:
        assert (await directory.lookup(bob.id, "sueden")).version == 2


@pytest.mark.parametrize("restart", [True, False])
async def test_a_fork_is_caught(world: Any, restart: bool) -> None:
    bob, twin = world.user(2), world.user(2)
    bob.grow(mark=1)
    twin.grow(mark=2)
    twin.grow()
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        if not restart:
            world.env.settable.now += DIRECTORY_FRESH
            world.cells.say(*twin.chain)
            with pytest.raises(BrokenChain):
                await directory.lookup(bob.id, "sueden")
            return
    world.cells.say(*twin.chain)
    await refused(world, bob.id, BrokenChain)


async def test_two_forks_at_the_same_moment_cannot_both_be_used(world: Any) -> None:
    bob, twin = world.user(2), world.user(2)
    bob.grow(mark=1)
    twin.grow(mark=2)
    outcomes: list[object] = []
    async with world.open() as directory:

        async def accept(chain: list[bytes]) -> None:
            try:
                outcomes.append((await directory._accept(bob.id, None, chain)).record.digest)
            except BrokenChain:
                outcomes.append("fork")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept, bob.chain)
            nursery.start_soon(accept, twin.chain)
    assert outcomes.count("fork") == 1


# --- what rests, and what is told ----------------------------------------------------------------
async def test_what_cannot_be_remembered_is_not_used(world: Any, monkeypatch: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:

        def fails(*args: object) -> None:
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        monkeypatch.setattr("cluster.directory.seen._raise", fails)
        for _ in range(2):
            with pytest.raises(DiskFailed):
                await directory.lookup(bob.id, "sueden")
        monkeypatch.undo()
        with pytest.raises(DiskFailed):
            await directory.lookup(bob.id, "sueden")
        assert not directory._known


async def test_the_file_names_no_foreign_user(world: Any) -> None:
    bob = world.user(2)
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        files = [path.read_bytes() for path in world.file.parent.iterdir()]
    assert len(files) > 1
    assert bob.newest.digest == bob.id  # in version 1, so that it must not be stored as it is either
    assert not any(bob.id in data or bob.id.hex().encode() in data for data in files)
    assert world.file.stat().st_mode & 0o777 == 0o600


async def test_a_locked_and_a_foreign_file_are_the_operators_to_mend(world: Any) -> None:
    async with world.open():
        with pytest.raises(StoreLocked):
            async with world.open():
                pass
    world.file.unlink()
    with sqlite3.connect(world.file) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    with pytest.raises(StoreForeign):
        async with world.open():
            pass


async def test_other_cells_are_told_of_own_users_only(world: Any) -> None:
    alice, bob = world.user(1, "norden/1"), world.user(2)
    alice.grow()
    world.own.users[alice.id] = alice
    world.cells.serve(bob)
    async with world.open() as directory:
        await directory.lookup(bob.id, "sueden")
        assert await directory.answer(world.peer, LookUp(alice.id, 0)) == Records(Code.STORED, tuple(alice.chain))
        assert await directory.answer(world.peer, LookUp(alice.id, 2)) == Records(Code.STORED, ())
        assert await directory.answer(world.peer, LookUp(bob.id, 0)) == Records(Code.UNKNOWN_USER, ())


async def test_the_cache_is_bounded_in_bytes(world: Any, monkeypatch: Any) -> None:
    users = [world.user(number) for number in range(10, 20)]
    world.cells.serve(*users)
    monkeypatch.setattr("cluster.directory.federation.DIRECTORY_CACHE", 4 * 2_000)
    async with world.open() as directory:
        for user in users:
            await directory.lookup(user.id, "sueden")
        assert 2 <= len(directory._known) <= 5
        assert directory._bytes == sum(known.size for known in directory._known.values()) <= DIRECTORY_CACHE
        asked = len(world.cells.asked)
        await directory.lookup(users[-1].id, "sueden")
        assert len(world.cells.asked) == asked
        await directory.lookup(users[0].id, "sueden")
        assert len(world.cells.asked) == asked + 1


async def test_a_disk_that_hangs_hides_no_reason_when_the_file_is_closed(tmp_path: Any) -> None:
    with pytest.raises(DiskFailed, match="first"):
        async with open_portal(deadline_s=2.0) as portal, open_seen(tmp_path / "seen", portal, bytes(32)):
            with pytest.raises(trio.BrokenResourceError):
                await portal.run(asyncio.sleep, 3600)
            raise DiskFailed("the first")


async def test_the_write_ahead_log_is_folded(world: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("relay.journal.database.WAL_BYTES", 64 * 1024)
    file = tmp_path / "seen"
    async with open_portal() as portal, open_seen(file, portal, bytes(32)) as seen:
        for number in range(100):
            await seen.raise_to(number.to_bytes(32, "big"), Sighting(1, bytes(32)))
        assert file.with_name("seen-wal").stat().st_size < 128 * 1024
