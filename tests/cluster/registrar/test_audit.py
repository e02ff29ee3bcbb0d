"""An audit finds nothing in an honest log, and everything that a dishonest one did."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from msgspec import structs
from msgspec.msgpack import decode
from nacl.signing import SigningKey

from cluster.core.epochmap import Crown, Value, bucket_of, change, place_of, summarise, value_of
from cluster.core.homelog import EpochEntry, release_entry
from relay.core.tlog import Checkpoint, Frontier, Trust, encode_bundle, grow, leaf_hash, parse_path
from relay.core.tlog.tiles import Bundle, Tile
from cluster.registrar.audit import Audit, from_directory
from cluster.registrar.notebook import open_notebook
from relay.core.codec import encode, pack
from relay.core.trust import HomeRecord, home_entry, read_home, release_home, sign_home
from relay.errors import PeerError, StoreForeign, TrustError
from relay.journal.portal import open_portal
from tests.cluster.registrar.site import (
    NOW, REGIONS, ROOT, World, ask, device, first, following, log_key, registrar_key, request, user_key, witness_key,
)  # fmt: skip

LOG = log_key("norden")
TRUST = Trust(LOG.verifier, tuple(witness_key(other).verifier for other in REGIONS[1:]), 2)


class FakeLog:
    """A log of any entries, signed and cosigned by whoever it likes, with the tiles that it likes."""

    def __init__(self, entries: Sequence[bytes], cosigned: bool = True) -> None:
        self.entries = list(entries)
        hashes = [leaf_hash(entry) for entry in self.entries]
        self.tiles = grow(0, {}, hashes)
        self.note = Checkpoint(LOG.name, len(hashes), Frontier().extend(hashes).root()).sign(LOG)
        for region in REGIONS[1:] if cosigned else ():
            self.note = self.note.sign(witness_key(region), NOW // 1000)
        self.hidden: set[str] = set()

    async def get(self, path: str, most: int) -> bytes | None:
        if path in self.hidden:
            return None
        if path == "checkpoint":
            return self.note.encode()
        name = parse_path(path)
        if isinstance(name, Bundle):
            part = self.entries[name.number * 256 :][: name.width]
            return encode_bundle(part) if len(part) == name.width else None
        found = [data for tile, data in self.tiles.items() if tile[:2] == name[:2] and tile.width >= name.width]
        return found[0][: 32 * name.width] if found else None


class Book:
    """Entries as a registrar would write them, with a hand on everything."""

    def __init__(self) -> None:
        self.entries: list[bytes] = []
        self.crown, self.buckets = Crown(), dict[int, bytes]()
        self.users, self.number = set[bytes](), 0
        self.epoch()

    def home(self, signed: bytes, mapped: bool = True) -> HomeRecord:
        record = read_home(signed)
        self.entries.append(home_entry(signed))
        self.users.add(record.user)
        if mapped:
            place = place_of(record.user)
            number = bucket_of(place)
            value = Value(value_of(record.version, record.digest))
            self.buckets[number] = change(self.buckets.get(number, b""), {place: value})
            self.crown.put(number, summarise(self.buckets[number]))
        return record

    def epoch(self, time: int = NOW, users: int | None = None, skip: int = 0) -> None:
        count = len(self.users) if users is None else users
        self.entries.append(encode(EpochEntry(self.number + skip, self.crown.root, count, time)))
        self.number += 1 + skip


def enrolled(number: int, book: Book, registrar: SigningKey | None = None, **more: object) -> HomeRecord:
    return book.home(sign_home(first(number, **more), user_key(number), registrar or registrar_key("norden")))


async def audit(log: FakeLog, directory: Path, trust: Trust = TRUST) -> list[str]:
    directory.mkdir(exist_ok=True)
    async with open_portal() as portal, open_notebook(directory, portal, str(LOG.verifier)) as notebook:
        one = Audit("norden", ROOT, trust, log.get, notebook)
        await one.run()
        return one.findings


def honest(users: int = 5) -> Book:
    book = Book()
    for number in range(1, users + 1):
        record = enrolled(number, book)
        if number % 2:
            book.home(sign_home(following(record), user_key(number), registrar_key("norden")))
        book.epoch(NOW + number)
    return book


async def test_who_comes_from_another_region_has_records_of_that_in_the_log(tmp_path: Path) -> None:
    book = Book()
    one = enrolled(1, book, registrar_key("sauda"), region="sauda", cell="sauda/1")
    comes = following(one, region="norden", cell="norden/1", move_epoch=1)
    book.home(sign_home(comes, user_key(1), registrar_key("norden"), registrar_key("sauda")))
    book.epoch()
    assert await audit(FakeLog(book.entries), tmp_path / "comes") == []
    stays = enrolled(2, book, registrar_key("sauda"), region="sauda", cell="sauda/1")
    book.home(sign_home(following(stays), user_key(2), registrar_key("sauda")))
    book.epoch()
    assert await audit(FakeLog(book.entries), tmp_path / "stays") == ["entry 5: a user who is at home in sauda"]


async def test_an_honest_registrars_log_holds_and_so_does_what_follows(world: World, tmp_path: Path) -> None:
    async def get(path: str, most: int) -> bytes | None:
        if path == "checkpoint":
            note = region.choir.note
            return note.encode() if note else None
        name = parse_path(path)
        if isinstance(name, Tile):
            return await region.registry.tile(name)
        return await region.registry.bundle(name.number, name.width)

    async with world.region() as region:
        async with open_notebook(tmp_path, world.portal, str(LOG.verifier)) as notebook:
            for number in range(1, 4):
                await region.log.enrol(request(number))
                one = Audit("norden", ROOT, TRUST, get, notebook)
                await one.run()
                assert one.findings == [] and one.looked_at == (3 if number == 1 else 2)
        with pytest.raises(StoreForeign, match="another log"):
            async with open_notebook(tmp_path, world.portal, str(log_key("sauda").verifier)):
                pass


async def test_many_entries_in_several_bundles_and_as_files(tmp_path: Path) -> None:
    log = FakeLog(honest(150).entries)  # 376 entries
    assert await audit(log, tmp_path / "one") == []
    files = tmp_path / "files"
    for path in ["checkpoint", *(tile.path for tile in log.tiles), Bundle(0).path, Bundle(1, 376 - 256).path]:
        (files / path).parent.mkdir(parents=True, exist_ok=True)
        (files / path).write_bytes(await log.get(path, 0) or b"")
    log.get = from_directory(files)  # type: ignore[method-assign]
    assert await audit(log, tmp_path / "two") == []


def user_alone(book: Book) -> None:
    enrolled(9, book, registrar=user_key(9))


def registrar_alone(book: Book) -> None:
    book.home(sign_home(first(9), user_key(8), registrar_key("norden")))


def another_regions_registrar(book: Book) -> None:
    enrolled(9, book, registrar=registrar_key("sauda"))


def the_same_again(book: Book) -> None:
    enrolled(1, book)


def a_version_left_out(book: Book) -> None:
    record = enrolled(9, book)
    skipped = following(record, version=3)
    book.home(sign_home(skipped, user_key(9), registrar_key("norden")))


def two_ways_to_go_on(book: Book) -> None:
    record = enrolled(9, book)
    for later in (1, 2):
        second = following(record, expires=record.payload.expires + later)
        book.home(sign_home(second, user_key(9), registrar_key("norden")))


def a_record_that_the_map_hides(book: Book) -> None:
    record = enrolled(9, book)
    book.home(sign_home(following(record), user_key(9), registrar_key("norden")), mapped=False)


def a_user_of_another_region(book: Book) -> None:
    payload = first(9, region="sauda", cell="sauda/1")
    book.home(sign_home(payload, user_key(9), registrar_key("sauda")))


def no_entry_of_ours(book: Book) -> None:
    book.entries.append(b"anything")


def let_go(book: Book, record: HomeRecord, number: int, key: SigningKey | None = None, cell: str = "sauda/1") -> bytes:
    payload = following(record, region=cell.partition("/")[0], cell=cell, move_epoch=record.payload.move_epoch + 1)
    data, signature = decode(ask(payload, user_key(number)))
    released = pack([data, signature, release_home(data, key or registrar_key("norden"))])
    book.entries.append(release_entry(released))
    return released


def signed_on_after_a_release(book: Book) -> None:
    """The region let the user go, and signs another record for itself in the place of the move."""
    record = enrolled(9, book)
    let_go(book, record, 9)
    book.epoch(NOW + 50)
    book.home(sign_home(following(record), user_key(9), registrar_key("norden")))


def released_to_two_regions(book: Book) -> None:
    record = enrolled(9, book)
    let_go(book, record, 9)
    let_go(book, record, 9, cell="vika/1")


def released_by_anothers_key(book: Book) -> None:
    let_go(book, enrolled(9, book), 9, registrar_key("sauda"))


def released_by_nobody(book: Book) -> None:
    released = decode(let_go(book, enrolled(9, book), 9))
    book.entries[-1] = release_entry(pack(released[:2]))


def released_without_the_user(book: Book) -> None:
    let_go(book, enrolled(9, book), 8)


def a_stranger_is_released(book: Book) -> None:
    elsewhere = Book()
    let_go(book, enrolled(9, elsewhere), 9)


def no_release_of_ours(book: Book) -> None:
    book.entries.append(release_entry(b"anything"))


@pytest.mark.parametrize(
    ("harm", "finding"),
    [
        (user_alone, "BadSignature"),
        (registrar_alone, "BadSignature"),
        (another_regions_registrar, "BadSignature"),
        (the_same_again, "BrokenChain"),
        (a_version_left_out, "BrokenChain"),
        (two_ways_to_go_on, "BrokenChain"),
        (a_record_that_the_map_hides, "its map is not the one"),
        (a_user_of_another_region, "at home in sauda"),
        (no_entry_of_ours, "is not msgpack|has the wrong shape"),
        (signed_on_after_a_release, "entry 17, version 2 of a user: AlreadyReleased"),
        (released_to_two_regions, "a release: AlreadyReleased"),
        (released_by_anothers_key, "a release: BadSignature"),
        (released_by_nobody, "a release: NotReleased"),
        (released_without_the_user, "a release: BadSignature"),
        (a_stranger_is_released, "a release: BrokenChain, the log has no such user"),
        (no_release_of_ours, "a release: OperatorError, no enrolment request"),
        (lambda book: book.epoch(users=77), "counts 77 users"),
        (lambda book: book.epoch(skip=1), "it follows epoch"),
        (lambda book: book.epoch(time=NOW - 1), "time goes back"),
    ],
)
async def test_what_a_dishonest_registrar_logs_is_found(
    harm: Callable[[Book], None], finding: str, tmp_path: Path
) -> None:
    book = honest()
    harm(book)
    book.epoch(NOW + 100)
    findings = await audit(FakeLog(book.entries), tmp_path / "a")
    assert findings and re.search(finding, findings[0]), findings


async def test_a_registrar_that_brings_a_revoked_device_back_is_found(tmp_path: Path) -> None:
    book = Book()
    record = enrolled(1, book)
    [phone], laptop = record.devices, device(b"l" * 32, 2)
    for devices in ((laptop,), (laptop,), (laptop, structs.replace(phone, since=4))):
        record = book.home(sign_home(following(record, devices=devices), user_key(1), registrar_key("norden")))
    book.epoch()
    [finding] = await audit(FakeLog(book.entries), tmp_path)
    assert "ReturnedDevice" in finding


async def test_what_a_log_showed_once_is_held_against_it_for_ever(tmp_path: Path) -> None:
    """Fork, rollback and split view: the notebook remembers."""
    book = honest()
    forked = honest()
    enrolled(7, forked)
    forked.epoch(NOW + 100)
    enrolled(6, book)
    book.epoch(NOW + 100)
    assert await audit(FakeLog(forked.entries), tmp_path / "a") == []
    findings = await audit(FakeLog(book.entries), tmp_path / "a")
    assert any("the log forked" in finding for finding in findings), findings
    # a longer one, which holds by itself, does not mend it
    enrolled(8, book)
    book.epoch(NOW + 101)
    findings = await audit(FakeLog(book.entries), tmp_path / "a")
    assert any("forked" in finding for finding in findings), findings
    shorter = FakeLog(honest(2).entries)
    assert any("set back" in finding for finding in await audit(shorter, tmp_path / "a"))


async def test_what_is_not_served_or_not_so_is_found(tmp_path: Path) -> None:
    log = FakeLog(honest().entries)
    log.hidden = {"tile/0/000.p/14"}
    assert await audit(log, tmp_path / "a") == ["tile/0/000.p/14: it is not served"]
    log = FakeLog(honest().entries)
    log.tiles = {tile: bytes(len(data)) for tile, data in log.tiles.items()}
    assert await audit(log, tmp_path / "b") == ["tile/0/000.p/14: not what the entries make"]
    log = FakeLog(honest().entries)
    log.hidden = {"tile/entries/000.p/14"}
    findings = await audit(log, tmp_path / "c")
    assert "0 of 14 entries are served" in findings[0] and "only 0 entries can be had" in findings[1]
    log = FakeLog(honest().entries, cosigned=False)
    assert await audit(log, tmp_path / "d") == ["checkpoint at 14: 0 of 2 witnesses stand by it"]
    log.hidden = {"checkpoint"}
    with pytest.raises(PeerError):
        await audit(log, tmp_path / "e")
    log = FakeLog(honest().entries)
    log.note = log.note.sign(LOG)
    wrong = Trust(log_key("sauda").verifier, (), 0)
    with pytest.raises(TrustError):
        await audit(log, tmp_path / "f", wrong)


async def test_a_release_is_held_against_what_a_later_audit_meets(tmp_path: Path) -> None:
    """The notebook remembers it: what is signed in its place is found weeks later, too."""
    book = Book()
    record = enrolled(1, book)
    let_go(book, record, 1)
    book.epoch(NOW + 1)
    assert await audit(FakeLog(book.entries), tmp_path) == []
    book.home(sign_home(following(record), user_key(1), registrar_key("norden")))
    book.epoch(NOW + 2)
    [finding] = await audit(FakeLog(book.entries), tmp_path)
    assert "AlreadyReleased, version 2 of this user was released, for the move to sauda/1" in finding
