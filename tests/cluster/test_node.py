"""One node in this process, with real sockets and files: how it stops."""

from __future__ import annotations

import signal
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio
from msgspec import structs

from cluster import node
from cluster.config import load_config
from cluster.directory.seen import Seen, Sighting
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from relay.core import wire
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.records import FoldVersion, encode_record
from relay.errors import DiskFailed, OperatorError, StoreDamaged
from relay.journal.portal import open_portal
from tests.e2e.raw import Person, open_raw


def now() -> int:
    return int(time.time() * 1000)


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[node.Node, Layout]]:
    layout = make_federation(folder / "f", ["norden"], RealEnv())
    config = load_config(layout.node("norden").config_path)
    async with open_portal() as portal, node.open_node(config, RealEnv(), portal) as one:
        yield one, layout


async def test_a_second_signal_ends_the_draining_and_the_checkpoint_is_saved(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(node, "_AGAIN_S", 0.0)
    with trio.fail_after(8), structlog.testing.capture_logs() as logs:  # draining takes 10 s for a client that stays
        async with opened(tmp_path) as (one, layout), trio.open_nursery() as nursery:
            await nursery.start(one.run)
            async with open_raw(layout, "norden", now()) as raw:
                await raw.sign_in(Person(layout, "norden", now()))
                signal.raise_signal(signal.SIGTERM)
                await raw.hear_a(wire.Drain)
                signal.raise_signal(signal.SIGTERM)
                with pytest.raises(Exception, match="closed"):
                    await raw.hear_a(wire.Error)
        saved = await _checkpoint(layout)
    assert saved > 0
    assert any(entry["event"] == "stopped" for entry in logs)


@pytest.mark.parametrize("key", ["clients", "links", "admin", "unix"])
async def test_a_listener_that_cannot_be_names_its_key(tmp_path: Path, monkeypatch: Any, key: str) -> None:
    async with opened(tmp_path) as (one, _):
        listen = one._config.listen
        taken: Any = tmp_path / "clients.sock" if key == "unix" else getattr(listen, key)
        monkeypatch.setattr(one, "_config", replace(one._config, listen=structs.replace(listen, **{key: taken})))
        if key == "unix":
            taken.write_text("no socket")
        async with trio.open_nursery() as nursery:
            if key != "unix":
                await nursery.start(partial(trio.serve_tcp, trio.aclose_forcefully, taken.port, host=taken.host))
            with pytest.raises(BaseExceptionGroup) as caught, trio.fail_after(5):
                await one.run()
            nursery.cancel_scope.cancel()
        (error,) = _leaves(caught.value)
        assert isinstance(error, OperatorError) and error.text.startswith(f"listen.{key}: ") and error.remedy
        assert str(taken) in error.text


async def test_a_disk_that_fails_under_the_directory_ends_the_node(tmp_path: Path, monkeypatch: Any) -> None:
    """Rule 7: what cannot be remembered of others' home records is not used, and the process ends."""
    layout = make_federation(tmp_path / "f", ["norden"], RealEnv())
    real, opened_one, ended = node.open_seen, list[Seen](), list[BaseException]()

    @asynccontextmanager
    async def open_seen(*args: Any) -> AsyncIterator[Seen]:
        async with real(*args) as seen:
            opened_one.append(seen)
            yield seen

    async def run() -> None:
        try:
            await node.run_node(load_config(layout.node("norden").config_path))
        except DiskFailed as error:
            ended.append(error)

    async def fails(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR
        raise error

    monkeypatch.setattr(node, "open_seen", open_seen)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await _connectable(layout)
            (seen,) = opened_one
            monkeypatch.setattr(seen._db._connection, "execute_fetchall", fails)
            with pytest.raises(DiskFailed):
                await seen.raise_to(b"u" * 32, Sighting(1, b"m" * 32))
    file = layout.node("norden").data_dir / node.DIRECTORY_FILE
    assert str(file) in str(ended[0]) and "Check the disk" in str(ended[0])


async def _connectable(layout: Layout) -> None:
    """Wait until the node takes clients."""
    address = layout.node("norden").clients_addr
    while True:
        with suppress(OSError):
            async with await trio.open_tcp_stream(address.host, address.port):
                return
        await trio.sleep(0.02)


async def test_a_checkpoint_that_means_nothing_names_its_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as (one, layout):
        await one._journal.append([encode_record(FoldVersion(FOLD_VERSION))])
        await one._journal.save_checkpoint(1, [b"sealed well, and no mailroom"])
    with pytest.raises(StoreDamaged, match=r"log\.sqlite: the checkpoint cannot be read.*restore nothing old"):
        await _checkpoint(layout)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for one in error.exceptions for leaf in _leaves(one)]
    return [error]


async def _checkpoint(layout: Layout) -> int:
    config = load_config(layout.node("norden").config_path)
    async with open_portal() as portal, node.open_node(config, RealEnv(), portal) as one:
        saved = await one._journal.load_checkpoint()
    return saved[0] if saved else 0


async def test_a_signal_while_starting_ends_the_start(tmp_path: Path, monkeypatch: Any) -> None:
    async with opened(tmp_path) as (one, _):
        replaying = trio.Event()

        async def replay(_true: Any) -> None:
            replaying.set()
            await trio.sleep_forever()

        monkeypatch.setattr(one._delivery, "wait_for", replay)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.run)
                await replaying.wait()
                signal.raise_signal(signal.SIGTERM)
