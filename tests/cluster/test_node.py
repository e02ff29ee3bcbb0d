"""One node in this process, with real sockets and files: how it stops."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
import trio

from cluster import node
from cluster.config import load_config
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from relay.core import wire
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
