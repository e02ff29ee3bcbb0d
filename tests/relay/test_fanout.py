"""Fan-out: rounds, what shares a write, who does not wait; and that nobody misses anything meanwhile."""

from __future__ import annotations

from random import Random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

import relay.fanout
from relay.core import records, wire
from relay.core.mailroom import reading
from relay.core.mailroom.people import Entry
from relay.core.trust import group_id
from relay.seat import Item, Lane, Seat
from relay.observe.pulse import Pulse
from relay.limits import FANOUT_PIECE, FANOUT_REST, FANOUT_REST_S
from tests.relay.conftest import CELL, Cell, FakeLine
from tests.relay.core.mailroom.conftest import Group, User, device_id
from tests.relay.test_office import seal, submit

CROWD = 40


class SlowLine(FakeLine):
    """A line on which every write takes a millisecond. `wrote`: when, and what."""

    clock: trio.testing.MockClock

    def __init__(self, user: User, name: str) -> None:
        super().__init__(user, name)
        self.wrote: list[tuple[float, bytes]] = []

    def push(self, frames) -> bool:
        self.wrote += [(trio.current_time(), frame) for frame in frames]
        return super().push(frames)

    def flush(self) -> None:
        if self.wrote:
            self.clock.jump(0.001)


async def join(cell: Cell, nursery: trio.Nursery, user: User, name: str, make=FakeLine, **options) -> FakeLine:
    """As Cell.join, with a line of another kind."""
    line = make(user, name, **options)
    await cell.office.admit(user.id, line.device, user.chain)
    await cell.office.start(line, wire.Hello(0, b"", 0, True, "test"), cell.env.random_bytes(16))
    nursery.start_soon(cell.office.serve, line)
    return line


def user(name: str) -> User:
    made = User(name, CELL)
    made.record(f"{name} 1")
    return made


async def publish(cell: Cell, line: FakeLine, group: Group, members: list[bytes]) -> None:
    roster = group.publish({CELL: sorted(members)})
    await cell.office.roster(line, wire.Roster(roster.head, roster.parts))
    await wait_all_tasks_blocked()


class Crowd:
    """An owner, and a group of slow lines."""

    def __init__(self, cell: Cell, nursery: trio.Nursery) -> None:
        self.cell, self.nursery = cell, nursery
        self.owner, self.bob = user("owner"), user("bob")
        self.users = [user(f"user {number}") for number in range(CROWD)]
        self.group = Group("owner 1")

    async def gather(self, clock: trio.testing.MockClock) -> None:
        SlowLine.clock = clock
        self.line = await join(self.cell, self.nursery, self.owner, "owner 1")
        self.bobs = await join(self.cell, self.nursery, self.bob, "bob 1")
        self.lines = [await join(self.cell, self.nursery, one, f"{one.name} 1", SlowLine) for one in self.users]
        members = [self.owner.id, self.bob.id, *(one.id for one in self.users)]
        await publish(self.cell, self.line, self.group, members)
        for line in self.lines:
            line.wrote.clear()

    async def say(self, body: bytes, to: bytes = b"") -> bytes:
        """To the group, or to a user; returns once it is committed, and applied, with no time passed."""
        sealed = seal(self.cell, to or self.group.id, roster=not to, body=body)
        await self.cell.office.submit(self.line, [wire.SubmitItem("", sealed)])
        tip = self.cell.state.index
        while self.cell.state.index == tip:
            await trio.lowlevel.checkpoint()
        return sealed

    async def takes(self, beside: bytes = b"") -> float:
        """Seconds that a message to the group takes to the last; `beside`: another one to this user goes before it."""
        await trio.sleep(1)
        if beside:
            await self.say(b"beside", beside)
        began = trio.current_time()
        await self.say(b"to all")
        await trio.sleep(1)
        return max(line.wrote[-1][0] for line in self.lines) - began


@pytest.fixture
async def crowd(open_cell, autojump_clock):
    async with open_cell() as (cell, nursery):
        made = Crowd(cell, nursery)
        await made.gather(autojump_clock)
        yield made


async def test_a_quiet_node_writes_at_once(crowd, autojump_clock):
    began = trio.current_time()
    sealed = await crowd.say(b"first")
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    assert all([d.envelope for d in line.of(wire.Deliver)] == [sealed] for line in crowd.lines)
    assert trio.current_time() - began == pytest.approx(0.001 * CROWD)  # as long as the writes took


async def test_what_comes_while_a_round_rests_goes_with_one_write_of_shared_bytes(crowd, autojump_clock):
    sent = [await crowd.say(b"first")]
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    rested = trio.current_time()
    sent += [await crowd.say(bytes([number])) for number in range(5)]
    await trio.sleep(1)
    for line in crowd.lines:
        assert [d.envelope for d in line.of(wire.Deliver)] == sent
        assert len(line.wrote) == 2
    assert len({id(line.wrote[1][1]) for line in crowd.lines}) == 1
    rest = min(FANOUT_REST_S, FANOUT_REST * 0.001 * CROWD)
    assert min(line.wrote[1][0] for line in crowd.lines) == pytest.approx(rested + rest)


async def test_what_is_filed_during_a_round_reaches_those_who_have_had_their_turn(crowd, autojump_clock, monkeypatch):
    """And others have theirs during a round."""
    monkeypatch.setattr(relay.fanout, "_SLICE", 1)
    served = lambda: sum(bool(line.of(wire.Deliver)) for line in crowd.lines)  # noqa: E731
    sent = [await crowd.say(b"first")]
    while not served():
        await trio.lowlevel.checkpoint()
    assert served() < CROWD / 4
    sent.append(await crowd.say(b"second"))
    assert served() < CROWD
    await trio.sleep(1)
    assert all([d.envelope for d in line.of(wire.Deliver)] == sent for line in crowd.lines)


async def test_a_round_gives_way_to_other_processes_beside_mail_to_few_only(crowd, autojump_clock, monkeypatch):
    monkeypatch.setattr(relay.fanout, "_SLICE", 1)
    assert await crowd.takes() == pytest.approx(0.001 * (CROWD - 1))
    assert await crowd.takes(beside=crowd.bob.id) >= (0.001 + relay.fanout._GIVE_WAY_S) * (CROWD - 1)
    assert await crowd.takes() == pytest.approx(0.001 * (CROWD - 1))


async def test_it_tells_the_pulse_how_long_the_mail_of_a_block_takes(crowd, autojump_clock, monkeypatch):
    told = []
    monkeypatch.setattr(Pulse, "gave", lambda self, seconds: told.append(seconds))
    await crowd.say(b"to all")
    await trio.sleep(1)
    await crowd.say(b"to bob", crowd.bob.id)
    crowd.cell.intake.offer([records.encode_record(records.Tick())])
    await trio.sleep(1)
    assert told == [pytest.approx(0.001 * CROWD), 0.0], "to few: at once"
    fanout, notice = crowd.cell.delivery._fanout, Item(crowd.cell.state.index << 20, b"", None, crowd.bobs.device)
    fanout.file((False, crowd.bob.id), notice, 1)
    fanout.hurry()
    assert len(told) == 2, "what was settled comes with blocks of acks"


async def test_few_seats_do_not_wait_for_a_round(crowd, autojump_clock):
    """What is for bob alone is given with what the group has for him, in order; the others wait for their round."""
    first = await crowd.say(b"first")
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    rested = trio.current_time()
    group = await crowd.say(b"to all")
    alone = await crowd.say(b"to bob", crowd.bob.id)
    assert trio.current_time() == rested
    assert [d.envelope for d in crowd.bobs.of(wire.Deliver)] == [first, group, alone]
    assert all(len(line.of(wire.Deliver)) == 1 for line in crowd.lines)
    await trio.sleep(1)
    assert [d.envelope for d in crowd.bobs.of(wire.Deliver)] == [first, group, alone]
    assert all([d.envelope for d in line.of(wire.Deliver)] == [first, group] for line in crowd.lines)


async def test_more_than_the_bound_is_read_from_the_journal_and_nothing_is_missed(crowd, autojump_clock, monkeypatch):
    monkeypatch.setattr(relay.fanout, "FANOUT_BYTES", 1_000)
    sent = [await crowd.say(b"first")]
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    for number in range(5):
        sent.append(await crowd.say(bytes([number]) * 500))
        assert sum(lane.size for lane in crowd.cell.delivery._fanout._dirty) <= 1_000
    await trio.sleep(1)
    for line in [*crowd.lines, crowd.bobs]:
        assert [d.envelope for d in line.of(wire.Deliver)] == sent


async def test_who_is_thrown_out_while_a_round_rests_gets_what_came_before_and_nothing_after(crowd, autojump_clock):
    sent = [await crowd.say(b"first")]
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    sent.append(await crowd.say(b"while all are there"))
    out, *stay = crowd.users
    await publish(crowd.cell, crowd.line, crowd.group, [crowd.owner.id, *(one.id for one in stay)])
    sealed = seal(crowd.cell, crowd.group.id, 2, roster=True, body=b"later")
    await submit(crowd.cell, crowd.line, sealed)
    await trio.sleep(1)
    for line in crowd.lines:
        expected = sent if line.user == out.id else [*sent, sealed]
        assert [d.envelope for d in line.of(wire.Deliver)] == expected


async def test_what_expired_while_a_round_rested_is_not_delivered(crowd, autojump_clock):
    first = await crowd.say(b"first")
    for _ in range(20):
        await trio.lowlevel.checkpoint()
    short = seal(crowd.cell, crowd.group.id, roster=True, body=b"short", life=10)
    await crowd.cell.office.submit(crowd.line, [wire.SubmitItem("", short)])
    await wait_all_tasks_blocked(0)
    await trio.sleep(0.02)
    await crowd.say(b"the clock of the log", crowd.owner.id)
    await trio.sleep(1)
    assert all([d.envelope for d in line.of(wire.Deliver)] == [first] for line in crowd.lines)


@pytest.mark.parametrize("seed", range(12))
async def test_everybody_gets_in_order_what_the_journal_holds_for_them(open_cell, autojump_clock, monkeypatch, seed):
    """Groups that overlap, one-to-one mail, members who come and go, slow and full lines: each line has in the end what
    a device that only reads the journal would get."""
    random = Random(seed)
    monkeypatch.setattr(relay.fanout, "_SLICE", 2)  # so that much happens during a round
    SlowLine.clock = autojump_clock
    async with open_cell() as (cell, nursery):
        owner, users = user("owner"), [user(f"user {number}") for number in range(14)]
        line = await join(cell, nursery, owner, "owner 1")
        lines = [await join(cell, nursery, one, f"{one.name} 1", SlowLine) for one in users[:10]]
        full = [await join(cell, nursery, one, f"{one.name} 1", room=random.randrange(1, 9)) for one in users[10:]]
        groups = [Group("owner 1") for _ in range(3)]
        for number, group in enumerate(groups):
            group.seed = bytes([number]) * 32
            group.id = group_id(device_id(group.owner), group.seed)
        for _ in range(120):
            group = random.choice(groups)
            match random.choice(["publish", "say", "say", "say", "mail", "sleep", "room"]):
                case "publish":
                    members = [one.id for one in random.sample(users, random.randrange(1, len(users)))]
                    await publish(cell, line, group, [owner.id, *members])
                case "say" if group.version:
                    version = max(1, group.version + random.randrange(-1, 2))  # late, now, or waiting for the next
                    sealed = seal(cell, group.id, version, roster=True, body=random.randbytes(20))
                    await cell.office.submit(line, [wire.SubmitItem("", sealed)])
                case "mail":
                    sealed = seal(cell, random.choice(users).id, body=random.randbytes(20))
                    await cell.office.submit(line, [wire.SubmitItem("", sealed)])
                case "sleep":
                    await trio.sleep(random.choice([0.0, 0.001, 0.02, 0.3]))
                case "room":
                    random.choice(full).make_room(random.randrange(1, 20))
        for slow in full:
            slow.make_room(10_000)
        await trio.sleep(5)
        got = {one: [d.position for d in one.of(wire.Deliver)] for one in [*lines, *full]}
        for one, positions in got.items():
            assert positions == [item.position for item in reading.pending(cell.state, one.device, 0, 10_000)]
        assert sum(map(len, got.values())) > 100


def test_pieces_are_bounded_and_leave_nothing_out() -> None:
    lane = Lane((True, b"group"))
    frames = [bytes([number]) * (FANOUT_PIECE // 3) for number in range(10)]
    for position, frame in enumerate(frames, 1):
        lane.add(Item(position, frame, Entry(position, 0, 1, 9_000)), 5)
    pos, got = 4, b""
    while (piece := lane.piece(pos)) is not None:
        assert 0 < len(piece.data) <= FANOUT_PIECE and piece is lane.piece(pos)
        got, pos = got + piece.data, piece.sent[0]
    assert got == b"".join(frames[4:])
    lane.forget(8)
    assert [item.position for item in lane.items] == [9, 10] and lane.size == 2 * (FANOUT_PIECE // 3)
    assert lane.piece(10) is None and lane.piece(0) == (frames[8] + frames[9], 2, (10, lane.size))


def test_seats_that_each_lack_something_else_do_not_fill_the_memory_with_joined_copies() -> None:
    lane = Lane((True, b"group"))
    for position in range(1, 2_001):
        lane.add(Item(position, bytes(1_000), Entry(position, 0, 1, 9_000)), 5)
    for first in range(2_000):
        lane.piece(first)
        held = sum(len(piece.data) for piece in lane._pieces.values())
        assert held <= FANOUT_PIECE + lane.size and held == lane._joined
    lane.add(Item(2_001, bytes(10), Entry(2_001, 0, 1, 9_000)), 5)
    assert lane._joined == 0


async def test_who_joins_for_what_was_filed_before_reads_that_first(crowd, autojump_clock):
    """Rule 18: a member may be listed from an older version on (who has moved here was a member elsewhere)."""
    group = Group("owner 1")
    group.seed = bytes(32)
    group.id = group_id(device_id(group.owner), group.seed)
    await publish(crowd.cell, crowd.line, group, [crowd.owner.id])
    before = seal(crowd.cell, group.id, 1, roster=True, body=b"before")
    await submit(crowd.cell, crowd.line, before)
    group.since[crowd.bob.id] = 1  # kept, as that of one who was there
    await publish(crowd.cell, crowd.line, group, [crowd.owner.id, crowd.bob.id])
    after = seal(crowd.cell, group.id, 2, roster=True, body=b"after")
    await submit(crowd.cell, crowd.line, after)
    await trio.sleep(1)
    got = [d.position for d in crowd.bobs.of(wire.Deliver)]
    assert [d.envelope for d in crowd.bobs.of(wire.Deliver)] == [before, after]
    assert got == [item.position for item in reading.pending(crowd.cell.state, crowd.bobs.device, 0, 100)]


def test_what_a_lane_holds_since_is_when_its_oldest_block_was_made() -> None:
    """Where something comes in each round, what is left is younger than what has gone."""
    lane = Lane((True, b"g"))
    for number in range(1, 6):
        lane.add(Item(number, b"frame", None), 1000 * number)
    for number in range(1, 5):
        lane.forget(number)
        assert lane.time == 1000 * (number + 1)
    lane.forget(5)
    assert lane.time == 0 and not lane.items


def test_an_ack_frees_what_was_sent_up_to_it_and_nothing_more() -> None:
    seat = Seat(FakeLine(user("bob"), "bob 1"), b"", 0, 0)
    for position in (3, 5, 9):
        seat.count((position, 100))
    for position, left in [(2, 300), (3, 200), (8, 100), (9, 0), (9, 0)]:
        seat.acked(position)
        assert seat.unacked_bytes == left


@pytest.mark.parametrize(("sessions", "pace"), [(0, 1_000), (15, 1_000), (50, 3_200), (125, 8_000), (2_000, 8_000)])
async def test_acks_are_paced_by_the_number_of_sessions(open_cell, sessions, pace):
    async with open_cell() as (cell, _):
        cell.delivery._seats = dict.fromkeys(range(sessions))
        assert cell.delivery.ack_ms() == pace
        cell.delivery._seats = {}
