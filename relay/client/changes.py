"""A user's next home record, asked for from the registrar: a device is revoked, the user's key becomes another one.

What is asked for is signed with the user's key, which the store has. A new key is in the store, synced, before anybody
sees its public half; it becomes the user's key when the record that names it comes back.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from relay.client import people
from relay.client.identity import LIFETIME, RandomBytes
from relay.client.outgoing import extend
from relay.client.shapes import Effects, Own
from relay.client.store import Db, Store, get, load_own, put
from relay.core.codec import encode, pack
from relay.core.trust import HomePayload, HomeRecord, endorse_home
from relay.errors import OperatorError
from relay.limits import MINUTE

_NEXT: str = "user_seed_next"


def own_device(path: Path) -> bytes:
    """The id of the device whose store is at `path`. Raises StoreError."""
    with closing(Store(path)) as store:
        return bytes(SigningKey(store.transact(lambda db: get(db, "device_seed"))).verify_key)


def ask_revocation(path: Path, device: bytes, now_ms: int) -> bytes:
    """The request for the record without `device` (an id, or how one begins), by the user whose store is at `path`.

    Raises OperatorError where it is none, or not one, or the last of the user's devices; or the store's own."""

    def ask(db: Db) -> bytes:
        own, last = _last(db, now_ms)
        gone = [one.id for one in last.devices if one.id.startswith(device)]
        if len(gone) != 1:
            ids = ", ".join(one.id.hex()[:16] for one in last.devices)
            raise OperatorError(f"{len(gone)} of the user's devices begin with {device.hex()}", f"They are: {ids}")
        if gone[0] == own.device:
            raise OperatorError("a device does not revoke itself", "Do it from another device of the user")
        left = tuple(one for one in last.devices if one.id != gone[0])
        return _request(db, last, now_ms, devices=left)

    with closing(Store(path)) as store:
        return store.transact(ask)


def ask_rotation(path: Path, now_ms: int, random_bytes: RandomBytes = os.urandom) -> bytes:
    """The request for the record with a new user key, which is in the store when this returns. Asked for again before
    the record came back, it is the same key."""

    def ask(db: Db) -> bytes:
        _, last = _last(db, now_ms)
        if not get(db, _NEXT):
            put(db, _NEXT, random_bytes(32))
        return _request(db, last, now_ms, user_key=bytes(SigningKey(get(db, _NEXT)).verify_key))

    with closing(Store(path)) as store:
        return store.transact(ask)


def take_records(path: Path, records: Sequence[bytes], now_ms: int) -> HomeRecord:
    """All of the user's signed records, oldest first, into the store: the newest one counts from now on.

    Raises TrustError and its kinds; then the store is as it was."""

    def take(db: Db) -> HomeRecord:
        own, last = _last(db, now_ms)
        record = people.learn(db, own, own.user, records, now_ms)
        if record.version > last.version:
            extend(db, own, record, Effects())
        seed = get(db, _NEXT)
        if seed and bytes(SigningKey(seed).verify_key) == record.payload.user_key:
            put(db, "user_seed", seed)
            put(db, _NEXT, b"")
        return record

    with closing(Store(path)) as store:
        return store.transact(take)


def _last(db: Db, now_ms: int) -> tuple[Own, HomeRecord]:
    own = load_own(db, now_ms)
    last = people.newest(db, own, own.user)
    assert last is not None, "a store begins with its user's first record"
    return own, last


def _request(db: Db, last: HomeRecord, now_ms: int, **changed: object) -> bytes:
    """[payload, signature by the key that the last record names]: docs/PROTOCOL.md, section 5."""
    user_key = SigningKey(get(db, "user_seed"))
    if bytes(user_key.verify_key) != last.payload.user_key:
        remedy = "Do it on the device where the key was rotated"
        raise OperatorError("this store has an older key of its user", remedy)
    payload: HomePayload = msgspec.structs.replace(
        last.payload, user=last.user, version=last.version + 1, prev=last.digest, not_before=now_ms - MINUTE,
        expires=now_ms + LIFETIME, **changed,
    )  # fmt: skip
    data = encode(payload)
    return pack([data, endorse_home(data, user_key)])
