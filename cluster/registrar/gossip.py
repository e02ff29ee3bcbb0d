"""Gossip: what other regions' witnesses saw of each log is held against what we saw, every GOSSIP_S.

k witnesses of n may be fewer than half, and then a log can show one history to some and another to the rest. Each of
them is right by what it knows; together they have the proof. Two checkpoints of one size tell by themselves. Of
different sizes the log itself is asked: the consistency proof between them, from its tiles. A proof that leads to the
newer root and not to the older one is evidence; a log that gives none is only loudly named, for it may be away.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
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
from cluster.registrar.http import Caller
from cluster.registrar.witness import Witness, origin_hash
from relay.core.codec import pack
from relay.errors import PeerError, TrustError
from relay.limits import GOSSIP_S, LOOKUP_S, MAX_FORKS, MAX_SIGNED_NOTE

EMPTY: Final = pack([])  # no forks
_log = structlog.get_logger("cluster.registrar.gossip")


class HttpDoor:
    """A witness over HTTP."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def add_checkpoint(self, request: bytes) -> tuple[int, bytes]:
        return await self._caller.ask("POST", "/add-checkpoint", request)

    async def seen(self, origin: str) -> bytes:
        status, note = await self._caller.ask("GET", f"/{origin_hash(origin)}/checkpoint", most=MAX_SIGNED_NOTE)
        return note if status == 200 else b""

    async def forks(self) -> bytes:
        status, proofs = await self._caller.ask("GET", "/forks", most=MAX_FORKS * (MAX_FORK + 8))
        return proofs if status == 200 else EMPTY

    async def tile(self, tile: Tile) -> bytes:
        """A tile of its region's own log; empty when it has none. Raises PeerError."""
        status, data = await self._caller.ask("GET", f"/{tile.path}")
        return data if status == 200 else b""


@dataclass
class Gossip:
    """Asks `doors` (by region) what they saw of the logs in `logs` (region by origin), and of none else."""

    witness: Witness
    doors: Mapping[str, Door]
    tiles: Mapping[str, HttpDoor]  # by origin: the log's own registrar

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await self.look()
            await trio.sleep(GOSSIP_S)

    async def look(self) -> None:
        """One round: every other witness, all at once, about every log that we watch, and what it knows of forks. Ends
        within GOSSIP_S, whoever does not answer."""
        async with trio.open_nursery() as nursery:
            for region, door in self.doors.items():
                nursery.start_soon(self._ask, region, door)

    async def _ask(self, region: str, door: Door) -> None:
        questions: dict[str, Callable[[], Awaitable[None]]] = {"": partial(self._hear, door)}
        questions |= {origin: partial(self._look_at, door, origin) for origin in self.witness.logs}
        with trio.move_on_after(GOSSIP_S):
            for origin, ask in questions.items():
                try:
                    with trio.fail_after(LOOKUP_S):
                        await ask()
                except trio.TooSlowError:
                    _log.warning("gossip_failed", region=region, log=origin, text="no answer in time")
                except (PeerError, TrustError) as error:  # a fork was made known where it was found
                    _log.warning("gossip_failed", region=region, log=origin, text=error.text)

    async def _hear(self, door: Door) -> None:
        await self.witness.hear(await door.forks())

    async def _look_at(self, door: Door, origin: str) -> None:
        await self._compare(origin, await door.seen(origin))

    async def _compare(self, origin: str, note: bytes) -> None:
        other = await self.witness.compare(origin, note) if note else None
        if other is None or origin not in self.tiles:
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
