"""Opening clients on the fake federation, and collecting what they get."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from relay.client import Client, Message, open_client
from tests.relay.client.fake_cell import Federation


def opened(fed: Federation, path: Path, **more: object) -> AbstractAsyncContextManager[Client]:
    return open_client(path, seams=fed.seams(), **more)  # type: ignore[arg-type]


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
