"""Users and devices are made here, offline: keys, home records, the store.

The registrar's key is the caller's: whoever runs the region holds it, apart from the relays (section 5, rule 4). What
becomes of devices later is relay.client.lifecycle's."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from msgspec import structs
from nacl.bindings import crypto_box_seed_keypair
from nacl.signing import SigningKey

from relay.client import groups, people
from relay.client.card import Card
from relay.client.outgoing import extend
from relay.client.shapes import Effects, Own
from relay.client.store import Db, Store, create, keep_device_key, keep_user_key, load_own, put, take_root
from relay.core.codec import encode, pack
from relay.core.trust import (
    Device, HomePayload, HomeRecord, Root, ask_home, check_stapled, prove_devices, read_home, request_home,
    verify_asked,
    verify_home, verify_root,
)
from relay.errors import BrokenChain, OperatorError, TrustError
from relay.limits import DAY, MAX_CHAIN, MAX_DEVICES, MINUTE

LIFETIME = 365 * DAY  # ms that a home record is valid
RandomBytes = Callable[[int], bytes]
# (a request as in docs/PROTOCOL.md section 5, the signed records before) → the signed record; with its staple where the
# region has a log.
# Raises OperatorError (VersionTaken: another device was faster), TrustError.
Registrar = Callable[[bytes, Sequence[bytes]], bytes]


def new_user(
    path: Path, *, root: bytes, region: str, cell: str, registrar: Registrar, now_ms: int,
    random_bytes: RandomBytes = os.urandom, recovery: bytes = b"",
) -> Card:  # fmt: skip
    """Make a user at home in `cell` of `region`, with one device whose store is at `path`. Offline. `recovery`: the
    public half of a key that is kept elsewhere, for when all devices are lost.

    Raises OperatorError (a store is there already), TrustError (the root does not hold, has no such cell, or names
    another registrar)."""
    verified = verify_root(root, now_ms)
    user_key, seeds = SigningKey(random_bytes(32)), Seeds(random_bytes)
    payload = HomePayload(
        1, b"", 1, b"", region, cell, bytes(user_key.verify_key), (seeds.device(1),), 0, now_ms - MINUTE,
        now_ms + LIFETIME, recovery,
    )  # fmt: skip
    record = ask(registrar, payload, user_key, [], verified, seeds)
    create(path, lambda db: fill(db, verified, [user_key], seeds, [record]))
    return Card(region, record.user)


def add_device(
    path: Path, *, of: Path, registrar: Registrar, now_ms: int, random_bytes: RandomBytes = os.urandom
) -> Card:
    """Enrol a second device of the user whose store is `of`; its own store is at `path`. Offline: `of` has to know the
    newest home record (receive with it first if a third device was enrolled elsewhere).

    Raises like `new_user`."""
    with closing(Store(of)) as store:
        own, chain = store.transact(lambda db: identity(db, now_ms))
        user_key = store.transact(lambda db: user_key_of(db, chain[-1]))
        if len(chain[-1].devices) >= MAX_DEVICES:
            raise OperatorError(f"the user has {len(chain[-1].devices)} devices", "No more fit: revoke one")
        seeds = Seeds(random_bytes)
        devices = (*chain[-1].devices, seeds.device(chain[-1].version + 1))
        record = ask(registrar, following(chain, now_ms, devices=devices), user_key, chain, own.root, seeds)
        create(path, lambda db: fill(db, own.root, [user_key], seeds, [*chain, record]))
        store.transact(lambda db: take(db, own, [record], now_ms))
    return Card(record.payload.region, record.user)


def ask_to_move(path: Path, *, cell: str, now_ms: int) -> tuple[bytes, list[bytes]]:
    """What the user whose store is `path` has to ask two registrars for to be at home in `cell`: (payload, signature by
    the user key), to be released by the one and signed by the other, and the records that it follows. Offline; nothing
    changes until `take_records`.

    Raises OperatorError (at home there already), TrustError (the root has no such cell)."""
    with closing(Store(path)) as store:
        own, chain = store.transact(lambda db: identity(db, now_ms))
        user_key = store.transact(lambda db: user_key_of(db, chain[-1]))
    last = chain[-1]
    if last.cell == cell:
        raise OperatorError(f"the user is at home in {cell} already", "Nothing to do")
    payload = following(
        chain, now_ms, region=cell.partition("/")[0], cell=cell, move_epoch=last.payload.move_epoch + 1
    )
    data = encode(payload)
    signature = ask_home(data, user_key)
    verify_asked(data, signature, own.root, last)
    return pack([data, signature]), [record.signed for record in chain]


def own_records(path: Path) -> list[bytes]:
    """The signed home records of the user whose store is at `path`, oldest first. Raises StoreError."""
    with closing(Store(path)) as store:
        return store.transact(people.own_chain)


def take_records(path: Path, records: Sequence[bytes], now_ms: int) -> HomeRecord:
    """Take newer home records of the store's own user in, signed and oldest first (or the newest one again, with
    another staple): the newest. A client that has the store open follows it, to another cell if it says so. Raises
    TrustError and its kinds; then the store is as it was."""

    def work(db: Db) -> HomeRecord:
        own, chain = identity(db, now_ms)
        for mine, theirs in zip(chain, records, strict=False):
            if mine.digest != read_home(theirs).digest:
                raise BrokenChain(
                    f"two different home records of version {mine.version}: a fork",
                    "Somebody signed twice: ask the registrar",
                )
        newer, before = list[HomeRecord](), chain[-1]
        for signed in records[before.version :]:
            before = verify_home(signed, own.root, before)
            newer.append(before)
        if newer:
            check_stapled(before, own.root)
        elif [*records[before.version - 1 :]] not in ([], [before.signed]):  # the same with another staple
            before = structs.replace(before, signed=records[-1])
            check_stapled(before, own.root)
            people.keep(db, own, before)
        take(db, own, newer, now_ms)
        return before

    with closing(Store(path)) as store:
        return store.transact(work)


def update_root(path: Path, signed: bytes, now_ms: int | None = None) -> Root:
    """Put a newer root document into a store, verified against the old one; the same one again is fine. A client
    that is connected asks its node for it; this is for one that cannot connect with what it has.

    Raises TrustError and its kinds; then the store is as it was."""
    now = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    with closing(Store(path)) as store:
        return store.transact(lambda db: take_root(db, signed, now))


# --- what relay.client.lifecycle does it with, too -----------------------------------------------
class Seeds:
    """A device's fresh keys."""

    def __init__(self, random_bytes: RandomBytes) -> None:
        self.signing = SigningKey(random_bytes(32))
        self.public, self.private = crypto_box_seed_keypair(random_bytes(32))

    def device(self, since: int, first: bytes = b"") -> Device:
        """Not proven yet: that is for the record that it goes into (`ask`)."""
        return Device(bytes(self.signing.verify_key), self.public, since, first, b"")


def identity(db: Db, now_ms: int) -> tuple[Own, list[HomeRecord]]:
    """Who the store is for, and all of the user's records, verified."""
    own = load_own(db, now_ms)
    chain: list[HomeRecord] = []
    for signed in people.own_chain(db):
        chain.append(verify_home(signed, own.root, chain[-1] if chain else None))
    return own, chain


def user_key_of(db: Db, record: HomeRecord) -> SigningKey:
    """The user key that `record` names. Raises OperatorError where this store does not have it."""
    for (seed,) in db.execute("SELECT seed FROM user_keys"):
        key = SigningKey(bytes(seed))
        if bytes(key.verify_key) == record.payload.user_key:
            return key
    raise OperatorError(
        f"this device does not have the user key of version {record.version}: it was changed on another one",
        "Do it there, or use the recovery key",
    )


def following(chain: Sequence[HomeRecord], now_ms: int, **change: object) -> HomePayload:
    """The next version after `chain`, not signed: as the last one, but for `change`. Raises OperatorError."""
    last = chain[-1]
    if last.version >= MAX_CHAIN:
        raise OperatorError(f"the user has {last.version} home records", "No more fit: enrol the user anew")
    begins = max(now_ms - MINUTE, last.payload.not_before)  # whoever made that may have had a faster clock
    next_ = {"user": last.user, "version": last.version + 1, "prev": last.digest, "not_before": begins}
    fields = {name: getattr(last.payload, name) for name in last.payload.__struct_fields__}
    return HomePayload(**{**fields, **next_, "expires": now_ms + LIFETIME, **change})


def ask(
    registrar: Registrar, payload: HomePayload, key: SigningKey, chain: Sequence[HomeRecord], root: Root, *fresh: Seeds
) -> HomeRecord:
    """Have the registrar sign what `key` and the devices with `fresh` keys sign, and verify what comes back. Raises
    like `registrar`; TrustError."""
    payload = prove_devices(payload, [seeds.signing for seeds in fresh])
    signed = registrar(request_home(payload, key), [record.signed for record in chain])
    record = verify_home(signed, root, chain[-1] if chain else None)
    if record.payload != payload:
        raise TrustError("the registrar signed something else than it was asked for", "Ask its operator")
    check_stapled(record, root)
    return record


def take(db: Db, own: Own, newer: Sequence[HomeRecord], now_ms: int) -> None:
    """Newer records of our own user: keep them, and tell new devices what they need."""
    effects, before = Effects(), people.newest(db, own, own.user)
    for record in newer:
        people.keep(db, own, record)
        extend(db, own, record, effects)
    after = newer[-1] if newer else None
    if before is not None and after is not None:
        groups.devices_changed(db, own, before, after, now_ms, effects)


def fill(
    db: Db, root: Root, user_keys: Sequence[SigningKey], seeds: Seeds, chain: Sequence[HomeRecord]
) -> None:
    """A new store's first rows."""
    last = chain[-1]
    for key, value in {
        "root": root.signed,
        "federation": root.federation_id,
        "user": last.user,
    }.items():
        put(db, key, value)
    for user_key in user_keys:
        keep_user_key(db, user_key)
    keep_device_key(db, seeds.signing, seeds.private)
    db.executemany("INSERT INTO chain VALUES (?,?)", [(record.version, record.signed) for record in chain])
    people.remember(db, last)
