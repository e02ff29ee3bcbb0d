"""Who may come in, and what ends the stay."""

from __future__ import annotations

import pytest
import structlog.testing
import trio
from trio.testing import wait_all_tasks_blocked

from relay.core import wire
from relay.core.wire import Fault
from relay.errors import AuthError, DeviceRevoked, Refused
from tests.relay.conftest import ABROAD
from tests.relay.core.mailroom.conftest import User, device_id
from tests.relay.test_office import people, seal, submit
from tests.flipping import flipped


async def test_admission_of_devices(open_cell, autojump_clock):
    alice, bob = people()
    stranger = User("eve", ABROAD)
    stranger.record("e1")
    async with open_cell() as (cell, nursery):
        with pytest.raises(Refused):
            await cell.office.admit(bob.id, device_id("b1"), ())
        with pytest.raises(Refused):
            await cell.office.admit(stranger.id, device_id("e1"), stranger.chain)
        with pytest.raises(AuthError):
            await cell.office.admit(bob.id, device_id("b1"), [flipped(bob.chain[0])])
        with pytest.raises(AuthError):
            await cell.office.admit(alice.id, device_id("b1"), alice.chain)
        line = await cell.join(nursery, bob, "b2")
        bob.record("b1")
        await cell.join(nursery, bob, "b1")
        assert line.ended == Fault.REVOKED  # b2 was removed by the newer record
        with pytest.raises(DeviceRevoked):
            await cell.office.admit(bob.id, device_id("b2"), bob.chain[:1])
        await cell.office.admit(bob.id, device_id("b1"), bob.chain[:1])  # an older chain is no rollback of the cell's
        assert cell.state.users[bob.id].record.version == 2


async def test_a_revoked_device_has_no_seat_any_more(open_cell, autojump_clock):
    """Not only its line is told: what is not in the log, and asks nobody, is not sent to it either."""
    _, bob = people()
    async with open_cell() as (cell, nursery):
        b1, b2 = await cell.join(nursery, bob, "b1"), await cell.join(nursery, bob, "b2")
        await wait_all_tasks_blocked()
        assert list(cell.delivery.lines_of(bob.id)) == [b1, b2]
        bob.record("b1")
        newer = await cell.join(nursery, bob, "b1", receive=False)
        assert b2.ended == Fault.REVOKED and cell.delivery.seat_of(b2) is None
        assert list(cell.delivery.lines_of(bob.id)) == [b1] and newer.ended is None


async def test_who_has_new_keys_is_told_so_and_not_called_revoked(open_cell, autojump_clock):
    alice, bob = people()
    async with open_cell() as (cell, nursery):
        b1 = await cell.join(nursery, bob, "b1")
        with structlog.testing.capture_logs() as logs:
            bob.rotate("b1", "b1'")
            new = await cell.join(nursery, bob, "b1'")
        assert b1.ended == Fault.REVOKED and [entry["event"] for entry in logs] == ["device_rotated"]
        with pytest.raises(DeviceRevoked, match="has new keys"):
            await cell.office.admit(bob.id, device_id("b1"), ())
        a1 = await cell.join(nursery, alice, "a1")
        await submit(cell, a1, seal(cell, bob.id, 2))
        assert len(new.of(wire.Deliver)) == 1


async def test_whoever_waits_for_a_session_is_asked_whether_that_still_makes_sense(open_cell, autojump_clock):
    """A user who moves away between AUTH and the session's record: nothing would ever start it."""
    _, bob = people()

    def moved() -> None:
        raise Refused(Fault.NOT_HOME, "moved")

    async with open_cell() as (cell, nursery):
        await cell.join(nursery, bob, "b1")
        with trio.fail_after(5), pytest.raises(Refused, match="moved"):
            await cell.delivery.session_started(b"another nonce...", moved)
