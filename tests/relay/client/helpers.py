"""Opening clients on the fake federation, and collecting what they get."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from relay.client import Client, Message, open_client
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
            out.append(message)
    return out


def texts(messages: list[Message]) -> list[str]:
    return [message.content.decode() for message in messages]
