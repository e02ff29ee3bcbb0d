"""What a peer is to the bench: a small port, with an implementation for each broker beside this file."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct

from bench.pipes import Endpoint
from bench.sockets import Line
from bench.tape import Tape

HOST: Final = "127.0.0.1"  # a peer that the bench starts listens nowhere else
TOPIC: Final = b"bench"  # subject, channel or topic of the one message stream


class Promises(Struct, frozen=True):
    """What a figure is worth, in a few words each; `brief`: all of it in at most 20 characters."""

    brief: str
    durable: str
    acknowledged: str
    replicated: str


@dataclass(frozen=True, slots=True)
class Program:
    """A server's executable: its name, the wheel that may carry it (empty: none), how it is got, and which arguments
    make it say its version."""

    name: str
    wheel: str
    install: str
    version: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Server:
    """One process of a peer: its arguments after the program's path, and where it takes clients."""

    name: str
    arguments: tuple[str, ...]
    port: int


class SubscribingLine(Line, Protocol):
    """A line over which messages come."""

    def follow(self, tape: Tape) -> None:
        """Others here get the same bytes (bench.tape.Taped)."""


class PublishingLine(Line, Protocol):
    """A line over which messages are published, and whose messages are the answers."""

    def publish(self, key: Hashable, message: bytes) -> None:
        """Queue a message that `Peer.message` made."""

    def answer(self, message: bytes) -> tuple[Hashable, bool]:
        """The key of the message that this answers, and whether it was taken. Raises ProtocolError."""


class Peer(Protocol):
    """One broker. `answers`: it says of each published message that it has it. `alike`: all subscribers get the same
    bytes, and answer none of them."""

    name: str
    promises: Promises
    settings: str
    program: Program
    answers: bool
    alike: bool

    def servers(self, directory: Path, ports: Iterator[int]) -> list[Server]:
        """Its processes, listening on loopback only, with config and data in `directory`, an empty one of their own."""

    async def prepare(self, endpoints: Sequence[Endpoint]) -> None:
        """Once all of them listen. Raises OperatorError."""

    def subscriber(self, number: int) -> SubscribingLine:
        """A new connection of subscriber `number`. Its messages are the payloads that were published, and it
        acknowledges what the peer wants acknowledged."""

    def publisher(self) -> PublishingLine:
        """A new connection of the publisher."""

    def message(self, sequence: int, payload: bytes) -> tuple[Hashable, bytes]:
        """The bytes that publish message `sequence`, and the key that its answer will have."""

    def delivery(self, sequence: int, payload: bytes) -> bytes:
        """The bytes that bring message `sequence` to subscriber 0."""
