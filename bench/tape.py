"""What all recipients of a stream get is the same, byte for byte: cut into messages once, then compared.

One recipient is the first to read it; what it read goes on the tape. Whoever reads the same after it has it compared
with the tape (`memcmp`, whatever pieces it comes in) and gets the messages that were cut before. Where something else
comes, a ping or an answer, that is cut as ever, and the reader is back on the tape with the next message that is there.
So the generator costs less than what it measures, and every byte that every recipient gets is still looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Final

from relay.limits import MIB

_BYTES: Final = 4 * MIB  # of a reel; recipients that are further behind cut for themselves
_ASTRAY: Final = 1_000  # reads in a row that nothing on the tape was in: it leads nowhere

# Of a delivery: stream, position, number in the stream, sequence, scheduled_ns, where its latencies count.
Noted = tuple[int, int, int, int, int, Counter[int] | None]


class Reel:
    """A part of the stream. Message number n ends at `ends[n]`; the first one's bytes are not there."""

    __slots__ = ("_runs", "data", "ends", "messages", "notes", "places", "steady")

    def __init__(self, message: bytes, rest: bytes) -> None:
        """It begins behind `message`, with `rest`."""
        self.data = bytearray(rest)
        self.ends = [0]
        self.messages = [message]
        self.places = {message: 0}
        self.notes: list[Noted | None] = []  # of the first messages, as far as somebody asked
        self.steady: list[int] = []  # from which message on one follows the other, up to this one
        self._runs: dict[tuple[int, int], Run] = {}  # what was read since there was something new

    def add(self, data: bytes, messages: list[bytes], ends: list[int]) -> bool:
        """`data` follows the last message, with these in it, which end so. False where what is there already of the
        next message is something else."""
        begun = self.ends[-1]
        if not data.startswith(self.data[begun:]):
            return False
        self.data[begun:] = data
        for message, end in zip(messages, ends, strict=True):
            self.places[message] = len(self.messages)
            self.messages.append(message)
            self.ends.append(begun + end)
        self._runs.clear()
        return True

    def run(self, first: int, end: int) -> Run:
        """The messages from number `first` to before `end`: the same one for whoever reads just these."""
        run = self._runs.get((first, end))
        if run is None:
            self._runs[first, end] = run = Run(self, first, end)
        return run


class Part:
    """Some messages of a run in which one follows the other: one stream without a gap, rising in position, timed
    together. Whoever reads it leaves but the time: `times_ns`, to be counted once for all of them."""

    __slots__ = ("counts", "cursor", "messages", "next", "notes", "number", "position", "stream", "times_ns")

    def __init__(self, messages: list[bytes], notes: list[Noted]) -> None:
        """`notes` of all of them, or of none: then it is no delivery, and of no stream."""
        self.messages, self.notes = messages, notes
        self.times_ns: list[int] = []
        self.stream = self.position = self.number = self.cursor = self.next = -1
        self.counts: Counter[int] | None = None
        if notes:
            self.stream, self.position, self.number, _, _, self.counts = notes[0]
            self.cursor, self.next = notes[-1][1], notes[-1][2] + 1


class Run(list[bytes]):
    """Messages that are on a tape, one after the other, from number `first` on."""

    __slots__ = ("_parts", "first", "reel")

    def __init__(self, reel: Reel, first: int, end: int) -> None:
        super().__init__(reel.messages[first:end])
        self.reel, self.first = reel, first
        self._parts: list[Part] = []

    def parts(self, known: Mapping[bytes, Noted]) -> list[Part]:
        """All of it. `known` has the notes of deliveries; what is none is a part of its own."""
        if not self._parts:
            reel, first, end = self.reel, self.first, self.first + len(self)
            while (at := len(reel.notes)) < end:
                note = known.get(reel.messages[at])
                before = reel.notes[-1] if at else None
                reel.notes.append(note)
                reel.steady.append(reel.steady[-1] if note and before and _follows(note, before) else at)
            while end > first:
                begin = max(first, reel.steady[end - 1])
                notes = [note for note in reel.notes[begin:end] if note]
                self._parts.insert(0, Part(reel.messages[begin:end], notes))
                end = begin
        return self._parts


def _follows(note: Noted, before: Noted) -> bool:
    stream, position, number, _, _, counts = note
    rises = position > before[1] or not position
    return stream == before[0] and rises and number == before[2] + 1 and counts is before[5]


_Place = tuple[Reel, int, int]  # how many of its messages are behind a reader, and at which byte he is


class Tape:
    """Of one stream, for all of its recipients in this process."""

    def __init__(self) -> None:
        self._reel: Reel | None = None
        self._before: Reel | None = None  # which that one continues
        self._astray = 0  # reads in a row that were not on it

    def after(self, reel: Reel) -> Reel | None:
        """What continues `reel`, with its last message, if it is not the newest."""
        return self._reel if reel is self._before else None

    def place(self, data: bytes, messages: list[bytes], ends: list[int], led: bool, plain: bool) -> _Place | None:
        """Where a reader is who has cut `messages`, at least one, out of `data`, ending so; None: not on the tape. What
        is new goes on it where it follows on: `led`, its newest message was right before `data`, or is in it. And where
        it is `plain`: nothing but messages."""
        reel, rest = self._reel, data[ends[-1] :]
        if reel is None or self._astray > _ASTRAY:
            self._reel, self._before = Reel(messages[-1], rest), None
            reel = self._reel
        elif messages[-1] not in reel.places:
            known = len(messages) - messages[::-1].index(reel.messages[-1]) if reel.messages[-1] in messages else 0
            if len(reel.data) > _BYTES:
                self._before, self._reel = reel, Reel(reel.messages[-1], bytes(reel.data[reel.ends[-1] :]))
                reel = self._reel
            begun = ends[known - 1] if known else 0
            new = [end - begun for end in ends[known:]]
            if not (known or led) or not plain or not reel.add(data[begun:], messages[known:], new):
                self._astray += 1
                return None
        self._astray = 0
        number = reel.places[messages[-1]]
        at = reel.ends[number]
        return (reel, number + 1, at + len(rest)) if reel.data.startswith(rest, at) else None


class Taped:
    """A line's byte stream, cut into messages, along a tape where it was given one."""

    __slots__ = ("_at", "_behind", "_reel", "_rest", "_tape")

    def __init__(self) -> None:
        self._rest = b""
        self._tape: Tape | None = None
        self._reel: Reel | None = None  # while what was read last is on it, up to byte `_at`
        self._behind = self._at = 0  # and so many of its messages are behind

    def follow(self, tape: Tape) -> None:
        """From here on the recipients of that stream get what comes."""
        self._tape = tape

    def cut(self, data: bytes) -> tuple[list[bytes], list[int], int, bool]:
        """(the messages that are whole, where each ends, where the next thing begins, whether there is nothing else
        up to there). Raises ProtocolError."""
        raise NotImplementedError

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completed. Raises ProtocolError."""
        reel, led = self._reel, False
        if reel is not None:
            behind, at = self._behind, self._at
            if reel.data.startswith(data, at):
                self._at = at = at + len(data)
                self._behind = bisect_right(reel.ends, at, behind)
                return reel.run(behind, self._behind) if self._behind > behind else []
            later = self._tape.after(reel) if self._tape is not None else None
            left = reel.data[at:]
            if later is not None and data.startswith(left):
                self._reel, self._behind, self._at = later, 1, len(reel.data) - reel.ends[-1]
                more = self.feed(data[len(left) :]) if len(data) > len(left) else []
                return reel.messages[behind:] + more if behind < len(reel.ends) else more
            self._reel, led = None, behind == len(reel.ends)
            self._rest = bytes(reel.data[reel.ends[behind - 1] : at])
        if self._rest:
            data = self._rest + data
        messages, ends, stop, plain = self.cut(data)
        self._rest = data[stop:]
        if messages and stop == ends[-1] and self._tape is not None:  # else something else came behind them
            place = self._tape.place(data, messages, ends, led, plain)
            if place is not None:
                self._reel, self._behind, self._at = place
        return messages
