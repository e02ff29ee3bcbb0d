"""The disk writer and users who move: whose mail may be sent on to it, and what may lie beside a hand-over."""

from __future__ import annotations

import copy

import pytest

from relay.core import records
from relay.core.codec import encode
from relay.core.envelope import To
from relay.core.records import encode_record
from relay.core.trust import RootCell, RootRegion
from relay.core.wire import Code
from tests.relay.core.mailroom.conftest import User, device_id
from tests.relay.journal.test_guard import ABROAD, FAR, HERE, STRANGER, Desk, handed, sealed
from tests.roots import verified_root

SECOND, THIRD = "norden/2", "west/1"
ROOT = verified_root(
    tuple(
        RootRegion(cells[0].split("/")[0], b"", device_id("registrar"), tuple(RootCell(cell, ()) for cell in cells))
        for cells in ((HERE, SECOND), (ABROAD,), (THIRD,))
    ),
    FAR,
)


@pytest.fixture
def desk() -> Desk:
    return Desk(ROOT)


def moved(user: User) -> records.Move:
    return records.Move(tuple(user.chain))


def came(*path: str, first: tuple[str, ...] = ("b1",)) -> User:
    """bo, with a device of each name in turn, who went along these cells."""
    bo = User("bo", path[0])
    for name in first:
        bo.record(name)
    for cell in path[1:]:
        bo.move(cell)
    return bo


def forward(user: bytes, version: int, envelope: bytes, chain: tuple[bytes, ...] = ()) -> records.HandIn:
    return handed(records.HANDIN_FORWARD, envelope, encode(records.Forward(user, version, chain)))


def notice(device: bytes) -> bytes:
    return encode(records.ForDevice(device, bytes(32), int(Code.STORED), 1, ABROAD))


def submit(device: str, to: bytes) -> records.Submit:
    return records.Submit(device_id(device), HERE, sealed(to))


# --- who comes and goes --------------------------------------------------------------------------
def test_who_never_was_at_home_here_does_not_become_known_by_a_move(desk: Desk) -> None:
    for record in (moved(came(ABROAD)), moved(came(ABROAD, THIRD)), moved(came(SECOND, ABROAD))):
        desk.refuses(record, text="never was at home in norden/1")
        desk.refuses(handed(records.HANDIN_MOVE, encode(records.Chain(record.chain))), text="never was at home")
    desk.refuses(records.Move(()), text="no home record")


def test_a_home_record_of_a_neighbour_cell_does_not_rest_here(desk: Desk) -> None:
    desk.refuses(records.Home(came(SECOND).chain[0]), text="home record of cell norden/2, not of norden/1")


@pytest.mark.parametrize("restarted", [False, True])
def test_who_comes_is_known_with_the_devices_of_before(desk: Desk, restarted: bool) -> None:
    bo = came(ABROAD, HERE, first=("b1", "b2"))
    desk.write(moved(bo))
    if restarted:
        desk.restart()
    desk.write(submit("b2", bo.id), handed(records.HANDIN_NOTICE, notice(device_id("b1"))))
    assert not desk.guard.check([encode_record(moved(bo))]), "nothing is taught twice"
    again = copy.deepcopy(bo)
    again.since["b1"] = 1
    desk.refuses(records.Home(again.record("b1", "b2")), text="which was revoked")


def test_who_has_left_stays_known_and_who_came_back_too(desk: Desk) -> None:
    bo = came(HERE)
    desk.write(records.Home(bo.chain[0]))
    for cell in (ABROAD, HERE, THIRD):
        bo.move(cell)
        desk.write(moved(bo), handed(records.HANDIN_ENVELOPE, sealed(bo.id)), submit("b1", bo.id))


def test_a_move_that_forks_what_is_known_is_refused(desk: Desk) -> None:
    bo = came(HERE)
    other = copy.deepcopy(bo)
    bo.record("b1", "b2")
    desk.write(*map(records.Home, bo.chain))
    other.move(ABROAD)
    desk.refuses(moved(other), text="a fork")


# --- what is sent on -----------------------------------------------------------------------------
def test_what_is_sent_on_rests_where_its_user_is_at_home_or_was(desk: Desk) -> None:
    bo = came(ABROAD, HERE)
    letter = sealed(bo.id)
    desk.refuses(forward(bo.id, 2, letter), text="who is not at home in norden/1")
    desk.write(moved(bo), forward(bo.id, 2, letter), forward(bo.id, 1, letter))
    desk.refuses(forward(bo.id, 3, letter), text="who is not at home in norden/1")  # by a version not known here
    desk.refuses(forward(STRANGER, 2, sealed(STRANGER)), text="who is not at home in norden/1")
    desk.refuses(forward(bo.id, 2, sealed(STRANGER)), text="sent on for another")
    desk.write(forward(bo.id, 2, sealed(STRANGER, To.ROSTER)))  # of a group of which bo is a member elsewhere
    bo.move(THIRD)
    desk.write(moved(bo), forward(bo.id, 3, letter))


def test_nothing_rides_beside_what_is_sent_on(desk: Desk) -> None:
    bo = came(ABROAD, HERE)
    desk.write(moved(bo))
    desk.refuses(forward(bo.id, 2, sealed(bo.id), tuple(bo.chain)), text="not at home")  # the chain goes by itself
    desk.refuses(handed(records.HANDIN_FORWARD, sealed(bo.id), b"junk"), text="does not verify")


def test_notices_and_outcomes_are_what_they_say_and_no_more(desk: Desk) -> None:
    bo = came(ABROAD, HERE)
    desk.write(moved(bo))
    told = encode(records.Told(bytes(16), 1, int(Code.STORED), 1, ABROAD))
    chain = encode(records.Chain(tuple(bo.chain)))
    desk.refuses(handed(records.HANDIN_NOTICE, notice(device_id("x"))), text="a record of device")
    for what, item in (
        (records.HANDIN_NOTICE, notice(device_id("b1"))), (records.HANDIN_TOLD, told), (records.HANDIN_MOVE, chain),
    ):  # fmt: skip
        desk.write(handed(what, item))
        desk.refuses(handed(what, item, b"x"), text="holds bytes")
        desk.refuses(handed(what, sealed(bo.id)), text="does not verify")


# --- what another cell passes on -----------------------------------------------------------------
def test_what_is_passed_on_is_for_somebody_at_home_here(desk: Desk) -> None:
    bo = came(HERE)
    desk.write(records.Home(bo.chain[0]), records.Passed(ABROAD, sealed(bo.id)))
    desk.refuses(records.Passed(ABROAD, sealed(STRANGER)), text="who is not at home in norden/1")
    desk.refuses(records.Passed(ABROAD, sealed(bo.id, To.ROSTER)), text="an envelope for a group")
