"""Writing and reading, as people do."""

from __future__ import annotations

import trio

from cluster.local import Layout
from cluster.local.people import find_card
from relay.client import open_client
from tests.patience import PATIENCE_S


async def send(layout: Layout, to: str, *texts: str, wait: str = "stored") -> None:
    """Alice writes."""
    with trio.fail_after(PATIENCE_S):
        async with open_client(layout.home.store("alice"), receive=False) as alice:
            for text in texts:
                await alice.send(find_card(layout.home, to), text.encode(), wait=wait)
