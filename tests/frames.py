"""WebSocket frames as a server writes them (RFC 6455 5.2), taken apart."""

from __future__ import annotations


def split(joined: bytes) -> list[bytes]:
    """Whole frames, as they are joined for one write."""
    frames = []
    while joined:
        size = _head(joined) + _length(joined)
        frames.append(joined[:size])
        joined = joined[size:]
    return frames


def payload(frame: bytes) -> bytes:
    """Of one whole frame."""
    return frame[_head(frame) :]


def _head(frame: bytes) -> int:
    return {126: 4, 127: 10}.get(frame[1], 2)


def _length(frame: bytes) -> int:
    return frame[1] if frame[1] < 126 else int.from_bytes(frame[2 : _head(frame)], "big")
