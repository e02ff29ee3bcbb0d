"""What `posthouse cell erasure` asks of the nodes of a cell."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import trio

from cluster.cli.reach import Reach
from cluster.config import load_config
from cluster.control.pages import Unanswered, ask_erasures, give_order
from cluster.erasure import Erasure, verify_erasure
from cluster.local.home import Home
from relay.core.trust import Root

_LOOK_S: Final = 0.5

Receipt = tuple[bytes, Erasure]


def root_of(config: Path | None, directory: Path) -> Root:
    """The root document that receipts are verified by. Raises OperatorError, TrustError."""
    return load_config(config).root if config is not None else Home(directory).root(time.time_ns() // 1_000_000)


async def collect_receipts(
    reach: Reach, root: Root, user: bytes, now: bool, seconds: float
) -> tuple[list[str], list[Receipt]]:
    """(nodes that gave none in time, receipts that verify). Raises TrustError and its kinds."""
    found: dict[str, Receipt] = {}
    with trio.move_on_after(seconds):
        while True:
            for door in reach.doors:
                if door.node in found:
                    continue
                with suppress(Unanswered):
                    if now and door.control is not None:
                        await give_order(door.control, "erase", door.node)
                    for signed in await ask_erasures(door.admin):
                        receipt = verify_erasure(signed, root)
                        if receipt.user == user:
                            found[receipt.node] = (signed, receipt)
            if len(found) == len(reach.doors):
                break
            await trio.sleep(_LOOK_S)
    return [door.node for door in reach.doors if door.node not in found], [found[node] for node in sorted(found)]
