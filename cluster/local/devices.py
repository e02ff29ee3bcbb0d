"""The life of the devices of a Home: made, revoked, their keys rotated, all of them lost (ADR 24). Offline: what was
signed holds once a node of the user's cell has it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nacl.signing import SigningKey

from cluster.local.home import Home, check_name
from cluster.local.people import card_of, new_store, newest_records, registrar_of
from cluster.local.recovery import Recovery
from cluster.provision import write_public
from relay.client import (
    recover_user, revoke_devices, rotate_device_keys, rotate_user_key, share_user_key, take_records,
)  # fmt: skip
from relay.client.identity import Registrar, own_records
from relay.client.store import Store, load_own
from relay.core.trust import HomeRecord, read_home
from relay.errors import OperatorError

MIN_ID: Final = 8  # hex digits of a device id that name it


@dataclass(frozen=True)
class Listed:
    """A device of a user, as the newest record that is known here lists it. `names`: of its store in this Home."""

    id: bytes
    since: int
    name: str


@dataclass(frozen=True)
class Changed:
    """What was signed. `by`: a client of the Home that has it, and can tell a node. `without_key`: how many other
    devices have no store here, so that they did not get the new user key."""

    record: HomeRecord
    by: str
    without_key: int


def devices_of(home: Home, name: str, now_ms: int) -> tuple[HomeRecord, list[Listed]]:
    """The devices of the user `name`. Raises OperatorError."""
    stores = {device_of(home, other, now_ms): other for other in _clients_of(home, card_of(home, name).user)}
    record: HomeRecord | None = None
    for signed in _newest_chain(home, name, now_ms):
        record = read_home(signed, record)
    assert record is not None, "whoever has a store has a record"
    return record, [Listed(one.id, one.since, stores.get(one.id, "")) for one in record.devices]


def device_of(home: Home, name: str, now_ms: int) -> bytes:
    """The id of the device whose store `name` is."""
    with closing(Store(home.store(name))) as store:
        return store.transact(lambda db: load_own(db, now_ms)).device


def revoke(home: Home, text: str, by: str | None, now_ms: int, registrar: Registrar | None = None) -> Changed:
    """Revoke the device `text` (a client of this Home, or the beginning of its id) with the client `by` (else: with any
    other of the same user). `registrar`: who signs, if not with the key of this Home. Raises OperatorError,
    TrustError."""
    if text in home.names():
        device, user = device_of(home, text, now_ms), card_of(home, text).user
        others = [name for name in _clients_of(home, user) if name != text]
        by = by or _enrolled(home, others, now_ms) or text
    else:
        if by is None:
            raise OperatorError(f"{home.directory} has no client {text!r}", "Say whose device it is with --as NAME")
        record, listed = devices_of(home, by, now_ms)
        found = [one.id for one in listed if len(text) >= MIN_ID and one.id.hex().startswith(text.lower())]
        if len(found) != 1:
            what = f"{text!r} is no device of {by} (version {record.version})"
            raise OperatorError(what, f"`posthouse user devices {by}` lists them; give at least {MIN_ID} digits")
        device = found[0]
    return _change(home, by, now_ms, registrar, lambda path, signer: revoke_devices(
        path, [device], registrar=signer, now_ms=now_ms))  # fmt: skip


def rotate_user(home: Home, name: str, now_ms: int, registrar: Registrar | None = None) -> Changed:
    """A new user key. `registrar`: as for `revoke`. Raises OperatorError, TrustError."""
    return _change(home, name, now_ms, registrar, lambda path, signer: rotate_user_key(
        path, registrar=signer, now_ms=now_ms))  # fmt: skip


def rotate_device(home: Home, name: str, now_ms: int) -> Changed:
    """New keys of the device `name`. Raises StoreLocked, OperatorError, TrustError."""
    return _change(home, name, now_ms, None, lambda path, signer: rotate_device_keys(
        path, registrar=signer, now_ms=now_ms))  # fmt: skip


# --- recovery ------------------------------------------------------------------------------------
def recover(
    home: Home, name: str, recovery: Recovery, now_ms: int, *, records: tuple[bytes, ...] = (),
    keep: tuple[str, ...] = (), replacement: Path | None = None,
) -> Changed:  # fmt: skip
    """A new device `name` of the user whose recovery key this is, in the place of all that are not in `keep` (clients
    of this Home). `records`: the user's, where the registrar's book is not here. Raises OperatorError, TrustError."""
    user = recovery.card.user
    known = [newest_records(home, user, now_ms), records]
    known += [tuple(own_records(home.store(other))) for other in _clients_of(home, user)]
    chain = max(known, key=len)
    if not chain:
        raise OperatorError(
            f"no records of {recovery.card} are here", "Ask the registrar for them, and give the file with --records"
        )
    if read_home(chain[0]).user != user:
        raise OperatorError("the records are another user's", "Give those of the user in the recovery file")
    base, _, device = name.partition("+")
    store = new_store(home, check_name(base) + (f"+{check_name(device)}" if device else ""))
    next_key = SigningKey(os.urandom(32))
    if replacement is not None:
        Recovery(recovery.card, next_key).write(replacement)  # before anything is signed that names it
    stay = [device_of(home, other, now_ms) for other in keep]
    card = recover_user(
        store, root=home.root(now_ms).signed, records=chain, recovery=recovery.key,
        registrar=registrar_of(home, read_home(chain[-1]).payload.region, now_ms), now_ms=now_ms, keep=stay,
        next_recovery=bytes(next_key.verify_key) if replacement is not None else b"",
    )  # fmt: skip
    write_public(store.parent / "card", f"{card}\n".encode())
    share_user_key(store, [home.store(other) for other in keep], now_ms)
    return Changed(read_home(own_records(store)[-1]), store.parent.name, 0)


# --- the parts -----------------------------------------------------------------------------------
def _clients_of(home: Home, user: bytes) -> list[str]:
    return [name for name in home.names() if card_of(home, name).user == user]


def _newest_chain(home: Home, name: str, now_ms: int) -> tuple[bytes, ...]:
    return newest_records(home, card_of(home, name).user, now_ms, own_records(home.store(name)))


def _enrolled(home: Home, names: list[str], now_ms: int) -> str | None:
    """One of these clients that is still enrolled."""
    for name in names:
        listed = {device.id for device in read_home(_newest_chain(home, name, now_ms)[-1]).devices}
        if device_of(home, name, now_ms) in listed:
            return name
    return None


def _change(
    home: Home, name: str, now_ms: int, registrar: Registrar | None, make: Callable[[Path, Registrar], HomeRecord]
) -> Changed:
    """The next version, made on client `name`; the user's other clients in this Home get the new user key, too."""
    card, store = card_of(home, name), home.store(name)
    before = take_records(store, _newest_chain(home, name, now_ms), now_ms)
    record = make(store, registrar or registrar_of(home, before.payload.region, now_ms))
    listed = {device.id for device in record.devices}
    names = [other for other in _clients_of(home, card.user) if device_of(home, other, now_ms) in listed]
    share_user_key(store, [home.store(other) for other in names if other != name], now_ms)
    return Changed(record, name, len(record.devices) - len(names))
