"""Users of the fake federation, their clients, and what they get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from relay.client import Client, Message, new_user, open_client
from relay.client.people import own_chain
from relay.client.store import Store
from relay.core.trust import read_home
from tests.relay.client.fake_cell import Federation


@asynccontextmanager
async def opened(fed: Federation, path: Path, **more: Any) -> AsyncIterator[Client]:
    """A client on the fake federation, for at most 5,000 s of mock time."""
    with trio.fail_after(5_000):
        async with open_client(path, seams=fed.seams(), **more) as client:
            yield client


async def collect(client: Client, count: int) -> list[Message]:
    out: list[Message] = []
    with trio.fail_after(300):
        async for message in client.messages():
            out.append(message)
            if len(out) == count:
                break
    return out


async def rest(client: Client, seconds: float = 20) -> list[Message]:
    """What else comes."""
    out: list[Message] = []
    with trio.move_on_after(seconds):
        async for message in client.messages():
            out.append(message)  # noqa: PERF401  a comprehension would lose what came before the time was up
    return out


def texts(messages: list[Message]) -> list[str]:
    return [message.content.decode() for message in messages]


def enrol(fed: Federation, path: Path, region: str) -> Path:
    """A new user's store; the cell knows the user."""
    cell = f"{region}/1"
    new_user(
        path, root=fed.root.signed, region=region, cell=cell, registrar=fed.registrars[region], now_ms=fed.client_now()
    )
    tell(fed, path)
    return path


def tell(fed: Federation, path: Path) -> None:
    """The cell learns the newest home records of the user whose store it is."""
    store = Store(path, inline=True)
    for signed in store.transact(own_chain):
        record = read_home(signed)
        fed.cells[record.cell].learn(signed)
    store.close()
