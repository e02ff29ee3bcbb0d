"""What clients send, however it is cut: into fragments, with pings between them, and by the network anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode

from relay.errors import ProtocolError
from relay.gateway.websocket import MAX_PIECES, MIN_PIECE, accept
from relay.limits import MAX_FRAME
from relay.ws import Closed

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: posthouse.v0\r\n\r\n"
)


class Wire:
    """What a client sends, read in the given pieces, and what it was answered."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces
        self.written = b""

    async def read(self, most: int | None) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.pieces:
            return b""
        piece = self.pieces.pop(0)
        if most is not None and len(piece) > most:
            self.pieces.insert(0, piece[most:])
        return piece[:most]

    async def write(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.written += data


def frame(opcode: Opcode, data: bytes, fin: bool = True) -> bytes:
    """As a client sends it: masked."""
    protocol = FrameProtocol(client=True, extensions=[])
    return protocol._serialize_frame(opcode, data, fin)


def fragments(message: bytes, cuts: list[int]) -> bytes:
    """A message as frames, a ping before each but the first."""
    ends = [0, *sorted(cut % (len(message) + 1) for cut in cuts), len(message)]
    parts = [message[start:end] for start, end in pairwise(ends)]
    whole = b""
    for number, part in enumerate(parts):
        ping = frame(Opcode.PING, bytes([number])) if number else b""
        whole += ping + frame(Opcode.CONTINUATION if number else Opcode.BINARY, part, number == len(parts) - 1)
    return whole


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    pieces, at = [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    return [piece for piece in [*pieces, data[at:]] if piece]


async def hear(data: bytes, sizes: list[int]) -> tuple[list[bytes], Exception, bytes]:
    """What arrives until it ends, why it ended, and what was answered after the handshake."""
    line = Wire(cut(REQUEST + data, sizes))
    socket = await accept(line.write, line.read)
    head, end, line.written = line.written.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ") and b"\r\nSec-WebSocket-Protocol: posthouse.v0" in head and end
    messages = []
    while True:
        try:
            messages.append(await socket.receive())
        except (Closed, ProtocolError) as error:
            return messages, error, line.written


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.lists(st.integers(0, 400), max_size=4)), max_size=60),
    st.lists(st.integers(1, 400), max_size=40),
    st.booleans(),
)
def test_messages_come_whole_and_in_order(sent, sizes, says_goodbye) -> None:
    data = b"".join(fragments(message, cuts) for message, cuts in sent)
    pongs = b"".join(b"\x8a\x01" + bytes([n]) for _, cuts in sent for n in range(1, len(cuts) + 1))
    if says_goodbye:
        data += frame(Opcode.CLOSE, (4001).to_bytes(2, "big"))
    messages, error, answered = trio.run(hear, data, sizes)
    assert messages == [message for message, _ in sent]
    assert isinstance(error, Closed) and error.code == (4001 if says_goodbye else 1006)
    assert answered == pongs + (b"\x88\x02" + (4001).to_bytes(2, "big") if says_goodbye else b"")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (frame(Opcode.TEXT, b"hello"), "text message"),
        (frame(Opcode.TEXT, b"hel", fin=False), "text message"),
        (frame(Opcode.BINARY, bytes(MAX_FRAME + 1)), f"more than {MAX_FRAME} bytes"),
        (frame(Opcode.BINARY, bytes(MAX_FRAME), fin=False) + frame(Opcode.CONTINUATION, b"x"), "more than"),
        (frame(Opcode.BINARY, b"", fin=False) + frame(Opcode.CONTINUATION, b"", fin=False) * MAX_PIECES, "fragments"),
        (frame(Opcode.CONTINUATION, b"x"), "no WebSocket frame"),
        (frame(Opcode.BINARY, b"x", fin=False) + frame(Opcode.BINARY, b"y"), "no WebSocket frame"),
        (b"\x82\x01x", "no WebSocket frame"),  # not masked
        (b"\xf2\x80\0\0\0\0", "no WebSocket frame"),  # reserved bits
        (b"\x83\x80\0\0\0\0", "no WebSocket frame"),  # an opcode that does not exist
        (frame(Opcode.PING, b"x", fin=False), "no WebSocket frame"),
    ],
)
def test_what_is_no_message_is_named_and_nothing_is_said_of_it_by_the_library(data: bytes, says: str) -> None:
    """What came before it arrives. The connection says ERROR itself."""
    before = frame(Opcode.BINARY, b"before")
    messages, error, answered = trio.run(hear, before + data, [len(REQUEST)])
    assert messages == [b"before"] and answered == b""
    assert isinstance(error, ProtocolError) and says in str(error)


def test_many_fragments_are_fine_where_they_are_not_crumbs() -> None:
    message = bytes(range(256)) * (MIN_PIECE // 256) * (MAX_PIECES + 50)
    pieces = [message[at : at + MIN_PIECE] for at in range(0, len(message), MIN_PIECE)]
    data = frame(Opcode.BINARY, pieces[0], fin=False)
    data += b"".join(frame(Opcode.CONTINUATION, piece, fin=False) for piece in pieces[1:])
    messages, error, _ = trio.run(hear, data + frame(Opcode.CONTINUATION, b""), [])
    assert messages == [message] and isinstance(error, Closed)


def test_a_close_without_a_code_and_an_end_in_the_middle() -> None:
    assert trio.run(hear, frame(Opcode.CLOSE, b""), [])[1].code == CloseReason.NO_STATUS_RCVD
    assert trio.run(hear, frame(Opcode.BINARY, b"half")[:-1], [])[1].code == 1006


async def test_many_small_messages_of_one_read_let_others_have_their_turn() -> None:
    line = Wire([REQUEST, frame(Opcode.BINARY, b"x") * 1_000])
    socket = await accept(line.write, line.read)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        for _ in range(1_000):
            await socket.receive()
        nursery.cancel_scope.cancel()
    assert turns > 20


async def test_a_close_is_answered_once_what_came_before_it_was_dealt_with() -> None:
    goodbye = frame(Opcode.CLOSE, (1000).to_bytes(2, "big"))
    line = Wire([REQUEST, frame(Opcode.BINARY, b"one") + frame(Opcode.BINARY, b"two") + goodbye])
    socket = await accept(line.write, line.read)
    line.written = b""
    assert [await socket.receive(), await socket.receive()] == [b"one", b"two"]
    assert line.written == b""
    with pytest.raises(Closed):
        await socket.receive()
    assert line.written == b"\x88\x02" + (1000).to_bytes(2, "big")


async def test_a_flood_of_pings_is_answered_with_one_write_a_read() -> None:
    line = Wire([REQUEST, frame(Opcode.PING, b"") * 2_000])
    socket = await accept(line.write, line.read)
    line.written, writes = b"", []

    async def write(data: bytes) -> None:
        writes.append(data)
        await trio.lowlevel.checkpoint()

    socket._write = write
    with pytest.raises(Closed):
        await socket.receive()
    assert b"".join(writes) == b"\x8a\x00" * 2_000 and len(writes) == 1
