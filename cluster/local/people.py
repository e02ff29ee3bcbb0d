"""Users and devices of a Home: enrolled offline, with the registrar's key that is kept there, and found by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio
from nacl.signing import SigningKey

from cluster.enrolment import read_request
from cluster.local.book import Book
from cluster.local.home import Home, check_name
from cluster.local.recovery import Recovery
from cluster.provision import write_public
from relay.client import Card, Registrar, add_device, new_user, open_client, take_records
from relay.errors import OperatorError, TrustError

INTRODUCE_S: Final = 5.0  # seconds; a node on this machine answers in milliseconds


def registrar_of(home: Home, region: str, now_ms: int) -> Registrar:
    """The registrar of `region`, whose key and book are kept here. Raises OperatorError."""
    key, book, root = home.registrar(region), Book(home.book(region)), home.root(now_ms)

    def sign(request: bytes, before: Sequence[bytes]) -> bytes:
        return book.sign(request, before, root, key, now_ms)[0].signed

    return sign


def create_user(home: Home, name: str, region: str, now_ms: int, recovery: Path | None = None) -> Card:
    """A new user in `region`. The relay learns of it when it first connects. `recovery`: where to keep the secret half
    of a recovery key, and nowhere else. Raises OperatorError."""
    root = home.root(now_ms)
    try:
        cell = root.region(region).cells[0].name
    except TrustError:
        known = ", ".join(entry.name for entry in root.payload.regions)
        raise OperatorError(f"the federation has no region {region!r}", f"Its regions are: {known}") from None
    sign, key = registrar_of(home, region, now_ms), SigningKey(os.urandom(32)) if recovery else None
    store = new_store(home, check_name(name))

    def ask(request: bytes, before: Sequence[bytes]) -> bytes:
        if key is not None and recovery is not None:  # on disk before anything is signed that names it
            Recovery(Card(region, read_request(request).user), key).write(recovery)
        return sign(request, before)

    card = new_user(
        store, root=root.signed, region=region, cell=cell, registrar=ask, now_ms=now_ms,
        recovery=bytes(key.verify_key) if key else b"",
    )  # fmt: skip
    write_public(store.parent / "card", f"{card}\n".encode())
    return card


def create_device(home: Home, name: str, of: str, now_ms: int) -> Card:
    """A further device, `of+name`, of a user who has a store here. Raises OperatorError."""
    known, card = home.store(of), card_of(home, of)
    registrar = registrar_of(home, card.region, now_ms)
    take_records(known, Book(home.book(card.region)).records(card.user), now_ms)
    store = new_store(home, f"{of.partition('+')[0]}+{check_name(name)}")
    add_device(store, of=known, registrar=registrar, now_ms=now_ms)
    write_public(store.parent / "card", f"{card}\n".encode())
    return card


async def introduce(home: Home, name: str, deadline_s: float = INTRODUCE_S) -> bool:
    """Let a client connect once, so that its node learns of the user's newest record. False when no node answered.
    Raises what a client raises (NotServed…)."""
    async with open_client(home.store(name), receive=False) as client:
        with trio.move_on_after(deadline_s):
            while not client.connected:  # noqa: ASYNC110 - the client has no bell for it
                await trio.sleep(0.02)
            return True
    return False


def card_of(home: Home, name: str) -> Card:
    """The address card of a client in `home`. Raises OperatorError."""
    path = home.store(name).parent / "card"
    try:
        return Card.parse(path.read_text("utf-8").strip())
    except OSError as error:
        raise OperatorError(f"{path}: {error.strerror}", "Write the user's address card into it") from None


def find_card(home: Home, text: str) -> Card:
    """The card that `text` is, or that belongs to the client of that name. Raises OperatorError."""
    return Card.parse(text) if text.startswith("posthouse:") else card_of(home, text)


def new_store(home: Home, name: str) -> Path:
    """Where the store of a new client goes. Raises OperatorError."""
    place = home.clients / name
    if (place / "store.sqlite").exists():
        raise OperatorError(f"{name!r} exists already in {home.directory}", "Choose another name")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot make {place}: {error.strerror}", "Check the directory's permissions") from None
    return place / "store.sqlite"
