"""A device that speaks the client protocol by hand, against real node processes: no SDK between test and wire."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from nacl.signing import SigningKey

from cluster.local import Layout
from relay import ws
from relay.core import wire
from relay.core.codec import digest, encode
from relay.core.envelope import Header, To, join
from relay.core.trust import Device, HomePayload, prove_devices, sign_home
from relay.limits import DAY
from tests.patience import PATIENCE_S



class Person:
    """A user with one device and its signed home record."""

    def __init__(self, layout: Layout, region: str, now_ms: int) -> None:
        self.region, self.key = region, SigningKey.generate()
        self.device = bytes(self.key.verify_key)
        listed = (Device(self.device, bytes(32), 1, b"", b""),)
        cell = f"{region}/1"
        until = now_ms + 365 * DAY
        payload = HomePayload(1, b"", 1, b"", region, cell, self.device, listed, 0, now_ms - DAY, until, b"")
        payload = prove_devices(payload, [self.key])
        self.user = digest(encode(payload))
        self.records = (sign_home(payload, self.key, layout.registrar(region)),)


def seal(to: bytes, created: int, *, version: int = 1, body: bytes = b"x", life: int = DAY) -> bytes:
    return join(encode(Header(1, To.MAILBOX, to, version, created, created + life, 1)), body)


class Raw:
    """An open socket with typed messages."""

    def __init__(self, socket: ws.ClientSocket) -> None:
        self.socket = socket
        self.seen: list[wire.ServerMessage] = []

    async def say(self, message: wire.ClientMessage) -> None:
        await self.socket.send(wire.encode_message(message))

    async def hear(self) -> wire.ServerMessage:
        with trio.fail_after(PATIENCE_S):
            message = wire.decode_server(await self.socket.receive())
        self.seen.append(message)
        return message

    async def hear_a(self, kind):
        """The next message of that kind; what comes before it stays in `seen`."""
        while True:
            message = await self.hear()
            if isinstance(message, kind):
                return message

    async def sign_in(
        self, person: Person, *, receive: bool = True, log_id: bytes = b"", cursor: int = 0
    ) -> wire.Welcome:
        await self.say(wire.Hello(0, log_id, cursor, receive, "raw"))
        challenge = await self.hear_a(wire.Challenge)
        signed = person.key.sign(wire.challenge_bytes(challenge, person.user, person.device)).signature
        await self.say(wire.Auth(person.user, person.device, signed, person.records))
        return await self.hear_a(wire.Welcome)

    async def submit(self, hint: str, *envelopes: bytes) -> list[wire.ReceiptItem]:
        """Submit, and the first receipt for each."""
        await self.say(wire.Submit(tuple(wire.SubmitItem(hint, one) for one in envelopes)))
        wanted = {digest(one) for one in envelopes}
        items: list[wire.ReceiptItem] = []
        while wanted:
            for item in (await self.hear_a(wire.Receipt)).items:
                if item.id in wanted:
                    wanted.remove(item.id)
                    items.append(item)
        return items


def trust(layout: Layout, region: str, now_ms: int) -> ssl.SSLContext:
    """What a client of that region trusts: the region's authority, and nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=layout.home.root(now_ms).region(region).authority)
    return context


@asynccontextmanager
async def open_raw(layout: Layout, region: str, now_ms: int, **options) -> AsyncIterator[Raw]:
    address = layout.node(region).clients_addr
    async with ws.connect(f"wss://{address}", trust(layout, region, now_ms), PATIENCE_S, **options) as socket:
        yield Raw(socket)
