"""Another key for a region's registrar, which stands still meanwhile (ADR 42).

The key of before ends where the log of the region ends now; and in the logs of the other regions so many entries behind
where these ended when this one stood by them last: there come the users whom it has let go, until everybody has the new
statement.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Literal

from msgspec import structs
from nacl.signing import SigningKey

from cluster.kept import hold_data
from cluster.provision import write_public, write_secret
from cluster.registrar.config import RegistrarConfig
from cluster.registrar.store import open_registry
from cluster.registrar.witness import open_witness
from cluster.trail import DIRECTORY, open_registrar_trail
from relay.core.codec import Decoder, Struct, encode
from relay.core.shapes import Key, Name
from relay.core.tlog import parse_checkpoint, parse_note
from relay.core.trust import EarlierKey, RootRegion
from relay.errors import OperatorError, ProtocolError
from relay.journal.files import sync_directory
from relay.journal.portal import open_portal
from relay.limits import KIB

ROOM: Final = 1_024  # entries in each other region's log for moves that are under way
_BEFORE, _NEXT = ".before", ".next"


class Replacement(Struct, frozen=True):
    """What the region's statement is told: the key of now, and the one of before with its ends. Nothing secret."""

    format: Literal[1]
    region: Name
    key: Key
    before: EarlierKey


_read: Decoder[Replacement] = Decoder(Replacement, "replacement of a registrar's key", 64 * KIB)


async def replace_key(config: RegistrarConfig, now_ms: int, out: Path, room: int = ROOM) -> Replacement:
    """Give the registrar of `config`, which does not run, another key, and write what the statement is told to `out`.
    The old key stays beside it, NAME.before; the audit log that it signed is put aside. From now on the registrar
    starts by a root document that names the new key, and by no other.

    Raises StoreLocked where the registrar runs; OperatorError where the region has no log, or a replacement was begun;
    RolledBack, StoreDamaged, DiskFailed."""
    with hold_data(config.data):
        return _replace(config, await _find_ends(config, now_ms, room), out, now_ms)


async def _find_ends(config: RegistrarConfig, now_ms: int, room: int) -> tuple[tuple[str, int], ...]:
    """By region. Of the others' logs our own witness tells, which has stood by the newest that they had."""
    if not config.root.region(config.region).log_key:
        what = f"the root document names no log of {config.region}: nothing tells when a record was signed"
        raise OperatorError(what, "Start the region's log first (`posthouse init statement --log-key`)")
    data, logs = config.data, {peer.log.name: peer.log for peer in config.peers}
    async with (
        open_portal() as portal,
        open_registry(data / "registry.sqlite", portal, config.log.name, lambda c: c.sign(config.log), now_ms)
        as registry,
        open_witness(data / "witness.sqlite", portal, config.witness, logs, data / "evidence", lambda: now_ms // 1000)
        as witness,
    ):  # fmt: skip
        seen = [(peer.region, witness.seen(peer.log.name)) for peer in config.peers]
        others = [(region, parse_checkpoint(parse_note(note).text).size if note else 0) for region, note in seen]
        return (config.region, registry.head.size), *((region, size + room) for region, size in others)


def _replace(config: RegistrarConfig, ends: tuple[tuple[str, int], ...], out: Path, now_ms: int) -> Replacement:
    key, path = SigningKey.generate(), config.registrar_path
    old, fresh, before = config.registrar, *(path.with_name(path.name + end) for end in (_NEXT, _BEFORE))
    replacement = Replacement(1, config.region, bytes(key.verify_key), EarlierKey(bytes(old.verify_key), ends))
    for taken in (out, before):
        if taken.exists():
            raise OperatorError(f"{taken} exists already", "Finish that replacement, or put the file away")
    fresh.unlink(missing_ok=True)
    write_secret(fresh, bytes(key).hex().encode() + b"\n")
    write_public(out, encode(replacement))
    trail = open_registrar_trail(config.data / DIRECTORY, config.region, old, lambda: now_ms)
    try:
        trail.note("registrar.key", "operator", key=replacement.key.hex())
        aside = f"{DIRECTORY}-{trail.origin.rpartition('/')[2]}"
    finally:
        trail.close()
    try:
        (config.data / DIRECTORY).rename(config.data / aside)
        os.link(path, before)
        fresh.replace(path)
        sync_directory(path.parent)
        sync_directory(config.data)
    except OSError as error:
        remedy = f"Nothing was published: put {before.name} back as {path.name}, delete {out}, and begin again"
        raise OperatorError(f"{error.filename}: {error.strerror}", remedy) from None
    return replacement


def read_replacement(path: Path) -> Replacement:
    """What `replace_key` wrote. Raises OperatorError."""
    try:
        return _read(path.read_bytes())
    except (OSError, ProtocolError) as error:
        remedy = "Give the file that `posthouse registrar replace-key` wrote"
        raise OperatorError(f"{path} is no replacement of a registrar's key: {error}", remedy) from None


def replaced(entry: RootRegion, by: Replacement) -> RootRegion:
    """The statement with the key of now. Raises OperatorError where it is another region's, or another key's."""
    if (entry.name, entry.registrar_key) == (by.region, by.key):
        return entry
    if (entry.name, entry.registrar_key) != (by.region, by.before.key):
        what = f"that key of the registrar of {by.region} was not replaced in the statement of {entry.name}"
        raise OperatorError(what, "Give the files of one region, and of one replacement after the other")
    return structs.replace(entry, registrar_key=by.key, earlier=(by.before, *entry.earlier))
