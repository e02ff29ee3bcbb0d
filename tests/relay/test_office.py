"""Office, intake, delivery and steward together, over a journal in memory and with virtual time."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from relay.core import envelope, wire
from relay.core.codec import encode
from relay.core.trust import read_home
from relay.core.wire import Code, Fault
from relay.errors import AuthError, NotPermitted, ResidencyError, RolledBack
from relay.limits import MINUTE, UNACKED_BYTES
from tests.relay.conftest import ABROAD, CELL, FakeLine
from tests.relay.core.mailroom.conftest import Group, User, device_id


def people():
    alice, bob = User("alice", CELL), User("bob", CELL)
    alice.record("a1")
    bob.record("b1", "b2")
    return alice, bob


def seal(cell, to, version=1, *, roster=False, body=b"x", life=86_400_000):
    kind = envelope.To.ROSTER if roster else envelope.To.MAILBOX
    now = cell.env.wall_ms()
    return envelope.join(encode(envelope.Header(1, kind, to, version, now, now + life, 1)), body)


async def submit(cell, line, *sealed):
    await cell.office.submit(line, [wire.SubmitItem("", one) for one in sealed])
    await wait_all_tasks_blocked()


async def test_live_delivery_and_receipt(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        await wait_all_tasks_blocked()
        assert [type(m).__name__ for m in b1.messages] == ["Empty"]
        sealed = seal(cell, bob.id)
        await submit(cell, a1, sealed)
        assert a1.codes() == [Code.STORED]
        assert [d.envelope for d in b1.of(wire.Deliver)] == [sealed]
        assert b1.flushed and a1.flushed


async def test_offline_mail_comes_before_empty_and_acks_settle(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        sent = [seal(cell, bob.id, body=bytes([n])) for n in range(200)]
        for one in sent:
            await submit(cell, a1, one)
        b2 = await cell.join(nursery, bob, "b2")
        await wait_all_tasks_blocked()
        assert [d.envelope for d in b2.of(wire.Deliver)] == [d.envelope for d in b1.of(wire.Deliver)] == sent
        assert isinstance(b2.messages[-1], wire.Empty)
        for line in (b1, b2):
            positions = [d.position for d in line.of(wire.Deliver)]
            assert positions == sorted(set(positions))
            cell.office.ack(line, positions[-1])
        await trio.sleep(1)  # acks wait for company
        assert not cell.state.sources


async def test_an_ack_counts_up_to_what_was_sent(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        await wait_all_tasks_blocked()
        cell.office.ack(b1, 1 << 60)
        await submit(cell, a1, seal(cell, bob.id))
        cell.delivery.detach(b1)
        again = await cell.join(nursery, bob, "b1")
        await wait_all_tasks_blocked()
        assert len(again.of(wire.Deliver)) == 1


async def test_a_slow_line_is_demoted_loses_nothing_and_delays_nobody(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1 = await cell.join(nursery, alice, "a1")
        fast, slow = await cell.join(nursery, bob, "b1"), await cell.join(nursery, bob, "b2", room=3)
        await wait_all_tasks_blocked()
        sent = [seal(cell, bob.id, body=bytes([n])) for n in range(100)]
        for one in sent:
            await submit(cell, a1, one)
        assert len(fast.of(wire.Deliver)) == 100 and len(slow.of(wire.Deliver)) == 2
        slow.make_room(1_000)
        await wait_all_tasks_blocked()
        await submit(cell, a1, last := seal(cell, bob.id, body=b"last"))
        assert [d.envelope for d in slow.of(wire.Deliver)] == [*sent, last]
        assert len(slow.of(wire.Empty)) == 1


async def test_delivery_waits_for_acks(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        count = UNACKED_BYTES // 100_000 + 20
        for n in range(count):
            await submit(cell, a1, seal(cell, bob.id, body=bytes([n]) * 100_000))
        seen = len(b1.of(wire.Deliver))
        assert seen < count
        cell.office.ack(b1, b1.of(wire.Deliver)[-1].position)
        await wait_all_tasks_blocked()
        assert len(b1.of(wire.Deliver)) == count


async def test_a_newer_session_fences_the_older(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, old = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        new = await cell.join(nursery, bob, "b1")
        await submit(cell, a1, seal(cell, bob.id))
        assert old.ended == Fault.FENCED and not old.of(wire.Deliver)
        assert len(new.of(wire.Deliver)) == 1
        cell.office.detach(old)  # comes late: the new session stays
        await submit(cell, a1, seal(cell, bob.id, body=b"y"))
        assert len(new.of(wire.Deliver)) == 2


async def test_a_line_without_room_for_receipts_ends(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        deaf = await cell.join(nursery, alice, "a1", room=1)
        await submit(cell, deaf, seal(cell, bob.id))
        assert deaf.ended == Fault.UNREAD


async def test_submit_only_fences_nobody_and_gets_receipts(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        receiving = await cell.join(nursery, alice, "a1")
        sending = await cell.join(nursery, alice, "a1", receive=False)
        await submit(cell, sending, seal(cell, bob.id))
        assert receiving.ended is None
        assert sending.codes() == [Code.STORED]


async def test_a_cursor_beyond_the_log_stops_loudly(open_cell, autojump_clock):
    alice, _ = people()
    async with open_cell() as (cell, nursery):
        with pytest.raises(RolledBack):
            await cell.join(nursery, alice, "a1", cursor=1 << 60, log_id=cell.journal.log_id)
        await cell.join(nursery, alice, "a1", cursor=1 << 60, log_id=b"another log id!!")  # starts from the fold's own
        assert cell.started.cursor < 1 << 60


async def test_routing_abroad_and_refusals(open_cell, autojump_clock):
    alice, bob = people()
    carol = User("carol", ABROAD)
    carol.record("c1")
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        a1 = await cell.join(nursery, alice, "a1")
        cell.directory.known[carol.id] = read_home(carol.chain[0])
        await submit(cell, a1, seal(cell, carol.id), seal(cell, bytes(32)), b"garbage", seal(cell, bob.id))
        assert sorted(a1.codes()) == sorted([Code.ACCEPTED, Code.UNKNOWN_USER, Code.BAD_ENVELOPE, Code.STORED])
        assert len(cell.state.outboxes[ABROAD].items) == 1
        record = await cell.office.lookup(a1, wire.Lookup(7, carol.id, "sauda", 0))
        assert (record.code, record.records) == (Code.STORED, (carol.chain[0],))
        assert (await cell.office.lookup(a1, wire.Lookup(8, bytes(32), "sauda", 0))).code == Code.UNKNOWN_USER


async def test_what_has_just_moved_may_come_again_and_what_is_forbidden_may_not(open_cell, autojump_clock):
    """The disk writer knows already that the recipient has left, and the office did not when it routed."""
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        a1 = await cell.join(nursery, alice, "a1")
        gone, forbidden, good = (seal(cell, bob.id, body=body) for body in (b"gone", b"forbidden", b"good"))

        class Writer:
            def check(self, encoded):
                for ordinal, one in enumerate(encoded):
                    if gone in one:
                        raise ResidencyError("an envelope for a user who is not at home here", "", ordinal)
                    if forbidden in one:
                        raise NotPermitted("an envelope that a policy forbids", "", ordinal)
                return ()

            def learn(self, facts):
                pass

        cell.journal._residency = Writer()
        await submit(cell, a1, gone, forbidden, good)
        told = {item.id: item.code for one in a1.of(wire.Receipt) for item in one.items}
        assert told == {
            envelope.envelope_id(gone): Code.UNREACHABLE, envelope.envelope_id(forbidden): Code.NOT_PERMITTED,
            envelope.envelope_id(good): Code.STORED,
        }  # fmt: skip


async def test_a_region_that_does_not_answer_holds_a_batch_up_once(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        b1 = await cell.join(nursery, bob, "b1")
        a1 = await cell.join(nursery, alice, "a1")

        async def silent(user, hint):
            await trio.sleep_forever()

        cell.directory.lookup = silent
        begun = trio.current_time()
        sealed = [seal(cell, bytes([n]) * 32) for n in range(50)]
        await submit(cell, a1, *sealed, near := seal(cell, bob.id))
        assert trio.current_time() - begun < 10
        assert sorted(a1.codes()) == [Code.STORED] + [Code.UNREACHABLE] * 50
        assert [d.envelope for d in b1.of(wire.Deliver)] == [near]


async def test_a_lookup_that_nobody_answers_ends(open_cell, autojump_clock):
    """It holds a place of few (MAX_LOOKUPS) on its connection."""
    alice, _ = people()
    async with open_cell() as (cell, nursery):
        a1 = await cell.join(nursery, alice, "a1")

        async def silent(*asked):
            await trio.sleep_forever()

        cell.directory.lookup = cell.directory.chain = silent
        for ask in (
            cell.office.lookup(a1, wire.Lookup(7, bytes(32), "sauda", 0)),
            cell.office.ephemeral(a1, wire.Ephemeral(bytes(32), "sauda", b"hi")),
        ):
            begun = trio.current_time()
            answer = await ask
            assert trio.current_time() - begun < 10
            assert answer is None or answer == wire.Record(7, Code.UNREACHABLE, ())


async def test_whoever_only_submits_is_looked_at_and_not_woken(open_cell, autojump_clock, monkeypatch):
    alice, _ = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, alice, "a1", receive=False)
        for resting in (cell.state.users, cell.state.devices):
            monkeypatch.setattr(resting, "get", None)
        await cell.join(nursery, alice, "a1", receive=False)


async def test_groups_live_and_membership_changes(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        group = Group("a1")
        for members in ([alice.id], sorted([alice.id, bob.id])):
            roster = group.publish({CELL: members})
            await cell.office.roster(a1, wire.Roster(roster.head, roster.parts))
            await wait_all_tasks_blocked()
        await submit(cell, a1, sealed := seal(cell, group.id, 2, roster=True))
        assert [d.envelope for d in b1.of(wire.Deliver)] == [sealed]
        # What waited for its version in an older block reaches the live line too.
        await submit(cell, a1, early := seal(cell, group.id, 3, roster=True))
        assert len(b1.of(wire.Deliver)) == 1
        roster = group.publish({CELL: sorted([alice.id, bob.id])})
        await cell.office.roster(a1, wire.Roster(roster.head, roster.parts))
        await wait_all_tasks_blocked()
        assert [d.envelope for d in b1.of(wire.Deliver)] == [sealed, early]


async def test_ephemeral_reaches_who_is_online_and_no_log(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        tip = cell.journal.tip
        await cell.office.ephemeral(a1, wire.Ephemeral(bob.id, "", b"typing"))
        (got,) = b1.of(wire.EphemeralFrom)
        assert (got.user, got.device, got.payload) == (alice.id, a1.device, b"typing")
        assert cell.journal.tip == tip


async def test_an_expiry_makes_a_block_in_an_idle_log(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        a1 = await cell.join(nursery, alice, "a1")
        await submit(cell, a1, seal(cell, bob.id, life=MINUTE))
        tip = cell.journal.tip
        await trio.sleep(MINUTE / 1000 + 2)
        assert cell.journal.tip == tip + 1 and not cell.state.sources


async def test_carry_and_release_keep_what_waits(open_cell, autojump_clock, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.fold.CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr("relay.steward.CARRY_STRETCH", 20_000)
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        waiting = seal(cell, bob.id, body=b"nobody of bob's acks it")
        await submit(cell, a1, waiting)
        for n in range(300):
            await submit(cell, a1, seal(cell, alice.id, body=n.to_bytes(2) * 300))
            cell.office.ack(a1, a1.of(wire.Deliver)[-1].position)
            await trio.sleep(0.05)
        await trio.sleep(5)
        assert cell.journal.first > 3  # the prefix has gone
        assert cell.metrics.carried._value.get() >= 1
        again = await cell.join(nursery, bob, "b1")
        await wait_all_tasks_blocked()
        assert b1.of(wire.Deliver)[0].envelope == waiting
        assert [d.envelope for d in again.of(wire.Deliver)] == [waiting]


async def test_cancelling_a_session_that_waits_leaves_nothing_behind(open_cell, autojump_clock):
    alice, _ = people()
    async with open_cell() as (cell, _):
        await cell.office.admit(alice.id, device_id("a1"), alice.chain)
        line = FakeLine(alice, "a1")
        with trio.CancelScope() as scope:
            scope.cancel()
            await cell.office.start(line, wire.Hello(0, b"", 0, True, ""), b"n" * 16)
        await wait_all_tasks_blocked()
        cell.office.detach(line)
        assert not cell.delivery._awaited and not cell.delivery._started and not cell.delivery._lines


async def test_checkpoints_are_saved_and_the_log_released_when_everybody_acks(open_cell, autojump_clock, monkeypatch):
    monkeypatch.setattr("relay.core.mailroom.fold.CHECKPOINT_BYTES", 20_000)
    monkeypatch.setattr("relay.core.mailroom.checkpoint.CHECKPOINT_BYTES", 20_000)
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        b2 = await cell.join(nursery, bob, "b2")
        for n in range(300):
            await submit(cell, a1, seal(cell, bob.id, body=n.to_bytes(2) * 100))
            for line in (b1, b2):
                cell.office.ack(line, line.of(wire.Deliver)[-1].position)
            await trio.sleep(0.1)
        await trio.sleep(5)
        assert cell.journal.first > 100


async def test_acks_ride_with_the_next_block(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1, b1 = await cell.join(nursery, alice, "a1"), await cell.join(nursery, bob, "b1")
        await submit(cell, a1, seal(cell, bob.id))
        tip = cell.journal.tip
        cell.office.ack(b1, b1.of(wire.Deliver)[-1].position)
        await wait_all_tasks_blocked()
        assert cell.journal.tip == tip
        await submit(cell, a1, seal(cell, bob.id, body=b"more"))
        assert cell.journal.tip == tip + 1
        assert cell.state.devices[b1.device].cursor == b1.of(wire.Deliver)[0].position
        cell.office.ack(b1, b1.of(wire.Deliver)[-1].position)
        await trio.sleep(0.5)
        assert cell.journal.tip == tip + 2


async def test_nothing_expired_leaves_a_slow_line(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        a1 = await cell.join(nursery, alice, "a1")
        await cell.office.admit(bob.id, device_id("b1"), bob.chain)
        await submit(cell, a1, seal(cell, bob.id, life=MINUTE))
        slow = await cell.join(nursery, bob, "b1", room=0)
        await trio.sleep(2 * MINUTE / 1000)
        slow.make_room(10)
        await wait_all_tasks_blocked()
        assert not slow.of(wire.Deliver) and slow.of(wire.Empty)


async def test_records_that_may_not_rest_here_admit_nobody(open_cell, autojump_clock, monkeypatch):
    alice, _ = people()
    async with open_cell() as (cell, _nursery):

        async def strict(items, placed):
            raise ResidencyError("another user's device")

        monkeypatch.setattr(cell.journal, "append", strict)
        with pytest.raises(AuthError, match="another user's device"), trio.fail_after(1):
            await cell.office.admit(alice.id, device_id("a1"), alice.chain)
