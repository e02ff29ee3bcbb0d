"""Cutting a byte stream into what a first byte and a length stand in front of, as quickly as Python can: the frames of
WebSocket, the packets of MQTT."""

from __future__ import annotations

from typing import ClassVar


class Cutter:
    """`SHORT`: a second byte below it is the length; above, `length` reads on. `WHOLE`: a first byte whose payload is a
    message, without asking `take`."""

    SHORT: ClassVar[int]
    WHOLE: ClassVar[int] = -1
    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = b""

    def length(self, data: bytes, at: int) -> tuple[int, int] | None:
        """(where the payload of what begins at `at` starts, its size), or None where that is not all there. Raises
        ProtocolError."""
        raise NotImplementedError

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """One that is whole: what it brings for the owner is added to `messages`. Raises ProtocolError."""
        raise NotImplementedError

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that `data` completed. Raises ProtocolError."""
        if self._rest:
            data = self._rest + data
        messages: list[bytes] = []
        at, end, short, whole = 0, len(data), self.SHORT, self.WHOLE
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size >= short:
                found = self.length(data, at)
                if found is None:
                    break
                start, size = found
            stop = start + size
            if stop > end:
                break
            if data[at] == whole:
                messages.append(data[start:stop])
            else:
                self.take(data[at], data[start:stop], messages)
            at = stop
        self._rest = data[at:]
        return messages
