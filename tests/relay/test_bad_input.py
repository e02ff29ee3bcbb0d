"""What clients must not be able to do, each with the code that they are told and what it costs: rosters that are none,
senders who are no members, devices that do not read or do not ack, floods."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relay import ws
from relay.core import records, wire
from relay.core.codec import digest
from relay.core.trust import Member, make_part
from relay.core.wire import Code, Fault
from relay.limits import MAX_FRAME, MAX_MEMBERS, UNACKED_BYTES
from tests.flipping import flipped
from tests.relay.conftest import ABROAD, CELL
from tests.relay.core.mailroom.conftest import Group, User
from tests.relay.gateway.honest import Caller, FakeMetrics, HonestOffice, memory_call
from tests.relay.test_office import people, seal, submit


async def publish(cell, line, roster: records.Roster) -> Code:
    """What the line is told about it."""
    before = len(line.codes())
    await cell.office.roster(line, wire.Roster(roster.head, roster.parts))
    await wait_all_tasks_blocked()
    [code] = line.codes()[before:]
    return code


def demoted(cell) -> dict[str, float]:
    """By reason."""
    [metric] = cell.metrics.demoted.collect()
    return {s.labels["reason"]: s.value for s in metric.samples if s.name.endswith("_total")}


def catching_up(cell) -> float:
    return cell.metrics.catching_up._value.get()


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("good", Code.STORED),
        ("signature", Code.BAD_RECORD),
        ("signed by another", Code.BAD_RECORD),
        ("other members", Code.BAD_RECORD),
        ("old version", Code.BAD_RECORD),
        ("too many members", Code.BAD_RECORD),
        ("members named twice", Code.BAD_RECORD),
        ("no such region", Code.UNKNOWN_REGION),
    ],
)
async def test_a_roster_that_is_none_has_its_code_and_changes_nothing(open_cell, autojump_clock, kind, code):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1 = await cell.join(nursery, alice, "a1")
        group, other = Group("a1"), Group("b1")
        old = group.publish({CELL: [alice.id]})
        assert await publish(cell, a1, old) == Code.STORED
        assert await publish(cell, a1, group.publish({CELL: [alice.id]})) == Code.STORED
        members = {CELL: sorted([alice.id, bob.id])}
        if kind == "too many members":
            members = {CELL: sorted(digest(n.to_bytes(4)) for n in range(MAX_MEMBERS + 1))}
        if kind == "members named twice":
            members = {CELL: [alice.id, alice.id]}
        if kind == "no such region":
            members = {"nowhere/1": [alice.id]}
        good = group.publish(members)
        bad = {
            "signature": records.Roster(good.device, flipped(good.head), good.parts),
            "signed by another": records.Roster(good.device, other.publish(members).head, good.parts),
            "other members": records.Roster(good.device, good.head, other.publish({CELL: [bob.id]}).parts),
            "old version": Group("a1").publish({CELL: sorted([alice.id, bob.id])}),
        }.get(kind, good)
        assert await publish(cell, a1, bad) == code
        kept = cell.state.rosters
        assert list(kept) == [group.id] and kept[group.id].version == (3 if code == Code.STORED else 2)
        assert a1.ended is None


async def test_members_of_other_regions_that_a_part_lists_hold_nothing_up(open_cell, autojump_clock):
    """Whom a part lists and who is at home elsewhere is not delivered to here, and holds nothing up."""
    alice, bob = people()
    carol = User("carol", ABROAD)
    carol.record("c1")
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        await cell.join(nursery, bob, "b2")
        group = Group("a1")
        assert await publish(cell, a1, group.publish({CELL: sorted([alice.id, bob.id, carol.id])})) == Code.STORED
        await submit(cell, a1, sealed := seal(cell, group.id, roster=True))
        assert a1.codes()[-1] == Code.STORED
        assert [one.envelope for one in b1.of(wire.Deliver)] == [sealed]
        assert not cell.state.users.get(carol.id)


async def test_who_is_no_member_is_told_so(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        group = Group("a1")
        assert await publish(cell, a1, group.publish({CELL: [alice.id]})) == Code.STORED
        await submit(cell, b1, seal(cell, group.id, roster=True))
        assert b1.codes() == [Code.NOT_MEMBER] and b1.ended is None
        assert not any(one.envelope for one in a1.of(wire.Deliver))
        [metric] = cell.metrics.refused.collect()
        assert {s.labels["reason"]: s.value for s in metric.samples}["not_member"] >= 1


async def test_who_never_reads_is_demoted_counted_and_delays_nobody(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        deaf = await cell.join(nursery, bob, "b2", room=3)
        await wait_all_tasks_blocked()
        assert (catching_up(cell), demoted(cell)) == (0, {})
        for n in range(10):
            await submit(cell, a1, seal(cell, bob.id, body=bytes([n])))
        assert len(b1.of(wire.Deliver)) == 10 and len(deaf.of(wire.Deliver)) == 2
        assert (catching_up(cell), demoted(cell)) == (1, {"unread": 1})
        deaf.make_room(100)
        await wait_all_tasks_blocked()
        assert len(deaf.of(wire.Deliver)) == 10
        assert (catching_up(cell), demoted(cell)) == (0, {"unread": 1})
        for line in (a1, b1, deaf):
            cell.delivery.detach(line)
        assert catching_up(cell) == 0


async def test_who_acks_a_byte_a_minute_is_demoted_and_what_it_holds_is_bounded(open_cell, autojump_clock):
    """An ack that trickles is no ack until it is whole (the gateway reads it byte by byte)."""
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        slow = await cell.join(nursery, bob, "b2")
        count = UNACKED_BYTES // 100_000 + 20
        for n in range(count):
            await submit(cell, a1, seal(cell, bob.id, body=n.to_bytes(2) * 50_000))
            cell.office.ack(b1, b1.of(wire.Deliver)[-1].position)
        seat = cell.delivery.seat_of(slow)
        assert len(b1.of(wire.Deliver)) == count
        assert UNACKED_BYTES < seat.unacked_bytes < UNACKED_BYTES + 200_000 and slow.ended is None
        assert (catching_up(cell), demoted(cell)) == (1, {"unacked": 1})
        cell.delivery.detach(slow)
        assert catching_up(cell) == 0


async def test_a_flood_that_rounds_do_not_keep_up_with_is_counted(open_cell, autojump_clock, monkeypatch):
    monkeypatch.setattr("relay.fanout.FANOUT_BYTES", 2_000)
    monkeypatch.setattr("relay.fanout._FEW", 0)
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        await wait_all_tasks_blocked()
        sent = [seal(cell, bob.id, body=bytes([n]) * 1_000) for n in range(6)]
        await submit(cell, a1, *sent)
        await trio.sleep(1)
        assert [one.envelope for one in b1.of(wire.Deliver)] == sent
        assert demoted(cell) == {"overrun": 1} and catching_up(cell) == 0


async def test_who_submits_and_does_not_read_receipts_is_told_what_to_do(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        deaf = await cell.join(nursery, alice, "a1", receive=False, room=0)
        said = []
        deaf.end = lambda fault, text, *_: said.append((fault, text))
        await submit(cell, deaf, seal(cell, bob.id))
        [(fault, text)] = said
        assert fault is Fault.UNREAD and "Read while you submit" in text and "submit again" in text


async def test_who_pings_and_never_reads_is_let_go_and_named(autojump_clock):
    """Its pongs do not leave, so nothing more is read from it: it holds its place no longer than a silent one."""
    office, metrics = HonestOffice(), FakeMetrics()
    async with memory_call(office, metrics, idle_s=120) as (socket, connection):
        caller = Caller(socket)
        await caller.enter()
        await caller.hear()
        connection._transport.send_stream.send_all_hook = trio.sleep_forever
        began = trio.current_time()
        with trio.move_on_after(300):
            while not office.detached:
                with trio.move_on_after(30), suppress(ws.Closed):
                    await socket.ping()
                await trio.sleep(1)
        assert office.detached == [connection] and trio.current_time() - began < 160
        assert metrics.refused.labels("unread")._value.get() == 1


async def test_a_roster_with_a_million_members_is_not_even_decoded(autojump_clock):
    async with memory_call(HonestOffice()) as (socket, _):
        caller = Caller(socket)
        await caller.enter()
        part = make_part(1, [Member(n.to_bytes(32), 1) for n in range(1_000_000)])
        await caller.say(wire.Roster(b"head", (("norden/1", part),)))
        error, code = await caller.farewell()
        assert (error.code, code) == (Fault.PROTOCOL, 4000 + Fault.PROTOCOL) and f"more than {MAX_FRAME}" in error.text
