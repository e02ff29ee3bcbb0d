"""Gossip: what other regions' witnesses saw of each log is held against what we saw, every GOSSIP_LOOK_S, and so is
what the log itself shows to everybody.

k witnesses of n may be fewer than half, and then a log can show one history to some and another to the rest. Each of
them is right by what it knows; together they have the proof. Two checkpoints of one size tell by themselves. Of
different sizes the log itself is asked: the consistency proof between them, from its tiles. A proof that leads to the
newer root and not to the older one is evidence; a log that gives none is only loudly named, for it may be away.

Who finds a fork tells the others at once: they listen (cluster.registrar.hearing).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import structlog
import trio

from relay.core.tlog import (
    BadTile, Note, Tile, consistency_proof, contradiction_proof, contradiction_tiles, contradicts, parse_checkpoint,
    parse_note, verify_consistency,
)  # fmt: skip
from relay.core.tlog.checkpoint import fork
from relay.core.tlog.forks import MAX_FORK
from relay.core.tlog.tree import HASH
from cluster.registrar.choir import Door
from cluster.registrar.hearing import Ask, listen
from cluster.registrar.http import Caller
from cluster.registrar.witness import Witness, origin_hash, tag_of
from relay.core.codec import pack
from relay.errors import PeerError, TrustError
from relay.limits import GOSSIP_LOOK_S, MAX_FORKS, MAX_SIGNED_NOTE, WITNESS_S

EMPTY: Final = pack([])  # no forks
_MAX_FORKS: Final = MAX_FORKS * (MAX_FORK + 8)  # bytes
_log = structlog.get_logger("cluster.registrar.gossip")


class HttpDoor:
    """A witness over HTTP."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self._told = tag_of(EMPTY)

    async def add_checkpoint(self, request: bytes) -> tuple[int, bytes]:
        return await self._caller.ask("POST", "/add-checkpoint", request)

    async def seen(self, origin: str) -> bytes:
        status, note = await self._caller.ask("GET", f"/{origin_hash(origin)}/checkpoint", most=MAX_SIGNED_NOTE)
        return note if status == 200 else b""

    async def forks(self) -> bytes:
        status, proofs = await self._caller.ask("GET", "/forks", most=_MAX_FORKS)
        return proofs if status == 200 else EMPTY

    async def news(self) -> bytes:
        """`forks`, once it knows of others than it told here last; else none, after FORKS_WAIT_S, or at once where it
        does not know how to wait. Raises PeerError. It holds the connection up meanwhile."""
        status, proofs = await self._caller.ask("GET", f"/forks?but={self._told}", most=_MAX_FORKS)
        if status == 404:  # an older one
            status, proofs = await self._caller.ask("GET", "/forks", most=_MAX_FORKS)
        if status not in (200, 304):
            raise PeerError(f"{self._caller.name} answered {status} when it was asked for forks")
        if status == 304 or tag_of(proofs) == self._told:
            return EMPTY
        self._told = tag_of(proofs)
        return proofs

    async def newest(self) -> bytes:
        """The newest checkpoint of its region's own log; empty when it shows none. Raises PeerError."""
        status, note = await self._caller.ask("GET", "/checkpoint", most=MAX_SIGNED_NOTE)
        return note if status == 200 else b""

    async def tile(self, tile: Tile) -> bytes:
        """A tile of its region's own log; empty when it has none. Raises PeerError."""
        status, data = await self._caller.ask("GET", f"/{tile.path}")
        return data if status == 200 else b""


@dataclass
class Gossip:
    """Asks `doors` (by region) what they saw of the logs that `witness` watches, and of none else; and hears what
    `ears` (by region) tell of forks."""

    witness: Witness
    doors: Mapping[str, Door]
    tiles: Mapping[str, HttpDoor]  # by origin: the log's own registrar
    ears: Mapping[str, Ask] = field(default_factory=dict)
    _turns: dict[str, deque[str]] = field(default_factory=dict)  # by region: who is slow is asked of each in turn

    async def run(self) -> None:
        """Look, and listen, for ever."""
        async with trio.open_nursery() as nursery:
            for region, ask in self.ears.items():
                nursery.start_soon(listen, region, ask, self.witness.hear_of)
            while True:
                began = trio.current_time()
                await self.look()
                await trio.sleep_until(began + GOSSIP_LOOK_S)

    async def look(self) -> None:
        """One round: every other witness, all at once, about every log that we watch, and what it knows of forks; and
        every log about itself. Ends within GOSSIP_LOOK_S, whoever does not answer."""
        with trio.move_on_after(GOSSIP_LOOK_S):
            async with trio.open_nursery() as nursery:
                proving = _Proving(self, nursery)
                for region, door in self.doors.items():
                    nursery.start_soon(self._ask, region, door, proving)
                for origin, log in self.tiles.items():
                    nursery.start_soon(_try, "itself", origin, partial(self._look_at, log.newest, origin, proving))

    async def _ask(self, region: str, door: Door, proving: _Proving) -> None:
        await _try(region, "", partial(self._hear, door))
        turns = self._turns.setdefault(region, deque(self.witness.logs))
        for _ in range(len(turns)):
            origin = turns[0]
            turns.rotate(-1)
            await _try(region, origin, partial(self._look_at, partial(door.seen, origin), origin, proving, region))

    async def _hear(self, door: Door) -> None:
        await self.witness.hear(await door.forks())

    async def _look_at(self, ask: Ask, origin: str, proving: _Proving, region: str = "itself") -> None:
        note = await ask()
        if note and await self.witness.compare(origin, note) is not None and origin in self.tiles:
            proving.soon(region, origin, note)

    async def prove(self, origin: str, note: bytes) -> None:
        """Of a checkpoint of another size than that which we saw. Raises Fork, BadProof or BadTile; PeerError."""
        if (other := await self.witness.compare(origin, note)) is None:  # ours may be another one by now
            return
        pair = sorted((parse_note(self.witness.seen(origin)), other), key=lambda one: parse_checkpoint(one.text).size)
        await self._prove(origin, pair)

    async def _prove(self, origin: str, pair: Sequence[Note]) -> None:
        """Both are signed by the log. Raises Fork, BadProof or BadTile."""
        old, new = (parse_checkpoint(note.text) for note in pair)
        wanted = contradiction_tiles(old.size, new.size)
        tiles = {tile: await self.tiles[origin].tile(tile) for tile in wanted}
        if any(len(tile_bytes) % HASH or not tile_bytes for tile_bytes in tiles.values()):
            raise BadTile(f"log {origin}: it does not show how {old.size} leads to {new.size}", "Look at that region")
        shown = contradiction_proof(old.size, new.size, tiles)
        if contradicts(old.size, new.size, old.root, new.root, shown):
            error = fork(new, pair[0], pair[1], shown)
            await self.witness.halt(origin, error)
            raise error
        proof = consistency_proof(old.size, new.size, tiles)
        verify_consistency(old.size, new.size, old.root, new.root, proof)


class _Proving:
    """What a look has found that a log has to explain: log by log, so that one that does not answer delays no other."""

    def __init__(self, gossip: Gossip, nursery: trio.Nursery) -> None:
        self._gossip, self._nursery = gossip, nursery
        self._waiting: dict[str, dict[bytes, tuple[str, bytes]]] = {}  # by origin, by text: who showed it, and the note

    def soon(self, region: str, origin: str, note: bytes) -> None:
        """Once, whoever else has seen the same."""
        waiting = self._waiting.setdefault(origin, {})
        if not waiting:
            self._nursery.start_soon(self._one_by_one, origin, waiting)
        waiting.setdefault(parse_note(note).text, (region, note))

    async def _one_by_one(self, origin: str, waiting: dict[bytes, tuple[str, bytes]]) -> None:
        while waiting:
            text, (region, note) = next(iter(waiting.items()))
            await _try(region, origin, partial(self._gossip.prove, origin, note))
            del waiting[text]


async def _try(region: str, origin: str, work: Callable[[], Awaitable[None]]) -> None:
    try:
        with trio.fail_after(WITNESS_S):
            await work()
    except trio.TooSlowError:
        _log.warning("gossip_failed", region=region, log=origin, text="no answer in time")
    except (PeerError, TrustError) as error:  # a fork was made known where it was found
        _log.warning("gossip_failed", region=region, log=origin, text=error.text)
