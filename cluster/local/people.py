"""Users and devices of a Home: enrolled offline, with the registrar's key that is kept there, and found by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import trio
from nacl.signing import SigningKey

from cluster.enrolment import read_request, split_release
from cluster.local.book import Book
from cluster.local.home import Home, check_name
from cluster.local.recovery import Recovery
from cluster.provision import write_public
from cluster.registrar.asking import service, signer
from relay.client import Card, Registrar, add_device, ask_to_move, new_user, open_client, take_records
from relay.client.identity import own_records
from relay.core.trust import HomeRecord, Root, read_home, same_home
from relay.errors import OperatorError, TrustError

INTRODUCE_S: Final = 5.0  # seconds; a node on this machine answers in milliseconds


def registrar_of(home: Home, region: str, now_ms: int) -> Registrar:
    """The registrar of `region`, whose key and book are kept here; or, where the root names a log of the region, the
    running one, whose directory is here. Raises OperatorError."""
    root = home.root(now_ms)
    if root.region(region).log_key:
        return signer(home.directory / f"registrar-{region}", lambda: now_ms)
    key, book = home.registrar(region), Book(home.book(region))

    def sign(request: bytes, before: Sequence[bytes]) -> bytes:
        request, _ = split_release(request)  # of a region with a log: who verifies staples is a registrar that has one
        known = newest_records(home, read_request(request).user, now_ms, before)
        return book.sign(request, known, root, key, now_ms)[0].signed

    return sign


class Releaser(Protocol):
    """A registrar, to let users go. Methods raise OperatorError, TrustError and their kinds."""

    def release(self, request: bytes, before: Sequence[bytes]) -> tuple[HomeRecord, bytes]:
        """What a request to move after the records `before` asks for, and the request with the release, as a file has
        it. Raises AlreadyReleased where the user was let go with another request."""

    def released(self, user: bytes, version: int, cell: str) -> bytes | None:
        """The request that was released for this version and this move, if there is one."""


def releaser_of(home: Home, region: str, now_ms: int) -> Releaser:
    """The same registrar, to let users go: the running one, or `Book.release` after all that is known here. Raises
    OperatorError."""
    root = home.root(now_ms)
    if root.region(region).log_key:
        return service(home.directory / f"registrar-{region}", lambda: now_ms)
    return _ByHand(home, root, Book(home.book(region)), home.registrar(region), now_ms)


@dataclass(frozen=True)
class _ByHand:
    home: Home
    root: Root
    book: Book
    key: SigningKey
    now_ms: int

    def release(self, request: bytes, before: Sequence[bytes]) -> tuple[HomeRecord, bytes]:
        known = newest_records(self.home, read_request(request).user, self.now_ms, before)
        return self.book.release(request, known, self.root, self.key, self.now_ms)

    def released(self, user: bytes, version: int, cell: str) -> bytes | None:
        return self.book.released(user, version, cell)


def newest_records(home: Home, user: bytes, now_ms: int, known: Sequence[bytes] = ()) -> tuple[bytes, ...]:
    """The records `known`, and what follows them in the books that are kept here: of all regions, for a move is in the
    book of the region that is entered only. Raises OperatorError."""
    newest = tuple(known)
    for region in home.root(now_ms).payload.regions:
        book = Book(home.book(region.name)).records(user)
        if len(book) > len(newest) and all(map(same_home, book, newest)):
            newest = (*newest, *book[len(newest) :])
    return newest


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
    known, user = home.store(of), card_of(home, of).user
    newest = take_records(known, newest_records(home, user, now_ms, own_records(known)), now_ms)
    registrar = registrar_of(home, newest.payload.region, now_ms)  # where the user is at home now
    store = new_store(home, f"{of.partition('+')[0]}+{check_name(name)}")
    card = add_device(store, of=known, registrar=registrar, now_ms=now_ms)
    write_public(store.parent / "card", f"{card}\n".encode())
    return card


def move_user(home: Home, name: str, cell: str, now_ms: int) -> Card:
    """Move a user who has a store here to another cell, with both registrars, whose keys, or who themselves, are here.
    All devices of the user that have a store here know it at once; the others learn it from the cell that is left.
    Raises OperatorError, TrustError."""
    return take_move(home, name, sign_move(home, name, cell, now_ms), now_ms)


def sign_move(
    home: Home, name: str, cell: str, now_ms: int, leave: Releaser | None = None, enter: Registrar | None = None
) -> tuple[bytes, ...]:
    """The signed records of such a move; nobody knows them yet but the book, or the log, of the region that is entered.
    What was cut short goes on: the release that was given is used. `leave`, `enter`: the registrars, where they are not
    those of this directory. Raises like `move_user`."""
    store = home.store(name)
    own = own_records(store)
    known = newest_records(home, card_of(home, name).user, now_ms, own)
    if len(known) > len(own) and read_home(known[-1]).cell == cell:
        return known  # signed before, and never taken in
    take_records(store, known, now_ms)
    request, before = ask_to_move(store, cell=cell, now_ms=now_ms)
    leave = leave or releaser_of(home, read_home(before[-1]).payload.region, now_ms)
    enter = enter or registrar_of(home, cell.partition("/")[0], now_ms)
    released = leave.released(card_of(home, name).user, len(before) + 1, cell)
    if released is None:
        _, released = leave.release(request, before)
    return (*before, enter(released, before))


def take_move(home: Home, name: str, records: Sequence[bytes], now_ms: int) -> Card:
    """Put a user's newer signed records into the stores of all of the user's devices that are kept here, and the region
    where the user is at home into their cards."""
    user = card_of(home, name).user
    for store in [one for one in home.names() if card_of(home, one).user == user]:
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
