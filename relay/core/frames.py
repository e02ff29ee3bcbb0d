"""WebSocket frames as a server writes them: encoded once, shared by every recipient."""

from __future__ import annotations

_FIN_BINARY = b"\x82"  # FIN and opcode 2; no extension is ever agreed on


def server_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented binary message (RFC 6455 5.2): a server never masks, so all recipients get the same."""
    size = len(payload)
    if size < 126:
        return _FIN_BINARY + size.to_bytes(1, "big") + payload
    if size < 1 << 16:
        return _FIN_BINARY + b"\x7e" + size.to_bytes(2, "big") + payload
    return _FIN_BINARY + b"\x7f" + size.to_bytes(8, "big") + payload
