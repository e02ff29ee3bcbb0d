"""The history that everybody writes into: what was said, what the relay answered, what reached whom, and when.

A letter is what a user means to say once. It may go out as several envelopes (sealed anew after STALE), all with the
same canary: random bytes that say, wherever they are found, whose letter lies there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import trio

from relay.core.wire import Code
from tests.simulation.world import Trace, Violation

MARK: Final = b"\xf0\x9f\x90\xa4"  # before every canary; four bytes that nothing else in a world contains
CANARY: Final = 12  # bytes of a canary, its mark excluded
_FIND: Final = re.compile(re.escape(MARK) + b"(.{%d})" % CANARY, re.DOTALL)


@dataclass(eq=False, slots=True)
class Letter:
    """One thing that one device says. `required` devices must get it, `allowed` ones may (for a group: all devices of
    the people that it names). A device is called person/number."""

    number: int
    sender: str
    canary: bytes
    target: bytes  # user or group
    group: bool
    hint: str  # region of the recipient; empty for a group
    version: int
    counter: int
    regions: frozenset[str]  # where it may rest
    required: set[str]
    allowed: frozenset[str]
    lifetime_ms: int
    lasts: bool  # it lives long enough that it has to arrive
    size: int
    written: float  # virtual time
    envelopes: list[bytes] = field(default_factory=list)  # ids, oldest first
    expires_ms: int = 0  # of the newest envelope
    accepted: float | None = None  # when ACCEPTED or STORED came first
    stored: float | None = None
    refused: int = 0  # the final refusal
    withheld: bool = False  # from members in regions where the sender's may not send
    may_rest: Callable[[], frozenset[str]] | None = None  # by the policies that there are
    may_be_refused: Callable[[], bool] = lambda: False  # by one of them
    later: set[str] = field(default_factory=set)  # regions that are ever in its group; shared by its letters
    delivered: dict[str, float] = field(default_factory=dict)  # device name → when first

    @property
    def body(self) -> bytes:
        head = MARK + self.canary + self.number.to_bytes(4, "big")
        return head + bytes(max(0, self.size - len(head)))

    @property
    def author(self) -> str:
        """The person whose device wrote it."""
        return self.sender.partition("/")[0]

    @property
    def settled(self) -> bool:
        """Nothing more is to be expected by its sender."""
        return self.stored is not None or self.refused != 0 or self.withheld


class Ledger:
    """All letters, by what they are found by."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.proofs: Any = None  # tests.simulation.proofs.Proofs
        self.channels: Any = None  # tests.simulation.channels.Book
        self.letters: list[Letter] = []
        self._by_canary: dict[bytes, Letter] = {}
        self._by_id: dict[bytes, Letter] = {}
        self._gone: set[str] = set()  # devices that were revoked
        self.movers: set[str] = set()  # people who have moved
        self.moved_users: set[bytes] = set()  # the same by their ids
        self.liar = ""  # a region that lies
        self.exposed: Callable[[str], bool] = lambda person: False  # was this person ever at home with the liar?
        self.owners: dict[bytes, str] = {}  # group → the person whose device owns it

    def moved(self, person: str, user: bytes, groups: set[bytes], region: str) -> None:
        """Somebody moves: what is for or from that person may rest in the new home as well."""
        self.movers.add(person)
        self.moved_users.add(user)
        for letter in self.letters:
            if letter.target == user or letter.target in groups or letter.author == person:
                letter.regions |= {region}

    def has_moved(self, envelope_id: bytes, recipient: str) -> bool:
        """Has one of those between whom this envelope goes moved? Then it may come by two ways."""
        letter = self._by_id.get(envelope_id)
        if letter is not None and not self.trusts(letter, recipient):
            return True  # and the liar says as often as it likes what it knows
        return recipient in self.movers or (letter is not None and letter.author in self.movers)

    def write(self, letter: Letter) -> None:
        self.letters.append(letter)
        self._by_canary[letter.canary] = letter
        kind = "group letter" if letter.group else "letter"
        self.trace(kind, letter.number, letter.sender, len(letter.required), letter.size)

    def mark(self, post: Letter) -> None:
        """A post to a channel: nobody counts on it here, but where it lies it is recognised."""
        self._by_canary[post.canary] = post

    def sealed(self, letter: Letter, envelope_id: bytes, expires_ms: int) -> None:
        """The letter goes out as this envelope from now on."""
        if letter.envelopes:
            self.trace("sealed anew", letter.number)
        letter.envelopes.append(envelope_id)
        letter.expires_ms = expires_ms
        self._by_id[envelope_id] = letter

    def of(self, envelope_id: bytes) -> Letter | None:
        return self._by_id.get(envelope_id)

    def found_in(self, data: bytes) -> Iterator[Letter]:
        """The letters whose canaries lie in `data`."""
        if MARK in data:
            for canary in _FIND.findall(data):
                letter = self._by_canary.get(canary)
                if letter is not None:
                    yield letter

    def gone(self, device: str) -> None:
        """A device was revoked: what has not reached it need not, and of what it wrote nobody hears the outcome."""
        self._gone.add(device)
        for letter in self.letters:
            letter.required.discard(device)
            if letter.sender == device and letter.stored is None:
                letter.required.clear()

    # --- what a liar may spoil -----------------------------------------------------------------------
    def trusts(self, letter: Letter, person: str) -> bool:
        """Is this letter, on its way to that person, a matter of others than the liar? All who have a part in it live,
        and ever lived, elsewhere."""
        parts = {person, letter.author, self.owners.get(letter.target, letter.author)}
        return not self.liar or not any(map(self.exposed, parts))

    def answerable(self, letter: Letter) -> bool:
        """May its sender count on every outcome? No copy of it goes to the liar."""
        return not self.liar or self.liar not in letter.regions | letter.later

    # --- what the relay answers ----------------------------------------------------------------------
    def answered(self, device: str, letter: Letter, code: int, cell: str) -> None:
        """An outcome reached the sender, as a receipt or as a notice."""
        name = Code(code).name.lower()
        self.trace(name, letter.number, device, cell)
        if code == Code.BAD_ENVELOPE and self.answerable(letter):
            raise Violation(f"letter {letter.number} of {letter.sender} was refused for {cell}, which never said so")
        if cell.partition("/")[0] == self.liar and letter.group:
            return  # what it says of its own members; the others' outcomes come from their own cells
        if code == Code.UNKNOWN_USER and not letter.group and self.answerable(letter):
            raise Violation(f"letter {letter.number} of {letter.sender} was refused: nobody is at home in {cell}")
        if code == Code.EXPIRED and letter.lasts and self.answerable(letter):
            raise Violation(f"letter {letter.number} of {letter.sender} is said to have expired, and lives for a day")
        if code in (Code.NOT_PERMITTED, Code.LIFETIME):
            self._forbidden(letter, code)
            if letter.withheld:
                return
        now = trio.current_time()
        if code in (Code.ACCEPTED, Code.STORED):
            letter.accepted = letter.accepted if letter.accepted is not None else now
            if code == Code.STORED and letter.stored is None:
                letter.stored = now
        elif Code(code).final and code != Code.STALE and not letter.refused:
            letter.refused = code

    def _forbidden(self, letter: Letter, code: int) -> None:
        """A policy is said to be against it. Of a group's letter that the sender's cell has one copy is held back."""
        moved = letter.target in self.moved_users or letter.author in self.movers
        if not moved and self.answerable(letter) and not letter.may_be_refused():
            raise Violation(f"letter {letter.number} is refused, {Code(code).name}, and no policy is against it")
        letter.withheld = letter.withheld or (letter.group and letter.accepted is not None)

    def delivered(self, device: str, letter: Letter) -> bool:
        """An envelope reached a device. False for a repetition, which the SDK drops."""
        if device not in letter.allowed and device.partition("/")[0] not in letter.allowed:
            raise Violation(f"letter {letter.number} of {letter.sender} was delivered to {device}, who is no recipient")
        if device in letter.delivered:
            self.trace("wire duplicate", letter.number, device)
            return False
        letter.delivered[device] = trio.current_time()
        self.trace("delivered", letter.number, device)
        return True

    # --- the reckoning -------------------------------------------------------------------------------
    def missing(self) -> list[tuple[Letter, str]]:
        """What was acknowledged, not refused, has not expired, and is not with one of its recipients."""
        return [
            (letter, device)
            for letter in self.letters
            if letter.lasts and letter.accepted is not None and not letter.refused
            for device in sorted(letter.required - letter.delivered.keys())
            if self.trusts(letter, device.partition("/")[0])
        ]

    def missing_at(self, device: str, before: float) -> Iterator[Letter]:
        """What was stored before that time and has not reached `device`, newest first."""
        for letter in reversed(self.letters):
            stored = letter.lasts and not letter.refused and letter.stored is not None and letter.stored < before
            missing = device in letter.required and device not in letter.delivered
            if stored and missing and self.trusts(letter, device.partition("/")[0]):
                yield letter

    def open(self) -> list[Letter]:
        """Letters whose sender still waits for an outcome."""
        waits = [letter for letter in self.letters if not letter.settled and letter.sender not in self._gone]
        return [letter for letter in waits if self.answerable(letter)]
