"""A node that takes the bench's connections and fans out, in memory, on its own WebSocket code; it can lie on purpose.

Its positions are even, so that a lie has room in between.
"""

from __future__ import annotations

import os
import secrets
import time
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha1

import trio
from nacl.signing import SigningKey, VerifyKey

from bench.enrol import Home
from bench.pipes import Endpoint
from relay.core import wire
from relay.core.codec import digest
from relay.core.envelope import envelope_id, read_header
from relay.core.frames import server_frame
from relay.core.trust import verify_part, verify_roster

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Line:
    """One connection of a device."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.sent = 0
        self.user = b""
        self.wake = trio.Event()
        self._lock = trio.Lock()

    async def write(self, data: bytes) -> None:
        async with self._lock:
            await self.stream.send_all(data)


Frames = list[tuple[int, bytes]]  # (position, envelope)


def truly(number: int, log: list[bytes]) -> Frames:
    """What a good node sends for entry `number` (from 1) of the log."""
    return [(2 * number, log[number - 1])]


class StandIn:
    """A target of the bench. `frames(number, log)` is what it sends for an entry; `turn_away` refuses every device."""

    def __init__(self, frames: Callable[[int, list[bytes]], Frames] = truly, turn_away: bool = False) -> None:
        self.home = Home("norden", "norden/1", SigningKey(bytes(32)))
        self.pids = {"n1": os.getpid()}
        self.endpoints = [Endpoint("127.0.0.1", 0)]
        self.log_id = b"l" * 16
        self.log: list[bytes] = []
        self.known: dict[bytes, int] = {}
        self.members: dict[bytes, set[bytes]] = {}
        self.acks = 0
        self.logins = 0
        self._frames, self._turn_away = frames, turn_away
        self._lines: set[Line] = set()
        self._serving = trio.CancelScope()
        self._nursery: trio.Nursery | None = None

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        async with trio.open_nursery() as self._nursery:
            await self._listen()
            task_status.started()
            await trio.sleep_forever()

    async def _listen(self) -> None:
        assert self._nursery is not None
        listeners = await trio.open_tcp_listeners(self.endpoints[0].port, host="127.0.0.1")
        self.endpoints = [Endpoint("127.0.0.1", listeners[0].socket.getsockname()[1])]
        self._serving = trio.CancelScope()
        self._nursery.start_soon(self._run, self._serving, listeners)

    async def _run(self, scope: trio.CancelScope, listeners: list[trio.SocketListener]) -> None:
        with scope:
            await trio.serve_listeners(self._connection, listeners)

    async def samples(self) -> dict[str, dict[str, float]]:
        await trio.lowlevel.checkpoint()
        return {}

    async def choose(self, which: str) -> tuple[str, bool]:
        await trio.lowlevel.checkpoint()
        return "n1", which == "leader"

    def kill(self, node: str) -> None:
        assert node == "n1"
        self._serving.cancel()

    async def stop(self, node: str) -> None:
        self.kill(node)
        await trio.lowlevel.checkpoint()

    async def restart(self, node: str) -> None:
        await trio.sleep(0.2)
        await self._listen()

    async def died(self) -> None:
        await trio.sleep_forever()

    # --- one connection --------------------------------------------------------------------------
    async def _connection(self, stream: trio.SocketStream) -> None:
        line = Line(stream)
        try:
            async with trio.open_nursery() as nursery:
                await self._greet(line, nursery)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._lines.discard(line)

    async def _greet(self, line: Line, nursery: trio.Nursery) -> None:
        buffer = bytearray()
        while b"\r\n\r\n" not in buffer:
            buffer += await line.stream.receive_some()
        head, _, rest = bytes(buffer).partition(b"\r\n\r\n")
        key = next(row[18:].strip() for row in head.split(b"\r\n") if row.lower().startswith(b"sec-websocket-key:"))
        accept = b64encode(sha1(key + GUID).digest()).decode()
        answer = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade",
                  f"Sec-WebSocket-Accept: {accept}", f"Sec-WebSocket-Protocol: {wire.SUBPROTOCOL}", "", ""]  # fmt: skip
        await line.write("\r\n".join(answer).encode())
        buffer = bytearray(rest)
        challenge = wire.Challenge(secrets.token_bytes(16), "norden", "norden/1", "n1", self.log_id, _now())
        while True:
            for message in _unmask(buffer):
                await self._take(line, wire.decode_client(message), challenge, nursery)
            data = await line.stream.receive_some()
            if not data:
                return
            buffer += data

    async def _take(
        self, line: Line, message: wire.ClientMessage, challenge: wire.Challenge, nursery: trio.Nursery
    ) -> None:
        match message:
            case wire.Hello():
                line.sent = message.cursor // 2
                await self._send(line, challenge)
            case wire.Auth():
                signed = wire.challenge_bytes(challenge, message.user, message.device)
                VerifyKey(message.device).verify(signed, message.signature)
                self.logins += 1
                if self._turn_away:
                    await self._send(line, wire.Error(wire.Fault.AUTH, "no such device", 0))
                    return
                await self._send(line, wire.Welcome(self.log_id, 2 * line.sent, _now(), 1, 8, 20, 1 << 17, 256))
                await self._send(line, wire.Empty(2 * len(self.log)))
                line.user = message.user
                self._lines.add(line)
                nursery.start_soon(self._deliver, line)
            case wire.Roster():
                head = verify_roster(message.head)
                part = verify_part(message.parts[0][1], head, self.home.cell)
                self.members[head.group] = {member.user for member in part.members}
                await self._receipt(line, digest(message.head), 1)
            case wire.Submit():
                for item in message.items:
                    await self._submit(line, item.envelope)
            case wire.Ack():
                assert message.position // 2 <= line.sent
                self.acks += 1

    async def _submit(self, line: Line, envelope: bytes) -> None:
        own = envelope_id(envelope)
        if own not in self.known:
            self.log.append(envelope)
            self.known[own] = len(self.log)
            for other in self._lines:
                other.wake.set()
        await self._receipt(line, own, self.known[own])

    async def _deliver(self, line: Line) -> None:
        while True:
            if line.sent == len(self.log):
                line.wake = trio.Event()
                await line.wake.wait()
                continue
            first, line.sent = line.sent + 1, len(self.log)
            entries = [entry for number in range(first, line.sent + 1) for entry in self._frames(number, self.log)]
            await line.write(
                b"".join(server_frame(wire.encode_deliver(*one)) for one in entries if self._is_for(line.user, one[1]))
            )

    def _is_for(self, user: bytes, envelope: bytes) -> bool:
        to = read_header(envelope).to
        return user == to or user in self.members.get(to, ())

    async def _receipt(self, line: Line, own: bytes, position: int) -> None:
        item = wire.ReceiptItem(own, wire.Code.STORED, position, 1, "norden/1")
        await self._send(line, wire.Receipt((item,)))

    async def _send(self, line: Line, message: wire.ServerMessage) -> None:
        await line.write(server_frame(wire.encode_message(message)))


def _now() -> int:
    return time.time_ns() // 1_000_000


def _unmask(buffer: bytearray) -> list[bytes]:
    """Whole client frames, taken out of the buffer."""
    messages = []
    while len(buffer) >= 6:
        size, start = buffer[1] & 0x7F, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        if len(buffer) < start + 4 + size:
            break
        key, body = buffer[start : start + 4], buffer[start + 4 : start + 4 + size]
        if buffer[0] & 0x0F == 2:
            messages.append(bytes(byte ^ key[place & 3] for place, byte in enumerate(body)))
        del buffer[: start + 4 + size]
    return messages
