"""The order of one node's batches. They follow each other without waiting (ADR 28): one that went with its leader is
proposed again, and those after it may not come before it.

A batch may have its place only in the term in which all before it have theirs. A term's leader only adds to its log, so
that no log has one of them without those before it: they are lost together, and proposed again in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import takewhile

import trio


class Turn:
    """One batch, from when the journal gets it until it is settled. `term`: that of its place; 0 without one."""

    def __init__(self, line: Line, on_placed: Callable[[], None]) -> None:
        self.term = 0
        self._line = line
        self._on_placed = on_placed

    async def term_before(self) -> int:
        """The term in which all before it have their place, which is waited for; 0 where nothing is before it."""
        while len(terms := self._line.terms_before(self)) > 1 or 0 in terms:
            await self._line.moved.wait()
        return terms.pop() if terms else 0

    def placed(self, term: int) -> None:
        """It has its place among what the leader of `term` puts into blocks."""
        self.term = term
        self._on_placed()
        self._line.move()

    def lost(self) -> None:
        """It has no place, or no more."""
        self.term = 0
        self._line.move()


class Line:
    """The batches of one node that are not settled yet, in the order in which they came."""

    def __init__(self) -> None:
        self.moved = trio.Event()  # set, and renewed, with each change of a turn
        self._turns: dict[Turn, None] = {}

    @contextmanager
    def joined(self, on_placed: Callable[[], None]) -> Iterator[Turn]:
        """At the end of the line, until it is settled or given up. `on_placed` is called each time it has a place."""
        turn = Turn(self, on_placed)
        self._turns[turn] = None
        try:
            yield turn
        finally:
            del self._turns[turn]
            self.move()

    def terms_before(self, turn: Turn) -> set[int]:
        """Of all that came before it."""
        return {one.term for one in takewhile(lambda one: one is not turn, self._turns)}

    def move(self) -> None:
        """Whoever waits for those before it looks again."""
        self.moved.set()
        self.moved = trio.Event()
