"""What a region says of itself, signed by its operator: authority, registrar, cells with their nodes, its policy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from relay.core.codec import Decoder, Struct, pack
from relay.core.shapes import CellName, Key, Name, Text, UInt
from relay.errors import ProtocolError, TrustError
from relay.limits import KIB, MAX_LIFETIME, DAY

MAX_STATEMENT: Final = 64 * KIB  # bytes; about 400 nodes with their URLs
MAX_EARLIER: Final = 16  # keys that a region's registrar had before
MAX_REGIONS: Final = 256  # of a federation, and of a list in a policy; all are verified whenever a node starts

RetentionDays = Annotated[int, Meta(ge=1, le=MAX_LIFETIME // DAY)]
Witnesses = Annotated[int, Meta(ge=0, le=MAX_REGIONS)]
RegionNames = Annotated[tuple[Name, ...], Meta(max_length=MAX_REGIONS)]


class RootNode(Struct, frozen=True):
    """A node: its name, where other cells reach it (host:port), and the URLs that clients use."""

    name: Name
    link: Text
    clients: tuple[Text, ...]


class RootCell(Struct, frozen=True):
    """A cell: `region/name` and its nodes."""

    name: CellName
    nodes: tuple[RootNode, ...]


class Policy(Struct, frozen=True):
    """What may happen to a region's mail: relay.core.policy says what follows, and who enforces it.

    `send_to`, `receive_from`: the other regions that envelopes may go to and come from; None: all of the federation.
    `hold`: whether an envelope bound abroad may wait on a disk of this region. `retention_days`: how long an envelope
    may rest here at most; None: as long as the protocol allows. `quorum`: how many witnesses must have cosigned a
    checkpoint of the region's log."""

    send_to: RegionNames | None = None
    receive_from: RegionNames | None = None
    hold: Literal["allow", "deny"] = "allow"
    retention_days: RetentionDays | None = None
    quorum: Witnesses = 0


class EarlierKey(Struct, frozen=True):
    """A key that a region's registrar had before. What it signed counts where it is proven to be an entry of a region's
    log below the number that `ends` has for that region; in other logs, and without such a proof, nothing does."""

    key: Key
    ends: Annotated[tuple[tuple[Name, UInt], ...], Meta(max_length=MAX_REGIONS)]


class RootRegion(Struct, frozen=True):
    """A region: its X.509 authority (DER), its registrar's Ed25519 key, its cells; then what it may leave empty: the
    keys of its log and of its witness (C2SP vkeys), the registrar's URL; its policy; and the registrar's keys of
    before, newest first (relay.core.trust.earlier)."""

    name: Name
    authority: bytes
    registrar_key: Key
    cells: tuple[RootCell, ...]
    log_key: Text = ""
    witness_key: Text = ""
    registrar_url: Text = ""
    policy: Policy = Policy()
    earlier: Annotated[tuple[EarlierKey, ...], Meta(max_length=MAX_EARLIER)] = ()

    @property
    def cell_names(self) -> frozenset[str]:
        return frozenset(cell.name for cell in self.cells)


def addresses(region: RootRegion) -> Iterator[tuple[str, str]]:
    """Each address that its nodes have, for other cells and for clients, and the node: `region/cell/node`."""
    for cell in region.cells:
        for node in cell.nodes:
            for address in dict.fromkeys((node.link, *node.clients)):
                yield address, f"{cell.name}/{node.name}"


class _Statement(Struct, frozen=True):
    format: UInt
    region: RootRegion


_statement: Decoder[_Statement] = Decoder(_Statement, "region's statement", MAX_STATEMENT)
_FORMAT: Final = 1


def encode_statement(region: RootRegion) -> bytes:
    """The bytes of the TUF target that says `region`. Raises ProtocolError, TrustError where no reader takes it.

    Where no key was replaced nothing is said of it: releases that do not know of that read on."""
    fields = msgspec.to_builtins(region, builtin_types=(bytes,))
    data = pack([_FORMAT, fields if region.earlier else fields[:-1]])
    decode_statement(data)
    return data


def decode_statement(data: bytes) -> RootRegion:
    """Raises ProtocolError for what is no statement, TrustError for one that contradicts itself."""
    statement = _statement(data)
    if statement.format != _FORMAT:
        raise ProtocolError(f"a region's statement of format {statement.format}", "Install the newer release")
    region = statement.region
    for cell in region.cells:
        if not cell.name.startswith(region.name + "/"):
            what = f"region {region.name}: cell {cell.name} is not named after it"
            raise TrustError(what, f"Name it {region.name}/1")
        listed = [node.name for node in cell.nodes]
        for name in listed:
            if listed.count(name) > 1:  # it would count twice in a majority
                what = f"node {cell.name}/{name} stands in the root document {listed.count(name)} times"
                raise TrustError(what, "Have each node named once, and the root document signed again")
    if len(region.cell_names) != len(region.cells):
        raise TrustError(f"region {region.name}: a cell stands there twice", "Name each cell once")
    keys = [region.registrar_key, *(one.key for one in region.earlier)]
    if len(set(keys)) != len(keys):  # what it signs now would be judged as what it signed then
        what = f"region {region.name}: a key of its registrar is there twice"
        raise TrustError(what, "A key that was replaced never comes back")
    for what, names in (("send_to", region.policy.send_to), ("receive_from", region.policy.receive_from)):
        if names is not None and len(set(names)) != len(names):
            raise TrustError(f"region {region.name}: policy {what} names a region twice", "Name each once")
    for one in region.earlier:
        if len({name for name, _ in one.ends}) != len(one.ends):
            raise TrustError(f"region {region.name}: an earlier key ends twice in one log", "Name each region once")
    return region
