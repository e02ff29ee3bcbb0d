"""What happens in the middle of a round of the fan-out: devices that go, move or come back, lines that are full."""

from __future__ import annotations

from functools import partial

import pytest
import trio

import relay.fanout
from relay.core import records, wire
from relay.core.mailroom import reading
from relay.core.wire import Fault
from relay.limits import FANOUT_PIECE, UNACKED_BYTES
from tests.relay.conftest import FakeLine
from tests.relay.test_fanout import Crowd, SlowLine, join


@pytest.fixture
async def crowd(open_cell, autojump_clock, monkeypatch):
    """One seat a slice, so that a block is applied between any two of them."""
    monkeypatch.setattr(relay.fanout, "_SLICE", 1)
    async with open_cell() as (cell, nursery):
        yield await gathered(Crowd(cell, nursery), autojump_clock)


async def gathered(crowd: Crowd, clock) -> Crowd:
    """Its lines in the order in which a round comes to them."""
    await crowd.gather(clock)
    turns = [seat.line for seat in crowd.cell.delivery._fanout.seats_at((True, crowd.group.id))]
    crowd.lines.sort(key=turns.index)
    users = {one.id: one for one in crowd.users}
    crowd.users = [users[line.user] for line in crowd.lines]
    return crowd


def got(line: FakeLine) -> list[bytes]:
    return [delivered.envelope for delivered in line.of(wire.Deliver)]


async def in_mid_round(crowd: Crowd) -> bytes:
    """Say something to the group; returns when the first few have it, and the last ones have not."""
    sealed = await crowd.say(b"to all")
    while not got(crowd.lines[0]):
        await trio.lowlevel.checkpoint()
    assert not got(crowd.lines[-1])
    return sealed


async def write(crowd: Crowd, record) -> None:
    """Have a record committed and applied, while the round goes on."""
    tip = crowd.cell.state.index
    crowd.cell.intake.offer([records.encode_record(record)])
    while crowd.cell.state.index == tip:
        await trio.lowlevel.checkpoint()


def revoked(user) -> records.Home:
    return records.Home(user.record(f"{user.name} 2"))


def rotated(user) -> records.Home:
    return records.Home(user.rotate(f"{user.name} 1", f"{user.name} 1'"))


def moved(user) -> records.Move:
    user.move("sauda/1")
    return records.Move(tuple(user.chain))


@pytest.mark.parametrize(
    ("leave", "fault"), [(revoked, Fault.REVOKED), (rotated, Fault.REVOKED), (moved, Fault.NOT_HOME)]
)
async def test_who_goes_in_mid_round_gets_no_more_and_all_others_everything(crowd, leave, fault):
    first = await in_mid_round(crowd)
    last = crowd.lines[-1]
    await write(crowd, leave(crowd.users[-1]))
    assert last.ended == fault and crowd.cell.delivery.seat_of(last) is None
    before = got(last)
    second = await crowd.say(b"to those who are left")
    await trio.sleep(1)
    assert before in ([], [first]) and got(last) == before
    assert all(got(line) == [first, second] for line in crowd.lines[:-1])
    assert not crowd.cell.delivery._fanout._dirty


async def test_a_device_that_comes_back_in_mid_round_has_everything_on_its_new_line(crowd):
    first = await in_mid_round(crowd)
    old = crowd.lines[-1]
    new = await join(crowd.cell, crowd.nursery, crowd.users[-1], f"{crowd.users[-1].name} 1", SlowLine)
    assert old.ended == Fault.FENCED
    before = got(old)
    second = await crowd.say(b"to all again")
    await trio.sleep(1)
    assert before in ([], [first]) and got(old) == before
    assert got(new) == [first, second]
    assert all(got(line) == [first, second] for line in crowd.lines[:-1])


async def test_lines_that_end_in_mid_round_are_in_nobodys_way(crowd):
    first = await in_mid_round(crowd)
    for line in crowd.lines[1::2]:
        crowd.cell.office.detach(line)
    second = await crowd.say(b"to those who are left")
    await trio.sleep(1)
    assert all(got(line) == [first, second] for line in crowd.lines[::2])
    assert all(got(line) in ([], [first]) for line in crowd.lines[1::2])


async def test_a_round_that_is_cancelled_leaves_every_line_with_whole_frames_in_order(open_cell, autojump_clock):
    async with open_cell() as (cell, nursery):
        crowd = await gathered(Crowd(cell, nursery), autojump_clock)
        relay_slice, relay.fanout._SLICE = relay.fanout._SLICE, 1
        try:
            first = await in_mid_round(crowd)
            nursery.cancel_scope.cancel()
            await trio.sleep(1)
        except trio.Cancelled:
            assert all(got(line) in ([], [first]) for line in crowd.lines)
            assert not all(map(got, crowd.lines))
            raise
        finally:
            relay.fanout._SLICE = relay_slice


async def test_a_line_that_is_full_between_two_pieces_reads_on_from_the_journal(crowd, monkeypatch):
    monkeypatch.setattr("relay.seat.FANOUT_PIECE", 700)  # a frame or two
    narrow = crowd.lines[-1]
    narrow.make_room(3)
    sent = [await in_mid_round(crowd)]
    sent += [await crowd.say(bytes([number]) * 100) for number in range(8)]
    await trio.sleep(1)
    assert got(narrow) == sent[:3] and not crowd.cell.delivery.seat_of(narrow).live
    assert all(got(line) == sent for line in crowd.lines[:-1])
    narrow.make_room(1_000)
    await trio.sleep(1)
    assert got(narrow) == sent and crowd.cell.delivery.seat_of(narrow).live


async def test_who_does_not_ack_is_demoted_and_goes_on_with_the_ack(crowd, monkeypatch):
    for module in ("relay.fanout", "relay.delivery", "relay.seat"):
        monkeypatch.setattr(f"{module}.UNACKED_BYTES", 1_000)
    silent, office = crowd.lines[-1], crowd.cell.office
    sent = []
    for number in range(8):
        sent.append(await crowd.say(bytes([number]) * 300))
        await trio.sleep(0.2)
        for line in crowd.lines[:-1]:
            office.ack(line, crowd.cell.delivery.seat_of(line).sent)
    seat = crowd.cell.delivery.seat_of(silent)
    assert not seat.live and 1_000 < seat.unacked_bytes < 2_000  # the bound, and what passed it
    held = got(silent)
    assert held == sent[: len(held)] and len(held) < len(sent)
    assert all(got(line) == sent for line in crowd.lines[:-1])
    while got(silent) != sent:
        office.ack(silent, seat.sent)
        with trio.fail_after(1):
            await trio.sleep(0.2)
    assert seat.sent == reading.pending(crowd.cell.state, silent.device, 0, 100)[-1].position


async def test_more_than_a_line_takes_over_two_lanes_is_read_from_the_journal(crowd, autojump_clock):
    """What two lanes hold is not joined: frame by frame, until the line takes no more."""
    line = crowd.lines[-1]
    whole, used = line.push, 0

    def push(limit: int, frames) -> bool:
        nonlocal used
        if used + sum(map(len, frames)) > limit:
            line.left = 0
            return False
        used += sum(map(len, frames))
        return whole(frames)

    line.push = partial(push, FANOUT_PIECE)
    await in_mid_round(crowd)
    await trio.sleep(1)
    fanout, seat = crowd.cell.delivery._fanout, crowd.cell.delivery.seat_of(line)
    for number in range(12):
        await crowd.say(bytes([number]) * 60_000)
        await crowd.say(bytes([number]) * 60_000, line.user)
    await trio.sleep(1)
    assert not seat.live and used <= FANOUT_PIECE
    positions = [delivered.position for delivered in line.of(wire.Deliver)]
    pending = [item.position for item in reading.pending(crowd.cell.state, line.device, 0, 100)]
    assert positions == pending[: len(positions)] and len(positions) < len(pending) == 25
    line.push = whole
    line.make_room(1_000)
    await trio.sleep(1)
    assert [delivered.position for delivered in line.of(wire.Deliver)] == pending
    assert seat.live and not fanout._dirty and sum(map(len, got(line))) < UNACKED_BYTES
