"""A registrar as a process: opened, served, ended. The composition root of this room."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import structlog
import trio

from cluster.core.auditlog import RUN
from relay.core.tlog import Fork
from cluster.env import RealEnv
from cluster.following import Following, changed
from cluster.kept import hold_data
from cluster.registrar.choir import Choir
from cluster.registrar.config import Peer, RegistrarConfig, load_config
from cluster.registrar.endpoints import caller, listen
from cluster.registrar.faces import Face
from cluster.registrar.gossip import Gossip, HttpDoor
from cluster.registrar.http import Caller, serve_http
from cluster.registrar.log import RegionLog
from cluster.registrar.metrics import RegistrarMetrics
from cluster.registrar.onlookers import Onlookers
from cluster.registrar.store import open_registry
from cluster.registrar.tables import Head
from cluster.registrar.witness import open_witness
from cluster.rootfile import RootFile
from cluster.trail import DIRECTORY, Trail, acting, open_registrar_trail
from relay.core.trust import Root
from relay.errors import ConfigError
from relay.journal.portal import open_portal

_log = structlog.get_logger("cluster.registrar")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def run_registrar(
    config: RegistrarConfig, *, task_status: trio.TaskStatus[RegionLog] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve until cancelled. Raises OperatorError, StoreError and its kinds, DiskFailed, RolledBack."""
    data = RealEnv().data_dir(config.data)
    with hold_data(data):
        trail = open_registrar_trail(data / DIRECTORY, config.region, config.registrar, _now_ms)
        try:
            with acting(trail.note, RUN, "registrar", root_version=config.root.payload.version):
                signed, cell = config.root.signed, f"{config.region}/"
                root = RootFile(config.root_path, data, signed, cell, _now_ms, note=trail.note, actor="registrar")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(root.watch)
                    await _run_on(config, data, trail, root.following, task_status)
        finally:
            trail.close()


class _Ear:
    """Hears of root documents that say something else of the regions than the one that it goes by."""

    def __init__(self, root: Root) -> None:
        self.heard = trio.Event()
        self._goes_by = self._newest = root

    def follow(self, root: Root) -> None:
        self._newest = root
        if changed(self._goes_by, root):
            self.heard.set()

    def followed(self) -> None:
        """The registrar goes by the newest one."""
        self._goes_by = self._newest


async def _run_on(
    config: RegistrarConfig, data: Path, trail: Trail, following: Following, task_status: trio.TaskStatus[RegionLog]
) -> None:
    """Until cancelled; anew from the disk whenever the root document says something else of the regions: other keys,
    witnesses and logs at once, as at a start. What was asked for meanwhile is asked for again: same answer."""
    ear = _Ear(following.root)
    following.add([ear.follow], always=True)
    while True:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_run, config, data, trail, task_status)
            config = await _followed(config, ear)
            nursery.cancel_scope.cancel()
        task_status = trio.TASK_STATUS_IGNORED
        _log.info("registrar_follows", region=config.region, version=config.root.payload.version)


async def _followed(config: RegistrarConfig, ear: _Ear) -> RegistrarConfig:
    """The config by the next root document that it holds with."""
    while True:
        await ear.heard.wait()
        ear.heard = trio.Event()
        try:
            fresh = load_config(config.source, _now_ms())
        except ConfigError as error:
            _log.error("root_not_followed", text=str(error), remedy="Until it is mended, the one of before counts here")
        else:
            ear.followed()
            return replace(config, root=fresh.root, k=fresh.k, peers=fresh.peers, unusable=fresh.unusable)


async def _run(config: RegistrarConfig, data: Path, trail: Trail, task_status: trio.TaskStatus[RegionLog]) -> None:
    for text in config.unusable:
        _log.error("peer_unusable", text=text, remedy="Its operator corrects it: posthouse init statement")
    onlookers = Onlookers(trail, config.root, {peer.region: _caller(config, peer) for peer in config.peers})
    metrics = RegistrarMetrics()
    # connections of their own: a witness that hangs, or waits for news, delays one of them
    doors, gossips, ears = _doors(config), _doors(config), _doors(config)
    logs = {peer.log.name: peer.log for peer in config.peers}
    async with (
        open_portal() as portal,
        open_registry(data / "registry.sqlite", portal, config.log.name, lambda c: c.sign(config.log), _now_ms())
        as registry,
        open_witness(data / "witness.sqlite", portal, config.witness, logs, data / "evidence", lambda: int(time.time()))
        as witness,
    ):  # fmt: skip
        witness.on_fork = partial(_on_fork, metrics)
        witness.tell_again()
        witness.on_verdict = lambda origin, status: metrics.verdicts.labels(origin, str(int(status))).inc()
        choir = Choir(
            config.trust, [(peer.witness, doors[peer.region]) for peer in config.peers], registry.consistency,
            on_cosigned=lambda name: metrics.cosigned.labels(name).inc(),
            on_refused=lambda name: metrics.not_cosigned.labels(name).inc(),
        )  # fmt: skip
        log = RegionLog(config.region, registry, choir, config.root, config.registrar, _now_ms)
        log.on_batch, log.on_refused = partial(_on_batch, metrics), metrics.refused.inc
        log.on_logged = partial(_on_logged, trail, config.log.name)
        tiles = {peer.log.name: gossips[peer.region] for peer in config.peers}
        gossip = Gossip(witness, gossips, tiles, {region: ear.news for region, ear in ears.items()})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(log.run)
            nursery.start_soon(choir.run)
            nursery.start_soon(gossip.run)
            nursery.start_soon(onlookers.run)
            face = partial(Face, log, witness, metrics, ready=lambda: _not_ready(choir), audit=onlookers.checkpoint)
            await _serve(nursery, config, face)
            _log.info("registrar_ready", region=config.region, log=config.log.name, size=registry.head.size)
            task_status.started(log)


def _doors(config: RegistrarConfig) -> dict[str, HttpDoor]:
    return {peer.region: HttpDoor(_caller(config, peer)) for peer in config.peers}


def _caller(config: RegistrarConfig, peer: Peer) -> Caller:
    return caller(peer.region, peer.url, config.root, peer.region)


async def _serve(nursery: trio.Nursery, config: RegistrarConfig, face: partial[Face]) -> None:
    env = RealEnv()
    faces: Mapping[str, Face] = {
        config.inner: face(inner=True, founds=True),
        **({config.outer: face(inner=False, founds=config.open)} if config.outer else {}),
    }
    for url, site in faces.items():
        listeners, wrap = await listen(env, url, config.certificate, config.private_key)
        await nursery.start(serve_http, listeners, site, wrap)


def _on_batch(metrics: RegistrarMetrics, logged: int, refused: int) -> None:
    metrics.batches.inc()
    metrics.logged.inc(logged)
    metrics.refused.inc(refused)


def _on_logged(trail: Trail, origin: str, head: Head, actions: list[str]) -> None:
    """Which users' records, and up to where in the region's log, whose own checkpoint (`root`) has them all."""
    trail.note("directory.log", "registrar", log=origin, size=head.size, root=head.root.hex(), actions=actions)


def _on_fork(metrics: RegistrarMetrics, origin: str, fork: Fork) -> None:
    metrics.forked.labels(origin).set(1)


def _not_ready(choir: Choir) -> str | None:
    if choir.trust.k and not choir.confirmed:
        return f"{choir.trust.k} of {len(choir.doors)} witnesses have to confirm the registry's end"
    return None
