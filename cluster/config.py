"""A node's config: one TOML file, checked as a whole before anything starts.

`load_config` gives a NodeConfig whose paths are absolute and whose root document is verified, or raises one ConfigError
with every finding at once. configs/node.toml documents every key. Formats: TOML 1.0 (toml.io/en/v1.0.0).
"""

from __future__ import annotations

import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, Struct

from cluster.config_files import Finding, check_data, check_identity, check_nodes, check_root, check_secrets
from cluster.config_keys import (
    SECTIONS, Address, Digest, LimitsSection, ListenSection, LogSection, NodeSection, PathsSection,
)  # fmt: skip
from relay.core.trust import Root
from relay.errors import ConfigError


@dataclass(frozen=True)
class NodeConfig:
    """A config that was checked as a whole: paths are absolute, `root` is verified, the certificate is this node's.

    `root` has the link addresses that this node dials: those of the signed document, or of `routes` ([routes],
    region/cell/node → address) where it has them.
    """

    source: Path
    node: NodeSection
    paths: PathsSection
    listen: ListenSection
    limits: LimitsSection
    log: LogSection
    root: Root
    routes: Mapping[str, Address] = field(default_factory=dict)


def load_config(path: Path, now_ms: int | None = None) -> NodeConfig:
    """Read and check a config at Unix time `now_ms` (default: now). Raises ConfigError with all findings at once."""
    now_ms = int(time.time() * 1000) if now_ms is None else now_ms
    path = path.absolute()
    tables = read_toml(path, "Write one (configs/node.toml shows every key) or run `posthouse init`")
    findings: list[Finding] = []
    routes = _routes(tables.pop("routes", {}), findings)
    sections, flawed = _sections(tables, path.parent, findings)
    node, paths = sections.get("node"), sections.get("paths")
    listen = None if "listen" in flawed else sections.get("listen")
    root: Root | None = None
    if isinstance(listen, ListenSection):
        findings += _check_listen(listen)
    if isinstance(paths, PathsSection):
        root = check_root(paths, now_ms, findings)
        findings += check_secrets(paths)
        findings += check_data(paths.data)
    if isinstance(node, NodeSection) and isinstance(paths, PathsSection):
        findings += check_identity(node, paths, listen, root, now_ms)
    if root is not None:
        _check_routes(root, routes, findings)
        root = rerouted(root, routes)
        if isinstance(node, NodeSection):
            findings += check_nodes(root, node.region, routes)
    if findings or root is None:
        raise ConfigError(str(path), findings)
    return NodeConfig(path, **sections, root=root, routes=routes)


def read_toml(path: Path, make_it: str) -> dict[str, Any]:
    """The tables of a config file. `make_it`: what to do where there is none. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        what, remedy = "there is no such file", make_it
    except IsADirectoryError:
        what, remedy = "is a directory", "Name the config file in it: node.toml, or registrar.toml"
    except OSError as error:
        what, remedy = f"cannot be read: {error.strerror}", "Make the file readable for this user"
    except UnicodeDecodeError:
        what, remedy = "is not UTF-8 text", "Save the file as UTF-8"
    except tomllib.TOMLDecodeError as error:
        what, remedy = f"is not TOML: {error}", "Mend that line"
    raise ConfigError(str(path), [("file", what, remedy)])


def _sections(tables: dict[str, Any], base: Path, findings: list[Finding]) -> tuple[dict[str, Any], set[str]]:
    """Every section that has what it must have, and the names of those about which there are findings.

    A wrong value that could have been left out counts as left out, so that the rest of the section is looked at too."""
    findings += [_unknown(name, name, SECTIONS) for name in tables if name not in SECTIONS]
    built: dict[str, Any] = {}
    flawed: set[str] = set()
    for name, shape in SECTIONS.items():
        table = tables.get(name, {})
        if not isinstance(table, dict):
            findings.append((name, "is a value, not a section", f"Write a [{name}] section"))
            continue
        before = len(findings)
        values = dict(_values(name, shape, table, base, findings))
        if len(findings) > before:
            flawed.add(name)
        if all(field.name in values for field in msgspec.structs.fields(shape) if field.required):
            built[name] = shape(**values)
    return built, flawed


def _values(
    section: str, shape: type[Struct], table: dict[str, Any], base: Path, findings: list[Finding]
) -> Iterator[tuple[str, Any]]:
    fields = {wanted.name: wanted for wanted in msgspec.structs.fields(shape)}
    unknown = [key for key in table if key not in fields]
    findings += [_unknown(f"{section}.{key}", key, fields) for key in unknown]
    for key, wanted in fields.items():
        optional = wanted.default is not NODEFAULT
        if key not in table or (table[key] == "" and wanted.default is None):
            if not optional:
                meant = get_close_matches(key, unknown, 1)
                remedy = f"Is it what you wrote as {meant[0]!r}?" if meant else "Add it; configs/node.toml explains it"
                findings.append((f"{section}.{key}", "is missing", remedy))
            continue
        try:
            yield key, _value(table[key], wanted.type, base)
        except ValueError as error:  # msgspec's own do not show the value
            said = f"{table[key]!r}: {error}" if isinstance(error, msgspec.ValidationError) else str(error)
            findings.append((f"{section}.{key}", said, _what_fits(wanted.type)))


def _value(raw: object, kind: Any, base: Path) -> object:
    kinds = get_args(kind) or (kind,)
    if Address in kinds:
        return Address.parse(msgspec.convert(raw, str))
    if Path in kinds:
        text = msgspec.convert(raw, str)
        if not text or "\0" in text:
            raise ValueError(f"{text!r} is not a path")
        return base / Path(text).expanduser()
    return msgspec.convert(raw, kind)


def _what_fits(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"One of: {', '.join(get_args(kind))}"
    if kind == Digest:
        return "64 hex digits, as `posthouse directory show` prints them, or leave it out"
    return "See configs/node.toml for what it takes"


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


def _routes(table: object, findings: list[Finding]) -> dict[str, Address]:
    """[routes]: region/cell/node → the address to dial instead of the root document's."""
    if not isinstance(table, dict):
        findings.append(("routes", "is a value, not a section", "Write a [routes] section"))
        return {}
    routes = {}
    for name, text in table.items():
        try:
            routes[name] = Address.parse(text if isinstance(text, str) else "")
        except ValueError as error:
            findings.append((f"routes.{name!r}", str(error), 'Write "region/cell/node" = "host:port"'))
    return routes


def _check_routes(root: Root, routes: dict[str, Address], findings: list[Finding]) -> None:
    cells = [cell for region in root.payload.regions for cell in region.cells]
    known = {f"{cell.name}/{node.name}" for cell in cells for node in cell.nodes}
    for name in routes.keys() - known:
        meant = get_close_matches(name, known, 1)
        remedy = f"Did you mean {meant[0]!r}?" if meant else f"The root has: {', '.join(sorted(known))}"
        findings.append((f"routes.{name!r}", "is not a node of the root document", remedy))


def rerouted(root: Root, routes: Mapping[str, Address]) -> Root:
    """The root document with the link addresses that this node dials."""
    replace = msgspec.structs.replace
    regions = tuple(
        replace(region, cells=tuple(
            replace(cell, nodes=tuple(
                replace(node, link=str(routes.get(f"{cell.name}/{node.name}", node.link))) for node in cell.nodes
            )) for cell in region.cells
        )) for region in root.payload.regions
    )  # fmt: skip
    return replace(root, payload=replace(root.payload, regions=regions))
