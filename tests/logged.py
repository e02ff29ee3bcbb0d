"""Regions whose logs the root names, for tests: every key follows from a name; a log is as small as its proof needs."""

from __future__ import annotations

from nacl.signing import SigningKey

from relay.core.tlog import COSIGNATURE, SignerKey
from relay.core.trust import Policy, RootCell, RootRegion, home_entry, read_home, staple_home
from tests.relay.core.tlog.logbook import Book, key

CELLS = ("1", "2")


def log_key(region: str) -> SignerKey:
    return key(f"{region}.example/log")


def witness_key(region: str) -> SignerKey:
    return key(f"{region}.example/witness", COSIGNATURE)


def logged_region(name: str, registrar: SigningKey, quorum: int = 1) -> RootRegion:
    """What the root says of a region with a log, and with cells 1 and 2."""
    cells = tuple(RootCell(f"{name}/{cell}", ()) for cell in CELLS)
    return RootRegion(
        name, b"", bytes(registrar.verify_key), cells, str(log_key(name).verifier), str(witness_key(name).verifier),
        policy=Policy(quorum=quorum),
    )  # fmt: skip


def staple_of(signed: bytes, *witnesses: str, region: str = "", log: SignerKey | None = None) -> bytes:
    """The staple of a record in the log of its region, or of another; cosigned by the witnesses of these regions."""
    region = region or read_home(signed).payload.region
    book = Book([b"an epoch", home_entry(signed), b"the next"], log or log_key(region))
    return book.staple(1, 3, tuple(witness_key(name) for name in witnesses)).encode()


def stapled(signed: bytes, *witnesses: str, region: str = "", log: SignerKey | None = None) -> bytes:
    """The record with it."""
    return staple_home(signed, staple_of(signed, *witnesses, region=region, log=log))
