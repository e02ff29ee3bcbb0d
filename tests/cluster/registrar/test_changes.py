"""A device's life: enrolled, one more, one revoked, the user's key rotated; from stores of the SDK to a registrar."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from cluster.core.homelog import verify_newest
from cluster.registrar.asking import request_of
from relay.client import add_device, new_user
from relay.client.changes import ask_revocation, ask_rotation, own_device, take_records
from relay.client.identity import own_records
from relay.core.trust import HomeRecord, read_home
from relay.errors import OperatorError, TrustError
from tests.cluster.registrar.site import NOW, ROOT, Region, World, registrar_key


async def logged(region: Region, request: bytes, store: Path) -> HomeRecord:
    """Signed, logged, and taken into the store."""
    record = read_home((await region.log.enrol(request)).signed)
    records = (await region.log.standing(record.user)).records
    assert take_records(store, records, NOW) == record
    return record


async def test_a_devices_life(world: World, tmp_path: Path) -> None:
    registrar, stores = registrar_key("norden"), [tmp_path / name for name in ("phone", "laptop")]
    new_user(stores[0], root=ROOT.signed, region="norden", cell="norden/1", registrar=registrar, now_ms=NOW)
    add_device(stores[1], of=stores[0], registrar=registrar, now_ms=NOW)
    phone, laptop = map(own_device, stores)
    async with world.region() as region:
        # records that were signed offline are logged as they are
        for signed in own_records(stores[0]):
            assert (await region.log.enrol(request_of(signed))).signed == signed
        with pytest.raises(OperatorError, match="does not revoke itself"):
            ask_revocation(stores[0], phone, NOW)
        with pytest.raises(OperatorError, match="0 of the user's devices"):
            ask_revocation(stores[0], b"nobody", NOW)
        record = await logged(region, ask_revocation(stores[0], laptop[:4], NOW), stores[0])
        assert [one.id for one in record.devices] == [phone] and record.version == 3

        request = ask_rotation(stores[0], NOW)
        assert ask_rotation(stores[0], NOW) == request, "asked again before the answer: the same key"
        old = record.payload.user_key
        record = await logged(region, request, stores[0])
        assert record.payload.user_key != old and record.version == 4
        again = await logged(region, ask_rotation(stores[0], NOW), stores[0])  # signed with the new key
        assert again.version == 5 and again.payload.user_key != record.payload.user_key
        with pytest.raises(TrustError):  # the revoked device has the old key, and the old records
            await region.log.enrol(ask_revocation(stores[1], phone, NOW))
        evidence = (await region.log.standing(again.user)).evidence
        verify_newest(again, evidence, world.trust("norden", 2), None)
        take_records(stores[1], (await region.log.standing(again.user)).records, NOW)
        with pytest.raises(OperatorError, match="older key of its user"):
            ask_rotation(stores[1], NOW)


def test_a_new_key_is_on_disk_before_anybody_sees_it(tmp_path: Path) -> None:
    store = tmp_path / "store"
    new_user(store, root=ROOT.signed, region="norden", cell="norden/1", registrar=registrar_key("norden"), now_ms=NOW)
    asked = ask_rotation(store, NOW)
    with sqlite3.connect(store) as db:
        [(seed,)] = db.execute("SELECT value FROM meta WHERE key = 'user_seed_next'").fetchall()
    assert len(seed) == 32 and seed not in asked
