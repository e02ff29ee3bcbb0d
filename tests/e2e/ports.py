"""Ports for processes of a test."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[int]:
    """That nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
