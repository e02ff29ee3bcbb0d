"""A node's config: one TOML file, checked as a whole before anything starts.

`load_config` gives a NodeConfig whose paths are absolute and whose root document is verified, or raises one ConfigError
with every finding at once. configs/node.toml documents every key. Formats: TOML 1.0 (toml.io/en/v1.0.0).
"""

from __future__ import annotations

import ipaddress
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from cluster.config_files import Finding, check_data, check_identity, check_root, check_secrets
from relay.core.shapes import CellName, Name
from relay.core.trust import Root
from relay.errors import ConfigError
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
    """Files, relative to the config file. `root_digest`: 64 hex digits that pin the root document, or empty."""

    root: Path
    data: Path
    storage_key: Path
    certificate: Path
    private_key: Path
    root_digest: Digest = ""


class ListenSection(Struct, frozen=True):
    """Addresses. `links_advertised` is what the root document says other cells dial, where that is not `links`."""

    links: Address
    admin: Address
    clients: Address | None = None
    tls: bool = True
    unix: Path | None = None
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


@dataclass(frozen=True)
class NodeConfig:
    """A config that was checked as a whole: paths are absolute, `root` is verified, the certificate is this node's."""

    source: Path
    node: NodeSection
    paths: PathsSection
    listen: ListenSection
    limits: LimitsSection
    log: LogSection
    root: Root


def load_config(path: Path, now_ms: int | None = None) -> NodeConfig:
    """Read and check a config at Unix time `now_ms` (default: now). Raises ConfigError with all findings at once."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    path = path.absolute()
    tables = _read_toml(path)
    findings: list[Finding] = []
    sections = _sections(tables, path.parent, findings)
    node, paths, listen = sections.get("node"), sections.get("paths"), sections.get("listen")
    root: Root | None = None
    if isinstance(listen, ListenSection):
        findings += _check_listen(listen)
    if isinstance(paths, PathsSection):
        root = check_root(paths.root, paths.root_digest, now_ms, findings)
        findings += check_secrets({"private_key": paths.private_key, "storage_key": paths.storage_key}, paths.data)
        findings += check_data(paths.data)
    if isinstance(node, NodeSection) and isinstance(paths, PathsSection) and isinstance(listen, ListenSection):
        findings += check_identity(node, paths, listen, root, now_ms)
    if findings or root is None:
        raise ConfigError(str(path), findings)
    return NodeConfig(path, **sections, root=root)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        what, remedy = "there is no such file", "Write one (configs/node.toml shows every key) or run `posthouse init`"
    except OSError as error:
        what, remedy = f"cannot be read: {error.strerror}", "Make the file readable for this user"
    except UnicodeDecodeError:
        what, remedy = "is not UTF-8 text", "Save the file as UTF-8"
    except tomllib.TOMLDecodeError as error:
        what, remedy = f"is not TOML: {error}", "Mend that line"
    raise ConfigError(str(path), [("file", what, remedy)])


def _sections(tables: dict[str, Any], base: Path, findings: list[Finding]) -> dict[str, Any]:
    """Every section that could be read; findings about the others, and about keys that do not exist."""
    findings += [_unknown(name, name, SECTIONS) for name in tables if name not in SECTIONS]
    built: dict[str, Any] = {}
    for name, shape in SECTIONS.items():
        table = tables.get(name, {})
        if not isinstance(table, dict):
            findings.append((name, "is a value, not a section", f"Write a [{name}] section"))
            continue
        before = len(findings)
        values = dict(_values(name, shape, table, base, findings))
        if len(findings) == before:
            built[name] = shape(**values)
    return built


def _values(
    section: str, shape: type[Struct], table: dict[str, Any], base: Path, findings: list[Finding]
) -> Iterator[tuple[str, Any]]:
    fields = {field.name: field for field in msgspec.structs.fields(shape)}
    unknown = [key for key in table if key not in fields]
    findings += [_unknown(f"{section}.{key}", key, fields) for key in unknown]
    for key, field in fields.items():
        optional = field.default is not NODEFAULT
        if key not in table or (table[key] == "" and field.default is None):
            if not optional:
                meant = get_close_matches(key, unknown, 1)
                remedy = f"Is it what you wrote as {meant[0]!r}?" if meant else "Add it; configs/node.toml explains it"
                findings.append((f"{section}.{key}", "is missing", remedy))
            continue
        try:
            yield key, msgspec.convert(table[key], field.type, dec_hook=lambda kind, raw: _special(kind, raw, base))
        except msgspec.ValidationError as error:
            findings.append((f"{section}.{key}", str(error), "See configs/node.toml for what it takes"))


def _special(kind: type, raw: object, base: Path) -> object:
    if not isinstance(raw, str):
        raise ValueError(f"Expected `str`, got `{type(raw).__name__}`")
    if kind is Address:
        return Address.parse(raw)
    if not raw or "\0" in raw:
        raise ValueError("is not a path")
    return base / Path(raw).expanduser()


def _unknown(where: str, key: str, known: dict[str, Any]) -> Finding:
    meant = get_close_matches(key, known, 1)
    homes = [name for name, shape in SECTIONS.items() if key in shape.__struct_fields__]
    if meant:
        remedy = f"Did you mean {meant[0]!r}?"
    elif homes:
        remedy = f"Move it to [{homes[0]}]"
    else:
        remedy = "Take it out; known here: " + ", ".join(known)
    return where, "is not a known key", remedy


def _check_listen(listen: ListenSection) -> Iterator[Finding]:
    if listen.clients is None and listen.unix is None:
        yield "listen.clients", "nobody could connect: neither clients nor unix is set", "Set one of them"
    if not listen.admin.loopback:
        yield (
            "listen.admin", f"{listen.admin} can be reached from outside, and the admin port asks nobody who they are",
            "Use 127.0.0.1 or [::1], and let the scraper run on this machine or come through a tunnel",
        )
    if listen.clients and not listen.tls and not listen.clients.loopback:
        yield (
            "listen.tls", f"clients would come to {listen.clients} without encryption",
            "Set tls = true, or listen on 127.0.0.1 (or unix) behind a TLS terminator",
        )
    named = [(key, address) for key in ("clients", "links", "admin") if (address := getattr(listen, key))]
    for place, (key, address) in enumerate(named):
        for other, earlier in named[:place]:
            if address.clashes(earlier):
                yield f"listen.{key}", f"{address} is already taken by listen.{other} ({earlier})", "Use another port"
