"""A client in another language: keys, request and envelopes made with nothing of ours, enrolled and served."""

from __future__ import annotations

import subprocess
import sys
import time
from hashlib import blake2b
from pathlib import Path
from types import SimpleNamespace

import msgpack
import trio
from nacl.public import PrivateKey
from nacl.signing import SigningKey

from cluster.env import RealEnv
from cluster.local import LocalFederation, make_federation
from relay.core import wire
from relay.core.wire import Code
from tests.e2e.raw import Person, open_raw, seal
from tests.patience import PATIENCE_S

DAY = 86_400_000


def now() -> int:
    return int(time.time() * 1000)


def request(payload: list, user: SigningKey) -> bytes:
    data = msgpack.packb(payload)
    return msgpack.packb([data, user.sign(b"posthouse.home\0" + data).signature])


def device(key: SigningKey, since: int) -> list:
    return [bytes(key.verify_key), bytes(PrivateKey.generate().public_key), since, b"", b""]


def proven(listed: list, owner: bytes, key: SigningKey) -> list:
    """A device's entry with its word that it is `owner`'s."""
    said = msgpack.packb([owner, listed[1], listed[3]])
    return [*listed[:4], key.sign(b"posthouse.device\0" + said).signature]


def named(payload: list) -> bytes:
    return blake2b(msgpack.packb(payload), digest_size=32).digest()


def posthouse(*args: object, status: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.cli", "user", "sign", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    return done


async def test_keys_made_by_hand_are_enrolled_and_served(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["norden"], RealEnv())
    user, phone, laptop = (SigningKey.generate() for _ in range(3))
    t = now()
    paper = SigningKey.generate()
    payload = [
        1, b"", 1, b"", "norden", "norden/1", bytes(user.verify_key), [device(phone, 1)], 0, t - 60_000, t + DAY,
        bytes(paper.verify_key),
    ]  # fmt: skip
    payload[7] = [proven(payload[7][0], named(payload), phone)]
    (tmp_path / "first").write_bytes(request(payload, user))
    card = posthouse(tmp_path / "first", "--dir", layout.directory).stdout
    assert card.startswith("posthouse:norden:")
    records = tmp_path / "first.records"
    me = named(payload)

    second = [1, me, 2, me, *payload[4:7], [*payload[7], proven(device(laptop, 2), me, laptop)], *payload[8:]]
    (tmp_path / "wrong").write_bytes(request([*second[:-1], b""], user))
    told = posthouse(tmp_path / "wrong", "--dir", layout.directory, status=5).stderr
    assert "recovery key is gone" in told and str(tmp_path / "wrong") in told
    thief = SigningKey.generate()
    unproven = [*second[:7], [*payload[7], device(thief, 2)], *second[8:]]
    (tmp_path / "unproven").write_bytes(request(unproven, user))
    told = posthouse(tmp_path / "unproven", "--after", records, "--dir", layout.directory, status=5).stderr
    assert "has signed that it is this user's" in told
    (tmp_path / "second").write_bytes(request(second, user))
    both = tmp_path / "both"
    assert posthouse(tmp_path / "second", "--after", records, "--out", both, "--dir", layout.directory).stdout == card
    other = [*second[:7], [*payload[7], proven(device(thief, 2), me, thief)], *second[8:]]
    (tmp_path / "other").write_bytes(request(other, user))
    told = posthouse(tmp_path / "other", "--dir", layout.directory, status=3).stderr
    assert "was signed already" in told and "ask for version 3" in told
    assert posthouse(tmp_path / "second", "--dir", layout.directory).stdout == card  # the same is given out again
    assert "exists already" in posthouse(tmp_path / "first", "--dir", layout.directory, status=3).stderr

    def mine(key: SigningKey, path: Path) -> SimpleNamespace:
        signed = tuple(msgpack.unpackb(path.read_bytes()))
        return SimpleNamespace(key=key, device=bytes(key.verify_key), user=me, records=signed)

    async with LocalFederation(layout) as fed:
        await fed.start_all()
        friend = Person(layout, "norden", now())
        async with open_raw(layout, "norden", now()) as a, open_raw(layout, "norden", now()) as b:
            await a.sign_in(friend)
            assert (await b.sign_in(mine(phone, records))).home_version == 1
            assert [item.code for item in await a.submit("norden", seal(me, now(), body=b"1"))] == [Code.STORED]
            await b.hear_a(wire.Deliver)
            async with open_raw(layout, "norden", now()) as c:
                assert (await c.sign_in(mine(laptop, both))).home_version == 2
                assert [i.code for i in await a.submit("norden", seal(me, now(), version=2))] == [Code.STORED]
                await c.hear_a(wire.Deliver)
                await b.hear_a(wire.Deliver)
                with trio.fail_after(PATIENCE_S):
                    assert [i.code for i in await c.submit("norden", seal(friend.user, now()))] == [Code.STORED]
                await a.hear_a(wire.Deliver)
