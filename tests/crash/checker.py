"""The verdict on a history: what was acknowledged and never came, what came twice, what came against its order.

Its own judge: it knows what clients saw (history.py) and who was to get what, and shares no code with relay or cluster.

lost        acknowledged (ACCEPTED or STORED), never refused, and some device of its address never got it
duplicated  one device got the same envelope at two positions, or two envelopes with the same counter
reordered   a device got a sender's message after a later one of the same conversation; or positions on one connection
            did not rise. What its sender was told to try again may come late: counted apart.
wrong       an envelope nobody sent, or for somebody else; a refusal after an acknowledgement, a device whose cursor is
            said to lie beyond the log's end

The same position a second time, on another connection, is a wire duplicate: clients drop it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from tests.crash.history import GROUP, Answered, AnyEvent, Connected, Delivered, Dropped, Submitted

_FINAL, _RETRY = 16, 64  # codes below the first are acknowledgements, those from the second on may be tried again
_ROLLED_BACK = 5


@dataclass(slots=True)
class Message:
    """An envelope. `missing`: devices that have not got it."""

    sender: int
    to: int
    counter: int
    missing: set[int]
    acked: bool = False
    refused: bool = False
    retried: bool = False


@dataclass(slots=True)
class Verdict:
    """Counted so far. `lost` counts pairs of an envelope and a device."""

    acknowledged: int = 0
    refused: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    reordered: int = 0
    wrong: int = 0
    late: int = 0
    wire_duplicates: int = 0
    reconnects: int = 0

    @property
    def clean(self) -> bool:
        return not (self.lost or self.duplicated or self.reordered or self.wrong)


@dataclass
class Checker:
    """`devices[user]`: the numbers of a user's devices."""

    devices: Sequence[Sequence[int]]
    verdict: Verdict = field(default_factory=Verdict)
    findings: list[str] = field(default_factory=list)  # the first ones, in words
    faults: Counter[str] = field(default_factory=Counter)
    acked_at: list[int] = field(default_factory=list)  # ms, ascending: of each acknowledgement
    _messages: dict[bytes, Message] = field(default_factory=dict)
    _got: dict[int, dict[bytes, int]] = field(default_factory=dict)  # device → envelope → position
    _highest: dict[tuple[int, int, int], int] = field(default_factory=dict)  # (device, sender, to) → counter
    _counters: set[tuple[int, int, int, int]] = field(default_factory=set)
    _last: dict[int, int] = field(default_factory=dict)  # device → last position on this connection
    _nodes: dict[int, int] = field(default_factory=dict)  # device → the node it is connected to

    # --- what happened ---------------------------------------------------------------------------
    def take(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            match event:
                case Delivered():
                    self._delivered(event)
                case Answered():
                    self._answered(event)
                case Submitted():
                    who = range(sum(map(len, self.devices))) if event.to == GROUP else self.devices[event.to]
                    self._messages[event.id] = Message(event.device, event.to, event.counter, set(who))
                case Connected():
                    self.verdict.reconnects += event.device in self._last
                    self._last[event.device] = event.cursor
                    self._nodes[event.device] = event.node
                case Dropped():
                    self._nodes.pop(event.device, None)
                    self.faults[event.why] += 1
                    if event.fault == _ROLLED_BACK:
                        self._wrong(event, "was told that its cursor lies beyond the end of the log")

    def _answered(self, event: Answered) -> None:
        message = self._messages.get(event.id)
        if message is None or message.sender != event.device:
            self._wrong(event, "got a receipt for what it never sent")
        elif event.code < _FINAL:
            if not message.acked:
                self.verdict.acknowledged += 1
                self.acked_at.append(event.at)
            message.acked = True
        elif event.code < _RETRY:
            if message.acked:
                self._wrong(event, f"was refused with {event.code} what had been acknowledged")
            self.verdict.refused += not message.refused
            message.refused = True
        else:
            message.retried = True

    def _delivered(self, event: Delivered) -> None:
        device, position = event.device, event.position
        if position <= self._last.get(device, -1):
            self._note(f"device {device}: position {position} after {self._last[device]}")
            self.verdict.reordered += 1
        self._last[device] = position
        if not event.id:
            return
        message = self._messages.get(event.id)
        got = self._got.setdefault(device, {})
        if event.id in got:
            if got[event.id] == position:
                self.verdict.wire_duplicates += 1
            else:
                self._note(f"device {device}: {event.id.hex()[:12]} at {got[event.id]} and at {position}")
                self.verdict.duplicated += 1
            return
        got[event.id] = position
        if message is None or device not in message.missing:
            self._wrong(event, "got an envelope that nobody sent to it")
            return
        message.missing.remove(device)
        self.verdict.delivered += 1
        self._in_order(device, message)

    def _in_order(self, device: int, message: Message) -> None:
        stream = device, message.sender, message.to
        if (*stream, message.counter) in self._counters:
            self._note(f"device {device}: a second message {message.counter} of device {message.sender}")
            self.verdict.duplicated += 1
        self._counters.add((*stream, message.counter))
        highest = self._highest.get(stream, -1)
        if message.counter < highest:
            if message.retried:
                self.verdict.late += 1
            else:
                self._note(f"device {device}: message {message.counter} of device {message.sender} after {highest}")
                self.verdict.reordered += 1
        self._highest[stream] = max(highest, message.counter)

    # --- the sum ---------------------------------------------------------------------------------
    @property
    def connected(self) -> int:
        """Devices that are connected now."""
        return len(self._nodes)

    def unanswered(self) -> int:
        """Envelopes without a final answer."""
        return sum(not (message.acked or message.refused) for message in self._messages.values())

    def missing(self) -> int:
        """Deliveries that are due: 0 when everything that was acknowledged has come."""
        return sum(
            len(message.missing) for message in self._messages.values() if message.acked and not message.refused
        )

    def settle(self) -> None:
        """All that is still missing is lost."""
        for key, message in self._messages.items():
            if message.acked and not message.refused and message.missing:
                self.verdict.lost += len(message.missing)
                self._note(
                    f"{key.hex()[:12]}, message {message.counter} of device {message.sender} to {message.to}, "
                    f"never came to devices {sorted(message.missing)}"
                )
                message.refused = True  # counted once

    def rate(self, since: int, until: int) -> float:
        """Acknowledged messages a second between two times, ms."""
        count = sum(since <= at < until for at in self.acked_at)
        return count * 1000 / max(1, until - since)

    def pause(self, since: int, until: int) -> int:
        """The longest time between two times without an acknowledgement, ms."""
        times = [since, *(at for at in self.acked_at if since <= at < until), until]
        return max(after - before for before, after in pairwise(times))

    def _wrong(self, event: AnyEvent, what: str) -> None:
        self.verdict.wrong += 1
        self._note(f"device {event.device} {what}")

    def _note(self, text: str) -> None:
        if len(self.findings) < 20:
            self.findings.append(text)
