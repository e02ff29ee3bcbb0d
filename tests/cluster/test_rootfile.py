"""The root document of a node: what was trusted stays so across restarts, and what is put there while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
import trio
from msgspec import structs

from cluster import rootfile
from cluster.config import rerouted
from cluster.config_keys import Address
from cluster.federation.making import Lifetimes, Staged, publish, region_part
from cluster.kept import KEPT_ROOT, hold_data, keep_root, kept_root
from cluster.lives import run_node
from cluster.rootfile import RootFile
from relay.core.trust import Root, RootCell, RootNode, RootRegion, follow_root, verify_root
from relay.core.trust.root import parse_bundle
from relay.errors import OperatorError, Rollback, StoreLocked
from relay.limits import DAY
from tests.roots import keyring, signed_root

UNTIL = 2_000_000_000_000
NORDEN = RootRegion("norden", b"", b"r" * 32, (RootCell("norden/1", ()),))
SAUDA = RootRegion("sauda", b"", b"r" * 32, (RootCell("sauda/1", ()),))
FIRST = signed_root([NORDEN], UNTIL)
SECOND = signed_root([NORDEN], UNTIL + DAY, before=FIRST)
WITH_SAUDA = signed_root([NORDEN, SAUDA], UNTIL + DAY, before=FIRST)


@pytest.fixture
def logs() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


class Place:
    """A node's root file and data directory, at a time that the test sets."""

    def __init__(self, folder: Path, signed: bytes = FIRST, **more: Any) -> None:
        self.path, self.data, self.now_ms = folder / "root.bin", folder / "data", UNTIL - DAY
        self.path.write_bytes(signed)
        self.file = RootFile(self.path, self.data, signed, "norden/1", lambda: self.now_ms, **more)

    async def put(self, signed: bytes) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(signed)
        fresh.replace(self.path)
        await trio.sleep(6)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


async def watching(place: Place, act: Callable[[], Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(place.file.watch)
        await act()
        nursery.cancel_scope.cancel()


def test_what_is_kept(tmp_path: Path) -> None:
    data = tmp_path / "new" / "data"
    assert kept_root(data) is None
    keep_root(data, FIRST)
    assert kept_root(data) == FIRST and [path.name for path in data.iterdir()] == [KEPT_ROOT]
    keep_root(data, SECOND)
    assert kept_root(data) == SECOND and [path.name for path in data.iterdir()] == [KEPT_ROOT]
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OperatorError, match="cannot write"):
        keep_root(tmp_path / "file", FIRST)


@pytest.mark.parametrize("damage", [b"", FIRST[:-9], FIRST.replace(b"norden", b"sauda1")])
def test_a_damaged_one_is_named_and_not_written_over(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / KEPT_ROOT).write_bytes(damage)
    for look in (lambda: kept_root(tmp_path), lambda: keep_root(tmp_path, FIRST)):
        with pytest.raises(OperatorError, match=f"{KEPT_ROOT} is damaged"):
            look()
    assert (tmp_path / KEPT_ROOT).read_bytes() == damage


async def test_nothing_is_written_into_a_directory_that_another_process_holds(tmp_path: Path) -> None:
    """Not the root document either: the running node's own would be another one after its next start."""
    data = tmp_path / "data"
    (tmp_path / "root.bin").write_bytes(SECOND)
    paths = SimpleNamespace(root=tmp_path / "root.bin", data=data)
    config: Any = SimpleNamespace(paths=paths, root=verify_root(SECOND, 0))
    with hold_data(data):
        keep_root(data, FIRST)
        with pytest.raises(StoreLocked, match="another process holds this store"):
            await run_node(config)
        assert kept_root(data) == FIRST
    with hold_data(data):
        pass


def test_the_same_again_newer_and_older() -> None:
    assert follow_root(FIRST, None, 0).payload.version == 1
    assert follow_root(FIRST, FIRST, UNTIL - 1).payload.version == 1
    assert follow_root(SECOND, FIRST, UNTIL).payload.version == 2, "what ran out is followed"
    with pytest.raises(Rollback):
        follow_root(FIRST, SECOND, 0)


async def test_news_is_taken_and_kept_while_the_node_runs(place: Place, logs: list[Any], autojump_clock: Any) -> None:
    async def act() -> None:
        await place.put(SECOND)

    await watching(place, act)
    assert [entry["event"] for entry in logs] == ["root_taken"] and logs[0]["version"] == 2
    assert place.file.trusted.payload.fresh_until == UNTIL + DAY and kept_root(place.data) == SECOND


async def test_a_region_that_had_run_out_before_the_start_is_no_news(
    tmp_path: Path, logs: list[Any], autojump_clock: Any
) -> None:
    keys, now = keyring([NORDEN, SAUDA]), UNTIL - DAY
    short = region_part(SAUDA, [keys.regions["sauda"]], 2, now - DAY)
    lapsed = publish(parse_bundle(WITH_SAUDA), Staged(regions={"sauda": short}), [keys.online], now, Lifetimes())
    later = publish(parse_bundle(lapsed), Staged(), [keys.online], now + 1000, Lifetimes())
    place = Place(tmp_path, lapsed)
    assert place.file.trusted.payload.lapsed == ("sauda",)
    await watching(place, lambda: place.put(later))
    assert [entry["event"] for entry in logs] == ["root_taken"]


async def test_another_region_counts_at_once_for_all_parts(place: Place, logs: list[Any], autojump_clock: Any) -> None:
    told: list[Root] = []
    place.file.following.add([told.append])
    await watching(place, lambda: place.put(WITH_SAUDA))
    assert [(entry["event"], entry["regions"]) for entry in logs] == [("root_taken", ["sauda"])]
    assert not place.file.waits
    assert kept_root(place.data) == WITH_SAUDA and [root.payload.version for root in told] == [1, 2]
    assert told[1] == place.file.following.root == place.file.trusted


async def test_a_route_of_the_config_stays_whatever_root_comes(tmp_path: Path, autojump_clock: Any) -> None:
    def dialled() -> list[str]:
        cell = place.file.following.root.cell("sauda/1")
        return [node.link for node in cell.nodes] if cell else []

    sauda = structs.replace(SAUDA, cells=(RootCell("sauda/1", (RootNode("n1", "localhost:1", ()),)),))
    first = signed_root([NORDEN, sauda], UNTIL)
    place = Place(tmp_path, first, routed=partial(rerouted, routes={"sauda/1/n1": Address("127.0.0.1", 7)}))
    assert dialled() == ["127.0.0.1:7"]
    await watching(place, lambda: place.put(signed_root([NORDEN, sauda], UNTIL + DAY, before=first)))
    assert dialled() == ["127.0.0.1:7"] and place.file.following.root.payload.version == 2


async def test_other_nodes_of_the_own_cell_wait_for_a_restart(
    place: Place, logs: list[Any], autojump_clock: Any
) -> None:
    more = structs.replace(NORDEN, cells=(RootCell("norden/1", (RootNode("n1", "localhost:1", ()),)),))
    await watching(place, lambda: place.put(signed_root([more, SAUDA], UNTIL + DAY, before=FIRST)))
    assert [entry["event"] for entry in logs] == ["root_taken", "root_waits"]
    assert "it lists other nodes of norden/1: restart" in logs[1]["text"]
    assert place.file.waits == "version 2 of the root document waits for a restart: it lists other nodes of norden/1"
    assert place.file.following.root.cell("norden/1") == NORDEN.cells[0]
    assert place.file.following.root.cell("sauda/1") == SAUDA.cells[0]


async def test_a_region_that_the_keepers_removed_is_believed_no_more_at_once(
    tmp_path: Path, logs: list[Any], autojump_clock: Any
) -> None:
    """Also one whose statement had run out before: with the region its end went out of the document."""
    keys, now = keyring([NORDEN, SAUDA]), UNTIL - DAY
    short = region_part(SAUDA, [keys.regions["sauda"]], 2, now + 60_000)
    ending = publish(parse_bundle(WITH_SAUDA), Staged(regions={"sauda": short}), [keys.online], now, Lifetimes())
    for signed, later in ((WITH_SAUDA, 0), (ending, 60_000)):
        folder = tmp_path / str(later)
        folder.mkdir()
        place = Place(folder, signed)
        without = signed_root([NORDEN], UNTIL + DAY, before=signed)

        async def act(place: Place = place, without: bytes = without, later: int = later) -> None:
            await trio.sleep(6)
            place.now_ms += later
            await trio.sleep(6)
            assert bool(place.file.lapsed()) is bool(later)
            await place.put(without)
            assert set(place.file.lapsed()) == {"sauda"} and not place.file.waits
            assert place.file.following.root.cells() == ["norden/1"]

        await watching(place, act)
    said = [entry["event"] for entry in logs if entry["event"].startswith("region")]
    assert said == ["region_removed", "region_lapsed", "region_removed"]


async def test_what_was_put_there_while_the_process_began_is_taken(
    place: Place, logs: list[Any], autojump_clock: Any
) -> None:
    """Between its reading and the first look."""
    place.path.write_bytes(SECOND)
    place.file = RootFile(place.path, place.data, FIRST, "norden/1", lambda: place.now_ms)
    await watching(place, partial(trio.sleep, 10))
    assert [entry["event"] for entry in logs] == ["root_taken"] and place.file.trusted.payload.version == 2


async def test_what_could_not_be_kept_is_tried_again_and_told_once(
    place: Place, logs: list[Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full. Nothing is used before it is kept, and nobody has to put the file there once more."""
    noted: list[str] = []
    place.file._note = lambda what, actor, outcome="done", **more: noted.append(outcome)

    def full(data: Path, signed: bytes) -> None:
        raise OperatorError("cannot write: no space left")

    async def act() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(rootfile, "keep_root", full)
            await place.put(SECOND)
            await trio.sleep(1000)
            assert place.file.trusted.payload.version == place.file.following.root.payload.version == 1
        await trio.sleep(100)

    await watching(place, act)
    assert [entry["event"] for entry in logs] == ["root_refused", "root_taken"] and len(noted) == 2
    assert kept_root(place.data) == SECOND and place.file.following.root.payload.version == 2


async def test_a_region_that_was_removed_stays_so_until_it_is_admitted_again(
    tmp_path: Path, autojump_clock: Any
) -> None:
    place = Place(tmp_path, WITH_SAUDA)
    without = signed_root([NORDEN], UNTIL + DAY, before=WITH_SAUDA)
    still = signed_root([NORDEN], UNTIL + DAY, before=without)
    again = signed_root([NORDEN, SAUDA], UNTIL + DAY, before=still)

    async def act() -> None:
        for signed, removed in ((without, {"sauda"}), (still, {"sauda"}), (again, set())):
            await place.put(signed)
            assert place.file.trusted.signed == signed and set(place.file.lapsed()) == removed

    await watching(place, act)


async def test_what_is_still_being_written_is_not_looked_at(
    place: Place, logs: list[Any], autojump_clock: Any
) -> None:
    async def act() -> None:
        await trio.sleep(0.5)
        for end in range(0, len(SECOND), len(SECOND) // 9):  # slower than the looks
            place.path.write_bytes(SECOND[:end])
            await trio.sleep(1.9)
        place.path.write_bytes(SECOND)
        await trio.sleep(10)

    await watching(place, act)
    assert [entry["event"] for entry in logs] == ["root_taken"]


async def test_what_does_not_follow_is_refused_once(place: Place, logs: list[Any], autojump_clock: Any) -> None:
    async def act() -> None:
        await place.put(SECOND)
        for bad in (FIRST, b"junk", signed_root([NORDEN], UNTIL, keepers="others"), WITH_SAUDA):
            await place.put(bad)
        place.path.unlink()
        await trio.sleep(10)

    await watching(place, act)
    assert [entry["event"] for entry in logs] == ["root_taken", *["root_refused"] * 4]
    texts = [entry["text"] for entry in logs[1:]]
    assert "version 1 after 2" in texts[0] and "another federation's" in texts[2] and "a fork" in texts[3]
    assert kept_root(place.data) == SECOND and place.file.trusted == verify_root(SECOND, 0)


async def test_a_statement_that_runs_out_while_the_node_runs_is_believed_no_more(
    tmp_path: Path, logs: list[Any], autojump_clock: Any
) -> None:
    keys, now = keyring([NORDEN, SAUDA]), UNTIL - DAY
    short = region_part(SAUDA, [keys.regions["sauda"]], 2, now + 60_000)
    ending = publish(parse_bundle(WITH_SAUDA), Staged(regions={"sauda": short}), [keys.online], now, Lifetimes())
    anew = region_part(SAUDA, [keys.regions["sauda"]], 3, now + 60 * DAY)
    renewed = publish(parse_bundle(ending), Staged(regions={"sauda": anew}), [keys.online], now, Lifetimes())
    place = Place(tmp_path, ending)

    async def act() -> None:
        await trio.sleep(6)
        assert not place.file.lapsed()
        place.now_ms = now + 60_000
        await trio.sleep(86_400)
        assert set(place.file.lapsed()) == {"sauda"}
        await place.put(renewed)
        assert not place.file.lapsed()

    await watching(place, act)
    said = [entry for entry in logs if entry["event"] != "root_stale"]
    assert [entry["event"] for entry in said] == ["region_lapsed", "root_taken"], "said once, and over once renewed"
    assert "statement of region sauda ended" in said[0]["text"] and said[0]["log_level"] == "error"


async def test_no_news_is_said_every_day(
    place: Place, logs: list[Any], autojump_clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootfile, "_LOOK_S", 3600.0)  # fewer looks
    place.now_ms = UNTIL + DAY

    async def act() -> None:
        await trio.sleep(86_400 * 1.5)
        place.path.write_bytes(SECOND)
        await trio.sleep(10_000)

    await watching(place, act)
    stale = [entry for entry in logs if entry["event"] == "root_stale"]
    assert len(stale) == 2 and stale[0]["log_level"] == "error" and "federation publish" in stale[0]["remedy"]
    assert logs[-1]["event"] == "root_refused", "what has run out is not taken in either"
