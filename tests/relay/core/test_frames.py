"""Frames against an independent decoder: wsproto, as a client."""

from __future__ import annotations

import pytest
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection

from relay.core.frames import close_frame, server_frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 1 << 20])
def test_a_server_frame_is_one_binary_message(size: int) -> None:
    payload = bytes(range(256)) * (size // 256) + bytes(size % 256)
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(server_frame(payload))
    [event] = client.events()
    assert isinstance(event, BytesMessage)
    assert (bytes(event.data), event.message_finished) == (payload, True)


def test_a_close_frame_carries_its_code() -> None:
    client = Connection(ConnectionType.CLIENT)
    client.receive_data(close_frame(4003))
    [event] = client.events()
    assert isinstance(event, CloseConnection)
    assert event.code == 4003
