"""What becomes of a user's devices: revoked, their keys rotated, all of them lost (ADR 24). Offline, like enrolment.

Keys are on disk before the registrar is asked for the version that names them: which of them count is what the newest
record says, so that a crash in between loses nothing (`take_records` brings the store up to what the registrar signed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from pathlib import Path

from nacl.signing import SigningKey

from relay.client.card import Card
from relay.client.identity import (
    RandomBytes, Registrar, Seeds, ask, fill, following, identity, take, take_records, user_key_of,
)  # fmt: skip
from relay.client.shapes import Own
from relay.client.store import Store, create, keep_device_key, keep_user_key
from relay.core.trust import Device, HomeRecord, verify_home, verify_root
from relay.errors import OperatorError, StoreLocked


def revoke_devices(
    path: Path, devices: Collection[bytes], *, registrar: Registrar, now_ms: int, random_bytes: RandomBytes = os.urandom
) -> HomeRecord:
    """The next version, without `devices` and with a new user key (a lost device had the old one), signed on the device
    whose store is at `path`. It holds once a node of the home cell has it: connect with this device.

    Raises OperatorError (not that user's devices, or all of them), TrustError."""

    def left(own: Own, last: HomeRecord) -> tuple[Device, ...]:
        unknown = set(devices) - {device.id for device in last.devices}
        if unknown or not devices:
            raise OperatorError("the user has no such device (any more)", "`posthouse user devices` lists them")
        stay = tuple(device for device in last.devices if device.id not in devices)
        if not stay:
            raise OperatorError(
                "these are all devices of the user: nobody would be left to read, or to sign the next version",
                "Add another device first, or put a new one in their place with the recovery key "
                "(`posthouse user recover`)",
            )
        if own.device in devices:
            raise OperatorError("a device cannot revoke itself: the new user key would be on no other one",
                                "Do it on a device that stays")  # fmt: skip
        return stay

    with closing(Store(path)) as store:
        return _next_version(store, left, registrar, now_ms, random_bytes)


def rotate_user_key(
    path: Path, *, registrar: Registrar, now_ms: int, random_bytes: RandomBytes = os.urandom
) -> HomeRecord:
    """The next version, with a new user key, signed by the old one. Raises OperatorError, TrustError."""
    with closing(Store(path)) as store:
        return _next_version(store, lambda _, last: last.devices, registrar, now_ms, random_bytes)


def rotate_device_keys(
    path: Path, *, registrar: Registrar, now_ms: int, random_bytes: RandomBytes = os.urandom
) -> HomeRecord:
    """The next version, with new keys of the device whose store is at `path` in the place of the old: a new id under
    the same stem. Cursor, conversations and mail go on; the old key opens what was sealed for it, for as long as that
    may still come.

    Raises StoreLocked (a client has the store open), OperatorError, TrustError."""
    with closing(Store(path)) as store:
        if not store.take_receive_lock():
            raise StoreLocked(f"another process receives with {store.path}", "Stop it: it would go on with the old key")
        own, chain = store.transact(lambda db: identity(db, now_ms))
        old = next((device for device in chain[-1].devices if device.id == own.device), None)
        if old is None:
            raise OperatorError("this device is not enrolled any more", "Add a new one on another device")
        user_key, seeds = store.transact(lambda db: user_key_of(db, chain[-1])), Seeds(random_bytes)
        store.transact(lambda db: keep_device_key(db, seeds.signing, seeds.private))
        new = seeds.device(old.since, old.stem)
        devices = tuple(new if device is old else device for device in chain[-1].devices)
        record = ask(registrar, following(chain, now_ms, devices=devices), user_key, chain, own.root, seeds)
        store.transact(lambda db: take(db, own, [record], now_ms))
    return record


def recover_user(
    path: Path, *, root: bytes, records: Sequence[bytes], recovery: SigningKey, registrar: Registrar, now_ms: int,
    keep: Collection[bytes] = (), next_recovery: bytes = b"", random_bytes: RandomBytes = os.urandom,
) -> Card:  # fmt: skip
    """A new device, whose store is at `path`, and a new user key, signed by the recovery key; of the others only the
    devices in `keep` stay. `records`: the user's, oldest first. `next_recovery`: another recovery key from here on.

    What waited for devices that are gone is gone with them: it was sealed for their keys. Raises OperatorError (another
    user's recovery key, or the user has none), TrustError."""
    verified = verify_root(root, now_ms)
    chain: list[HomeRecord] = []
    for signed in records:
        chain.append(verify_home(signed, verified, chain[-1] if chain else None))
    named = chain[-1].payload.recovery_key
    if not named:
        raise OperatorError("the user has no recovery key", "Without it only a device of the user can sign")
    if bytes(recovery.verify_key) != named:
        raise OperatorError("this recovery key is another user's, or was replaced", "Find the file of this user")
    user_key, seeds = SigningKey(random_bytes(32)), Seeds(random_bytes)
    devices = (*(one for one in chain[-1].devices if one.id in keep), seeds.device(chain[-1].version + 1))
    payload = following(
        chain, now_ms, devices=devices, user_key=bytes(user_key.verify_key), recovery_key=next_recovery or named
    )
    # If nothing follows, the recovery key does it again.
    record = ask(registrar, payload, recovery, chain, verified, seeds)
    create(path, lambda db: fill(db, verified, [user_key], seeds, [*chain, record]))
    return Card(record.payload.region, record.user)


def _next_version(
    store: Store, devices: Callable[[Own, HomeRecord], tuple[Device, ...]], registrar: Registrar, now_ms: int,
    random_bytes: RandomBytes,
) -> HomeRecord:  # fmt: skip
    """The next version with these devices and a new user key."""
    own, chain = store.transact(lambda db: identity(db, now_ms))
    old, new = store.transact(lambda db: user_key_of(db, chain[-1])), SigningKey(random_bytes(32))
    payload = following(chain, now_ms, devices=devices(own, chain[-1]), user_key=bytes(new.verify_key))
    store.transact(lambda db: keep_user_key(db, new))
    record = ask(registrar, payload, old, chain, own.root)
    store.transact(lambda db: take(db, own, [record], now_ms))
    return record


def share_user_key(path: Path, others: Collection[Path], now_ms: int) -> None:
    """Give the newest user key and record to the other stores of the same user on this machine."""
    with closing(Store(path)) as store:
        _, chain = store.transact(lambda db: identity(db, now_ms))
        key = store.transact(lambda db: user_key_of(db, chain[-1]))
    for other in others:
        with closing(Store(other)) as store:
            store.transact(lambda db: keep_user_key(db, key))
        take_records(other, [record.signed for record in chain], now_ms)
