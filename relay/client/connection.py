"""One connection to a node: addresses, trust anchor, challenge and response, and what a node's ERROR means."""

from __future__ import annotations

import os
import random
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from relay import ws
from relay.client.errors import Fenced, NotServed, Revoked
from relay.client.shapes import Own
from relay.core import wire
from relay.core.wire import Fault
from relay.errors import OperatorError, PosthouseError, ProtocolError, RolledBack

SOFTWARE = "posthouse-python"
BACKOFF_S, BACKOFF_MAX_S = 0.05, 3.0  # seconds between attempts, doubling, jittered


class Socket(Protocol):
    """An open WebSocket."""

    async def send(self, message: bytes) -> None: ...

    async def receive(self) -> bytes: ...

    async def ping(self) -> None: ...


Dial = Callable[[str, "ssl.SSLContext | None", float], AbstractAsyncContextManager[Socket]]


@dataclass(frozen=True, slots=True)
class Seams:
    """Where the SDK touches the world; tests put their own in. `inline`: the store works in trio's own thread."""

    dial: Dial = ws.connect
    wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000
    random_bytes: Callable[[int], bytes] = os.urandom
    random_float: Callable[[], float] = random.random
    inline: bool = False


class HungUp(PosthouseError):
    """The connection is over; reconnect, after `after_ms` at the earliest."""

    def __init__(self, text: str, after_ms: int = 0) -> None:
        super().__init__(text, "Reconnect")
        self.after_ms = after_ms


class Elsewhere(PosthouseError):
    """The node says that our user is at home in another cell, by these signed records."""

    def __init__(self, records: Sequence[bytes]) -> None:
        super().__init__("the node says that this user is at home elsewhere", "Follow the records, if they hold")
        self.records = records


def addresses(own: Own, connect_to: Sequence[str] | None) -> list[str]:
    """The URLs of all nodes of our home cell. Raises OperatorError where the root lists none."""
    cell = own.root.cell(own.cell)
    urls = list(connect_to or [url for node in (cell.nodes if cell else ()) for url in node.clients])
    if not urls:
        raise OperatorError(f"the root lists no node of {own.cell}", "Put a newer root into the store (update_root)")
    return urls


def tls_context(own: Own) -> ssl.SSLContext:
    """Trusts the authority of our home region, and nobody else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority = own.root.region(own.region).authority
    if authority:
        context.load_verify_locations(cadata=authority)
    return context


def hung_up(error: wire.Error) -> PosthouseError:
    """What the node's last word means for us: HungUp is worth another try, everything else is not."""
    match error.code:
        case Fault.FENCED:
            return Fenced(
                "this device started a newer session somewhere else",
                "Is a copy of its store in use? Two devices need two enrolments (add_device)",
            )
        case Fault.ROLLED_BACK:
            return RolledBack(
                f"the node's log is older than what this device has already received: {error.text}",
                "Acknowledged messages may be missing there. Tell its operator; do not delete this store",
            )
        case Fault.REVOKED:
            return Revoked(
                "this device was revoked: the newest home record of its user does not list it any more",
                "What is in its store can still be read. If its keys were rotated meanwhile, open the store anew; "
                "otherwise enrol a new device",
            )
        case Fault.AUTH | Fault.NOT_HOME:
            return NotServed(f"the node does not serve this device: {error.text}", "Is it enrolled, and at home there?")
        case _:
            return HungUp(f"the node ended the connection: {error.text}", error.retry_after_ms)


async def greet(
    socket: Socket, own: Own, chain: Sequence[bytes], log_id: bytes, cursor: int, *, receive: bool
) -> tuple[wire.Welcome, bytes]:
    """HELLO, CHALLENGE, AUTH, WELCOME: the last one, and the nonce of the second.

    Raises what `hung_up` gives, ProtocolError, NotServed (another cell's node)."""
    await _send(socket, wire.Hello(wire.VERSION, log_id, cursor, receive, SOFTWARE))
    challenge = await _answer(socket)
    if not isinstance(challenge, wire.Challenge):
        raise ProtocolError("the node did not answer HELLO with CHALLENGE")
    if (challenge.region, challenge.cell) != (own.region, own.cell):
        raise HungUp(f"the node belongs to {challenge.cell}, not to {own.cell}", 1_000)
    signature = own.signing.sign(wire.challenge_bytes(challenge, own.user, own.device)).signature
    await _send(socket, wire.Auth(own.user, own.device, signature, tuple(chain)))
    welcome = await _answer(socket)
    if not isinstance(welcome, wire.Welcome) or welcome.log_id != challenge.log_id:
        raise ProtocolError("the node did not answer AUTH with WELCOME")
    return welcome, challenge.nonce


async def _send(socket: Socket, message: wire.ClientMessage) -> None:
    await socket.send(wire.encode_message(message))


async def _answer(socket: Socket) -> wire.ServerMessage:
    message = wire.decode_server(await socket.receive())
    if isinstance(message, wire.Moved):
        raise Elsewhere(message.records)
    if isinstance(message, wire.Error):
        if message.code == Fault.PROTOCOL:
            raise NotServed(f"the node does not understand this software: {message.text}", "Update it")
        raise hung_up(message)
    return message
