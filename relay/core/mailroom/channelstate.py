"""What a cell knows of a broadcast channel: its terms, and where the posts of its window lie. None of its readers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import starmap
from struct import Struct
from typing import Final, NamedTuple

from relay.core.mailroom.packed import Table
from relay.core.trust.channels import VerifiedTerms

_KEPT: Final = Struct("<qqqq")


class Kept(NamedTuple):
    """A post of the window: the owner's `number`, its source's key, the `time` of its block (Unix ms), its position."""

    number: int
    source: int
    time: int
    position: int


class Window(Table):
    """The posts that are kept, by rising number."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_KEPT)

    def after(self, number: int) -> Iterator[Kept]:
        """Posts past a number, in order. The window must not change while the iterator is used."""
        return starmap(Kept, self.since(number + 1))

    def first(self) -> Kept | None:
        """The oldest post that is kept."""
        return next(self.after(-1), None)


@dataclass(slots=True)
class ChannelState:
    """A channel of this cell. `owner`: the user. `last` and `last_id`: of the newest post that was taken, kept or not.
    `bytes` of the records in the window. `due`: when its first post goes, if the expiry heap knows."""

    terms: VerifiedTerms
    owner: bytes
    last: int = 0
    last_id: bytes = b""
    bytes: int = 0
    due: int = 0
    window: Window = field(default_factory=Window)
