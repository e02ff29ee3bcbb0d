"""The witnesses of our log: each is asked to stand by every new checkpoint, and again when its word gets old.

A task a witness, so that one that is slow or dead delays nobody else. What a witness says is believed where a signature
says it: its cosignature, or, when it claims to have seen more of our log than we have, a checkpoint with our own
signature. The latter means that this registry is an old copy: `RolledBack`, and nothing is signed any more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol

import structlog
import trio

from relay.core.tlog import (
    AddCheckpoint, Note, Signature, Trust, VerifierKey, open_checkpoint, parse_checkpoint, parse_note,
    parse_signatures,
)  # fmt: skip
from relay.core.tlog.text import decimal
from relay.errors import PeerError, PosthouseError, RolledBack, TrustError
from relay.limits import WITNESS_AGAIN_S, WITNESS_BACKOFF_MAX_S, WITNESS_BACKOFF_S, WITNESS_S

_log = structlog.get_logger("cluster.registrar.choir")
Consistency = Callable[[int, int], Awaitable[tuple[bytes, ...]]]  # Registry.consistency


class Door(Protocol):
    """How a witness is asked (c2sp.org/tlog-witness)."""

    async def add_checkpoint(self, request: bytes) -> tuple[int, bytes]:
        """The HTTP status and body that it answers. Raises PeerError when it does not."""

    async def seen(self, origin: str) -> bytes:
        """The newest checkpoint of a log that it stands by; empty when there is none. Raises PeerError."""

    async def forks(self) -> bytes:
        """Proofs of the forks that it knows of (`tlog.read_forks`). Raises PeerError."""


@dataclass
class _Voice:
    """One witness: its key and door, how much of our log it has seen, and when it last stood by the newest."""

    key: VerifierKey
    door: Door
    seen: int = 0
    signed: Signature | None = None  # under the current checkpoint
    since: float = 0.0  # trio's clock


@dataclass
class Choir:
    """All witnesses of one log. `run` asks them; one task presents checkpoints and waits for cosignatures."""

    trust: Trust
    doors: Sequence[tuple[VerifierKey, Door]]
    consistency: Consistency
    on_cosigned: Callable[[str], None] = lambda name: None
    on_refused: Callable[[str], None] = lambda name: None
    wait_s: float = WITNESS_S
    again_s: float = WITNESS_AGAIN_S
    confirmed: bool = False  # k witnesses stood by a checkpoint since the start: they know of none that we lack
    _note: Note | None = None
    _voices: list[_Voice] = field(default_factory=list)
    _news: trio.Event = field(default_factory=trio.Event)  # another checkpoint
    _sung: trio.Event = field(default_factory=trio.Event)  # another cosignature
    _patient: bool = True  # wait for k at all: not after they were waited for in vain, until they are there again

    def __post_init__(self) -> None:
        self._voices = [_Voice(key, door) for key, door in self.doors]

    async def run(self) -> None:
        """Ask, for ever. Raises RolledBack."""
        async with trio.open_nursery() as nursery:
            for voice in self._voices:
                nursery.start_soon(self._ask_for_ever, voice)

    def present(self, note: bytes) -> None:
        """The log's newest checkpoint, which is durable. The same one again changes nothing."""
        if self._note is None or self._note.encode() != note:
            self._note = parse_note(note)
            for voice in self._voices:
                voice.signed = None
            self._news.set()
            self._news = trio.Event()

    @property
    def note(self) -> Note | None:
        """The newest checkpoint with all cosignatures that are there, if these are k; else None."""
        signed = [voice for voice in self._voices if voice.signed is not None]
        if self._note is None or len({voice.key.name for voice in signed}) < self.trust.k:
            return None
        return self._note.add(voice.signed for voice in signed if voice.signed is not None)

    async def cosigned(self) -> Note | None:
        """`note`, waited for: at most `wait_s`, and not at all while k witnesses are known to be away."""
        if self._patient and self.note is None:
            with trio.move_on_after(self.wait_s):
                while self.note is None:
                    await self._sung.wait()
        self._patient = self.note is not None
        return self.note

    async def _ask_for_ever(self, voice: _Voice) -> None:
        pause = WITNESS_BACKOFF_S
        while True:
            news, note = self._news, self._note
            if note is not None and (voice.signed is None or trio.current_time() - voice.since >= self.again_s):
                try:
                    with trio.fail_after(self.wait_s):
                        await self._ask(voice, note)
                    pause = WITNESS_BACKOFF_S
                except (trio.TooSlowError, PeerError, TrustError) as error:
                    text = error.text if isinstance(error, PosthouseError) else "no answer in time"
                    _log.warning("witness_failed", witness=voice.key.name, text=text)
                    self.on_refused(voice.key.name)
                    await trio.sleep(pause)  # also when there is news: it has failed, and gets time
                    pause = min(2 * pause, WITNESS_BACKOFF_MAX_S)
                    continue
            if news is self._news:
                with trio.move_on_after(self.again_s):
                    await news.wait()

    async def _ask(self, voice: _Voice, note: Note) -> None:
        size = parse_checkpoint(note.text).size
        for _ in range(2):  # the second time from where it says that it is
            old = min(voice.seen, size)
            proof = await self.consistency(old, size)
            status, body = await voice.door.add_checkpoint(AddCheckpoint(old, proof, note).encode())
            if status == HTTPStatus.OK:
                self._take(voice, note, body)
                voice.seen = size
                return
            if status != HTTPStatus.CONFLICT:
                break
            voice.seen = decimal(body.decode("ascii", "replace").strip(), f"answer of {voice.key.name}")
            if voice.seen > size:
                await self._look_whether_we_forgot(voice, size)
                break
        said = body[:200].decode("utf-8", "replace").strip()
        raise PeerError(f"{voice.key.name} does not stand by our log at {size}: {status}, {said}")

    def _take(self, voice: _Voice, note: Note, body: bytes) -> None:
        for line in parse_signatures(body):
            if (line.name, line.id) == (voice.key.name, voice.key.id):
                voice.key.verify(note.text, line.value)
                voice.since = trio.current_time()
                if note is self._note:
                    voice.signed = line
                    self.confirmed = self.confirmed or self.note is not None
                    self._patient = self._patient or self.note is not None
                    self._sung.set()
                    self._sung = trio.Event()
                self.on_cosigned(voice.key.name)
                return
        raise PeerError(f"{voice.key.name} answered with somebody else's cosignature")

    async def _look_whether_we_forgot(self, voice: _Voice, size: int) -> None:
        """It claims to have seen more than we had when we asked: has it our signature under that?"""
        seen = await voice.door.seen(self.trust.log.name)
        checkpoint = open_checkpoint(seen, Trust(self.trust.log, (), 0)).checkpoint
        newest = parse_checkpoint(self._note.text).size if self._note else size
        if checkpoint.size > newest:
            raise RolledBack(
                f"{voice.key.name} has our log's checkpoint at {checkpoint.size}, and this registry ends at {newest}",
                "It is an old copy: put back the newest one. Nothing is signed until then, for it would be a fork",
            )
