"""Planted defects: real code, patched from here to break one rule each. The simulator must find every one of them.

A defect names the options that bring the faults it needs, and the seed that found it, which `hunt` tries first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import trio

import relay.journal.mark
import tests.simulation.image
from cluster.core.raft import Accepted, Members, Raft
from cluster.core.raft import machine as raft_machine
from cluster.core.raft.desk import Desk
from cluster.core.raft.leading import Leading
from cluster.core.raft.recall import Doubt
from cluster.handover import Reception
from cluster.journal.disk import RaftDisk
from cluster.journal.stamp import CellClock
from relay.core import records
from relay.core.block import position
from relay.core.mailroom import admission, expiry, outboxes, reading, rosters
from relay.core.mailroom.effects import SessionStarted
from relay.core.mailroom.people import Entry
from relay.core.mailroom.state import Origin, State
from relay.core.mailroom.turn import Turn
from relay.core.wire import Code
from relay.delivery import Delivery
from relay.errors import AuthError, StoreDamaged
from relay.gateway.api import Started
from relay.journal.api import Write
from relay.journal.disk import LogDisk
from relay.journal.guard import ResidencyGuard
from relay.journal.solo import SoloJournal
from relay.limits import KIB
from relay.office import Office
from relay.steward import Steward
from tests.simulation import defects_of_channels as of_channels, defects_of_devices as of_devices
from tests.simulation import defects_of_hand_overs as of_hand_overs, defects_of_liars as of_liars
from tests.simulation import defects_of_moves as of_moves, defects_of_policies as of_policies
from tests.simulation.network import Weather
from tests.simulation.world import START_MS

Patch = pytest.MonkeyPatch
Plant = Callable[[Patch], None]

# --- disks and votes (rules 1 to 9) ----------------------------------------------------------------
def says_at_once(patch: Patch, kind: type) -> None:
    honest = Desk.say_after
    patch.setattr(Desk, "say_after", lambda desk, m: desk.say(m) if isinstance(m, kind) else honest(desk, m))


def acks_before_fsync(patch: Patch) -> None:
    """A follower acknowledges entries that its disk does not have yet."""
    says_at_once(patch, Accepted)


def acks_before_fsync_alone(patch: Patch) -> None:
    """A cell of one commits a block, and answers for it, before the disk has it."""

    async def append(journal: SoloJournal, batch: Sequence[bytes], placed: Callable[[], None] = lambda: None) -> None:
        disk = journal._disk
        async with disk.writing:
            disk.store.check()
            block = journal._tail.next_block(batch)
            facts = disk.residency.check(batch)
            sealed = [(key, block.index, disk.sealer.fact(key, value)) for key, value in facts]
            disk.residency.learn(facts)
            journal._tail.commit(block)
            await disk.store.write(Write([disk.sealer.block_row(block, 0)], facts=sealed))

    patch.setattr(SoloJournal, "append", append)


def forgets_its_vote(patch: Patch) -> None:
    """After the first term, term and vote are written beside entries only, not when they change."""
    honest = Desk.take_write

    def take_write(desk: Desk, hard: Any, figures: Any) -> Any:
        write = honest(desk, hard, figures)
        return replace(write, hard=None) if write and not write.append and hard.term > 1 else write

    patch.setattr(Desk, "take_write", take_write)


def counts_copies_of_older_terms(patch: Patch) -> None:
    """A leader commits an entry of an older term by counting its copies."""
    honest = Leading.committed

    def committed(leading: Leading, commit: int, stored: int) -> int:
        first, leading._first = leading._first, 0
        try:
            return honest(leading, commit, stored)
        finally:
            leading._first = first

    patch.setattr(Leading, "committed", committed)


def stands_without_prevote(patch: Patch) -> None:
    """A store that hears no leader raises its term at once."""
    honest = Raft._stand
    patch.setattr(Raft, "_stand", lambda raft, pre, transfer=False: honest(raft, False, transfer))


def counts_learners(patch: Patch) -> None:
    """A learner is taken for a voter."""
    patch.setattr(Members, "voter_ids", Members.ids)
    patch.setattr(Members, "votes", lambda members, store: store in members.ids)


def no_mark(patch: Patch) -> None:
    """What the mark file says is not looked at."""
    patch.setattr(relay.journal.mark, "behind", lambda mark, has: None)
    patch.setattr(tests.simulation.image, "behind", lambda mark, has: None)


def no_doubt(patch: Patch) -> None:
    """A rolled-back store votes and acknowledges: neither mark nor recall hold it back."""
    no_mark(patch)
    patch.setattr(Doubt, "lost", False)
    patch.setattr(Doubt, "settled", lambda doubt, now, patience: not doubt._stranger)
    patch.setattr(raft_machine, "figure_for", lambda store, append: raft_machine.ORIGIN)


def skips_what_is_damaged(patch: Patch) -> None:
    """Delivery goes past an envelope whose block cannot be read."""
    honest = Delivery._catch_up

    async def mend(disk: RaftDisk, index: int, error: StoreDamaged) -> Any:
        raise error

    async def catch_up(delivery: Delivery, seat: Any, items: list[Any]) -> None:
        good = []
        for item in items:
            try:
                await delivery._frame_of(item)
                good.append(item)
            except StoreDamaged:
                seat.sent = seat.sent if good else item.position
        await honest(delivery, seat, good)

    patch.setattr(RaftDisk, "mend", mend)
    patch.setattr(Delivery, "_catch_up", catch_up)


# --- the fold and its checkpoints (rules 10 to 12) -------------------------------------------------
def fold_reads_the_clock(patch: Patch) -> None:
    """The fold goes by the time at which it applies a block, not by the block's."""
    honest = expiry.expire_due

    def expire_due(turn: Turn) -> None:
        turn.time = START_MS + int(trio.current_time() * 1000)
        honest(turn)

    patch.setattr(expiry, "expire_due", expire_due)


def checkpoint_is_of_another_index(patch: Patch) -> None:
    """The fold goes on while a checkpoint is made: its state is later than its index."""

    async def save(steward: Steward, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        async with steward._saving:
            room = steward._delivery.room
            index, rows = room.state.index, list(room.checkpoint())
            if index != steward._saved:
                await trio.sleep(0.5)
                rows[1:] = list(room.checkpoint())[1:]
                ahead, behind = trio.open_memory_channel[bytes](len(rows))
                for row in rows:
                    ahead.send_nowait(row)
                ahead.close()
                await steward._journal.save_checkpoint(index, behind)
                steward._saved = index

    patch.setattr(Steward, "save", save)


def releases_too_early(patch: Patch) -> None:
    """The prefix goes as soon as a checkpoint covers it, whoever still waits for what lies there."""
    honest = LogDisk.release

    async def release(disk: LogDisk, below: int, members: bytes | None = None) -> None:
        await honest(disk, disk.head.index + 1 if disk.head else below, members)

    patch.setattr(LogDisk, "release", release)


# --- time (rule 14) --------------------------------------------------------------------------------
def stamps_by_a_wild_clock(patch: Patch) -> None:
    """A leader stamps what its own clock says, and never steps down over it."""
    patch.setattr(CellClock, "stamp", lambda clocks, voters: clocks._clock.wall_ms())
    patch.setattr(CellClock, "apart", lambda clocks, voters: 0)


def delivers_what_has_expired(patch: Patch) -> None:
    """What has expired stays, and is delivered."""
    honest = reading.pending

    def pending(state: State, device: bytes, after: int, limit: int) -> list[Any]:
        return [
            item._replace(expires=1 << 60) if isinstance(item, Entry) else item
            for item in honest(state, device, after, limit)
        ]

    patch.setattr(expiry, "expire_due", lambda turn: None)
    patch.setattr(reading, "pending", pending)


# --- admission and hand-overs (rules 15 to 17) -----------------------------------------------------
def admits_repeats(patch: Patch) -> None:
    """Outcomes are not remembered: the same envelope is admitted again."""
    patch.setattr(Turn, "remember", lambda turn, item, created: None)


def origin_vector_is_off(patch: Patch) -> None:
    """What another cell hands over is counted from two, not from one."""
    honest = outboxes.new_origin

    def new_origin(state: State, cell: str, log_id: bytes) -> Origin:
        origin = honest(state, cell, log_id)
        origin.vector = 1
        return origin

    patch.setattr(outboxes, "new_origin", new_origin)


def forgets_refusals(patch: Patch) -> None:
    """What became of a hand-over is remembered only where it was stored."""
    honest = admission.hand_in

    def hand_in(turn: Turn, record: records.HandIn, size: int) -> None:
        honest(turn, record, size)
        origin = turn.state.origins[record.origin, record.origin_log]
        if origin.outcomes.get(record.number, (Code.STORED, 0))[0] != Code.STORED:
            del origin.outcomes[record.number]

    patch.setattr(admission, "hand_in", hand_in)


def writes_before_the_roster_is_known(patch: Patch) -> None:
    """A cell writes a group's envelope although it does not have the version which that names."""
    honest = Reception._refusal

    def refusal(reception: Reception, envelope: bytes) -> Code | None:
        code = honest(reception, envelope)
        return None if code == Code.UNKNOWN_ROSTER else code

    patch.setattr(Reception, "_refusal", refusal)
    patch.setattr(ResidencyGuard, "_check_handed", lambda guard, header, known: None)


def sends_to_every_cell(patch: Patch) -> None:
    """A group's envelope goes to every cell that anything ever went to, and nobody there objects."""
    honest = rosters._elsewhere

    def elsewhere(state: State, roster: Any) -> list[str]:
        return sorted({*honest(state, roster), *state.outboxes} - {state.cell})

    patch.setattr(rosters, "_elsewhere", elsewhere)
    patch.setattr(Reception, "_refusal", lambda reception, envelope: None)
    patch.setattr(ResidencyGuard, "_check_handed", lambda guard, header, known: None)


# --- delivery (rule 18) ----------------------------------------------------------------------------
def catch_up_skips(patch: Patch) -> None:
    """Of several things that wait, catch-up leaves out the first."""
    honest = reading.pending

    def pending(state: State, device: bytes, after: int, limit: int) -> list[Any]:
        items = honest(state, device, after, limit)
        return items[1:] if len(items) > 1 else items

    patch.setattr(reading, "pending", pending)


def live_overtakes(patch: Patch) -> None:
    """A seat is live from the start, whatever catch-up still has to bring."""
    honest = Delivery.sit

    def sit(delivery: Delivery, line: Any, started: SessionStarted, cursor: int) -> Any:
        seat = honest(delivery, line, started, cursor)
        seat.live = True
        return seat

    patch.setattr(Delivery, "sit", sit)


def empty_before_the_session(patch: Patch) -> None:
    """A session is served, and told EMPTY, before its record is applied."""

    async def start(office: Office, line: Any, hello: Any, nonce: bytes) -> Started:
        room = office._delivery.room
        device = room.state.devices.get(line.device)
        if device is None:
            raise AuthError("this device is no longer enrolled")
        cursor = max(device.cursor, hello.cursor if hello.log_id == office.identity.log_id else 0)
        office._intake.offer([records.encode_record(records.Session(line.device, office.identity.node, nonce, cursor))])
        started = SessionStarted(line.device, nonce, position(room.state.index + 1, 0), cursor)
        office._delivery.attach(line)
        office._delivery.sit(line, started, cursor)
        version = room.state.users[line.user].record.version
        return Started(office.identity.log_id, cursor, started.position, version, office._delivery.time_ms())

    patch.setattr(Office, "start", start)


# --- the list --------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Defect:
    """`rule`: of DESIGN.md section 4, or 5 where it says so. `options`: fixed. `seed`: found it when recorded."""

    plant: Plant
    rule: str
    seed: int
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.plant.__name__.replace("_", " ")


SMALL = {
    "safety": 40.0, "heal": 90.0, "people": 2, "devices": 2, "rate": 3.0, "burst": 4, "size": 200, **of_liars.TRUE,
    "weather": Weather(), "limits": {}, "policies": {}, "short_lived": 0, "slow_disk": 0, "down": 10.0, "away": 20.0,
    "channels": 0,
}  # fmt: skip
ALONE = {**SMALL, "nodes": 1, "regions": 1, "groups": 0}
ABROAD = {**SMALL, "nodes": 1, "regions": 3, "people": 1, "groups": 3, "group_share": 0.5}
CELL = {**SMALL, "nodes": 3, "regions": 1, "groups": 0, "safety": 60.0}
MOVING = {**SMALL, "nodes": 1, "regions": 3, "groups": 0, "rate": 6.0, "every": {"move": 3.0, "block": 6.0}}
TIGHT = {"CHECKPOINT_BYTES": 8 * KIB, "RECENT_BLOCKS": 16 * KIB, "RECENT_FRAMES": 2 * KIB}

DEFECTS = [
    Defect(acks_before_fsync, "1, 2", 1, {
        **CELL, "disk": 0.02, "slow_disk": 0.1, "every": {"all_down": 15.0, "kill": 5.0}}),
    Defect(acks_before_fsync_alone, "1", 5, {**ALONE, "disk": 0.05, "down": 2.0, "every": {"power": 2.0}}),
    Defect(forgets_its_vote, "2", 1, {**CELL, "every": {"kill": 3.0, "all_down": 20.0}}),
    Defect(counts_copies_of_older_terms, "3", 1, {
        **CELL, "weather": Weather(near=0.02, jitter=1.0), "every": {"kill": 3.0, "block": 3.0}, "down": 5.0,
        "away": 5.0, "limits": {"RAFT_APPEND_ENTRIES": 1}}),
    Defect(stands_without_prevote, "3", 1, {**CELL, "every": {"flap": 6.0}}),
    Defect(counts_learners, "4, 8", 1, {**CELL, "every": {}}),
    Defect(no_doubt, "4, 5", 1, {**CELL, "every": {"old_copy": 6.0}, "down": 5.0}),
    Defect(no_mark, "5", 2, {**CELL, "rate": 8.0, "every": {"lost_tail": 6.0}, "down": 20.0}),
    Defect(skips_what_is_damaged, "6, 18", 2, {**CELL, "every": {"flip": 1.0, "offline": 2.0}, "limits": TIGHT}),
    Defect(fold_reads_the_clock, "10", 1, {**ALONE, "short_lived": 0.4, "every": {"kill": 5.0, "offline": 3.0}}),
    Defect(checkpoint_is_of_another_index, "11", 1, {**ALONE, "every": {"kill": 5.0}, "limits": TIGHT}),
    Defect(releases_too_early, "12", 1, {**ALONE, "every": {"offline": 2.0}, "limits": TIGHT}),
    Defect(stamps_by_a_wild_clock, "14", 2, {**CELL, "skew_ms": 60_000.0, "every": {"skew": 5.0}}),
    Defect(delivers_what_has_expired, "14", 1, {**ALONE, "short_lived": 0.5, "every": {"offline": 2.0}}),
    Defect(admits_repeats, "15", 1, {**ALONE, "every": {"cut": 0.5}}),
    Defect(origin_vector_is_off, "16", 1, {**ABROAD, "every": {}}),
    Defect(forgets_refusals, "16", 2, {**ABROAD, "every": {"regroup": 3.0, "cut": 2.0, "block": 3.0}}),
    Defect(of_hand_overs.forwarder_forgets, "16", 2, {**ABROAD, "every": {"cut": 1.0, "block": 5.0}}),
    Defect(of_hand_overs.a_later_answer_counts_for_those_before, "16; ADR 37", 2, {
        **ABROAD, "rate": 10.0, "every": {"regroup": 3.0, "cut": 1.0, "block": 5.0}}),
    Defect(of_hand_overs.a_guess_counts_as_taken, "16; ADR 37", 8, {
        **ABROAD, "rate": 10.0, "every": {"regroup": 3.0, "cut": 1.0, "block": 5.0}}),
    Defect(writes_before_the_roster_is_known, "17; section 5, 3", 6, {
        **ABROAD, "every": {"regroup": 3.0, "cut": 2.0, "block": 3.0}}),
    Defect(sends_to_every_cell, "section 5, 1 to 3", 1, {**ABROAD, "every": {"regroup": 5.0}}),
    Defect(catch_up_skips, "18", 1, {**ALONE, "every": {"offline": 2.0}}),
    Defect(live_overtakes, "18", 1, {
        **ALONE, "rate": 10.0, "disk": 0.05, "every": {"offline": 1.0}, "limits": TIGHT}),
    Defect(of_devices.lets_a_revoked_device_go_on, "17", 1, {
        **CELL, "safety": 20.0, "people": 4, "every": {"revoke": 4.0}}),
    Defect(of_devices.forgets_what_waits_at_a_rotation, "17", 1, {**ALONE, "every": {"rotate": 3.0, "offline": 2.0}}),
    Defect(of_devices.denies_what_it_has_not_applied, "16; ADR 29", 2, {
        **CELL, "people": 4, "rate": 6.0, "burst": 40, "disk": 0.02, "slow_disk": 0.02,
        "every": {"enrol": 1.0, "silence": 5.0}}),
    Defect(empty_before_the_session, "18", 1, {**ALONE, "rate": 10.0, "disk": 0.05, "every": {"cut": 0.5}}),
    Defect(of_moves.drops_what_comes_late, "ADR 21", 2, MOVING),
    Defect(of_moves.leaves_what_waits_behind, "ADR 21", 2, {**MOVING, "every": {"move": 3.0, "offline": 2.0}}),
    Defect(of_moves.forwards_before_the_home_is_known, "ADR 21", 2, {
        **MOVING, "every": {"move": 3.0, "offline": 2.0}}),
    Defect(of_moves.the_old_home_goes_on, "ADR 21", 1, MOVING),
    Defect(of_moves.drops_forwards_that_are_known, "ADR 21", 2, {**MOVING, "every": {"move": 1.0, "offline": 2.0}}),
    Defect(of_moves.forwards_to_another_cell, "section 5, 3", 2, MOVING),
    Defect(of_moves.says_stored_when_it_is_sent_on, "19; ADR 21", 2, MOVING),
    *(Defect(*three, {**ALONE, **more})
      for of in (of_liars, of_moves, of_policies, of_channels) for *three, more in of.PLANTS),
]  # fmt: skip
