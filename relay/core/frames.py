"""WebSocket frames as a server writes them: encoded once, shared by every recipient (RFC 6455 5.2)."""

from __future__ import annotations

from typing import Final

GOING_AWAY: Final = 1001  # close code (RFC 6455 7.4.1)
NORMAL: Final = 1000

_BINARY = b"\x82"  # FIN and opcode 2; no extension is ever agreed on
_CLOSE = b"\x88"  # FIN and opcode 8


def server_frame(payload: bytes) -> bytes:
    """One unfragmented binary message. A server never masks, so the same bytes serve every recipient."""
    size = len(payload)
    if size < 126:
        return _BINARY + size.to_bytes(1, "big") + payload
    if size < 1 << 16:
        return _BINARY + b"\x7e" + size.to_bytes(2, "big") + payload
    return _BINARY + b"\x7f" + size.to_bytes(8, "big") + payload


def close_frame(code: int) -> bytes:
    """The close frame of a server, with a close code (RFC 6455 5.5.1)."""
    return _CLOSE + b"\x02" + code.to_bytes(2, "big")
