"""A deadline, by the mock clock: whenever two registrars are shown two histories of a log, every node of every other
region has halted federation with that region GOSSIP_S later. Real gossip, HTTP, proofs and halts; only the network, the
witnesses' database and the time are not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from cluster.halts import Halts
from cluster.registrar import witness as witness_module
from cluster.registrar.faces import Face
from cluster.registrar.gossip import EMPTY, Gossip, HttpDoor
from cluster.registrar.http import Caller, Reply, Site, serve_http
from cluster.registrar.witness import Witness, tag_of
from relay.core.codec import pack
from relay.core.tlog import Tile, parse_path
from relay.limits import (
    FORKS_PAUSE_S, FORKS_WAIT_S, GOSSIP_LOOK_S, GOSSIP_S, HTTP_ANSWER_S, MAX_FORKS_WAITING, WITNESS_S,
)  # fmt: skip
from tests.cluster.registrar.site import witness_key
from tests.cluster.registrar.test_http import Doors
from tests.cluster.test_halts import LOG, ONE, OTHER, make_root, proof_of
from tests.relay.core.tlog.logbook import Book

HONEST = ("sauda", "vika", "tella")
NODES = 3


class Ledger:
    """A witness's database that keeps nothing: the test ends before the process does."""

    async def commit(self, size: int, *statements: Any) -> None:
        await trio.lowlevel.checkpoint()

    async def fold_wal(self) -> None:
        await trio.lowlevel.checkpoint()


class Liar:
    """The registrar of the region that forks: it shows `book` to everybody, knows of no fork, and may not answer."""

    def __init__(self, book: Book, *, hangs: bool) -> None:
        self.book, self.hangs = book, hangs

    def takes(self, method: str, path: str) -> int | None:
        return 0

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        if self.hangs:
            await trio.sleep_forever()
        if path.startswith("/forks"):
            return Reply(200, EMPTY)
        if path == "/checkpoint":
            return Reply(200, self.book.note(40).encode())
        if path.startswith("/tile/"):
            asked = parse_path(path[1:])
            assert isinstance(asked, Tile)
            shown = self.book._at(40)
            return Reply(200, next(data[: 32 * asked.width] for tile, data in shown.items() if tile[:2] == asked[:2]))
        return Reply(404, b"")


class Older:
    """A registrar that does not know how to wait for news."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def takes(self, method: str, path: str) -> int | None:
        return self.site.takes(method, path)

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        return Reply(404, b"No such page\n") if "?but=" in path else await self.site.reply(method, path, body)


class Told:
    """Metrics of a node: when it halted."""

    def __init__(self, one_more: Any) -> None:
        self.region_halted, self._one_more = self, one_more
        self.at: float | None = None

    def labels(self, region: str) -> Told:
        return self

    def set(self, value: int) -> None:
        if value:
            self.at = trio.current_time()
            self._one_more()


def witness_of(region: str, place: Path) -> Witness:
    database = cast(Any, Ledger())
    return Witness(database, witness_key(region), {LOG.name: LOG.verifier}, place / "evidence", lambda: 1_800_000_000)


class Federation:
    """Four registrars, and the nodes of three regions."""

    def __init__(self, place: Path, liar: Liar, *, older: bool) -> None:
        self.place, self.older, self.all_halted, self.found = place, older, trio.Event(), list[float]()
        self.listeners = {region: Doors() for region in ("norden", *HONEST)}
        self.witnesses = {region: witness_of(region, place) for region in HONEST}
        self.sites: dict[str, Site] = {"norden": liar}
        for region, witness in self.witnesses.items():
            witness.on_fork = lambda origin, fork: self.found.append(trio.current_time())
            face = Face(cast(Any, None), witness, cast(Any, None), inner=False, founds=False, ready=lambda: None)
            self.sites[region] = Older(face) if older else face
        self.nodes: dict[str, Told] = {}

    def door(self, region: str) -> HttpDoor:
        return HttpDoor(Caller(region, self.listeners[region].dial))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            for region, site in self.sites.items():
                await nursery.start(serve_http, [self.listeners[region]], site)
            for number, region in enumerate(HONEST):
                nursery.start_soon(self._gossip, region, 3.3 * number)
                for node in range(NODES):
                    nursery.start_soon(self._node, region, f"{region}-{node}", 1.7 * node + number)
            yield
            nursery.cancel_scope.cancel()

    async def _gossip(self, region: str, begins: float) -> None:
        await trio.sleep(begins)
        others = [other for other in self.listeners if other != region]
        doors, ears = ({other: self.door(other) for other in others} for _ in range(2))
        news = {other: ear.news for other, ear in ears.items()}
        await Gossip(self.witnesses[region], doors, {LOG.name: doors["norden"]}, news).run()

    async def _node(self, region: str, name: str, begins: float) -> None:
        await trio.sleep(begins)
        metrics = self.nodes[name] = Told(self._one_more)
        halts = Halts(make_root(), region, self.place / name, metrics)
        await halts.watch({other: self.door(other).news for other in self.listeners})

    def _one_more(self) -> None:
        if sum(told.at is not None for told in self.nodes.values()) == NODES * len(HONEST):
            self.all_halted.set()


def test_the_bounds_of_a_round() -> None:
    """Two looks to find it, and to tell it a pause at most; whoever waits is answered before the asker gives up."""
    assert 2 * GOSSIP_LOOK_S + FORKS_PAUSE_S + WITNESS_S <= GOSSIP_S
    assert FORKS_WAIT_S + WITNESS_S < HTTP_ANSWER_S


@pytest.mark.parametrize(
    ("sizes", "hangs", "older", "crowded"),
    [
        ((30, 30), False, False, False), ((30, 40), False, False, False), ((40, 30), False, False, False),
        ((30, 30), True, False, False), ((30, 30), False, True, False), ((30, 40), False, False, True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("after", [0.0, 6.6, 19.9])
async def test_every_node_of_every_other_region_has_halted_within_one_round(
    tmp_path: Path, autojump_clock: object, monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int], hangs: bool,
    older: bool, crowded: bool, after: float,
) -> None:  # fmt: skip
    """Whatever the moment; also where the liar's registrar answers nothing, or all the others are of an older version,
    or more are waiting than may."""
    if crowded:
        monkeypatch.setattr(witness_module, "MAX_FORKS_WAITING", 0)
    federation = Federation(tmp_path, Liar(OTHER, hangs=hangs), older=older)
    async with federation.running():
        await trio.sleep(20 + after)
        assert not federation.found
        await federation.witnesses["sauda"].add_checkpoint(ONE.request(0, sizes[0]).encode())
        await federation.witnesses["vika"].add_checkpoint(OTHER.request(0, sizes[1]).encode())
        with trio.fail_after(GOSSIP_S):
            await federation.all_halted.wait()
        last = max(told.at or 0 for told in federation.nodes.values()) - min(federation.found)
        assert last <= (FORKS_PAUSE_S if older or crowded else 0.5)  # within moments, once anybody has found it
        assert len(federation.found) == len(HONEST)  # and the other registrars know of it, too


async def test_a_log_that_shows_everybody_another_history_than_its_witness_is_found_by_that_one_alone(
    tmp_path: Path, autojump_clock: object
) -> None:
    federation = Federation(tmp_path, Liar(OTHER, hangs=False), older=False)
    async with federation.running():
        await trio.sleep(20)
        await federation.witnesses["vika"].add_checkpoint(ONE.request(0, 30).encode())
        with trio.fail_after(GOSSIP_S):
            await federation.all_halted.wait()


async def test_nothing_is_halted_by_an_honest_log_that_grows(tmp_path: Path, autojump_clock: object) -> None:
    federation = Federation(tmp_path, Liar(ONE, hangs=False), older=False)
    async with federation.running():
        for old, new in ((0, 8), (8, 16), (16, 33)):
            for region in HONEST:
                await federation.witnesses[region].add_checkpoint(ONE.request(old, new).encode())
                await trio.sleep(7)
        assert not federation.found


# --- who waits -----------------------------------------------------------------------------------
async def test_who_waits_for_news_is_answered_at_once_when_there_are_some(
    tmp_path: Path, autojump_clock: object
) -> None:
    witness, answers = witness_of("sauda", tmp_path), list[bytes]()

    async def wait(tag: str) -> None:
        answers.append(await witness.forks_but(tag))

    assert await witness.forks_but("0" * 32) == EMPTY  # somebody who knows something else
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, tag_of(EMPTY))
        await trio.sleep(FORKS_WAIT_S / 2)
        assert not answers
        await witness.hear_of(proof_of(30, 30))
        await trio.testing.wait_all_tasks_blocked()
        assert answers == [witness.forks()] != [EMPTY]
    began = trio.current_time()
    assert await witness.forks_but(tag_of(witness.forks())) == witness.forks()
    assert trio.current_time() - began == FORKS_WAIT_S


async def test_few_wait_and_whoever_goes_makes_room(tmp_path: Path, autojump_clock: object) -> None:
    witness = witness_of("sauda", tmp_path)
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_FORKS_WAITING):
            nursery.start_soon(witness.forks_but, tag_of(EMPTY))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        assert await witness.forks_but(tag_of(EMPTY)) == EMPTY and trio.current_time() == began
        nursery.cancel_scope.cancel()
    began = trio.current_time()
    assert await witness.forks_but(tag_of(EMPTY)) == EMPTY and trio.current_time() == began + FORKS_WAIT_S


async def test_one_proof_that_does_not_hold_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """A registrar whose root document names another key for a log shows what does not verify by ours."""
    witness = witness_of("sauda", tmp_path)
    await witness.hear(pack([b"nonsense", proof_of(30, 40, ONE, ONE), proof_of(30, 30)]))
    assert witness.forks() == pack([proof_of(30, 30)])


async def test_a_registrar_that_answers_at_once_for_ever_is_asked_at_the_same_pace(
    tmp_path: Path, autojump_clock: object
) -> None:
    asked = list[float]()

    async def noise() -> bytes:
        asked.append(trio.current_time())
        return bytes([0x91, 0xC4, 1, len(asked)])  # ever another "proof"

    with trio.move_on_after(10 * FORKS_PAUSE_S - 1):
        await Halts(make_root(), "sauda", tmp_path, Told(lambda: None)).watch({"norden": noise})
    assert len(asked) == 10
