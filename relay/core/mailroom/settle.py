"""When a record is settled: everybody has acknowledged it, or it ran out. And what a carry does."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from relay.core import records
from relay.core.mailroom import rosters
from relay.core.mailroom.people import DeviceState, Entry, UserState
from relay.core.mailroom.state import RosterState, State, source_key
from relay.core.mailroom.turn import Turn
from relay.limits import ADMISSION_WINDOW, MINUTE

SETTLE_EVERY = 64  # blocks between two passes over the rosters whose members have acknowledged something
_MEMBERS_A_PASS = 1000  # a larger roster is looked at in every second pass, or third...: a look takes 1.4 us a member
_LAGGING = 256  # members who lacked the oldest entry that are remembered: as long as one of them does, nothing settles


def devices_of(state: State, user: UserState) -> Iterator[DeviceState]:
    """The enrolled devices of a user."""
    for device in user.record.devices:
        known = state.devices.get(device.id)
        if known is not None and known.user == user.record.user:
            yield known


def forget_outcomes(turn: Turn) -> None:
    """Ids live until created + D (rule 15)."""
    turn.state.outcomes.forget(-((ADMISSION_WINDOW - turn.time) // MINUTE) - 1)  # whose last id has gone


def settle_mailbox(state: State, user: UserState) -> None:
    """Let go from the front of a mailbox what every recipient device has acknowledged."""
    cursors = [(device.since, device.cursor) for device in devices_of(state, user)]
    done = []
    for entry in user.box.after(-1):
        if any(since <= entry.version and cursor < entry.position for since, cursor in cursors):
            break
        done.append(entry.position)
    for pos in done:
        state.settle(user.box, pos)


def settle_rosters(state: State) -> None:
    """The same for rosters in which somebody has acknowledged something since the last pass."""
    for roster in state.rosters.values():
        if roster.dirty and state.index // SETTLE_EVERY % (1 + len(roster.members) // _MEMBERS_A_PASS) == 0:
            roster.dirty = False
            _settle_roster(state, roster)


def _settle_roster(state: State, roster: RosterState) -> None:
    oldest = next(roster.box.after(-1), None)
    if oldest is not None and not _is_held(state, roster, oldest):
        _look_at_all(state, roster)
    if roster.left:
        _forget_stays(state, roster)


def _is_held(state: State, roster: RosterState, oldest: Entry) -> bool:
    """Is there one who lacks the oldest entry among those who lacked it before, or among some of all? Then nobody else
    need be looked at: a group of 10,000 would be, again and again, as long as one member is away."""
    while roster.lagging:
        if _lacks(state, roster, roster.lagging[-1], oldest):
            return True
        roster.lagging.pop()
    some = list(roster.members)[:: len(roster.members) // _LAGGING + 1]
    roster.lagging = [user for user in some if _lacks(state, roster, user, oldest)]
    return bool(roster.lagging)


def _lacks(state: State, roster: RosterState, user: bytes, entry: Entry) -> bool:
    if user not in state.users or not rosters.receives(state, roster, user, entry):
        return False
    return any(device.cursor < entry.position for device in devices_of(state, state.users[user]))


def _look_at_all(state: State, roster: RosterState) -> None:
    lagging = sorted(
        (device.cursor, user)
        for user in roster.members
        if user in state.users
        for device in devices_of(state, state.users[user])
    )
    done = []
    for entry in roster.box.after(-1):
        lack = bisect_left(lagging, (entry.position,))
        holds = next((user for _, user in lagging[:lack] if rosters.receives(state, roster, user, entry)), None)
        if holds is not None:
            roster.lagging = [holds, *(user for _, user in lagging[: lack : lack // _LAGGING + 1])]
            break
        done.append(entry.position)
    for pos in done:
        state.settle(roster.box, pos)


def _forget_stays(state: State, roster: RosterState) -> None:
    """A stay that ended is needed only while entries from its time wait."""
    roster.left = False
    oldest = next((entry.position for entry in roster.box.after(-1)), None)
    for user in list(roster.members):
        stays = [
            stay for stay in roster.members[user]
            if not stay.until or (oldest is not None and oldest < stay.until_position)
        ]
        if stays:
            roster.members[user] = stays
            roster.left = roster.left or any(stay.until for stay in stays)
            continue
        del roster.members[user]
        if roster.head is not None:
            groups = state.memberships.get(user, set())
            groups.discard(roster.head.group)
            if not groups:
                state.memberships.pop(user, None)


def carry(turn: Turn, record: records.Carry) -> None:
    """The records that a carry brings along lie here from now on; their positions stay what they were."""
    turn.next_position()
    for item in record.items:
        turn.state.relocate(source_key(item.index, item.ordinal), turn.index, turn.ordinal)
