"""What users at home in a node cost its process, as an operator sees it: `python -m bench.residents --node`.

A store is filled beneath the node: blocks of home records (of random keys and signatures: nobody verifies again what is
committed), the disk writer's facts, a checkpoint. Then a real node process starts on it, and has a checkpoint to take
at once. The same process with an empty store is what it is compared with.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import trio

from bench.machine import cpu_s, peak_rss_mib, rss_mib
from cluster.config import load_config
from cluster.core.linkwire import federation_id
from cluster.env import RealEnv
from cluster.local import LocalFederation, make_federation
from cluster.local.layout import NodeLayout
from relay.core import records
from relay.core.mailroom import Mailroom
from relay.core.mailroom.state import FOLD_VERSION
from relay.core.records import encode_record
from relay.journal.portal import open_portal
from relay.journal.scratch import open_shelf
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from relay.limits import MIB

_BLOCK: Final = 500  # records
_READY_S: Final = 900.0
_SETTLED_S: Final = 60.0  # seconds to wait for a checkpoint, at least
Tell = Callable[[str, float], None]
Fact = tuple[bytes, bytes]


class Teaching:
    """relay.ports.Residency that checks nothing, and knows what the records of a block teach."""

    def __init__(self, fact: Callable[[bytes], Fact]) -> None:
        self._fact = fact

    def check(self, items: Sequence[bytes], above: Sequence[Fact] = (), *, made: bool = False) -> Sequence[Fact]:
        decoded = map(records.decode_record, items)
        return [self._fact(one.signed) for one in decoded if isinstance(one, records.Home)]

    def learn(self, facts: Sequence[Fact]) -> None:
        """Nobody asks."""


async def fill(node: NodeLayout, users: int, signed: Callable[[int], bytes], fact: Callable[[bytes], Fact]) -> None:
    """The store of a node that has so many users, and a checkpoint of all but the last."""
    config = load_config(node.config_path)
    with open_shelf(node.data_dir.parent, os.urandom(32)) as shelf:
        async with open_portal() as portal, open_solo(
            node.data_dir, env=RealEnv(portal), ring=StorageRing.load(config.paths.storage_key),
            residency=Teaching(fact), cell=node.cell, federation=federation_id(config.root),
        ) as journal:
            room, following = Mailroom(node.cell, journal.log_id, shelf), journal.follow(0)

            async def put(items: list[records.Record]) -> None:
                await journal.append(list(map(encode_record, items)))
                room.apply(await anext(following))

            await put([records.FoldVersion(FOLD_VERSION)])
            for start in range(0, users - 1, _BLOCK):
                await put([records.Home(signed(number)) for number in range(start, min(start + _BLOCK, users - 1))])
            room.state.checkpoint_due = room.state.log_bytes + 1  # the next block makes one
            await journal.save_checkpoint(journal.tip, room.checkpoint())
            await journal.release(journal.tip + 1)
            await put([records.Home(signed(users - 1))])


async def measure(
    directory: Path, region: str, users: int, signed: Callable[[int], bytes], fact: Callable[[bytes], Fact], tell: Tell
) -> None:
    """Memory of the process of a node that has so many users, above that of one without."""
    layout = make_federation(directory, [region], RealEnv(), nodes=1, tls=False)
    (node,) = layout.nodes(region)
    async with LocalFederation(layout) as federation:
        await federation.start(region)
        await trio.sleep(2)
        empty = rss_mib(federation.pid(region, node.name))
        tell("node without users: RSS, MiB", empty)
    for file in node.data_dir.glob("*.sqlite*"):
        file.unlink()
    await fill(node, users, signed, fact)
    async with LocalFederation(layout) as federation:
        began = time.perf_counter()
        await federation.launch(region)
        await federation.ready(region, node.name, _READY_S)
        pid = federation.pid(region, node.name)
        tell("node with users: ready after, s", time.perf_counter() - began)
        tell("  its CPU, s", cpu_s(pid))
        await _rests(pid)
        tell("  a checkpoint later: its CPU, s", cpu_s(pid))
        for what, mib in (("RSS", rss_mib(pid)), ("greatest RSS", peak_rss_mib(pid))):
            tell(f"  {what}, MiB", mib)
            tell(f"  {what} above that of a node without users: bytes a user", (mib - empty) * MIB / users)


async def _rests(pid: int) -> None:
    """Wait until the process does nothing more."""
    before = -math.inf
    with trio.move_on_after(_READY_S):
        while cpu_s(pid) - before > 1.0:
            before = cpu_s(pid)
            await trio.sleep(_SETTLED_S / 10)
