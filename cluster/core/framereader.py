"""Cuts the stream of a link into frames (cluster.core.linkwire)."""

from __future__ import annotations

from relay.errors import ProtocolError


class FrameReader:
    """Cuts a stream into frame bodies, however it arrives. Never holds more than one frame and one feed."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> None:
        self._buffer += data

    def take(self, cap: int) -> bytes | None:
        """The next body, or None until it is complete. Raises ProtocolError for a length above `cap`, at once."""
        if len(self._buffer) < 4:
            return None
        length = int.from_bytes(self._buffer[:4], "big")
        if length > cap:
            raise ProtocolError(f"link frame of {length} bytes", f"At most {cap} are taken here")
        if len(self._buffer) < 4 + length:
            return None
        with memoryview(self._buffer) as view:
            body = bytes(view[4 : 4 + length])
        del self._buffer[: 4 + length]
        return body
