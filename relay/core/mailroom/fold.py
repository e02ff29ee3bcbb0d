"""The mailroom: the deterministic fold over a cell's log (DESIGN sections 2 and 4, rules 10 to 18).

`apply` takes committed blocks in order and gives effects; the same blocks give the same state, effects and digest on
every node, whatever the clock says there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from relay.core import records
from relay.core.block import Block
from relay.core.book import Taken
from relay.core.mailroom import admission, answers, channels, checkpoint, expiry, moving, residents, rosters, settle
from relay.core.mailroom.effects import CheckpointDue, Effect
from relay.core.mailroom.people import no_devices, no_users
from relay.core.mailroom.state import State, check_fold_version
from relay.core.mailroom.turn import Turn
from relay.core.packing import Shelf
from relay.errors import StoreDamaged
from relay.limits import CHECKPOINT_BYTES


class Mailroom:
    """Owns the state. Readers use relay.core.mailroom.reading on `state`; nobody else changes it."""

    def __init__(self, cell: str, log_id: bytes, shelf: Shelf | None = None) -> None:
        """Who rests lies on the shelf; without one, in memory."""
        self.state = State(
            cell, log_id, users=no_users(shelf), devices=no_devices(shelf), checkpoint_due=CHECKPOINT_BYTES
        )
        self.admitted = 0  # envelopes taken since the start: for the metrics, not part of the state
        self.taken: list[Taken] = []  # by the last block: for receipts, not part of the state either

    @classmethod
    def of(cls, state: State) -> Mailroom:
        """That goes on from a state: one of `checkpoint.Loading`."""
        room = cls.__new__(cls)
        room.state = state
        room.admitted = 0
        room.taken = []
        return room

    @classmethod
    def from_checkpoint(cls, rows: Iterable[bytes], shelf: Shelf | None = None) -> Mailroom:
        """Raises StoreDamaged where the rows are not a checkpoint."""
        loading = checkpoint.Loading(shelf)
        for row in rows:
            loading.take(row)
        return cls.of(loading.done())

    def checkpoint(self) -> Iterator[bytes]:
        """The state as rows, to be saved with `state.index`. It must not change before the last one is made."""
        return checkpoint.dump(self.state)

    def digest(self) -> bytes:
        return checkpoint.state_digest(self.state)

    def apply(self, block: Block) -> list[Effect]:
        """Apply the next block. Raises StoreDamaged where it is not the next one of this log."""
        state = self.state
        if block.log_id != state.log_id or block.index != state.index + 1 or block.time < state.time:
            raise StoreDamaged(f"block {block.index} is not the one after {state.index} of this log")
        state.index, state.time = block.index, block.time
        state.blocks.add(block.size)
        turn = Turn(state, block.index, block.time)
        expiry.expire_due(turn)
        settle.forget_outcomes(turn)
        for ordinal, data in enumerate(block.records):
            turn.ordinal = ordinal
            self._apply_record(turn, records.decode_record(data), len(data))
        if block.index % settle.SETTLE_EVERY == 0:
            settle.settle_rosters(state)
            expiry.rebuild_if_stale(state)
            state.blocks.forget(min(state.floor(), block.index))
        self.admitted += turn.admitted
        self.taken = turn.taken
        state.log_bytes += block.size
        state.users.rest()
        state.devices.rest()
        if state.log_bytes >= state.checkpoint_due:
            checkpoint.plan(state)
            turn.effects.append(CheckpointDue())
        return turn.effects

    def _apply_record(self, turn: Turn, record: records.Record, size: int) -> None:
        if turn.state.moved:
            moving.came(turn, record)
        match record:
            case records.Submit():
                admission.submit(turn, record, size)
            case records.Ack():
                residents.ack(turn, record)
            case records.HandIn():
                admission.hand_in(turn, record, size)
            case records.Passed():
                admission.passed(turn, record, size)
            case records.Handed():
                answers.handed(turn, record)
            case records.Session():
                residents.session(turn, record)
            case records.Home():
                residents.home(turn, record)
            case records.Roster():
                rosters.publish(turn, record, size)
            case records.Post():
                channels.post(turn, record, size)
            case records.Channel():
                channels.publish(turn, record)
            case records.Carry():
                settle.carry(turn, record)
            case records.Move():
                turn.next_position()
                moving.move(turn, record.chain)
            case records.FoldVersion():
                _fold_version(turn, record)
            case records.Tick() | records.Members():
                pass


def _fold_version(turn: Turn, record: records.FoldVersion) -> None:
    check_fold_version(record.version)
    turn.state.fold_version = record.version
