"""Simulated machines that run real node code (cluster.lives.serve_node): started, crashed, stopped, and again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from cluster.config import NodeConfig
from cluster.config_keys import Address, LimitsSection, ListenSection, LogSection, NodeSection, PathsSection
from cluster.core.linkwire import Peer
from cluster.erasure import Erasures
from cluster.lives import serve_node
from cluster.node import Kit
from cluster.stopping import Stop
from cluster.pki import Claim
from relay.core.receipts import Word, sign_statements
from relay.core.trust import Root
from relay.core.trust.signing import sign
from relay.delivery import Delivery
from relay.errors import PosthouseError
from tests.simulation.clock import SimClock
from tests.simulation.env import SimEnv
from tests.simulation.keys import key
from tests.simulation.liar import Liar, LyingStream
from tests.simulation.network import Host, Network
from tests.simulation.people import ADMIN_PORT, CLIENTS_PORT, LINKS_PORT, host_of
from tests.simulation.proofs import certify
from tests.simulation.ring import OpenRing
from tests.simulation.stream import SimStream
from tests.simulation.world import World


class OpenSecurity:
    """cluster.links.secure.Security without TLS: the network itself says who is at the other end."""

    expires_ms = 2**53  # never

    def __init__(self, peer: Peer, who: Callable[[Host], Peer], liar: Liar | None) -> None:
        self._peer, self._who = peer, who
        self._liar = liar if liar is not None and liar.region == peer.region else None

    @property
    def peer(self) -> Peer:
        return self._peer

    async def secure_client(self, transport: trio.abc.Stream, region: str) -> tuple[trio.abc.Stream, Claim]:
        return self._claim(transport)

    async def secure_server(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        return self._claim(transport)

    def attest(self, statements: Sequence[bytes], store: bytes) -> Word:
        """Signed with a key of the node's name, under a certificate that is only its name."""
        certificate = f"{self._peer.cell} {self._peer.node}".encode()
        return sign_statements(statements, store, certificate, partial(sign, key(certificate.decode()), b""))

    def _claim(self, transport: trio.abc.Stream) -> tuple[trio.abc.Stream, Claim]:
        assert isinstance(transport, SimStream)
        other = self._who(transport.other)
        lies = self._liar is not None and other.region != self._peer.region
        return LyingStream(transport, self._liar, other) if lies else transport, Claim(other, other.region)


class SimNode:
    """A machine with a disk, a clock, and at most one process."""

    def __init__(
        self, world: World, net: Network, root: Root, region: str, name: str, disk: Any,
        saw: Callable[[str, bytes, bool], None], liar: Liar | None = None,
    ) -> None:
        self.liar = liar
        self.world, self.net, self.root, self.region, self.name, self.disk = world, net, root, region, name, disk
        self.cell = f"{region}/1"
        self.host = net.add(host_of(region, name), region, is_node=True)
        self.peer = Peer(region, self.cell, name)
        self.random: Random = world.random(f"node {self.host.name}")
        self.clock = SimClock(boot_ms=self.random.randrange(1_000_000))
        self.clock.node = self  # type: ignore[attr-defined]  # by which the checks know whose Delivery they look at
        self.ring = OpenRing(lambda data, is_record: saw(region, data, is_record))
        self.env: SimEnv | None = None
        self.delivery: Delivery | None = None  # of the present life, once there is one
        self.erasures: Erasures | None = None  # the same
        self.scope = trio.CancelScope()
        self.stop = Stop()
        self.lives = 0
        self.ended: PosthouseError | None = None  # what the last life ended with by itself
        self.restart = trio.lowlevel.ParkingLot()
        self.up = False  # it should run

    def __str__(self) -> str:
        return self.host.name

    # --- what happens to it ------------------------------------------------------------------------
    def start(self) -> None:
        """Power on, and start the process."""
        if not self.host.up:
            self.net.power_on(self.host)
        self.up = True
        self.restart.unpark_all()

    def crash(self, *, power: bool) -> None:
        """The process dies now (`power`: the machine with it). First nothing it does has an effect any more, then it is
        cancelled: no `finally` of it writes after its death."""
        self.world.trace("power cut" if power else "process killed", self.host.name)
        self.world.counts["crash"] += 1
        self.up = False
        if self.env is not None:
            self.env.dead = True
        if power:
            self.net.power_off(self.host)
        else:
            self.net.kill_process(self.host)
        self.delivery = self.erasures = None
        self.scope.cancel()

    def drain(self) -> None:
        """SIGTERM."""
        self.world.trace("asked to stop", self.host.name)
        self.up = False
        self.stop.ask()

    # --- its life ----------------------------------------------------------------------------------
    async def run(self) -> None:
        """Lives, one after the other, until cancelled."""
        while True:
            while not self.up:
                await self.restart.park()
            await self._live()

    async def _live(self) -> None:
        self.lives += 1
        self.world.trace("process started", self.host.name, self.lives)
        env = self.env = SimEnv(self.net, self.host, self.clock, self.disk, self.random)
        self.stop, self.scope, self.ended = Stop(), trio.CancelScope(), None
        kit = Kit(env, OpenSecurity(self.peer, self._who, self.liar), self.ring, certify=certify)  # type: ignore[arg-type]
        try:
            with self.scope:
                await serve_node(self._config(), kit, self.stop)
        except BaseExceptionGroup as group:
            if not env.dead:
                raise
            self._only_death(group)
        except PosthouseError as error:
            if not env.dead:
                self.ended = error
                self.world.trace("process ended", self.host.name, type(error).__name__, error.text)
        if not env.dead:
            env.dead = True
            self.net.kill_process(self.host)
            self.world.trace("process stopped", self.host.name)
        self.delivery = self.erasures = None
        if self.up:
            await trio.sleep(1.0)  # what a service manager waits

    @staticmethod
    def _only_death(group: BaseExceptionGroup[BaseException]) -> None:
        """What a dead process raises is no matter; but a mistake of the code is one, dead or not."""
        of_death = (PosthouseError, OSError, trio.BrokenResourceError, trio.ClosedResourceError, trio.Cancelled)
        rest = group.split(of_death)
        if rest[1] is not None:
            raise rest[1]

    def _who(self, host: Host) -> Peer:
        node, _, region = host.name.partition(".")
        return Peer(region, f"{region}/1", node)

    def _config(self) -> NodeConfig:
        host = self.host.name
        listen = ListenSection(
            links=Address(host, LINKS_PORT), admin=Address(host, ADMIN_PORT), clients=Address(host, CLIENTS_PORT),
            tls=False,
        )
        base = Path("/simulated") / host
        paths = PathsSection(base / "root", base / "data", base / "key", base / "cert", base / "private")
        own = NodeSection(self.region, self.cell, self.name)
        return NodeConfig(base / "node.toml", own, paths, listen, LimitsSection(), LogSection(), self.root)
