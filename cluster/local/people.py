"""Users and devices of a Home: enrolled offline, with the registrar's key that is kept there, and found by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from cluster.enrolment import read_records, release_enrolment, sign_enrolment
from cluster.local.home import Home, check_name
from cluster.provision import write_public
from relay.client import Card, add_device, ask_to_move, new_user, open_client, take_records
from relay.client.identity import own_records
from relay.core.trust import read_home
from relay.errors import OperatorError, TrustError

INTRODUCE_S: Final = 5.0  # seconds; a node on this machine answers in milliseconds


def create_user(home: Home, name: str, region: str, now_ms: int) -> Card:
    """A new user in `region`. The relay learns of it when it first connects. Raises OperatorError."""
    root = home.root(now_ms)
    try:
        cell = root.region(region).cells[0].name
    except TrustError:
        known = ", ".join(entry.name for entry in root.payload.regions)
        raise OperatorError(f"the federation has no region {region!r}", f"Its regions are: {known}") from None
    registrar = home.registrar(region)
    store = _new_store(home, check_name(name))
    card = new_user(store, root=root.signed, region=region, cell=cell, registrar=registrar, now_ms=now_ms)
    write_public(store.parent / "card", f"{card}\n".encode())
    return card


def create_device(home: Home, name: str, of: str, now_ms: int) -> Card:
    """A further device, `of+name`, of a user who has a store here. Raises OperatorError."""
    known, card = home.store(of), card_of(home, of)
    registrar = home.registrar(read_home(own_records(known)[-1]).payload.region)
    store = _new_store(home, f"{of.partition('+')[0]}+{check_name(name)}")
    add_device(store, of=known, registrar=registrar, now_ms=now_ms)
    write_public(store.parent / "card", f"{card}\n".encode())
    return card


def move_user(home: Home, name: str, cell: str, now_ms: int) -> Card:
    """Move a user who has a store here to another cell, with the keys of both registrars, which are kept here. All
    devices of the user that have a store here know it at once; the others learn it from the cell that is left.
    Raises OperatorError, TrustError."""
    return take_move(home, name, sign_move(home, name, cell, now_ms), now_ms)


def sign_move(home: Home, name: str, cell: str, now_ms: int) -> tuple[bytes, ...]:
    """The signed records of such a move; nobody knows them yet. Raises like `move_user`."""
    request, before = ask_to_move(home.store(name), cell=cell, now_ms=now_ms)
    root, left = home.root(now_ms), read_home(before[-1]).payload.region
    _, released = release_enrolment(request, before, root, home.registrar(left), now_ms)
    entered = home.registrar(cell.partition("/")[0])
    return read_records(sign_enrolment(released, before, root, entered, now_ms)[1])


def take_move(home: Home, name: str, records: Sequence[bytes], now_ms: int) -> Card:
    """Put a user's newer signed records into the stores of all of the user's devices that are kept here, and the region
    where the user is at home into their cards."""
    user, _, _ = name.partition("+")
    for store in [one for one in home.names() if one.partition("+")[0] == user]:
        record = take_records(home.store(store), records, now_ms)
        card = Card(record.payload.region, record.user)
        place = home.store(store).parent
        write_public(fresh := place / f"card.{record.version}", f"{card}\n".encode())
        fresh.replace(place / "card")
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


def _new_store(home: Home, name: str) -> Path:
    place = home.clients / name
    if (place / "store.sqlite").exists():
        raise OperatorError(f"{name!r} exists already in {home.directory}", "Choose another name")
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OperatorError(f"cannot make {place}: {error.strerror}", "Check the directory's permissions") from None
    return place / "store.sqlite"
