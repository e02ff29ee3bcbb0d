"""What a connection asks of broadcast channels, handed to the office."""

from __future__ import annotations

from relay.core import wire
from relay.gateway.api import ChannelOffice, Line


async def ask_of_channels(office: ChannelOffice, line: Line, message: wire.ChannelMessage, nonce: bytes) -> None:
    """One after the other: a connection whose page does not leave is not read on. `nonce`: of its CHALLENGE."""
    match message:
        case wire.Subscribe() | wire.SubscribeFar():
            await office.subscribe(line, message, nonce)
        case wire.Unsubscribe(channel):
            office.unsubscribe(line, channel)
        case wire.Read():
            await office.read(line, message)
        case wire.Terms(terms):
            await office.publish(line, terms)
        case wire.Posts(posts):
            await office.post(line, posts)
