"""Delivery: owns the mailroom. Follows the journal, applies each block, answers senders and wakes whoever is served.

A seat is a device that is served on a line. It catches up at its own pace, reading from the journal; once nothing is
left it is live, and the fan-out gives it what is filed. A line that cannot keep up is demoted to catch-up: it loses
nothing and delays nobody (DESIGN section 8).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import structlog
import trio

from relay.channels import Channels
from relay.core import wire
from relay.core.block import Block
from relay.core.book import Book
from relay.core.frames import server_frame
from relay.core.mailroom import Mailroom, reading
from relay.core.mailroom.effects import (
    Answered, ChannelChanged, CheckpointDue, DeviceGone, Effect, Filed, MembershipChanged, Noticed, OutboxGrew,
    PassedOn, Posted, SessionStarted, UserMoved,
)
from relay.core.mailroom.people import Entry, Notice
from relay.core.wire import Code, Fault
from relay.errors import DeviceRevoked
from relay.fanout import Fanout
from relay.gateway.api import Line
from relay.limits import ACK_EACH_MS, ACK_MOST_MS, ACK_MS, UNACKED_BYTES
from relay.observe.metrics import Metrics
from relay.observe.pulse import Pulse
from relay.ports import Clock, Journal
from relay.recent import RecentFrames, notice_frame
from relay.seat import Item, Seat

_log = structlog.get_logger("relay.delivery")
_UNREAD = (
    "This connection has no room for receipts: what the node sent is not read. Read while you submit; reconnect, and "
    "submit again what has no receipt"
)
_CATCH_UP = 64  # entries read at a time while catching up: bounds what one slow reader holds


class Delivery:
    """The one task that changes the mailroom, and the lines it answers."""

    def __init__(
        self, journal: Journal, room: Mailroom, metrics: Metrics, clock: Clock, pulse: Pulse | None = None
    ) -> None:
        self.room = room
        self.book = Book(room.state.cell, room.state.log_id)
        self._journal = journal
        self._metrics = metrics
        self._clock = clock
        self._lines: dict[bytes, list[Line]] = {}
        self._seats: dict[bytes, Seat] = {}
        self._fanout = Fanout(room.state, metrics, clock, pulse or Pulse())
        self.channels = Channels(room.state, journal, metrics)
        self._started: dict[bytes, SessionStarted] = {}
        self._awaited: set[bytes] = set()
        self._applied = trio.Event()
        self._frames = RecentFrames()
        self._due = False  # a checkpoint, of the state as it is
        self._still = 0
        self._moves = trio.Event()
        self.checkpoint_due: Callable[..., Awaitable[None]] = no_checkpoint  # the state stands still until it started
        self.outbox_grew: Callable[[str], None] = lambda cell: None
        self.passed_on: Callable[[wire.ReceiptItem], None] = lambda item: None

    def time_ms(self) -> int:
        """The log's time, Unix ms: what admission goes by, and what clients are told."""
        return self._journal.time_ms()

    def ack_ms(self) -> int:
        """The pace of acks for one session more, ms: so that all of them together are not what the log is made of."""
        return min(max(ACK_MS, ACK_EACH_MS * len(self._seats)), ACK_MOST_MS)

    # --- following -------------------------------------------------------------------------------
    async def run(self) -> None:
        """Apply blocks until cancelled. Raises DiskFailed or StoreDamaged: the node stops."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fanout.run)
            nursery.start_soon(self.channels.run)
            async for block in self._journal.follow(self.room.state.index):
                while self._still:
                    await self._moves.wait()
                self.apply(block)
                if self._due:
                    self._due = False
                    await nursery.start(self.checkpoint_due)

    @contextmanager
    def still(self) -> Iterator[None]:
        """The state does not change meanwhile."""
        self._still += 1
        self._moves = trio.Event()
        try:
            yield
        finally:
            self._still -= 1
            if not self._still:
                self._moves.set()

    def apply(self, block: Block) -> None:
        """Apply one block and act on its effects. Never waits."""
        before = self.room.admitted
        effects = self.room.apply(block)
        self.book.keep(block, self.room.taken)
        self._metrics.admitted.inc(self.room.admitted - before)
        answers: dict[Line, list[wire.ReceiptItem]] = {}
        for effect in effects:
            self._act(effect, block, answers)
        for line, items in answers.items():  # senders first: writing to a thousand recipients takes a while
            if line.live:
                send_receipt(line, items)
                line.flush()
        self._fanout.hurry()
        self._metrics.waiting.set(len(self.room.state.sources))
        self._metrics.journal_blocks.set(self._journal.tip + 1 - self._journal.first)
        self.look_again()

    def look_again(self) -> None:
        """Whoever waits for something looks again whether it has come."""
        self._applied.set()
        self._applied = trio.Event()

    def _act(self, effect: Effect, block: Block, answers: dict[Line, list[wire.ReceiptItem]]) -> None:
        match effect:
            case Filed():
                self._file(effect, block)
            case Answered():
                self._answer(effect, answers)
            case Noticed():
                self._notice(effect, block, answers)
            case SessionStarted():
                self._session(effect)
            case DeviceGone():
                self._gone(effect)
            case UserMoved():
                self._moved(effect)
            case MembershipChanged():
                self._relisten(effect.user)
            case PassedOn():
                self.passed_on(effect.item)
            case OutboxGrew():
                self.outbox_grew(effect.cell)
            case Posted():
                self.channels.posted(effect, block)
            case ChannelChanged(channel):
                self.channels.changed(channel)
            case CheckpointDue():
                self._due = True

    def _answer(self, effect: Answered, answers: dict[Line, list[wire.ReceiptItem]]) -> None:
        self._count_refused(effect.item.code)
        for line in self._lines.get(effect.device, ()):
            answers.setdefault(line, []).append(effect.item)

    def _notice(self, effect: Noticed, block: Block, answers: dict[Line, list[wire.ReceiptItem]]) -> None:
        """To the seat of the device, in its stream; its other lines, which only submit, get a receipt."""
        notice, seat = effect.notice, self._seats.get(effect.device)
        self._count_refused(notice.code)
        if seat is not None:
            item = Item(notice.position, notice_frame(notice), None, effect.device)
            self._fanout.file((False, seat.line.user), item, block.time)
        told = wire.ReceiptItem(notice.id, notice.code, notice.position, notice.newest, notice.cell)
        for line in self._lines.get(effect.device, ()):
            if seat is None or seat.line is not line:
                answers.setdefault(line, []).append(told)

    def _count_refused(self, code: int) -> None:
        if code >= Code.STALE:
            known = code in Code.__members__.values()
            self._metrics.refused.labels(Code(code).name.lower() if known else "other").inc()

    def _file(self, effect: Filed, block: Block) -> None:
        address, entry = (effect.roster, effect.address), effect.entry
        if self._fanout.anyone(address):
            source = self.room.state.sources.find(entry.source)
            if source is not None and source.index == block.index:
                frame = self._frames.make(entry, source, block)
                self._fanout.file(address, Item(entry.position, frame, entry), block.time)
            else:
                self._fanout.reread(address, entry)  # it waited in an older block: catch-up reads it from there

    # --- sessions --------------------------------------------------------------------------------
    def _session(self, effect: SessionStarted) -> None:
        seat = self._seats.get(effect.device)
        if seat is not None and seat.nonce != effect.nonce:
            seat.line.end(Fault.FENCED, "the device started a newer session")
            self._leave(seat)
        if effect.nonce in self._awaited:
            self._started[effect.nonce] = effect

    def _gone(self, effect: DeviceGone) -> None:
        if effect.rotated:
            _log.info("device_rotated", device=effect.device[:4].hex())
        else:
            _log.info("device_revoked", device=effect.device[:4].hex(), waited=effect.waited)
        for line in self._lines.get(effect.device, ()):
            line.end(Fault.REVOKED, DeviceRevoked(rotated=effect.rotated).text)
        if (seat := self._seats.get(effect.device)) is not None:
            self._leave(seat)

    def _moved(self, effect: UserMoved) -> None:
        """The devices of a user who has left are told where to."""
        for device in effect.devices:
            for line in self._lines.get(device, ()):
                line.end(Fault.NOT_HOME, "this user is at home elsewhere", records=effect.chain)
            seat = self._seats.get(device)
            if seat is not None:
                self._leave(seat)

    async def session_started(self, nonce: bytes, check: Callable[[], None]) -> SessionStarted:
        """Wait until the session's record is applied. The caller sets the deadline. Raises what `check` does: it is
        asked while the session has not started."""
        self._awaited.add(nonce)

        def begun() -> bool:
            if nonce not in self._started:
                check()
            return nonce in self._started

        try:
            await self.wait_for(begun)
            return self._started[nonce]
        finally:
            self._awaited.discard(nonce)
            self._started.pop(nonce, None)

    async def wait_for(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`; asked again after every applied block. The caller sets the deadline."""
        while not true():
            await self._applied.wait()

    async def applied(self, index: int) -> None:
        """Wait until block `index` is. The caller sets the deadline."""
        await self.wait_for(lambda: self.room.state.index >= index)

    async def caught_up(self) -> None:
        """Wait until everything that is committed here now is applied."""
        await self.applied(self._journal.tip)

    def attach(self, line: Line) -> None:
        """Receipts for its device go to this line as well."""
        self._lines.setdefault(line.device, []).append(line)

    def detach(self, line: Line) -> None:
        """The line has ended."""
        self.channels.leave(line)
        lines = self._lines.get(line.device, [])
        if line in lines:
            lines.remove(line)
        if not lines:
            self._lines.pop(line.device, None)
        seat = self._seats.get(line.device)
        if seat is not None and seat.line is line:
            self._leave(seat)

    def sit(self, line: Line, started: SessionStarted, cursor: int) -> Seat:
        """Give the line its seat; `serve` fills it."""
        seat = Seat(line, started.nonce, started.position, cursor)
        old = self._seats.get(line.device)
        if old is not None:
            self._leave(old)
        self._seats[line.device] = seat
        self._metrics.catching_up.inc()
        self._fanout.listen(seat)
        return seat

    def _leave(self, seat: Seat) -> None:
        if self._seats.get(seat.line.device) is seat:
            del self._seats[seat.line.device]
            if not seat.live:
                self._metrics.catching_up.dec()
        self._fanout.leave(seat)
        seat.demote()

    def _relisten(self, user: bytes) -> None:
        for seat in self._fanout.seats_at((False, user)):
            self._fanout.demote(seat, "reread")  # what was filed before may be for a new member: catch-up finds it
            self._fanout.listen(seat)

    def seat_of(self, line: Line) -> Seat | None:
        """The seat of a line that is served; None once it was fenced or has ended."""
        seat = self._seats.get(line.device)
        return seat if seat is not None and seat.line is line else None

    def lines_of(self, user: bytes) -> Iterable[Line]:
        """The lines on which devices of `user` are served."""
        return [seat.line for seat in self._fanout.seats_at((False, user))]

    # --- serving ---------------------------------------------------------------------------------
    async def serve(self, seat: Seat) -> None:
        """Catch up, say EMPTY once, then be live; again whenever the line was demoted. Until cancelled or fenced."""
        told = False
        while self._seats.get(seat.line.device) is seat:
            seat.wake = trio.Event()
            if seat.unacked_bytes > UNACKED_BYTES:
                await seat.wake.wait()
                continue
            items = reading.pending(self.room.state, seat.line.device, seat.sent, _CATCH_UP)
            if items:
                await self._catch_up(seat, items)
                continue
            if not told:
                told = True
                await seat.line.send(server_frame(wire.encode_message(wire.Empty(seat.started))))
                continue  # something may have come while the line was slow
            seat.live = True
            self._metrics.catching_up.dec()
            while seat.live:
                await seat.wake.wait()
                seat.wake = trio.Event() if seat.live else seat.wake
        await trio.sleep_forever()  # fenced: the gateway ends the line

    async def _catch_up(self, seat: Seat, items: list[Entry | Notice]) -> None:
        sent = 0
        for item in items:
            frame = await self._frame_of(item)
            if frame is None:
                break  # settled or carried while we waited: look again
            while item.expires > self.room.state.time and not seat.line.push((frame,)):
                await seat.line.room()
            if item.expires <= self.room.state.time:
                seat.sent = item.position  # rule 14: nothing expired is delivered
                continue
            seat.count((item.position, len(frame)))
            sent += 1
            if seat.unacked_bytes > UNACKED_BYTES:
                break
        seat.line.flush()
        self._metrics.delivered.inc(sent)
        await trio.lowlevel.checkpoint()

    async def _frame_of(self, item: Entry | Notice) -> bytes | None:
        if isinstance(item, Notice):
            return notice_frame(item)
        frame = self._frames.find(item)
        if frame is not None:
            return frame
        sources = self.room.state.sources
        source = sources.find(item.source)
        if source is None:
            return None
        try:
            block = await self._journal.read(source.index)
        except LookupError:
            return None
        return self._frames.make(item, source, block) if sources.find(item.source) == source else None


async def no_checkpoint(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Nobody saves any."""
    await trio.lowlevel.checkpoint()
    task_status.started()


def send_receipt(line: Line, items: Sequence[wire.ReceiptItem]) -> None:
    """Queue a receipt. Where there is no room the line ends: the client submits again and gets the same outcomes."""
    if not line.push([server_frame(wire.encode_message(wire.Receipt(tuple(items))))]):
        line.end(Fault.UNREAD, _UNREAD)
