"""The registrars of a simulated federation: the log of each region, its witness, its gossip and its HTTP are the real
ones (cluster.registrar), on machines of their own in the simulated network. In memory are what is on a registrar's
disk, and the log's entries, which are no home records: no witness reads them. One region's log may show two histories,
and one region's witness may lie (tests.simulation.false_witness); the nodes hear of it (tests.simulation.halting).

What must hold:

- nobody honest, registrar or node, ever says that a log forks that does not;
- an honest log is cosigned where k honest witnesses can be reached, whatever the others say;
- two histories never have k cosignatures each where that takes an honest witness twice, and one who knows of the fork
  stands by that log no more;
- where honest witnesses stand by two histories, or one of them knows of the fork, all of them know it within a round of
  gossip, and within one more all nodes have halted federation with that region. (Of different sizes only the log's own
  tiles tell. A log that hides them has both histories grow at one pace here; else it is only named by those who ask.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from random import Random
from types import SimpleNamespace
from typing import Any, Final

import trio

from cluster.registrar.choir import Choir
from cluster.registrar.faces import Face
from cluster.registrar.gossip import Gossip, HttpDoor
from cluster.registrar.http import Caller, Reply, serve_http
from cluster.registrar.witness import Witness
from relay.core.tlog import (
    Checkpoint, Frontier, Note, SignerKey, Tile, Trust, VerifierKey, consistency_proof, consistency_tiles, grow,
    leaf_hash, open_checkpoint, parse_checkpoint, verify_checkpoint,
)  # fmt: skip
from relay.errors import RolledBack
from relay.limits import GOSSIP_S, WITNESS_BACKOFF_MAX_S, WITNESS_S
from tests.simulation.false_witness import FalseWitness, now_s
from tests.simulation.halting import NodeHalts
from tests.simulation.keys import log_key, witness_key
from tests.simulation.network import Host, Network
from tests.simulation.nodes import SimNode
from tests.simulation.options import Options
from tests.simulation.world import Violation, World

PORT: Final = 7500  # where region 0 asks; the next one asks at the next: a registrar that lies knows to whom
SHARED: Final = 40  # entries that two histories of a log share, at most
EVERY_S: Final = 5.0  # seconds between two checkpoints of a log, about
DOWN_S: Final = 10.0  # seconds that a registrar is away, at most
CRASHES_S: Final = 40.0  # seconds between two ends of a registrar's process, on the average
COSIGNED_S: Final = 2 * (WITNESS_BACKOFF_MAX_S + WITNESS_S + EVERY_S)  # seconds to k cosignatures: each is tried twice
HEARD_S: Final = GOSSIP_S  # seconds: for all registrars, and all nodes of other regions
LOOK_S: Final = 1.0  # seconds between two looks


class History:
    """What a log has, or shows to some: a registry, as far as choirs and faces ask one."""

    def __init__(self, signer: SignerKey, name: str, shared: int) -> None:
        """The first `shared` entries are those of every history of that log."""
        self.signer, self.name = signer, name
        self._leaves = [leaf_hash(f"{number}".encode()) for number in range(shared)]

    @property
    def size(self) -> int:
        return len(self._leaves)

    def grow(self, size: int) -> None:
        """To that size, if it is not there yet."""
        self._leaves += [leaf_hash(f"{number} of {self.name}".encode()) for number in range(self.size, size)]

    def note(self) -> Note:
        return Checkpoint(self.signer.name, self.size, self._root(self.size)).sign(self.signer)

    def has(self, point: Checkpoint) -> bool:
        return point.size <= self.size and self._root(point.size) == point.root

    def _root(self, size: int) -> bytes:
        return Frontier().extend(self._leaves[:size]).root()

    def _tiles(self, size: int) -> dict[Tile, bytes]:
        return grow(0, {}, self._leaves[:size])

    async def consistency(self, old: int, size: int) -> tuple[bytes, ...]:
        """Registry.consistency."""
        await trio.lowlevel.checkpoint()
        wanted, stored = consistency_tiles(old, size), self._tiles(size)
        return consistency_proof(old, size, {tile: stored[tile] for tile in wanted})

    async def tile(self, tile: Tile) -> bytes | None:
        """Registry.tile."""
        await trio.lowlevel.checkpoint()
        stored = [(name, data) for name, data in self._tiles(self.size).items() if name[:2] == tile[:2]]
        return next((data[: 32 * tile.width] for name, data in stored if name.width >= tile.width), None)


class Memory:
    """A witness's database: what a process has written the next one finds."""

    def __init__(self, delay: Callable[[], float]) -> None:
        self.seen: dict[str, tuple[Any, ...]] = {}
        self.forks: dict[str, tuple[Any, ...]] = {}
        self._delay = delay

    async def commit(self, size: int, *statements: tuple[str, Sequence[tuple[Any, ...]]]) -> None:
        await trio.sleep(self._delay())
        for sql, rows in statements:
            for row in rows:
                if "seen" in sql:
                    self.seen[row[0]] = row
                else:
                    self.forks.setdefault(row[0], row)

    async def fold_wal(self) -> None:
        await trio.lowlevel.checkpoint()


class _NoPlace:
    """A directory that takes no copies of evidence: what is in the database is enough (Witness.halt)."""

    def __truediv__(self, name: object) -> Any:
        raise OSError(30, "Read-only file system")


class Site:
    """What a registrar answers to one region: the real Face, where it does not lie."""

    def __init__(self, own: SimRegistrar, asker: str) -> None:
        self._own, self._asker = own, asker

    def takes(self, method: str, path: str) -> int | None:
        return self._face().takes(method, path)

    async def reply(self, method: str, path: str, body: bytes) -> Reply:
        own = self._own
        if own.forks and own.all.hides and path.startswith("/tile/"):
            return Reply(HTTPStatus.NOT_FOUND, b"")
        if own.region == own.all.false.region:
            return await own.all.false.reply(self._face(), method, path, body)
        return await self._face().reply(method, path, body)

    def _face(self) -> Face:
        history = self._own.history_for(self._asker)
        log: Any = SimpleNamespace(registry=history, choir=SimpleNamespace(note=history.note()))
        metrics: Any = None
        return Face(log, self._own.witness, metrics, inner=False, founds=False, ready=lambda: None)


class SimRegistrar:
    """One region's. `run` gives it lives, one after the other."""

    def __init__(self, all_: Registrars, region: str) -> None:
        self.all, self.region, self.origin = all_, region, log_key(region).name
        self.forks = region == all_.forks
        self.host: Host = all_.net.add(f"registrar.{region}", region, is_node=True)
        self.random: Random = all_.world.random(f"registrar {region}")
        self.others = [other for other in all_.regions if other != region]
        self.trust = Trust(log_key(region).verifier, tuple(witness_key(one).verifier for one in self.others), all_.k)
        self._logs: dict[str, VerifierKey] = {log_key(one).name: log_key(one).verifier for one in self.others}
        shared = self.random.randint(0, SHARED)
        names = ("the one", "the other") if self.forks else ("the one",)
        self.histories = [History(log_key(region), name, shared) for name in names]
        if self.forks and not all_.hides:  # a fork of two sizes takes more to be found
            self.histories[1].grow(shared + self.random.randint(0, SHARED))
        self.common = frozenset(range(len(names)))  # the histories that have all that k witnesses stood by
        self.cosigned = 0.0  # when k witnesses last stood by this log
        self.knows: set[str] = set()  # logs that fork, as our witness has found or heard
        self._memory: Any = Memory(lambda: self.random.uniform(0.0, 0.05))
        self._scope = trio.CancelScope()
        self.witness = self._new_witness()

    def _new_witness(self) -> Witness:
        """Of the next process, with what is on the disk."""
        no_place: Any = _NoPlace()
        witness = Witness(self._memory, witness_key(self.region), self._logs, no_place, now_s)
        witness.load(list(self._memory.seen.values()), list(self._memory.forks.values()))
        witness.on_fork, witness.on_verdict = lambda origin, fork: self._told(origin), self._check_verdict
        witness.tell_again()
        return witness

    async def run(self) -> None:
        while True:
            with trio.CancelScope() as self._scope:
                self.witness = self._new_witness()
                await self._live()
            await trio.sleep(self.random.uniform(0.0, DOWN_S))

    def crash(self) -> None:
        self.all.world.trace("registrar killed", self.region)
        self.all.net.kill_process(self.host)
        self._scope.cancel()

    async def _live(self) -> None:
        async with trio.open_nursery() as nursery:
            for number, asker in enumerate(self.all.regions):
                listener = await self.all.net.listen(self.host, PORT + number)
                await nursery.start(serve_http, [listener], Site(self, asker))
            doors = {other: self._door(other) for other in self.others}
            tiles = {log_key(other).name: door for other, door in doors.items()}
            ears = {other: self._door(other).news for other in self.others}
            nursery.start_soon(Gossip(self.witness, doors, tiles, ears).run)
            for history, shown in zip(self.histories, self.all.shown if self.forks else [self.others], strict=True):
                nursery.start_soon(self._keep, history, shown, nursery)

    def _door(self, other: str) -> HttpDoor:
        return HttpDoor(Caller(other, partial(self.all.dial, self.host, self.region, other)))

    # --- its log -----------------------------------------------------------------------------------
    async def _keep(self, history: History, to: Sequence[str], nursery: trio.Nursery) -> None:
        """A log that grows, and has its checkpoints cosigned by these. One that forks grows no more after healing."""
        choir = Choir(self.trust, [(witness_key(one).verifier, self._door(one)) for one in to], history.consistency)
        nursery.start_soon(self._sing, choir)
        while True:
            if not (self.forks and self.all.healed):
                in_pace = self.forks and self.all.hides
                history.grow(self.all.pace if in_pace else max(history.size, 1) + self.random.randint(0, 2))
            choir.present(history.note().encode())
            note = await choir.cosigned()
            if note is not None:
                self._stood_by(note)
            await trio.sleep(self.random.uniform(0.5, 1.5) * EVERY_S)

    async def _sing(self, choir: Choir) -> None:
        """A log that shows two histories does not mind being told that it is an old copy of itself."""
        while True:
            try:
                await choir.run()
            except* RolledBack as group:
                if not self.forks:
                    raise Violation(f"{self.origin} is told that it is an old copy, and is none") from group
                self.all.world.counts["a log that forks was told so"] += 1
            await trio.sleep(EVERY_S)

    def sides(self, point: Checkpoint) -> frozenset[int]:
        """The histories to which a checkpoint belongs."""
        return frozenset(number for number, history in enumerate(self.histories) if history.has(point))

    def seen_by(self, region: str) -> Checkpoint | None:
        """What another region's witness stands by."""
        note = self.all.of[region].witness.seen(self.origin)
        return open_checkpoint(note, Trust(self.trust.log, (), 0)).checkpoint if note else None

    def history_for(self, asker: str) -> History:
        """Whose tiles it shows: a log that forks knows by which history each one's witness stands."""
        seen = self.seen_by(asker) if self.forks else None
        return self.histories[min(self.sides(seen), default=0) if seen else 0]

    def _stood_by(self, note: Note) -> None:
        """k witnesses stand by a checkpoint."""
        verify_checkpoint(note, self.trust)
        self.all.world.counts["checkpoint cosigned"] += 1
        self.cosigned = trio.current_time()
        self.common &= self.sides(parse_checkpoint(note.text))
        if not self.common:
            self.all.world.counts["two histories were cosigned"] += 1
            liars = self.others.count(self.all.false.region)
            if len(self.others) + liars < 2 * self.trust.k:
                raise Violation(f"two histories of {self.origin} have {self.trust.k} cosignatures each")

    # --- its witness -------------------------------------------------------------------------------
    def _told(self, origin: str) -> None:
        if origin not in self.knows:
            self.knows.add(origin)
            self.all.world.trace("fork found", self.region, origin)
        if not self.all.forks or origin != log_key(self.all.forks).name:
            raise Violation(f"the witness of {self.region} says that {origin} forks, and it does not")

    def _check_verdict(self, origin: str, status: int) -> None:
        if status == HTTPStatus.OK and origin in self.knows:
            raise Violation(f"the witness of {self.region} stands by {origin}, and knows that it forks")


class Registrars:
    """All of a world; none, where no log forks and no witness lies."""

    def __init__(
        self, world: World, net: Network, nodes: Sequence[SimNode], regions: Sequence[str], options: Options
    ) -> None:  # fmt: skip
        self.world, self.net, self.regions = world, net, regions
        random = world.random("registrars")
        self.k = random.randint(1, max(len(regions) - 1, 1))
        self.false = FalseWitness(world, options.false_witness)
        self.forks = options.liar if options.forks else ""
        self.hides = random.random() < 0.3  # the log that forks hides its tiles
        others = [region for region in regions if region != self.forks]
        random.shuffle(others)
        splits = len(others) > 1 and random.random() < 0.7
        self.shown = [others[:1], others[1:]] if splits else [others, others]  # to whom it shows which of its histories
        self.healed = False
        self._settled = trio.Event()
        there = self.forks or self.false.region
        self.of = {region: SimRegistrar(self, region) for region in regions} if there else {}
        self.halts = NodeHalts(nodes, regions if there else [], self.forks, self.dial)

    @property
    def pace(self) -> int:
        """The size of two histories that keep pace with each other, and share less."""
        return SHARED + 1 + int(trio.current_time() / EVERY_S)

    async def dial(self, host: Host, asker: str, region: str) -> trio.abc.Stream:
        """A connection from `host`, in the region `asker`, to the registrar of `region`. Raises OSError."""
        return await self.net.dial(host, f"registrar.{region}", PORT + self.regions.index(asker))

    # --- the world's course ------------------------------------------------------------------------
    def start(self, nursery: trio.Nursery) -> None:
        for own in self.of.values():
            nursery.start_soon(own.run)
        if self.of:
            nursery.start_soon(self._crashes)
            nursery.start_soon(self.halts.look)

    async def _crashes(self) -> None:
        random = self.world.random("crashes of registrars")
        while not self.healed:
            await trio.sleep(random.expovariate(1 / CRASHES_S))
            if not self.healed:
                random.choice(list(self.of.values())).crash()

    def heal(self, nursery: trio.Nursery) -> None:
        self.healed = True
        if self.of:
            nursery.start_soon(self._settle)

    async def settled(self) -> None:
        if self.of:
            await self._settled.wait()

    # --- the reckoning -----------------------------------------------------------------------------
    async def _settle(self) -> None:
        """Everybody can reach everybody. Raises Violation."""
        began = trio.current_time()
        await self._until(lambda: self._uncosigned(began), COSIGNED_S, "not cosigned, and k honest witnesses are there")
        if self._misled() or any(own.knows for own in self._honest()):
            self.world.counts["a fork to be found"] += 1
            await self._until(self._unaware, HEARD_S, "do not know of a fork that is there to be seen")
        self._settled.set()

    async def _until(self, who: Callable[[], Sequence[str]], within: float, what: str) -> None:
        """Until there is nobody left of whom that is true."""
        with trio.move_on_after(within):
            while who():  # noqa: ASYNC110 - of many at once
                await trio.sleep(LOOK_S)
        if left := who():
            raise Violation(f"{within:.0f} s later, {', '.join(left)}: {what}")

    def _honest(self) -> list[SimRegistrar]:
        """Who watches the log that forks, and does not lie."""
        return [own for own in self.of.values() if own.region not in (self.forks, self.false.region)]

    def _uncosigned(self, began: float) -> list[str]:
        """Honest logs that have not been cosigned since then, and could be."""
        logs = [own for own in self.of.values() if own.region != self.forks and own.cosigned < began]
        return [own.origin for own in logs if sum(one != self.false.region for one in own.others) >= self.k]

    def _misled(self) -> bool:
        """Do honest witnesses stand by histories that contradict each other, and can they find that out?"""
        if not self.forks:
            return False
        log = self.of[self.forks]
        points = [point for own in self._honest() if (point := log.seen_by(own.region))]
        told = not self.hides or len({point.size for point in points}) == 1
        return told and not frozenset(range(2)).intersection(*map(log.sides, points))

    def _unaware(self) -> list[str]:
        """Honest registrars, and nodes, that do not know of the fork."""
        witnesses = [f"the witness of {own.region}" for own in self._honest() if not own.knows]
        return witnesses + self.halts.unaware()
