"""The local store: its file, its locks, what it refuses; users and devices made in it; roots; cards."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from nacl.signing import SigningKey

from relay.client import BadCard, Card, ClientClosed, add_device, new_user, update_root
from relay.client.outgoing import take_counters
from relay.client.people import learn, newest, own_chain
from relay.client.store import Db, Store, get_cursor, load_own, put_cursor
from relay.core.trust import read_home, sign_home, verify_chain
from relay.errors import (
    BrokenChain, Frozen, OperatorError, Rollback, StoreDamaged, StoreError, StoreForeign, TrustError,
)  # fmt: skip
from tests.relay.client.fake_cell import NOW, Federation
from tests.relay.client.helpers import opened


@pytest.fixture
def world(nursery: trio.Nursery) -> Federation:
    return Federation(nursery)


def user(world: Federation, path: Path, region: str = "norden", now: int = NOW) -> Card:
    return new_user(
        path, root=world.root.signed, region=region, cell=f"{region}/1", registrar=world.registrars[region], now_ms=now
    )


async def test_a_new_user(world: Federation, tmp_path: Path) -> None:
    card = user(world, tmp_path / "deep" / "store.sqlite")
    path = tmp_path / "deep" / "store.sqlite"
    assert path.stat().st_mode & 0o777 == 0o600 and path.parent.stat().st_mode & 0o777 == 0o700
    store = Store(tmp_path / "deep")  # the directory will do
    own = await store.run(lambda db: load_own(db, NOW))
    record = await store.run(lambda db: newest(db, own, own.user))
    assert record is not None and Card(own.region, own.user) == card and record.user == card.user
    assert [device.id for device in record.devices] == [own.device]
    assert await store.run(get_cursor) == (b"", 0)
    store.close()
    assert not list(path.parent.glob(".*"))


async def test_what_may_not_be(world: Federation, tmp_path: Path) -> None:
    user(world, tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    with pytest.raises(StoreError, match="already"):
        user(world, tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == before
    with pytest.raises(TrustError):
        new_user(tmp_path / "x", root=world.root.signed, region="norden", cell="norden/9",
                 registrar=world.registrars["norden"], now_ms=NOW)  # fmt: skip
    with pytest.raises(TrustError):
        new_user(tmp_path / "x", root=world.root.signed, region="norden", cell="norden/1",
                 registrar=world.registrars["sueden"], now_ms=NOW)  # fmt: skip
    assert not (tmp_path / "x").exists()
    (tmp_path / "text").write_text("not a store")
    (tmp_path / "text").chmod(0o600)
    with pytest.raises(StoreDamaged):
        Store(tmp_path / "text")
    sqlite3.connect(tmp_path / "other").execute("CREATE TABLE x (y)")
    (tmp_path / "other").chmod(0o600)
    with pytest.raises(StoreForeign, match="not a Posthouse"):
        Store(tmp_path / "other")
    with sqlite3.connect(tmp_path / "a") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreForeign, match="Update the software"):
        Store(tmp_path / "a")


@pytest.mark.parametrize("version", [1, 2])
async def test_a_store_of_a_format_before_is_told_apart(world: Federation, tmp_path: Path, version: int) -> None:
    user(world, tmp_path / "a")
    with sqlite3.connect(tmp_path / "a") as db:
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    with pytest.raises(StoreForeign, match="Enrol the device anew"):
        Store(tmp_path / "a")


async def test_work_is_all_or_nothing_and_one_that_fails_does_not_harm_its_neighbours(
    world: Federation, tmp_path: Path
) -> None:
    user(world, tmp_path / "a")
    store = Store(tmp_path / "a")

    def good(db: Db) -> int:
        return take_counters(db, b"c" * 32, 1)

    def bad(db: Db) -> None:
        take_counters(db, b"c" * 32, 1_000)
        raise LookupError("mine")

    results: list[int | str] = []

    async def one(number: int) -> None:
        try:
            results.append(await store.run(bad if number % 5 == 0 else good))  # type: ignore[arg-type]
        except LookupError:
            results.append("bad")

    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(one, number)
    counters = [result for result in results if isinstance(result, int)]
    assert sorted(counters) == list(range(1, 41)) and results.count("bad") == 10
    with trio.CancelScope() as scope:
        scope.cancel()
        await store.run(good)
    assert scope.cancelled_caught
    assert await store.run(good) == 41
    store.close()


async def test_closing_waits_for_the_transaction_under_way(world: Federation, tmp_path: Path) -> None:
    """SQLite crashes the process when a connection is closed under a thread that uses it."""
    path = tmp_path / "store.sqlite"
    user(world, path)
    store = Store(path)
    begun, may_end = threading.Event(), threading.Event()

    def slow(db: Db) -> int:
        begun.set()
        may_end.wait(10)
        return int(db.execute("SELECT 7").fetchone()[0])

    async with trio.open_nursery() as nursery:
        found: list[int] = []

        async def work() -> None:
            found.append(await store.run(slow))

        nursery.start_soon(work)
        await trio.to_thread.run_sync(begun.wait)
        closing = trio.Event()

        async def close() -> None:
            await trio.to_thread.run_sync(store.close)
            closing.set()

        nursery.start_soon(close)
        with trio.move_on_after(0.1):
            await closing.wait()
        assert not closing.is_set()
        may_end.set()
    assert found == [7]
    with pytest.raises(ClientClosed):
        await store.run(lambda db: db.execute("SELECT 1"))


async def test_cursor_is_kept_with_its_log(world: Federation, tmp_path: Path) -> None:
    user(world, tmp_path / "a")
    for log, cursor in ((b"l" * 16, 2**40), (b"m" * 16, 3)):
        store = Store(tmp_path / "a")
        await store.run(lambda db, log=log, cursor=cursor: put_cursor(db, log, cursor))  # type: ignore[misc]
        store.close()
        store = Store(tmp_path / "a")
        assert await store.run(get_cursor) == (log, cursor)
        store.close()


COUNT = """
import sys
import threading
from pathlib import Path
from relay.client.outgoing import take_counters
from relay.client.store import Store
store = Store(Path(sys.argv[1]))
print("lock", store.take_receive_lock(), flush=True)
sys.stdin.readline()
for _ in range(300):
    print(store.transact(lambda db: take_counters(db, b"c" * 32, 3)))
store.close()
"""


async def test_two_processes_on_one_store(world: Federation, tmp_path: Path) -> None:
    user(world, tmp_path / "a")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "a")]

    def run() -> list[list[str]]:
        procs = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd())
            for _ in range(2)
        ]
        locks = [proc.stdout.readline() for proc in procs if proc.stdout]
        outs = []
        for proc in procs:
            assert proc.stdin is not None
            proc.stdin.write("\n")
            proc.stdin.flush()
        for proc in procs:
            out, _ = proc.communicate(timeout=60)
            outs.append(out.split())
        return [[lock.strip() for lock in locks], *outs]

    locks, one, two = await trio.to_thread.run_sync(run)
    assert sorted(locks) == ["lock False", "lock True"]
    assert sorted(map(int, one + two)) == list(range(1, 1801, 3))


async def test_a_killed_process_leaves_the_store_whole(world: Federation, tmp_path: Path) -> None:
    user(world, tmp_path / "a")
    command = [sys.executable, "-c", COUNT, str(tmp_path / "a")]

    def kill_in_the_middle() -> int:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as proc:
            assert proc.stdin is not None and proc.stdout is not None
            proc.stdout.readline()
            proc.stdin.write("\n")
            proc.stdin.flush()
            for _ in range(20):
                last = int(proc.stdout.readline())
            proc.kill()
            return last

    last = await trio.to_thread.run_sync(kill_in_the_middle)
    store = Store(tmp_path / "a")
    assert store.take_receive_lock()
    following = await store.run(lambda db: take_counters(db, b"c" * 32, 3))
    assert following > last
    store.close()


# --- devices, records, roots ---------------------------------------------------------------------
async def test_a_second_device(world: Federation, tmp_path: Path) -> None:
    card = user(world, tmp_path / "a")
    registrar = world.registrars["norden"]
    assert add_device(tmp_path / "b", of=tmp_path / "a", registrar=registrar, now_ms=NOW) == card
    assert add_device(tmp_path / "c", of=tmp_path / "b", registrar=registrar, now_ms=NOW) == card
    chains = []
    for name in "abc":
        store = Store(tmp_path / name)
        chains.append(await store.run(own_chain))
        store.close()
    assert [len(chain) for chain in chains] == [2, 3, 3]
    record = verify_chain(chains[2], world.root, NOW, card.user)
    assert len(record.devices) == 3
    with pytest.raises(TrustError):
        add_device(tmp_path / "d", of=tmp_path / "a", registrar=world.registrars["sueden"], now_ms=NOW)
    assert not (tmp_path / "d").exists()


async def test_rollback_and_fork_of_a_record_are_refused(world: Federation, tmp_path: Path) -> None:
    card = user(world, tmp_path / "a")
    registrar = world.registrars["norden"]
    (tmp_path / "twin").write_bytes((tmp_path / "a").read_bytes())
    (tmp_path / "twin").chmod(0o600)
    add_device(tmp_path / "b", of=tmp_path / "a", registrar=registrar, now_ms=NOW)
    add_device(tmp_path / "b2", of=tmp_path / "twin", registrar=registrar, now_ms=NOW)
    chains = []
    for name in ("a", "twin"):
        store = Store(tmp_path / name)
        chains.append(await store.run(own_chain))
        store.close()
    user(world, tmp_path / "me", "sueden")
    store = Store(tmp_path / "me")
    own = await store.run(lambda db: load_own(db, NOW))
    record = await store.run(lambda db: learn(db, own, card.user, chains[0], NOW))
    assert record.version == 2
    with pytest.raises(BrokenChain, match="fork"):
        await store.run(lambda db: learn(db, own, card.user, chains[1], NOW))
    again = await store.run(lambda db: learn(db, own, card.user, chains[0][:1], NOW))
    assert again.version == 2
    store.close()
    store = Store(tmp_path / "me")
    kept = await store.run(lambda db: newest(db, own, card.user))
    assert kept is not None and kept.signed == chains[0][1] == read_home(chains[0][1]).signed
    store.close()


async def test_what_was_not_verified_is_not_put_into_the_own_chain(world: Federation, tmp_path: Path) -> None:
    """A server that answers for our own records slips one in that `verify_chain` passes over, because it is older."""
    card = user(world, tmp_path / "a")
    (tmp_path / "twin").write_bytes((tmp_path / "a").read_bytes())
    (tmp_path / "twin").chmod(0o600)
    add_device(tmp_path / "b", of=tmp_path / "a", registrar=world.registrars["norden"], now_ms=NOW)
    store = Store(tmp_path / "a")
    chain = await store.run(own_chain)
    store.close()
    anybody = SigningKey(b"m" * 32)
    forged = sign_home(structs.replace(read_home(chain[0]).payload, version=0), anybody, anybody)
    store = Store(tmp_path / "twin")
    own = await store.run(lambda db: load_own(db, NOW))
    record = await store.run(lambda db: learn(db, own, card.user, [forged, *chain], NOW))
    assert record.version == 2 and await store.run(own_chain) == chain
    store.close()


async def test_a_root_that_is_no_news_any_more_is_used_on_and_not_taken_in(
    world: Federation, tmp_path: Path, autojump_clock: Any
) -> None:
    user(world, tmp_path / "a")
    stale = world.signed_root(world.root, news_ms=NOW + 1000)
    update_root(tmp_path / "a", stale, NOW)
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(2)
        async with opened(world, tmp_path / "a"):
            pass
    assert [entry["log_level"] for entry in logs if entry["event"] == "root_stale"] == ["warning"]
    assert update_root(tmp_path / "a", stale, NOW + 1000).payload.version == 2, "it has that one"
    with pytest.raises(Frozen, match="timestamp version 2 has expired"):
        new_user(
            tmp_path / "b", root=stale, region="norden", cell="norden/1", registrar=world.registrars["norden"],
            now_ms=NOW + 1000,
        )  # fmt: skip


async def test_a_newer_root(world: Federation, tmp_path: Path) -> None:
    user(world, tmp_path / "a")
    assert update_root(tmp_path / "a", world.root.signed, NOW) == world.root
    second = world.signed_root(world.root)
    assert update_root(tmp_path / "a", second, NOW).payload.version == 2
    assert update_root(tmp_path / "a", second, NOW).payload.version == 2
    with pytest.raises(Rollback):
        update_root(tmp_path / "a", world.root.signed, NOW)
    with pytest.raises(TrustError):
        update_root(tmp_path / "a", world.signed_root(keepers="others"), NOW)
    store = Store(tmp_path / "a")
    assert (await store.run(lambda db: load_own(db, NOW))).root.payload.version == 2
    with pytest.raises(TrustError, match="expired"):
        await store.run(lambda db: load_own(db, NOW + 10**13))
    store.close()


# --- cards ---------------------------------------------------------------------------------------
@given(st.binary(min_size=32, max_size=32), st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,63}\Z"))
def test_a_card_is_read_as_it_was_written(user_id: bytes, region: str) -> None:
    card = Card(region, user_id)
    assert Card.parse(str(card)) == Card.parse(f"  {card}\n") == card


@given(st.text(max_size=80))
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(BadCard) as error:
        Card.parse(text)
    assert isinstance(error.value, OperatorError) and "posthouse:" in str(error.value)


def test_a_card_has_one_spelling() -> None:
    card = str(Card("norden", bytes(32)))
    with pytest.raises(BadCard):
        Card.parse(card[:-1] + "b")
    with pytest.raises(BadCard):
        Card.parse(card.upper())
