"""What lies on a simulated disk: a store's rows with their write-ahead log and mark, as they outlive a process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Protocol

from relay.errors import DiskFailed
from relay.journal.api import BlockRow, Meta, Place
from relay.journal.mark import Marked, behind
from relay.journal.queries import State

# ("meta",), ("state",), ("head",), ("block", index), ("fact", key, index), ("row", generation, ordinal)
Key = tuple[Any, ...]
Changes = dict[Key, Any]  # None: the row goes
Step = Callable[[], None]
_DAMAGEABLE = {"block", "fact", "row"}  # the rows of which the owner of the store finds out by itself


class Process(Protocol):
    """Who uses a disk."""

    dead: bool


def check_alive(process: Process, name: Path) -> None:
    """Raises DiskFailed: a dead process gets nothing done."""
    if process.dead:
        raise DiskFailed(f"{name}: this process is dead", "It is simulated")


@dataclass(eq=False)
class File:
    """A file that a process may be writing. `pending`: steps of a write that nobody knows the end of yet."""

    pending: deque[Step] = field(default_factory=deque)
    owner: Process | None = None  # the process that has it open

    def settle(self, random: Random) -> None:
        """The write under way ended in the midst: none, some or all of its steps were done, in order."""
        for _ in range(random.randint(0, len(self.pending))):
            self.pending.popleft()()
        self.pending.clear()


@dataclass(eq=False)
class Image(File):
    """A database and its mark. `wal`: what each transaction put aside, as long as the log is not folded."""

    rows: Changes = field(default_factory=dict)
    wal: list[Changes] = field(default_factory=list)
    mark: Marked | None = None
    left: dict[int, BlockRow] = field(default_factory=dict)  # blocks that were deleted, and are still in the files

    @property
    def meta(self) -> Meta:
        meta: Meta = self.rows["meta",]
        return meta

    @property
    def state(self) -> State:
        state: State = self.rows["state",]
        return state

    def put(self, changes: Changes) -> None:
        """A transaction."""
        self.wal.append({key: self.rows.get(key) for key in changes})
        self._set(changes)

    def set_mark(self, mark: Marked) -> None:
        self.mark = mark

    def _set(self, changes: Changes) -> None:
        for key, value in changes.items():
            if value is None:
                gone = self.rows.pop(key, None)
                if gone is not None and key[0] in ("block", "staged"):
                    self.left[key[1]] = gone
            else:
                self.rows[key] = value

    def cut_wal(self) -> None:
        """The write-ahead log is folded and cut: what was deleted is overwritten everywhere."""
        self.wal.clear()
        self.left.clear()

    def lose(self, count: int) -> None:
        """Forget the newest transactions."""
        for _ in range(count):
            self._set(self.wal.pop())

    def copy(self) -> Image:
        """As a backup has it: folded, and nobody's."""
        return Image(rows=dict(self.rows), mark=self.mark)

    def keys(self, kind: str) -> Iterator[Key]:
        return (key for key in self.rows if key[0] == kind)

    def last(self) -> tuple[int, bytes]:
        """Index and hash of the newest block, kept or released."""
        newest = max((key[1] for key in self.keys("block")), default=0)
        return (newest, self.rows["block", newest].hash) if newest else (self.meta.first - 1, self.meta.prev)

    def has(self) -> Marked:
        """What a mark of this should say."""
        state = self.state
        return Marked(state.seq, self.meta.store, state.hard.term, state.hard.vote, *self.last())

    def behind(self) -> str | None:
        return behind(self.mark, self.has())

    def flip(self, random: Random) -> Key | None:
        """Flip a bit of a row; which. None where there is none."""
        keys = sorted((key for key in self.rows if key[0] in _DAMAGEABLE), key=repr)
        if not keys:
            return None
        key = random.choice(keys)
        value = self.rows[key]
        if isinstance(value, BlockRow):
            name = random.choice(["term", "prev", "time", "hash", "sealed", "sealed", "sealed"])
            self.rows[key] = replace(value, **{name: _flipped(getattr(value, name), random)})
            return (*key, name)
        if isinstance(value, Place):
            self.rows[key] = value._replace(ordinal=_flipped(value.ordinal, random))
        else:
            self.rows[key] = _flipped(value, random)
        return key


def _flipped(value: Any, random: Random) -> Any:
    if isinstance(value, int):
        return value ^ 1 << random.randrange(40)
    at = random.randrange(len(value) * 8)
    changed = bytearray(value)
    changed[at // 8] ^= 1 << at % 8
    return bytes(changed)
