"""People of a home on one machine who move: each region's book has what was signed there, and what came before."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest

from cluster.enrolment import read_request
from cluster.env import RealEnv
from cluster.local import devices
from cluster.local.book import Book
from cluster.local.home import Home
from cluster.local.make import make_federation
from cluster.local.people import (
    card_of, create_device, create_user, move_user, registrar_of, releaser_of, sign_move, take_move,
)  # fmt: skip
from relay.client import add_device, ask_to_move, take_records
from relay.client.identity import following, user_key_of
from relay.client.store import Store
from relay.core.trust import endorse_request, read_chain, read_home, request_home
from relay.errors import AlreadyReleased, BrokenChain, VersionTaken


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """bob of norden with two devices, in a federation of two regions."""
    made = make_federation(tmp_path / "fed", ["norden", "ostland", "sauda"], RealEnv(), nodes=1).home
    create_user(made, "bob", "norden", now())
    create_device(made, "2", "bob", now())
    return made


def test_there_and_back_and_there_again(home: Home) -> None:
    user = card_of(home, "bob").user
    assert str(move_user(home, "bob", "sauda/1", now())).startswith("posthouse:sauda")
    assert [len(Book(home.book(region)).records(user)) for region in ("norden", "sauda")] == [2, 3]
    create_device(home, "3", "bob+2", now())
    assert card_of(home, "bob+3").region == "sauda"
    move_user(home, "bob", "norden/1", now())
    assert len(Book(home.book("norden")).records(user)) == 5
    records = sign_move(home, "bob+3", "sauda/1", now())
    assert sign_move(home, "bob", "sauda/1", now()) == records, "one that was never taken in is given out again"
    take_move(home, "bob", records, now())
    assert {card_of(home, name).region for name in home.names()} == {"sauda"}


def test_the_region_that_was_left_signs_nothing_in_the_place_of_the_move(home: Home) -> None:
    sign_move(home, "bob", "sauda/1", now())
    with pytest.raises(VersionTaken):
        add_device(home.clients / "x" / "store", of=home.store("bob"), registrar=registrar_of(home, "norden", now()),
                   now_ms=now())  # fmt: skip
    request, before = ask_to_move(home.store("bob"), cell="sauda/1", now_ms=now() + 5)
    with pytest.raises(VersionTaken):
        releaser_of(home, "norden", now()).release(request, before)


def test_nobody_is_released_to_two_regions(home: Home) -> None:
    """Two registrars that both have a release would sign two versions of one number, each in good faith."""
    store, user = home.store("bob"), card_of(home, "bob").user
    release = releaser_of(home, "norden", now()).release
    request, before = ask_to_move(store, cell="sauda/1", now_ms=now())
    other, _ = ask_to_move(store, cell="ostland/1", now_ms=now())
    _, released = release(request, before)
    assert release(request, before)[1] == released, "what went astray is given out again"
    for asked in (other, ask_to_move(store, cell="sauda/1", now_ms=now() + 5)[0]):
        with pytest.raises(AlreadyReleased, match="version 3 of this user was released, for the move to sauda/1"):
            releaser_of(home, "norden", now()).release(asked, before)
    with pytest.raises(AlreadyReleased, match="was released"):  # nor is another version signed in its place
        add_device(home.clients / "x" / "store", of=store, registrar=registrar_of(home, "norden", now()), now_ms=now())
    records = sign_move(home, "bob", "sauda/1", now())  # the same release: that of a run that was cut short
    assert read_home(records[2]).digest == read_request(released).digest
    book = Book(home.book("norden"))
    assert [len(Book(home.book(region)).records(user)) for region in ("norden", "sauda")] == [2, 3]
    take_move(home, "bob", records, now())
    move_user(home, "bob", "norden/1", now())
    assert len(book.records(user)) == 4 and move_user(home, "bob", "ostland/1", now()).region == "ostland"
    with pytest.raises(BrokenChain, match="a fork"):  # a second registrar with the same key has signed another one
        book.sign(request, (*before, one_more(home, before)), home.root(now()), home.registrar("norden"), now())


def one_more(home: Home, before: list[bytes]) -> bytes:
    """A version after `before` that norden's key signed, past the book."""
    last = read_chain(before)[-1]
    with closing(Store(home.store("bob"))) as store:
        key = store.transact(lambda db: user_key_of(db, last))
    return endorse_request(request_home(following([last], now()), key), home.registrar("norden"))


def test_a_device_is_revoked_where_the_user_is_at_home_now(home: Home) -> None:
    take_records(home.store("bob"), sign_move(home, "bob", "sauda/1", now()), now())  # the card still says norden
    assert len(devices.revoke(home, "bob+2", "bob", now()).record.devices) == 1
    assert devices.rotate_user(home, "bob", now()).record.cell == "sauda/1"
