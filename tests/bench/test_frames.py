"""The generator's frame parser against the relay's frames, wsproto's, and a hostile peer."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.frame_protocol import FrameProtocol, Opcode

from bench.frames import CLOSE, PING, FrameReader, client_frame, read_upgrade, upgrade_request
from relay.core.frames import server_frame
from relay.errors import ProtocolError

SIZES = st.sampled_from([0, 1, 125, 126, 127, 400, 65_535, 65_536, 70_000])


def split_up(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    return [data[start:end] for start, end in pairwise(places)]


@given(st.lists(SIZES, max_size=5), st.lists(st.integers(0, 1 << 20), max_size=12))
def test_the_relays_frames_come_back_however_they_are_split(sizes: list[int], cuts: list[int]) -> None:
    payloads = [bytes([number]) * size for number, size in enumerate(sizes)]
    reader, found = FrameReader(), []
    for piece in split_up(b"".join(map(server_frame, payloads)), cuts):
        found += reader.feed(piece)
    assert found == payloads


def test_one_byte_at_a_time() -> None:
    reader, found = FrameReader(), []
    for byte in server_frame(b"x" * 300) + server_frame(b"") + server_frame(b"y"):
        found += reader.feed(bytes([byte]))
    assert found == [b"x" * 300, b"", b"y"]


def test_control_frames_between_fragments() -> None:
    reader = FrameReader()
    server = b"\x02\x01a" b"\x89\x02hi" b"\x00\x01b" b"\x8a\x00" b"\x80\x01c" b"\x82\x01d" b"\x88\x02\x03\xe8"
    assert reader.feed(server) == [b"abc", b"d"]
    assert reader.pongs == [b"\x8a\x82\0\0\0\0hi"]
    assert reader.closed


@given(SIZES)
def test_client_frames_are_what_wsproto_reads(size: int) -> None:
    server = FrameProtocol(client=False, extensions=[])
    server.receive_bytes(client_frame(b"z" * size) + client_frame(b"", PING) + client_frame(b"\x03\xe8", CLOSE))
    frames = list(server.received_frames())
    assert b"".join(bytes(f.payload) for f in frames if f.opcode in (Opcode.BINARY, Opcode.CONTINUATION)) == b"z" * size
    assert [frame.opcode for frame in frames[-2:]] == [Opcode.PING, Opcode.CLOSE]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\x82\x81\0\0\0\0a", "masked"),
        (b"\x82\xfe\x01\0", "masked"),
        (b"\x82\x7f" + b"\xff" * 8, "bytes"),
        (b"\xc2\x01a", "begins with"),
        (b"\x83\x01a", "begins with"),
        (b"\x81\x01a", "begins with"),
        (b"\x80\x01a", "never began"),
    ],
)
def test_what_a_server_must_not_send(data: bytes, why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        FrameReader().feed(data)


@given(st.binary(max_size=200))
def test_garbage_is_a_protocol_error_or_nothing(data: bytes) -> None:
    with suppress(ProtocolError):
        FrameReader().feed(data)


# --- the opening handshake -----------------------------------------------------------------------
# RFC 6455 1.3: this key has this answer
NONCE = b"the sample nonce"
SAMPLE = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def answer(accept: str = SAMPLE, status: str = "101 Switching Protocols", protocol: str = "posthouse.v0") -> bytes:
    rows = [f"HTTP/1.1 {status}", f"SEC-WEBSOCKET-ACCEPT: {accept}", f"Sec-WebSocket-Protocol: {protocol}", "", ""]
    return "\r\n".join(rows).encode()


def test_the_upgrade_of_the_rfc() -> None:
    assert b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" in upgrade_request("localhost:1", NONCE)
    whole = answer()
    assert read_upgrade(whole + b"\x82\x00", NONCE) == len(whole)
    assert read_upgrade(whole[:-1], NONCE) == 0


@pytest.mark.parametrize("wrong", [{"accept": "nope"}, {"status": "503 Busy"}, {"protocol": "chat"}])
def test_an_upgrade_to_something_else(wrong: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        read_upgrade(answer(**wrong), NONCE)


def test_a_header_without_an_end() -> None:
    with pytest.raises(ProtocolError, match="without an end"):
        read_upgrade(b"H" * 9000, NONCE)
