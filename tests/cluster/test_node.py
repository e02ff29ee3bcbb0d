"""One node in this process, with real sockets and files: how it stops."""

from __future__ import annotations

import errno
import re
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
import trio
from msgspec import structs

from cluster import lives as process
from cluster import node, stopping
from cluster.config import NodeConfig, load_config
from cluster.core.linkwire import federation_id
from cluster.directory.seen import Seen, SeenFile, Sighting
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from cluster.local.processes import _ask_ready
from relay.core import wire
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.records import FoldVersion, encode_record
from relay.errors import DiskFailed, OperatorError, StoreDamaged
from relay.delivery import Delivery
from relay.journal.guard import ResidencyGuard
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing
from relay.journal.shelf import SealedShelf
from relay.journal.solo import open_solo
from relay.ports import Journal
from tests.relay.journal.checkpoints import load_checkpoint
from tests.e2e.raw import Person, open_raw
from tests.scratch import MemoryScratch


def now() -> int:
    return int(time.time() * 1000)


def make(folder: Path) -> tuple[NodeConfig, Layout]:
    layout = make_federation(folder / "f", ["norden"], RealEnv(), nodes=1)
    return load_config(layout.node("norden").config_path), layout


async def test_a_second_signal_ends_the_draining_and_the_checkpoint_is_saved(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(stopping, "_AGAIN_S", 0.0)
    config, layout = make(tmp_path)
    with trio.fail_after(8), structlog.testing.capture_logs() as logs:  # draining takes 10 s for a client that stays
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            async with open_raw(layout, "norden", now()) as raw:
                await raw.sign_in(Person(layout, "norden", now()))
                signal.raise_signal(signal.SIGTERM)
                await raw.hear_a(wire.Drain)
                assert await _ask_ready(config.listen.admin) == "not ready: stopping", "nobody new is let in"
                signal.raise_signal(signal.SIGTERM)
                with pytest.raises(Exception, match="closed"):
                    await raw.hear_a(wire.Error)
    async with _journal(config) as journal:
        saved = await load_checkpoint(journal)
    assert saved is not None and saved[0] > 0
    assert any(entry["event"] == "stopped" for entry in logs)


@pytest.mark.parametrize("key", ["clients", "links", "admin", "unix"])
async def test_a_listener_that_cannot_be_names_its_key(tmp_path: Path, key: str) -> None:
    config, _ = make(tmp_path)
    taken: Any = tmp_path / "clients.sock" if key == "unix" else getattr(config.listen, key)
    config = replace(config, listen=structs.replace(config.listen, **{key: taken}))
    if key == "unix":
        taken.write_text("no socket")
    async with trio.open_nursery() as nursery:
        if key != "unix":
            await nursery.start(partial(trio.serve_tcp, trio.aclose_forcefully, taken.port, host=taken.host))
        with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(5):
            await process.run_node(config)
        nursery.cancel_scope.cancel()
    (error,) = _leaves(caught.value)
    assert isinstance(error, OperatorError) and error.text.startswith(f"listen.{key}: ") and error.remedy
    assert str(taken) in error.text


async def test_a_checkpoint_that_means_nothing_names_its_file(tmp_path: Path) -> None:
    config, _ = make(tmp_path)
    async with _journal(config) as journal:
        await journal.append([encode_record(FoldVersion(FOLD_VERSION))])
        await journal.save_checkpoint(1, [b"sealed well, and no mailroom"])
    with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(5):
        await process.run_node(config)
    (error,) = _leaves(caught.value)
    assert isinstance(error, StoreDamaged)
    assert re.search(r"log\.sqlite: the checkpoint cannot be read.*restore nothing old", str(error))


async def test_a_signal_while_starting_ends_the_start(tmp_path: Path, monkeypatch: Any) -> None:
    config, _ = make(tmp_path)
    replaying = trio.Event()

    async def replay(*_: Any) -> None:
        replaying.set()
        await trio.sleep_forever()

    monkeypatch.setattr(Delivery, "wait_for", replay)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run_node, config)
            await replaying.wait()
            signal.raise_signal(signal.SIGTERM)


async def test_clients_go_elsewhere_until_a_node_can_serve_them(tmp_path: Path, monkeypatch: Any) -> None:
    """A connection that nobody accepts would keep them for as long as a handshake may take."""
    config, _ = make(tmp_path)
    replaying, go_on, wait_for = trio.Event(), trio.Event(), Delivery.wait_for

    async def replay(self: Delivery, *args: Any) -> None:
        replaying.set()
        await go_on.wait()
        await wait_for(self, *args)

    monkeypatch.setattr(Delivery, "wait_for", replay)
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.run_node, config)
            await replaying.wait()
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*config.listen.clients)
            go_on.set()
            while await _ask_ready(config.listen.admin) is not None:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await (await trio.open_tcp_stream(*config.listen.clients)).aclose()
            signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def _journal(config: NodeConfig) -> AsyncIterator[Journal]:
    """The log of a node that does not run."""
    own, root = config.node, config.root
    async with open_portal() as portal, open_solo(
        config.paths.data, env=RealEnv(portal), ring=StorageRing.load(config.paths.storage_key),
        residency=ResidencyGuard(own.region, own.cell, root), cell=own.cell, federation=federation_id(root),
    ) as journal:
        yield journal


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


async def test_a_disk_that_fails_under_the_directory_ends_the_node(tmp_path: Path, monkeypatch: Any) -> None:
    """Rule 7: what cannot be remembered of others' home records is not used, and the process ends."""
    config, layout = make(tmp_path)
    real, opened, ended = RealEnv.open_seen, list[SeenFile](), list[BaseException]()

    @asynccontextmanager
    async def open_seen(env: RealEnv, file: Path) -> AsyncIterator[Seen]:
        async with real(env, file) as seen:
            assert isinstance(seen, SeenFile)
            opened.append(seen)
            yield seen

    async def run(task_status: trio.TaskStatus[None]) -> None:
        try:
            await process.run_node(config, task_status)
        except* DiskFailed as group:
            ended.extend(_leaves(group))

    def fails(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(RealEnv, "open_seen", open_seen)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            (seen,) = opened
            monkeypatch.setattr("cluster.directory.seen._raise", fails)
            with pytest.raises(DiskFailed):
                await seen.raise_to(b"u" * 32, Sighting(1, b"m" * 32))
    file = layout.node("norden").data_dir / node.DIRECTORY_FILE
    assert str(file) in str(ended[0]) and "Check the disk" in str(ended[0])


async def test_a_disk_that_fails_under_who_rests_ends_the_node_and_loses_nothing(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Rule 7: what the fold or the disk writer cannot look up is not guessed; it is computed again from the log."""
    config, _ = make(tmp_path)
    scratch, delivered, ended = MemoryScratch(), list[Delivery](), list[BaseException]()

    @contextmanager
    def open_shelf(*_: object) -> Iterator[SealedShelf]:
        yield SealedShelf(scratch, bytes(32), keep=0)

    async def run(task_status: trio.TaskStatus[None]) -> None:
        try:
            await process.run_node(config, task_status)
        except* DiskFailed as group:
            ended.extend(_leaves(group))

    real = Delivery.__init__
    monkeypatch.setattr(Delivery, "__init__", lambda self, *rest: (real(self, *rest), delivered.append(self))[0])
    with monkeypatch.context() as patch, trio.fail_after(20):
        patch.setattr(RealEnv, "open_shelf", open_shelf)
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            scratch.error = errno.EIO
            with pytest.raises(DiskFailed):  # somebody looks: a lookup, or the fold itself
                delivered[0].room.state.users.peek(bytes(32))
    tip = delivered[0].room.state.index
    assert "the scratch file in memory: it cannot be read: Input/output error" in str(ended[0])
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            assert delivered[1].room.state.index >= tip > 0
            signal.raise_signal(signal.SIGTERM)


async def test_a_node_that_rejoins_lives_again_and_can_still_be_stopped(tmp_path: Path, monkeypatch: Any) -> None:
    config, _ = make(tmp_path)
    meet, listen, lives, listeners = node.Node._meet_the_cell, RealEnv.listen, list[int](), list[Any]()

    async def meet_the_cell(self: node.Node) -> None:
        lives.append(1)
        if len(lives) == 1:
            raise process.Rejoin("another store")
        await meet(self)

    async def listen_and_keep(self: RealEnv, host: str, port: int) -> Any:
        made = await listen(self, host, port)
        listeners.extend(made)  # nobody's garbage
        return made

    monkeypatch.setattr(node.Node, "_meet_the_cell", meet_the_cell)
    monkeypatch.setattr(RealEnv, "listen", listen_and_keep)
    monkeypatch.setattr(process, "_LIVES_S", 0.0)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            signal.raise_signal(signal.SIGTERM)
    assert len(lives) == 2


async def test_a_node_whose_store_failed_under_it_is_not_ready_and_can_be_stopped(
    tmp_path: Path, monkeypatch: Any
) -> None:
    """Its store is set aside when another node leads the cell: that may be never."""
    config, _ = make(tmp_path)
    failed, waits = trio.Event(), trio.Event()

    @asynccontextmanager
    async def open_journal(*parts: Any) -> AsyncIterator[Any]:
        async def fail() -> None:
            await failed.wait()
            raise StoreDamaged("block 7 rotted")

        try:
            async with opened(*parts) as journal, trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                yield journal
        finally:
            waits.set()
            await trio.sleep_forever()

    opened = node._open_journal
    monkeypatch.setattr(node, "_open_journal", open_journal)
    with trio.fail_after(8):
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            assert await _ask_ready(config.listen.admin) is None
            failed.set()
            await waits.wait()
            assert await _ask_ready(config.listen.admin) == "not ready: joining the cell"
            signal.raise_signal(signal.SIGTERM)


async def test_a_node_whose_stores_are_set_aside_one_after_the_other_stops(
    tmp_path: Path, monkeypatch: Any, autojump_clock: Any
) -> None:
    """In a row: one that served in between is no crash loop."""
    config, _ = make(tmp_path)
    lives = ["damaged", "damaged", "snapshot", "served", "damaged", "snapshot", "damaged", "damaged", "never"]
    lived: list[str] = []

    async def live(_config: Any, _kit: Any, _stop: Any, ready: Any) -> None:
        lived.append(lives[len(lived)])
        if lived[-1] == "served":
            ready()
        kind = process.Rejoin if lived[-1] == "snapshot" else process.StoreSetAside
        raise BaseExceptionGroup("", [kind("block 7 rotted")])

    monkeypatch.setattr(process, "live", live)
    kit: Any = SimpleNamespace(env=RealEnv(), trail=None)
    with pytest.raises(OperatorError, match=r"3 stores in a row.*block 7 rotted") as caught:
        await process.serve_node(config, kit, stopping.Stop())
    assert "disk" in caught.value.remedy and lived == lives[:7]


async def test_a_mistake_of_ours_is_not_hidden_by_what_it_led_to(tmp_path: Path, monkeypatch: Any) -> None:
    config, _ = make(tmp_path)

    async def live(*_: Any) -> None:
        raise BaseExceptionGroup("", [StoreDamaged("block 7 rotted"), BaseExceptionGroup("", [KeyError("a mistake")])])

    monkeypatch.setattr(process, "live", live)
    kit: Any = SimpleNamespace(env=RealEnv(), trail=None)
    with structlog.testing.capture_logs() as logs, pytest.raises(StoreDamaged, match="block 7 rotted"):
        await process.serve_node(config, kit, stopping.Stop())
    (entry,) = logs
    assert entry["event"] == "unexpected" and [repr(leaf) for leaf in _leaves(entry["exc_info"])] == [
        "KeyError('a mistake')"
    ]


async def test_a_node_scrubs_what_it_keeps_and_renews_a_checkpoint_that_rotted(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("relay.journal.scrub.SCRUB_FIRST_S", 0.01)
    monkeypatch.setattr("relay.steward._LOOK_S", 0.01)
    config, _ = make(tmp_path)
    with trio.fail_after(8), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            signal.raise_signal(signal.SIGTERM)
    file, damage = config.paths.data / "log.sqlite", "UPDATE checkpoint_row SET sealed = zeroblob(60)"
    checks = node.SoloJournal.load_checkpoint

    async def load_and_damage(journal: Any, take: Any) -> Any:
        """After the start has read it, before the scrubber does."""
        saved = await checks(journal, take)
        await journal.disk.store._db.run(lambda connection: connection.execute(damage))
        return saved

    monkeypatch.setattr(node.SoloJournal, "load_checkpoint", load_and_damage)
    with trio.fail_after(8), structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(process.run_node, config)
            while not any(entry["event"] == "checkpoint_damaged" for entry in logs):  # noqa: ASYNC110
                await trio.sleep(0.01)
            await trio.sleep(0.2)
            signal.raise_signal(signal.SIGTERM)
    assert any(str(file) in entry["text"] for entry in logs if entry["event"] == "checkpoint_damaged")
    monkeypatch.setattr(node.SoloJournal, "load_checkpoint", checks)
    async with _journal(config) as journal:
        assert await load_checkpoint(journal) is not None
