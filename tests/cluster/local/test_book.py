"""The registrar's book: no version is signed twice, and what was signed is not lost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from cluster.audit.trails import check_key, read_log
from cluster.core.auditlog import Entry
from cluster.enrolment import read_records
from cluster.local.book import Book
from cluster.trail import files_in
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, RootCell, RootRegion, prove_devices, request_home,
)  # fmt: skip
from relay.errors import (
    BadSignature, BrokenChain, DiskFailed, OperatorError, Overreach, ReturnedDevice, TrustError, VersionTaken,
)  # fmt: skip
from relay.limits import DAY
from tests.logged import logged_region
from tests.proofs import proven
from tests.roots import verified_root

NOW = 1_800_000_000_000
USER, PAPER, REGISTRAR = (SigningKey(bytes([n]) * 32) for n in (1, 2, 3))
DEVICES = [SigningKey(bytes([n]) * 32) for n in (10, 11, 12, *range(20, 26))]


@pytest.fixture(scope="module")
def root() -> Root:
    region = RootRegion("norden", b"", bytes(REGISTRAR.verify_key), (RootCell("norden/1", ()),))
    return verified_root([region], NOW + 400 * DAY)


def device(number: int, since: int) -> Device:
    key = bytes([number]) * 32
    return Device(bytes(SigningKey(key).verify_key), bytes(PrivateKey(key).public_key), since, b"", b"")


def first(**more: Any) -> HomePayload:
    payload = HomePayload(
        1, b"", 1, b"", "norden", "norden/1", bytes(USER.verify_key), (device(10, 1),), 0, NOW, NOW + DAY,
        bytes(PAPER.verify_key),
    )  # fmt: skip
    return prove_devices(structs.replace(payload, **more), DEVICES)


def after(record: HomeRecord, *more: Device, **change: Any) -> bytes:
    chained = {"user": record.user, "version": record.version + 1, "prev": record.digest}
    payload = structs.replace(record.payload, **chained, devices=(*record.devices, *more))
    return request_home(proven(structs.replace(payload, **change), DEVICES, record.devices), USER)


def test_no_version_is_signed_twice(root: Root, tmp_path: Path) -> None:
    book = Book(tmp_path / "book")
    one, records = book.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    before = read_records(records)
    second, records = book.sign(after(one, device(11, 2)), before, root, REGISTRAR, NOW)
    with pytest.raises(VersionTaken, match=r"version 2 .* was signed already.*ask for version 3"):
        book.sign(after(one, device(12, 2)), before, root, REGISTRAR, NOW)
    again = Book(tmp_path / "book").sign(after(one, device(11, 2)), (), root, REGISTRAR, NOW)  # nor without `before`
    assert again == (second, records) == (second, (tmp_path / "book" / one.user.hex()).read_bytes())
    third, _ = book.sign(after(second, device(12, 3)), (), root, REGISTRAR, NOW)
    assert [n.version for n in (one, second, third)] == [1, 2, 3] and len(book.records(one.user)) == 3
    assert book.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)[0] == one
    with pytest.raises(VersionTaken):
        book.sign(after(one, version=0), (), root, REGISTRAR, NOW)


def test_of_two_at_the_same_time_one_is_signed(root: Root, tmp_path: Path) -> None:
    one, _ = Book(tmp_path).sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    outcomes: list[str] = []

    def ask(number: int) -> None:
        try:
            Book(tmp_path).sign(after(one, device(number, 2)), (one.signed,), root, REGISTRAR, NOW)
            outcomes.append("signed")
        except VersionTaken:
            outcomes.append("taken")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20, 26)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["signed"] + ["taken"] * 5


def test_a_book_that_is_behind_takes_what_it_is_given_and_another_story_it_refuses(root: Root, tmp_path: Path) -> None:
    old, new = Book(tmp_path / "old"), Book(tmp_path / "new")
    one, _ = new.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    old.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    second, records = new.sign(after(one, device(11, 2)), (), root, REGISTRAR, NOW)
    third, _ = old.sign(after(second), read_records(records), root, REGISTRAR, NOW)
    assert third.version == 3 and len(old.records(one.user)) == 3
    other, _ = Book(tmp_path / "other").sign(after(one, device(12, 2)), (one.signed,), root, REGISTRAR, NOW)
    with pytest.raises(BrokenChain, match=r"version 2 .* a fork"):
        old.sign(after(other), (one.signed, other.signed), root, REGISTRAR, NOW)


def test_the_rules_are_those_of_every_verifier(root: Root, tmp_path: Path) -> None:
    book = Book(tmp_path)
    one, _ = book.sign(request_home(first(devices=(device(10, 1), device(11, 1))), USER), (), root, REGISTRAR, NOW)
    with pytest.raises(Overreach):
        book.sign(after(one, recovery_key=b""), (), root, REGISTRAR, NOW)
    with pytest.raises(BadSignature):
        book.sign(request_home(first(user=one.user, version=2, prev=one.digest), SigningKey(b"x" * 32)), (), root,
                  REGISTRAR, NOW)  # fmt: skip
    two, _ = book.sign(after(one, devices=(device(10, 1),)), (), root, REGISTRAR, NOW)
    with pytest.raises(ReturnedDevice):
        book.sign(after(two, device(11, 3)), (), root, REGISTRAR, NOW)
    assert len(book.records(one.user)) == 2
    with pytest.raises(OperatorError, match="the recovery key is another key"):
        book.sign(request_home(first(recovery_key=device(10, 1).id), USER), (), root, REGISTRAR, NOW)
    with pytest.raises(OperatorError, match="the recovery key is no Ed25519"):
        book.sign(request_home(first(recovery_key=b"\x01" + bytes(31)), USER), (), root, REGISTRAR, NOW)
    with pytest.raises(TrustError):
        book.sign(after(two, version=7), (), root, REGISTRAR, NOW)


def test_a_book_that_cannot_be_read_or_written_signs_nothing(root: Root, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OperatorError, match="cannot write"):
        Book(tmp_path / "file").sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    book = Book(tmp_path / "book")
    one, _ = book.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    (tmp_path / "book" / one.user.hex()).write_bytes(b"\xc1")
    with pytest.raises(OperatorError, match="home records"):
        book.sign(after(one), (), root, REGISTRAR, NOW)


def noted(directory: Path, root: Root) -> list[str]:
    said: list[Entry] = []
    log = read_log(files_in(directory / "audit"), said.append)
    check_key(log, root)
    assert not log.findings and log.whose == "norden/registrar"
    return [str(one.about["actions"]) for one in said if one.what == "directory.sign"]


def test_what_is_signed_is_noted_before(root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what cannot be noted is not signed."""
    book = Book(tmp_path)
    one, _ = book.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    two, _ = book.sign(after(one, device(11, 2)), (), root, REGISTRAR, NOW)
    three = after(two, devices=two.devices[:1])
    user, was = one.user[:4].hex(), [f"['enrol {one.user[:4].hex()} v1']", f"['add {one.user[:4].hex()} v2']"]

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    assert noted(tmp_path, root) == was
    with monkeypatch.context() as disk, pytest.raises(DiskFailed, match="audit log cannot be written"):
        disk.setattr("cluster.trail.sync_handle", full)
        book.sign(three, (), root, REGISTRAR, NOW)
    assert len(book.records(one.user)) == 2
    book.sign(three, (), root, REGISTRAR, NOW)
    assert noted(tmp_path, root)[-1] == f"['revoke {user} v3']" and len(book.records(one.user)) == 3


def test_who_leaves_a_region_with_a_log_is_released_by_its_registrar_that_runs(tmp_path: Path) -> None:
    """A release in the book alone the service would not know of, and sign on."""
    root = verified_root([logged_region(name, REGISTRAR) for name in ("norden", "sauda")], NOW + 400 * DAY)
    book = Book(tmp_path)
    one, _ = book.sign(request_home(first(), USER), (), root, REGISTRAR, NOW)
    with pytest.raises(OperatorError, match=r"norden has a log.*posthouse registrar release"):
        book.release(after(one, region="sauda", cell="sauda/1", move_epoch=1), (), root, REGISTRAR, NOW)
    assert book.released(one.user, 2, "sauda/1") is None
