"""Users and devices of whom nothing is under way: packed, so that a million of them fit into memory (DESIGN section 8).

Whoever the fold looks at is awake: an object, as long as something waits or the object was looked at lately. `rest`,
between two blocks, packs the others again. Nothing that is computed depends on who is awake.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, Generic, TypeVar

from relay.core.packing import PackedMap, Shelf
from relay.limits import MAX_AWAKE

T = TypeVar("T")
_TURNS: Final = 1_024  # looked at in one rest: what waits goes to the end of the line


class Resting(Generic[T]):
    """A map by ids of 32 bytes. `pack` gives all of a value that `rests`, which is what `unpack` makes again."""

    def __init__(
        self, pack: Callable[[T], bytes], unpack: Callable[[bytes, bytes], T], rests: Callable[[T], bool],
        shelf: Shelf | None = None,
    ) -> None:
        self._pack, self._unpack, self._rests = pack, unpack, rests
        self._packed = PackedMap(shelf)  # all, as they last rested
        self._awake: OrderedDict[bytes, tuple[T, bytes]] = OrderedDict()  # the value, and how it lies there

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, key: object) -> bool:
        return key in self._awake or key in self._packed

    def __iter__(self) -> Iterator[bytes]:
        """The ids, rising. Nobody may be added, taken out or packed meanwhile."""
        return iter(self._packed)

    def __getitem__(self, key: bytes) -> T:
        """The value, awake from now on: what is changed in it, stays."""
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def get(self, key: bytes) -> T | None:
        """The same; None where there is none."""
        if (known := self._awake.get(key)) is not None:
            return known[0]
        packed: bytes | None = self._packed.get(key)
        if packed is None:
            return None
        value = self._unpack(key, packed)
        self._awake[key] = value, packed
        return value

    def peek(self, key: bytes) -> T | None:
        """The value to look at, for who is not the fold: it wakes nobody."""
        if (known := self._awake.get(key)) is not None:
            return known[0]
        packed: bytes | None = self._packed.get(key)
        return None if packed is None else self._unpack(key, packed)

    def __setitem__(self, key: bytes, value: T) -> None:
        self._packed[key] = packed = self._pack(value)
        self._awake[key] = value, packed

    def lay(self, key: bytes, value: T) -> None:
        """Put in one who rests, and is not awake: it wakes nobody."""
        if key in self._awake or not self._rests(value):
            raise ValueError("who is awake stays so")
        self._packed[key] = self._pack(value)

    def pop(self, key: bytes) -> T:
        """Take one out. Raises KeyError."""
        value = self[key]
        del self._packed[key], self._awake[key]
        return value

    def __delitem__(self, key: bytes) -> None:
        self.pop(key)

    def items(self) -> Iterator[tuple[bytes, T]]:
        """All, by rising ids, to look at."""
        return ((key, value) for key in self if (value := self.peek(key)) is not None)

    def values(self) -> Iterator[T]:
        """All, by rising ids, to look at."""
        return (value for _, value in self.items())

    def awake(self) -> list[tuple[bytes, T]]:
        """Those who are awake, in order: whoever has something waiting is one of them."""
        return sorted(((key, known[0]) for key, known in self._awake.items()), key=lambda item: item[0])

    def rest(self) -> None:
        """Pack some of whom nothing is under way, the longest awake first. No value may be held meanwhile by who
        changes it."""
        for _ in range(min(_TURNS, len(self._awake) - MAX_AWAKE)):  # none of them, mostly
            key, (value, lies) = self._awake.popitem(last=False)
            if not self._rests(value):
                self._awake[key] = value, lies
            elif (packed := self._pack(value)) != lies:
                self._packed[key] = packed
