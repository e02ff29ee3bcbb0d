"""People of a home on one machine who move: each region's book has what was signed there, and what came before."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cluster.env import RealEnv
from cluster.local import devices
from cluster.local.book import Book
from cluster.local.home import Home
from cluster.local.make import make_federation
from cluster.local.people import (
    card_of, create_device, create_user, move_user, registrar_of, releaser_of, sign_move, take_move,
)  # fmt: skip
from relay.client import add_device, ask_to_move, take_records
from relay.errors import VersionTaken


def now() -> int:
    return time.time_ns() // 1_000_000


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """bob of norden with two devices, in a federation of two regions."""
    made = make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), nodes=1).home
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
        releaser_of(home, "norden", now())(request, before)


def test_a_device_is_revoked_where_the_user_is_at_home_now(home: Home) -> None:
    take_records(home.store("bob"), sign_move(home, "bob", "sauda/1", now()), now())  # the card still says norden
    assert len(devices.revoke(home, "bob+2", "bob", now()).record.devices) == 1
    assert devices.rotate_user(home, "bob", now()).record.cell == "sauda/1"
