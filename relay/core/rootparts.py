"""A newer root document on its way from a node to a client, part by part (ADR 43). Pure, and not verified here: whoever
gathers one verifies it as everybody does (relay.core.trust.follow_root)."""

from __future__ import annotations

from typing import Final

from relay.core import wire
from relay.core.trust import Root
from relay.errors import ProtocolError
from relay.limits import ROOT_PART

_BEGINNINGS: Final = 4  # documents that one question may run into while the keepers publish; then it is asked later


def part_of(root: Root, ask: wire.AskRoot) -> wire.RootPart:
    """What a node that goes by `root` answers: a part of it where it is newer than what the client has."""
    root_version, version = root.rank
    if root.rank <= (ask.root_version, ask.version):
        return wire.RootPart(root_version, version, 0, 0, b"")
    part = root.signed[ask.offset : ask.offset + ROOT_PART]
    return wire.RootPart(root_version, version, len(root.signed), ask.offset, part)


class Gathering:
    """The client's side of one document. `rank`: of what it trusts."""

    def __init__(self, rank: tuple[int, int]) -> None:
        self._rank = rank
        self._of: tuple[tuple[int, int], int] | None = None  # rank and size of what is gathered
        self._data = bytearray()
        self._begun = 0

    @property
    def question(self) -> wire.AskRoot:
        """What to ask next."""
        return wire.AskRoot(*self._rank, len(self._data))

    def take(self, part: wire.RootPart) -> bytes | None:
        """An answer. None: ask on. Else the whole document; empty where the node has nothing newer.

        Raises ProtocolError for what no honest node says."""
        rank = (part.root_version, part.version)
        if not part.size:
            return b""
        if rank <= self._rank:
            raise ProtocolError(f"the node gives root document {rank} for newer than {self._rank}")
        if self._of is None or (self._of != (rank, part.size) and rank > self._of[0]):  # the first, or one after that
            self._begun += 1
            if self._begun > _BEGINNINGS:
                raise ProtocolError("the node has another root document at each question")
            behind = len(self._data)
            self._of = (rank, part.size)
            self._data.clear()
            if behind:  # this part is from the middle
                return None
        place = len(self._data)
        expected = (rank, part.size), place, min(ROOT_PART, part.size - place)
        if (self._of, part.offset, len(part.part)) != expected:
            raise ProtocolError(f"{len(part.part)} bytes at {part.offset} are not the next part of the root document")
        self._data += part.part
        return bytes(self._data) if len(self._data) == part.size else None
