"""A client follows newer root documents by itself: asks, verifies as nodes do, keeps, and goes by what holds only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import structlog
import trio
from msgspec import structs
from nacl.signing import SigningKey
from trio.testing import MockClock

from cluster.federation.making import Staged, sign_all
from relay.client import update_root
from relay.client.roots import DEAF_S, EVERY_S
from relay.client.store import Store, get
from relay.core import rootparts, wire
from relay.core.codec import pack
from relay.core.rootparts import part_of
from relay.core.trust import Root, RootCell, RootNode, RootRegion, verify_root
from relay.core.trust.root import RegionPart, parse_bundle
from relay.core.wire import Fault
from relay.errors import Rollback
from relay.limits import DAY, MAX_BUNDLE
from tests.relay.client.fake_cell import NOW, REGIONS, Federation, registrar
from tests.relay.client.helpers import collect, enrol, opened, texts
from tests.relay.core.trust.keepers import Keepers, signers, swapped

Answer = wire.ServerMessage | bytes


class World:
    """The fake federation under keepers who meet, sign and rotate."""

    def __init__(self, fed: Federation, keepers: Keepers | None = None) -> None:
        self.fed, self.keepers = fed, keepers or Keepers(now=NOW)
        self.versions = dict.fromkeys(REGIONS, 1)
        root = sign_all(self.keepers.draft(1), signers("root-1", "root-2"))
        targets = sign_all(self.keepers.delegate(1, *REGIONS), signers("keeper-1", "keeper-2"))
        self.first = self.keepers.publish(Staged(root, targets, {name: self.part(name) for name in REGIONS}))
        self.fed.root = verify_root(self.first, NOW)

    def part(self, name: str, cell: str = "") -> RegionPart:
        node = RootNode("n1", "127.0.0.1:1", (f"ws://{name}",))
        entry = RootRegion(name, b"", bytes(self.fed.keys[name].verify_key), (RootCell(cell or f"{name}/1", (node,)),))
        return self.keepers.part(entry, self.versions[name])

    def says(self, name: str, cell: str = "") -> bytes:
        """The next publication, in which the region says something else."""
        self.versions[name] += 1
        return self.keepers.publish(Staged(regions={name: self.part(name, cell)}))

    def another_registrar(self, name: str) -> bytes:
        self.fed.keys[name] = key = SigningKey(b"another key of a registrar......"[:32])
        self.fed.registrars[name] = registrar(key)
        return self.says(name)

    def give(self, signed: bytes, rank: tuple[int, int] = (9, 9)) -> None:
        """Alice's node gives these bytes for a document of that rank."""

        def answer(ask: wire.AskRoot, root: Root) -> list[Answer]:
            lie = structs.replace(root.payload, root_version=rank[0], version=rank[1])
            return [part_of(structs.replace(root, payload=lie, signed=signed), ask)]

        self.answer(answer)

    def answer(self, roots: Callable[[wire.AskRoot, Root], Sequence[Answer]]) -> None:
        self.fed.cells["norden/1"].faults.roots = roots


@pytest.fixture
async def world(fed: Federation) -> World:
    return World(fed)


def kept(path: Path) -> bytes:
    store = Store(path, inline=True)
    try:
        return store.transact(lambda db: get(db, "root"))
    finally:
        store.close()


async def test_who_connects_with_an_older_document_has_the_newest_at_once(
    clock: MockClock, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootparts, "ROOT_PART", 500)
    a = enrol(world.fed, tmp_path / "a", "norden")
    world.says("sueden")
    world.keepers.publish(world.keepers.rotate(("root-4", "root-5"), ("root-1", "root-2", "root-4", "root-5")))
    newest = world.says("sueden")
    world.fed.root = verify_root(newest, NOW)
    async with opened(world.fed, a):
        await trio.sleep(1)
    assert kept(a) == newest, "three publications and another root role later"
    with pytest.raises(Rollback):
        update_root(a, world.first, NOW)


async def test_another_registrars_key_is_followed_on_the_open_connection(
    clock: MockClock, world: World, tmp_path: Path
) -> None:
    a = enrol(world.fed, tmp_path / "a", "norden")
    async with opened(world.fed, a) as alice:
        await alice.caught_up()
        await trio.sleep(60)
        newest = world.another_registrar("sueden")
        world.fed.root = verify_root(newest, NOW)
        b, dials = enrol(world.fed, tmp_path / "b", "sueden"), world.fed.dials
        async with opened(world.fed, b) as bob:
            await alice.send(bob.card, b"by your new registrar", wait="stored")
            assert texts(await collect(bob, 1)) == ["by your new registrar"]
            assert world.fed.dials == dials + 1 and not alice.failures, "only bob has dialled"
    assert kept(a) == newest


async def test_who_is_connected_for_long_asks_again(clock: MockClock, world: World, tmp_path: Path) -> None:
    a, asked = enrol(world.fed, tmp_path / "a", "norden"), 0

    def count(ask: wire.AskRoot, root: Root) -> list[Answer]:
        nonlocal asked
        asked += 1
        return [part_of(root, ask)]

    world.answer(count)
    async with opened(world.fed, a):
        await trio.sleep(EVERY_S / 2)
        newest = world.says("sueden")
        world.fed.root = verify_root(newest, NOW)
        assert asked == 1
        await trio.sleep(EVERY_S / 2 + 1)
        assert kept(a) == newest and asked == 2


async def test_what_another_process_put_there_is_gone_by(clock: MockClock, world: World, tmp_path: Path) -> None:
    a = enrol(world.fed, tmp_path / "a", "norden")
    asked: list[wire.AskRoot] = []
    world.answer(lambda ask, root: asked.append(ask) or [part_of(root, ask)])
    async with opened(world.fed, a):
        await trio.sleep(1)
        update_root(a, world.says("sueden"), NOW)
        await trio.sleep(EVERY_S)
    assert [(ask.root_version, ask.version) for ask in asked] == [(1, 1), (1, 2)]


def other_federation(world: World) -> bytes:
    return World(Federation(world.fed.nursery), Keepers(now=NOW + DAY)).first


def too_few_of_the_old(world: World) -> bytes:
    return world.keepers.publish(world.keepers.rotate(("root-4", "root-5"), ("root-1", "root-4", "root-5")))


def too_few_of_the_new(world: World) -> bytes:
    return world.keepers.publish(world.keepers.rotate(("root-4", "root-5"), ("root-1", "root-2", "root-4")))


def skipped(world: World) -> bytes:
    for keys in (("root-4", "root-5"), ("root-6", "root-7")):
        signed = world.keepers.publish(world.keepers.rotate(keys, (*world.keepers.root, *keys)))
    roots = parse_bundle(signed).bundle.roots
    return swapped(signed, roots=(roots[0], roots[2]))


def older_than_the_clients(world: World) -> bytes:
    return world.first


def fork(world: World) -> bytes:
    return World(Federation(world.fed.nursery)).says("sueden", "sueden/2")


def frozen(world: World) -> bytes:
    world.keepers.now = NOW - 30 * DAY
    return world.says("sueden")


def without_our_home(world: World) -> bytes:
    return world.says("norden", "norden/2")


def flipped(world: World) -> bytes:
    signed = bytearray(world.says("sueden"))
    signed[len(signed) // 2] ^= 1
    return bytes(signed)


LIES: dict[Callable[[World], bytes], str] = {
    other_federation: "another federation's",
    too_few_of_the_old: "by the keys of version 1",
    too_few_of_the_new: "root version 2",
    skipped: "calls itself version 3",
    older_than_the_clients: "version 1 after 2",
    fork: "fork",
    frozen: "has expired",
    without_our_home: "lists no node of norden/1",
    flipped: "",
    lambda world: b"garbage": "not msgpack",
    lambda world: bytes(100_000): "",
}


@pytest.mark.parametrize(("lie", "says"), LIES.items(), ids=lambda one: getattr(one, "__name__", None))
async def test_what_does_not_hold_is_not_gone_by(
    clock: MockClock, world: World, tmp_path: Path, lie: Callable[[World], bytes], says: str
) -> None:
    """The node can keep the newest document back, and nothing else; mail goes on."""
    own = world.says("sueden")
    world.fed.root = verify_root(own, NOW)
    a, b = enrol(world.fed, tmp_path / "a", "norden"), enrol(world.fed, tmp_path / "b", "sueden")
    world.give(lie(world))
    with structlog.testing.capture_logs() as logs:
        async with opened(world.fed, a) as alice, opened(world.fed, b) as bob:
            await alice.send(bob.card, b"all the same", wait="stored")
            assert texts(await collect(bob, 1)) == ["all the same"]
            await trio.sleep(1)
    refused = [entry["reason"] for entry in logs if entry["event"] == "root_refused"]
    assert refused and all(says in reason for reason in refused), refused
    assert kept(a) == own


async def test_who_was_lied_to_takes_what_holds_by_and_by(clock: MockClock, world: World, tmp_path: Path) -> None:
    a = enrol(world.fed, tmp_path / "a", "norden")
    newest = world.says("sueden")
    world.fed.root = verify_root(newest, NOW)
    world.give(newest[:-1] + b"x")
    async with opened(world.fed, a):
        await trio.sleep(1)
        assert kept(a) == world.first
        world.answer(lambda ask, root: [part_of(root, ask)])
        await trio.sleep(EVERY_S)
        assert kept(a) == newest


ODD: dict[str, Callable[[int], Sequence[Answer]]] = {
    "another one each time": lambda turn: [wire.RootPart(9, turn, MAX_BUNDLE, 0, bytes(65_536))],
    "a byte at a time": lambda turn: [wire.RootPart(9, 9, MAX_BUNDLE, turn, b"a")],
    "the first part for ever": lambda turn: [wire.RootPart(9, 9, MAX_BUNDLE, 0, bytes(65_536))],
    "too large": lambda turn: [pack([79, 9, 9, MAX_BUNDLE + 1, 0, b""])] if turn == 0 else [],
    "answers that nobody asked for": lambda turn: [
        wire.RootPart(1, 1, 0, 0, b""), *[wire.RootPart(9, 9, 1, 0, b"a")] * 9,
    ],
    "no answer": lambda turn: [],
}  # fmt: skip


@pytest.mark.parametrize("odd", ODD)
async def test_a_node_that_answers_without_end_is_asked_a_few_times(
    clock: MockClock, world: World, tmp_path: Path, odd: str
) -> None:
    a, b = enrol(world.fed, tmp_path / "a", "norden"), enrol(world.fed, tmp_path / "b", "sueden")
    asked = 0

    def answer(ask: wire.AskRoot, root: Root) -> Sequence[Answer]:
        nonlocal asked
        asked += 1
        return ODD[odd](asked - 1)

    world.answer(answer)
    async with opened(world.fed, a) as alice, opened(world.fed, b) as bob:
        await alice.send(bob.card, b"mail", wait="stored")
        assert texts(await collect(bob, 1)) == ["mail"]
        await trio.sleep(120)
        assert asked < 10
    assert kept(a) == world.first


async def test_a_node_of_before_ends_one_connection_and_is_not_asked_again(
    clock: MockClock, world: World, tmp_path: Path
) -> None:
    a, b, asked = enrol(world.fed, tmp_path / "a", "norden"), enrol(world.fed, tmp_path / "b", "sueden"), 0

    def ends(ask: wire.AskRoot, root: Root) -> list[Answer]:
        nonlocal asked
        asked += 1
        return [wire.Error(Fault.PROTOCOL, "client message has the wrong shape", 0)]

    world.answer(ends)
    async with opened(world.fed, a) as alice, opened(world.fed, b) as bob:
        for text in (b"one", b"two"):
            await alice.send(bob.card, text, wait="stored")
        assert texts(await collect(bob, 2)) == ["one", "two"]
        world.fed.cells["norden/1"].drop_connections()
        await trio.sleep(EVERY_S * 1.2)
        assert asked == 1 and alice.stats.reconnects == 2
        world.answer(lambda ask, root: [part_of(root, ask)])  # it was updated
        world.fed.root = verify_root(world.says("sueden"), NOW)
        assert kept(a) == world.first
    async with opened(world.fed, a):
        await trio.sleep(1)
    assert kept(a) == world.fed.root.signed and DEAF_S > EVERY_S
