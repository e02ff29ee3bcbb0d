"""Sender keys of groups that this device does not know: kept for a roster that comes later, and bounded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from relay.client import Client, groups
from relay.client.shapes import KEY_NEWS, KeyNews, Own, Part, control_pair
from relay.client.store import Db, Store, load_own
from relay.core import wire
from relay.core.codec import digest, encode
from relay.core.envelope import To
from relay.core.sealing import Inner, make_header, seal_mailbox
from tests.relay.client.fake_cell import Federation
from tests.relay.client.helpers import collect, enrol, opened, rest, texts


@dataclass
class Stranger:
    """An enrolled user who tells others sender keys."""

    fed: Federation
    own: Own
    told: int = 0

    def tell(self, to: Client, group: bytes, version: int = 1, first: int = 5) -> None:
        self.told += 1
        key = digest(self.own.device + self.told.to_bytes(8, "big"))
        news = encode(KeyNews(group, version, self.own.user, self.own.device, key))
        part = encode(Part(to.user, b"", "", 0, 1, news))
        now, pair = self.fed.now, control_pair(self.own.user, to.user)
        inner = Inner(1, self.own.user, self.own.device, "norden", pair, self.told, KEY_NEWS, now, part)
        header = make_header(To.MAILBOX, to.user, 1, now, now + 1_000_000)
        cell = self.fed.cells["norden/1"]
        devices = [(device, first) for device in cell.newest(to.user).devices]
        envelope = seal_mailbox(header, inner, self.own.signing, devices, b"e" * 32)
        cell.append(frozenset([to.device]), lambda at: wire.Deliver(at, envelope))


def stranger(fed: Federation, path: Path) -> Stranger:
    enrol(fed, path, "norden")
    keys = Store(path, inline=True)
    own = keys.transact(lambda db: load_own(db, fed.client_now()))
    keys.close()
    return Stranger(fed, own)


def kept(path: Path, device: bytes) -> tuple[int, int]:
    """(sender keys, streams) that the store at `path` has of `device`."""

    def work(db: Db) -> tuple[int, int]:
        (keys,), (streams,) = (
            db.execute(f"SELECT count(*) FROM {table} WHERE substr({column},-32)=?", (device,)).fetchone()
            for table, column in (("sender_keys", "device"), ("streams", "author"))
        )
        return keys, streams

    store = Store(path, inline=True)
    found = store.transact(work)
    store.close()
    return found


async def test_strangers_fill_no_store(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What strangers say of groups that are not known here is bounded, for each and for all; members lose nothing."""
    monkeypatch.setattr(groups, "MAX_STRAY_KEYS", 20)
    monkeypatch.setattr(groups, "MAX_STRAY_KEYS_EACH", 8)
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    strangers = [stranger(fed, tmp_path / name) for name in "vwxyz"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        group = await bob.create_group("g", [alice.card])
        await bob.send_group(group.id, b"1", wait="stored")
        assert texts(await collect(alice, 1)) == ["1"]
        for one in strangers:
            for number in range(30):
                one.tell(alice, group.id if number % 3 == 0 else digest(one.own.user + bytes([number])))
            fed.cells["norden/1"].pump()
            await trio.sleep(5)
            assert kept(a, one.own.device) == (8, 7)  # two of the newest 8 are for one group
        counts = [kept(a, one.own.device) for one in strangers]
        assert counts[:2] == [(0, 0), (0, 0)] and sum(keys for keys, _ in counts) == 20
        assert kept(a, bob.device)[0] == 1
        await bob.send_group(group.id, b"2", wait="stored")
        got = await rest(alice)
        assert texts(got) == ["2"] and not any(m.gap or m.late for m in got) and alice.stats.unreadable == 0


async def test_a_key_that_came_before_its_roster_survives_a_stranger(
    clock: MockClock, fed: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(groups, "MAX_STRAY_KEYS_EACH", 8)
    a, b = enrol(fed, tmp_path / "a", "norden"), enrol(fed, tmp_path / "b", "norden")
    one = stranger(fed, tmp_path / "z")
    cell = fed.cells["norden/1"]
    async with opened(fed, a) as alice, opened(fed, b) as bob:
        await bob.look_up(alice.card)
        late: list[bytes] = []
        cell.faults.deliver = lambda frames: (late.extend(frames[:1]), frames[1:])[1] if not late else frames
        group = await bob.create_group("g", [alice.card])  # its roster is the first thing that comes, and is kept back
        for text in (b"1", b"2"):
            await bob.send_group(group.id, text, wait="stored")
        await trio.sleep(5)
        for number in range(30):
            one.tell(alice, digest(bytes([number])))
        cell.pump()
        await trio.sleep(5)
        assert late and await alice.groups() == [] and kept(a, one.own.device)[0] == 8
        cell.sessions[alice.device].socket.say(late[0])
        got = await rest(alice)
        assert texts(got) == ["1", "2"] and not any(m.gap or m.late for m in got)


async def test_a_member_fills_no_store_either(clock: MockClock, fed: Federation, tmp_path: Path) -> None:
    a, z = enrol(fed, tmp_path / "a", "norden"), stranger(fed, tmp_path / "z")
    async with opened(fed, a) as alice, opened(fed, tmp_path / "z") as member:
        group = await alice.create_group("g", [member.card])
        for _ in range(groups.MAX_KEYS + 30):
            z.tell(alice, group.id)
        fed.cells["norden/1"].pump()
        await trio.sleep(5)
        assert kept(a, z.own.device) == (groups.MAX_KEYS, 1)
