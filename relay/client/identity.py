"""Users and devices are made here, offline: keys, home records, the store.

The registrar's key is the caller's: whoever runs the region holds it, apart from the relays (section 5, rule 4)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from nacl.bindings import crypto_box_seed_keypair
from nacl.signing import SigningKey

from relay.client import groups, people
from relay.client.card import Card
from relay.client.outgoing import extend
from relay.client.shapes import Effects, Own
from relay.client.store import Db, Store, create, get, load_own, put
from relay.core.codec import encode, pack
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, ask_home, follow_root, sign_home, verify_asked, verify_home, verify_root,
)
from relay.errors import OperatorError
from relay.limits import DAY, MAX_CHAIN, MAX_DEVICES, MINUTE

LIFETIME = 365 * DAY  # ms that a home record is valid
RandomBytes = Callable[[int], bytes]


def new_user(
    path: Path, *, root: bytes, region: str, cell: str, registrar: SigningKey, now_ms: int,
    random_bytes: RandomBytes = os.urandom,
) -> Card:  # fmt: skip
    """Make a user at home in `cell` of `region`, with one device whose store is at `path`. Offline.

    Raises OperatorError (a store is there already), TrustError (the root does not hold, has no such cell, or names
    another registrar)."""
    verified = verify_root(root, now_ms)
    user_key, seeds = SigningKey(random_bytes(32)), _Seeds(random_bytes)
    payload = HomePayload(
        1, b"", 1, b"", region, cell, bytes(user_key.verify_key), (seeds.device(1),), 0, now_ms - MINUTE,
        now_ms + LIFETIME,
    )  # fmt: skip
    record = verify_home(sign_home(payload, user_key, registrar), verified, None)
    create(path, lambda db: _fill(db, verified, user_key, seeds, [record]))
    return Card(region, record.user)


def add_device(
    path: Path, *, of: Path, registrar: SigningKey, now_ms: int, random_bytes: RandomBytes = os.urandom
) -> Card:
    """Enrol a second device of the user whose store is `of`; its own store is at `path`. Offline: `of` has to know the
    newest home record (receive with it first if a third device was enrolled elsewhere).

    Raises like `new_user`."""
    with closing(Store(of)) as store:
        own, user_key, chain = store.transact(lambda db: _identity(db, now_ms))
        seeds = _Seeds(random_bytes)
        record = _next_record(chain, seeds, user_key, registrar, own.root, now_ms)
        create(path, lambda db: _fill(db, own.root, user_key, seeds, [*chain, record]))

        def enrol(db: Db) -> None:
            effects = Effects()
            db.execute("INSERT INTO chain VALUES (?,?)", (record.version, record.signed))
            extend(db, own, record, effects)
            groups.pass_on(db, own, [bytes(seeds.signing.verify_key)], now_ms, effects)

        store.transact(enrol)
    return Card(record.payload.region, record.user)


def ask_to_move(path: Path, *, cell: str, now_ms: int) -> tuple[bytes, list[bytes]]:
    """What the user whose store is `path` has to ask two registrars for to be at home in `cell`: (payload, signature by
    the user key), to be released by the one and signed by the other, and the records that it follows. Offline; nothing
    changes until `take_records`.

    Raises OperatorError (at home there already), TrustError (the root has no such cell)."""
    with closing(Store(path)) as store:
        own, user_key, chain = store.transact(lambda db: _identity(db, now_ms))
    last = chain[-1]
    if last.cell == cell:
        raise OperatorError(f"the user is at home in {cell} already", "Nothing to do")
    if last.version >= MAX_CHAIN:
        raise OperatorError(f"the user has {last.version} versions", "No more fit: enrol anew")
    old = last.payload
    payload = HomePayload(
        1, last.user, old.version + 1, last.digest, cell.partition("/")[0], cell, old.user_key, old.devices,
        old.move_epoch + 1, now_ms - MINUTE, now_ms + LIFETIME,
    )  # fmt: skip
    data = encode(payload)
    signature = ask_home(data, user_key)
    verify_asked(data, signature, own.root, last)
    return pack([data, signature]), [record.signed for record in chain]


def take_records(path: Path, records: Sequence[bytes], now_ms: int) -> HomeRecord:
    """Put newer signed home records of its own user into a store; returns the newest. A client that has the store open
    follows it, to another cell if it says so. Raises TrustError and its kinds; then the store is as it was."""

    def work(db: Db) -> HomeRecord:
        own = load_own(db, now_ms)
        record = people.learn(db, own, own.user, records, now_ms)
        extend(db, own, record, Effects())
        return record

    with closing(Store(path)) as store:
        return store.transact(work)


def own_records(path: Path) -> list[bytes]:
    """The signed home records of the user whose store is at `path`, oldest first. Raises StoreError."""
    with closing(Store(path)) as store:
        return store.transact(people.own_chain)


def update_root(path: Path, signed: bytes, now_ms: int | None = None) -> Root:
    """Put a newer root document into a store, verified against the old one; the same one again is fine.

    Raises TrustError and its kinds; then the store is as it was."""

    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms

    def work(db: Db) -> Root:
        root = follow_root(signed, get(db, "root"), now, get(db, "federation"))
        put(db, "root", root.signed)
        return root

    with closing(Store(path)) as store:
        return store.transact(work)


class _Seeds:
    """A device's fresh keys."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self.signing = SigningKey(random_bytes(32))
        self.public, self.private = crypto_box_seed_keypair(random_bytes(32))

    def device(self, version: int) -> Device:
        return Device(bytes(self.signing.verify_key), self.public, version)


def _identity(db: Db, now_ms: int) -> tuple[Own, SigningKey, list[HomeRecord]]:
    own = load_own(db, now_ms)
    chain: list[HomeRecord] = []
    for signed in people.own_chain(db):
        chain.append(verify_home(signed, own.root, chain[-1] if chain else None))
    return own, SigningKey(get(db, "user_seed")), chain


def _next_record(
    chain: list[HomeRecord], seeds: _Seeds, user_key: SigningKey, registrar: SigningKey, root: Root, now_ms: int
) -> HomeRecord:
    last = chain[-1]
    if len(last.devices) >= MAX_DEVICES or last.version >= MAX_CHAIN:
        raise OperatorError(f"the user has {len(last.devices)} devices in {last.version} versions", "No more fit")
    old = last.payload
    payload = HomePayload(
        1, last.user, old.version + 1, last.digest, old.region, old.cell, old.user_key,
        (*old.devices, seeds.device(old.version + 1)), old.move_epoch, now_ms - MINUTE, now_ms + LIFETIME,
    )  # fmt: skip
    return verify_home(sign_home(payload, user_key, registrar), root, last)


def _fill(db: Db, root: Root, user_key: SigningKey, seeds: _Seeds, chain: list[HomeRecord]) -> None:
    last = chain[-1]
    for key, value in {
        "root": root.signed,
        "federation": root.federation_id,
        "user": last.user,
        "user_seed": bytes(user_key),
        "device_seed": bytes(seeds.signing),
        "encryption_private": seeds.private,
    }.items():
        put(db, key, value)
    db.executemany("INSERT INTO chain VALUES (?,?)", [(record.version, record.signed) for record in chain])
