"""What the clients saw, and nothing else: the only thing that the checker reads. Written by the load, event by event.

Times are ms of CLOCK_MONOTONIC. Devices and users are numbers of the Population (people.py); GROUP stands for all.
"""

from __future__ import annotations

from pathlib import Path
from typing import IO, Union

import msgspec

GROUP = -1
_LENGTH = 2  # bytes, big-endian, in front of an event


class Event(msgspec.Struct, frozen=True, array_like=True):
    """At `at`, something happened to `device`."""

    at: int
    device: int


class Connected(Event, frozen=True, tag=1):
    """WELCOME came from node number `node`; positions on this connection lie above `cursor`."""

    node: int
    cursor: int


class Dropped(Event, frozen=True, tag=2):
    """The connection ended, or came to nothing. `fault`: the node's ERROR code, 0 where it said nothing."""

    fault: int
    why: str


class Submitted(Event, frozen=True, tag=3):
    """A new envelope, about to be sent for the first time. `counter`: its number among this device's to `to`."""

    id: bytes
    to: int
    counter: int


class Answered(Event, frozen=True, tag=4):
    """A receipt, or a later notice, for an envelope of this device's."""

    id: bytes
    code: int


class Delivered(Event, frozen=True, tag=5):
    """An envelope came at `position`; or a notice (then `id` is empty)."""

    position: int
    id: bytes


AnyEvent = Union[Connected, Dropped, Submitted, Answered, Delivered]
_decode = msgspec.msgpack.Decoder(AnyEvent)


class Writer:
    """Appends to the file, in the order of what happened; `flush` now and then."""

    def __init__(self, path: Path) -> None:
        self._file: IO[bytes] = path.open("ab", buffering=1 << 20)
        self._encoder = msgspec.msgpack.Encoder()

    def add(self, event: AnyEvent) -> None:
        data = self._encoder.encode(event)
        self._file.write(len(data).to_bytes(_LENGTH) + data)

    def flush(self) -> None:
        self._file.flush()


class Reader:
    """Events that have been added since the last look."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""

    def read(self) -> list[AnyEvent]:
        data = self._rest + self._file.read()
        events, at = [], 0
        while at + _LENGTH <= len(data):
            end = at + _LENGTH + int.from_bytes(data[at : at + _LENGTH])
            if end > len(data):
                break
            events.append(_decode.decode(data[at + _LENGTH : end]))
            at = end
        self._rest = data[at:]
        return events

    def close(self) -> None:
        self._file.close()
