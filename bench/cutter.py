"""Cutting a byte stream into what a first byte and a length stand in front of, as quickly as Python can: the frames of
WebSocket, the packets of MQTT."""

from __future__ import annotations

from typing import ClassVar

from bench.tape import Taped


class Cutter(Taped):
    """`SHORT`: a second byte below it is the length; above, `length` reads on. `WHOLE`: a first byte whose payload is a
    message, without asking `take`."""

    SHORT: ClassVar[int]
    WHOLE: ClassVar[int] = -1
    __slots__ = ()

    def length(self, data: bytes, at: int) -> tuple[int, int] | None:
        """(where the payload of what begins at `at` starts, its size), or None where that is not all there. Raises
        ProtocolError."""
        raise NotImplementedError

    def take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """One that is whole: what it brings for the owner is added to `messages`. Raises ProtocolError."""
        raise NotImplementedError

    def cut(self, data: bytes) -> tuple[list[bytes], list[int], int, bool]:
        """See bench.tape.Taped."""
        messages: list[bytes] = []
        ends: list[int] = []
        at, end, short, whole, plain = 0, len(data), self.SHORT, self.WHOLE, True
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
                plain = False
            ends += [stop] * (len(messages) - len(ends))
            at = stop
        return messages, ends, at, plain
