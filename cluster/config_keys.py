"""The shape of a node's config: sections, keys, types and bounds. configs/node.toml explains each to operators."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import Meta, Struct

from relay.core.shapes import CellName, Name
from relay.limits import DRAIN_S, HANDSHAKE_S, IDLE_S, MAX_CONNECTIONS

Digest = Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")]


class Address(NamedTuple):
    """Where to listen or to dial: an IP address or host name, and a TCP port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """`host:port`, IPv6 as `[::1]:port`. Raises ValueError with what is wrong."""
        host, colon, port = text.rpartition(":")
        host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not colon or not host or (":" in host and "[" not in text):
            raise ValueError(f"{text!r} is not host:port (IPv6 as [::1]:9000)")
        if not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
            raise ValueError(f"{text!r} has no port between 1 and 65535")
        return cls(host, int(port))

    @property
    def loopback(self) -> bool:
        """Only this machine can reach it."""
        address = self._ip()
        return address.is_loopback if address else self.host == "localhost"

    @property
    def wildcard(self) -> bool:
        """All interfaces."""
        address = self._ip()
        return address is not None and address.is_unspecified

    def clashes(self, other: Address) -> bool:
        """The two cannot both be listened on."""
        same = self.host == other.host or self.wildcard or other.wildcard or (self.loopback and other.loopback)
        return self.port == other.port and same

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None


class NodeSection(Struct, frozen=True):
    """Who this node is; the root document and the certificate must say the same."""

    region: Name
    cell: CellName
    name: Name


class PathsSection(Struct, frozen=True):
    """Files, relative to the config file. `federation_id`: 64 hex digits that say whose root it must be, or empty."""

    root: Path
    data: Path
    storage_key: Path
    certificate: Path
    private_key: Path
    federation_id: Digest = ""


class ListenSection(Struct, frozen=True):
    """Addresses. `links_advertised` is what the root document says other nodes dial, where that is not `links`;
    `control` is the Unix socket on which this node takes orders about its cell."""

    links: Address
    admin: Address
    clients: Address | None = None
    tls: bool = True
    unix: Path | None = None
    control: Path | None = None
    links_advertised: Address | None = None


class LimitsSection(Struct, frozen=True):
    """Bounds of this process, only ever tighter than relay.limits. The bounds of the fold (mailboxes, outboxes) are
    rules of the cell, the same on every node (rule 10), and therefore not here."""

    connections: Annotated[int, Meta(ge=1, le=MAX_CONNECTIONS)] = MAX_CONNECTIONS
    handshake_s: Annotated[float, Meta(gt=0, le=HANDSHAKE_S)] = HANDSHAKE_S
    idle_s: Annotated[float, Meta(ge=1, le=IDLE_S)] = IDLE_S
    drain_s: Annotated[float, Meta(ge=0, le=DRAIN_S)] = DRAIN_S


class LogSection(Struct, frozen=True):
    """JSON lines on stderr, from this level up."""

    level: Literal["debug", "info", "warning", "error"] = "info"


SECTIONS: Final[dict[str, type[Struct]]] = {
    "node": NodeSection,
    "paths": PathsSection,
    "listen": ListenSection,
    "limits": LimitsSection,
    "log": LogSection,
}
