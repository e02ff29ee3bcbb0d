"""Planted defects in what becomes of users who move (ADR 21)."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import movers
from cluster.erasure import Erasures
from relay.core import records
from relay.core.envelope import envelope_id
from relay.core.mailroom import moving, outboxes
from relay.core.mailroom.state import MovedUser, Source
from relay.core.mailroom.turn import Turn
from relay.core.wire import Code
from relay.journal.disk import LogDisk

Patch = pytest.MonkeyPatch


def drops_what_comes_late(patch: Patch) -> None:
    """What comes for somebody who has left is called stored, and goes nowhere."""

    def take_over(turn: Turn, user: bytes, source: Source, key: bytes, expires: int) -> tuple[Code, int]:
        return Code.STORED, turn.state.moved[user].record.version

    patch.setattr(moving, "take_over", take_over)


def leaves_what_waits_behind(patch: Patch) -> None:
    """What waited when the user left stays where nobody collects it."""
    honest = moving._leave

    def leave(turn: Turn, user: Any, *rest: Any) -> None:
        kept, user.box = user.box, type(user.box)()
        honest(turn, user, *rest)
        user.box = kept

    patch.setattr(moving, "_leave", leave)


def forwards_before_the_home_is_known(patch: Patch) -> None:
    """The receiver of a forward does not take the records that came along, nor what the other cell says of moves."""
    honest = movers.Batch._forward

    def forward(batch: Any, record: records.HandIn) -> records.HandIn:
        batch._verify = lambda chain: batch._known(records.read_forward(record.part).user)
        try:
            return honest(batch, record)
        except AttributeError:
            return movers.refused_number(record, Code.UNKNOWN_USER)

    def move(batch: Any, record: records.HandIn) -> None:
        raise movers._NeverHere

    patch.setattr(movers.Batch, "_forward", forward)
    patch.setattr(movers.Batch, "_move", move)


def the_old_home_goes_on(patch: Patch) -> None:
    """The old cell ignores the record that says that the user has left."""
    patch.setattr(moving, "_leave", lambda *_: None)


def drops_forwards_that_are_known(patch: Patch) -> None:
    """A forward is dropped as a repeat because its id is known here, from an earlier stay."""
    honest = moving.hand_in

    def hand_in(turn: Turn, record: records.HandIn, size: int, pos: int) -> tuple[int, int]:
        known = turn.state.outcomes.get(envelope_id(record.item))
        return (known.code, known.newest) if known else honest(turn, record, size, pos)

    patch.setattr(moving, "hand_in", hand_in)


def forwards_to_another_cell(patch: Patch) -> None:
    """What is for somebody who has left goes to a cell that is not the home."""
    honest = outboxes.number_forward

    def number_forward(turn: Turn, moved: MovedUser, *rest: Any) -> None:
        others = [cell for cell in sorted(turn.state.outboxes) if cell != moved.record.cell]
        if not others:
            honest(turn, moved, *rest)
            return
        wrong = MovedUser(_at(moved.record, others[0]), moved.chain, moved.devices, moved.last)
        honest(turn, wrong, *rest)

    patch.setattr(outboxes, "number_forward", number_forward)


class _at:
    """A home record that names another cell."""

    def __init__(self, record: Any, cell: str) -> None:
        self.cell, self.user = cell, record.user


def says_stored_when_it_is_sent_on(patch: Patch) -> None:
    """Rule 19: the cell that sends on says what only the home may say, and tells nothing later."""
    honest = outboxes.await_for

    def await_for(turn: Turn, record: records.HandIn, remaining: int) -> bytes:
        key = honest(turn, record, remaining)
        turn.state.pending[key].origin = ("nowhere/1", record.origin_log, record.number)
        return key

    patch.setattr(outboxes, "await_for", await_for)


# --- erasure (ADR 22) --------------------------------------------------------------------------------
def signs_before_the_log_lets_go(patch: Patch) -> None:
    """A store says that nothing is left when all is handed over, whatever lies in its log."""
    patch.setattr(Erasures, "_is_clean", lambda _, moved: moved.confirmed and not moved.items)


def forgets_what_came_late(patch: Patch) -> None:
    """What came for somebody who had left, and was sent on, counts for nothing when the log is to let go."""
    forward, let_go = outboxes.number_forward, outboxes.let_go

    def number_forward(turn: Turn, moved: MovedUser, *rest: Any) -> None:
        last = moved.last
        forward(turn, moved, *rest)
        moved.last = last

    def end(state: Any, outbox: Any, item: Any) -> None:
        moved = state.moved.get(item.user)
        last = moved.last if moved else 0
        let_go(state, outbox, item)
        if moved:
            moved.last = last

    patch.setattr(outboxes, "number_forward", number_forward)
    patch.setattr(outboxes, "let_go", end)
    forgets_what_it_refused(patch)


def forgets_what_it_refused(patch: Patch) -> None:
    """The same for what came and was refused, or was known."""
    patch.setattr(moving, "came", lambda *_: None)


def leaves_what_is_deleted_in_the_files(patch: Patch) -> None:
    """The write-ahead log is not cut when the log has let go."""

    async def clean(disk: LogDisk) -> None:
        await disk.store.fold_wal()

    patch.setattr(LogDisk, "clean", clean)


_WORLD: dict[str, Any] = {"regions": 3, "people": 1, "safety": 40.0}
ERASING = {**_WORLD, "rate": 6.0, "every": {"move": 3.0, "block": 6.0, "kill": 8.0}, "limits": {"ERASE_S": 2.0}}
PLANTS = (  # with the rule that each breaks, the seed that found it, and the options that bring it to light
    (signs_before_the_log_lets_go, "ADR 22", 1, ERASING),
    (forgets_what_came_late, "ADR 22", 4, ERASING),
    (forgets_what_it_refused, "ADR 22", 18, {
        **ERASING, "rate": 10.0, "people": 2, "limits": {"ERASE_S": 2.0, "MAX_MAILBOX": 2048}}),
    (leaves_what_is_deleted_in_the_files, "ADR 22", 1, ERASING),
)
