"""What a store of a log should hold after any sequence of writes."""

from __future__ import annotations

from random import Random

from relay.journal.api import BlockRow, FactRow, Hard, Write
from tests.relay.journal.rigs import rows

A, B, C = b"a" * 32, b"b" * 32, b"c" * 32  # keys of facts
VOTER = b"V" * 16


# --- everything at once --------------------------------------------------------------------------
class Model:
    """What a store should hold."""

    def __init__(self) -> None:
        self.blocks: dict[int, BlockRow] = {}
        self.facts: list[FactRow] = []
        self.first, self.hard, self.commit = 1, Hard(), 0

    @property
    def last(self) -> int:
        return max(self.blocks, default=self.first - 1)

    def random_write(self, random: Random, number: int) -> Write:
        cut = random.randint(self.first, self.last + 1) if random.random() < 0.3 else None
        start = self.last + 1 if cut is None else cut
        new = rows(start, start + random.randint(0, 3) - 1, number, fork=str(number))
        self.blocks = {index: one for index, one in self.blocks.items() if index < start}
        self.facts = [fact for fact in self.facts if fact[1] < start]
        facts = [(random.choice([A, B, C]), one.index, b"%d" % number) for one in new]
        self.blocks |= {one.index: one for one in new}
        self.facts += facts
        self.hard, self.commit = Hard(number, random.choice([b"", VOTER])), random.randint(0, self.last)
        return Write(new, cut, self.hard, None, facts, self.commit)

    def newest(self, upto: int) -> list[FactRow]:
        found = {fact[0]: fact for fact in sorted(self.facts, key=lambda fact: fact[1]) if fact[1] <= upto}
        return sorted(found.values())
