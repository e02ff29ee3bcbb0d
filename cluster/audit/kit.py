"""The canaries of `posthouse audit canary`: what was sent, how to know it again, and where it may be.

    <kit>/canaries.json          mode 0600, as everything here: it has the plaintexts
    <kit>/links/<user>.sent      what the user's client said to its node, and
    <kit>/links/<user>.heard     what it heard: the WebSocket messages, before TLS

What may be where is the sender's own knowledge, from the address cards of the recipients; no node is asked.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from cluster.audit.look import PIECE, Kind, Secret
from cluster.audit.scan import Scanner, unmasked
from cluster.audit.shelf import Found, Role, Verdict
from relay.core.wire import Code
from relay.errors import OperatorError

CANARIES: Final = "canaries.json"
LINKS: Final = "links"
SENT, HEARD = "sent", "heard"
APART: Final = 150  # bytes from one piece to the next: all of them lie in the ciphertext, whose smallest has 528
PIECES: Final = 3  # of each envelope: a packet's header may cut one


class Mark(msgspec.Struct, kw_only=True):
    """An envelope of a canary. `homes`: the regions of its recipients; `waits`: those of them where somebody was left
    offline. `code`: what its sender was told last (relay.core.wire.Code; 0: nothing). `seen`: users whose client got
    it."""

    id: bytes
    pieces: tuple[bytes, ...]
    size: int
    homes: tuple[str, ...]
    waits: tuple[str, ...]
    code: int = 0
    seen: list[str] = msgspec.field(default_factory=list)

    @property
    def taken(self) -> bool:
        """It was durable somewhere."""
        return 0 < self.code < Code.STALE


class Canary(msgspec.Struct, kw_only=True):
    """A message from `sender`, at home in region `origin`. `what`: who wrote to whom; `texts`: random parts of its
    plaintext. A group's has several envelopes: the keys that members need to read it."""

    name: str
    what: str
    sender: str
    origin: str
    texts: tuple[str, ...]
    marks: list[Mark] = msgspec.field(default_factory=list)


class Kit(msgspec.Struct, kw_only=True):
    """Everything that was sent in one go. `sent_ms`: Unix time, before the first."""

    format: Literal[1] = 1
    federation: bytes
    sent_ms: int
    canaries: list[Canary]

    @classmethod
    def load(cls, directory: Path) -> Kit:
        """Raises OperatorError where `directory` has none."""
        path = directory / CANARIES
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except OSError as error:
            remedy = "Give the KIT that `posthouse audit canary send` made"
            raise OperatorError(f"{path}: {error.strerror}", remedy) from None
        except msgspec.DecodeError as error:
            raise OperatorError(f"{path} is not understood: {error}", "Send canaries again, to a new KIT") from None

    def save(self, directory: Path) -> None:
        """Into a directory that `make_kit` made, once."""
        with os.fdopen(os.open(directory / CANARIES, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self)) + b"\n")

    def scanner(self) -> Scanner[Secret]:
        """Looks for all pieces and texts."""
        return Scanner(self._secrets())

    def masked(self) -> Scanner[Secret]:
        """Looks for all texts in what `unmasked` makes of what a WebSocket client said."""
        return Scanner(
            (b"".join(unmasked([secret])), carried) for secret, carried in self._secrets()
            if carried.kind is Kind.PLAINTEXT
        )  # fmt: skip

    def _secrets(self) -> Iterator[tuple[bytes, Secret]]:
        for canary in self.canaries:
            for text in canary.texts:
                yield text.encode(), Secret(Kind.PLAINTEXT, name=canary.name)
            for mark in canary.marks:
                for piece in mark.pieces:
                    yield piece, Secret(Kind.ENVELOPE, mark.id, canary.name)

    def marks(self) -> dict[bytes, tuple[Canary, Mark]]:
        """Every envelope by its id."""
        return {mark.id: (canary, mark) for canary in self.canaries for mark in canary.marks}


def make_kit(directory: Path) -> None:
    """A new or empty directory for a kit. Raises OperatorError."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise OperatorError(f"{directory} is not empty", "Choose a new directory for these canaries")
        (directory / LINKS).mkdir(mode=0o700)
    except OSError as error:
        raise OperatorError(f"cannot make {directory}: {error.strerror}", "Choose another directory") from None


def pieces_of(envelope: bytes) -> tuple[bytes, ...]:
    """PIECES times PIECE bytes of its ciphertext, from the end of it."""
    ends = (len(envelope) - number * APART for number in range(PIECES))
    return tuple(envelope[end - PIECE : end] for end in ends)


@dataclass(frozen=True, slots=True)
class ByKit:
    """cluster.audit.shelf.Judge: the sender's own knowledge, for one region. Section 5, rule 3 of the design."""

    marks: dict[bytes, tuple[Canary, Mark]]
    region: str

    def judge(self, found: Found) -> Verdict:
        if found.id not in self.marks:
            return Verdict(Role.OTHER)
        canary, mark = self.marks[found.id]
        if self.region in mark.homes:
            return Verdict(Role.HOME, (canary.name,))
        if self.region == canary.origin:
            return Verdict(Role.TRANSIT, (canary.name,))
        homes = " and ".join(mark.homes)
        return Verdict(Role.FOREIGN, (canary.name,), f"{canary.name}, {canary.what}, which belongs in {homes}")

    def may_rest(self, envelope: bytes) -> bool:
        canary, mark = self.marks[envelope]
        return self.region == canary.origin or self.region in mark.homes
