"""`posthouse user devices | revoke | rotate | recover`, offline."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from cluster.cli import app, devices, users
from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from cluster.local.book import Book
from cluster.local.people import card_of
from relay.client.identity import own_records
from relay.core.trust import read_home

Posthouse = Callable[..., Result]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_federation(tmp_path / "posthouse-data", ["norden", "sauda"], RealEnv())


@pytest.fixture
def posthouse(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Posthouse:
    async def nobody(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    for module in (users, devices):
        monkeypatch.setattr(module, "introduce", nobody)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTHOUSE_DIR", raising=False)

    def run(*args: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, ["user", *args])
        assert result.exit_code == status and "Traceback" not in result.output, result.output
        return result

    return run


def newest(layout: Layout, name: str):
    return read_home(own_records(layout.home.store(name))[-1])


def test_a_device_comes_and_goes(posthouse: Posthouse, layout: Layout) -> None:
    posthouse("create", "alice", "--region", "norden")
    for name in ("phone", "laptop"):
        posthouse("create", name, "--device-of", "alice")
    listed = posthouse("devices", "alice").stdout.splitlines()
    assert [line.split("\t")[1:] for line in listed] == [
        ["since 1", "alice  (this one)"], ["since 2", "alice+phone"], ["since 3", "alice+laptop"],
    ]  # fmt: skip
    said = posthouse("revoke", "alice+phone").stderr
    assert "Revoked: version 4, 2 device(s)." in said and "it holds once alice" in said
    for name in ("alice", "alice+laptop"):
        assert newest(layout, name).version == 4
    posthouse("revoke", listed[0][:16], "--as", "alice+laptop")  # the first device, which is lost, too
    assert posthouse("devices", "alice+laptop").stdout.endswith("alice+laptop  (this one)\n")
    assert "all devices" in posthouse("revoke", "alice+laptop", status=Exit.OPERATOR).stderr
    posthouse("create", "tablet", "--device-of", "alice+laptop")
    said = posthouse("devices", "alice+tablet").stderr
    assert "Version 6, no recovery key, 2 former ids." in said
    assert "no such device" in posthouse("revoke", "alice+phone", status=Exit.OPERATOR).stderr


def test_keys_are_rotated(posthouse: Posthouse, layout: Layout) -> None:
    posthouse("create", "alice", "--region", "norden")
    posthouse("create", "phone", "--device-of", "alice")
    before = newest(layout, "alice")
    assert "Rotated: version 3" in posthouse("rotate", "alice+phone").stderr
    user = newest(layout, "alice")
    assert user.payload.user_key != before.payload.user_key and user.devices == before.devices
    posthouse("rotate", "alice", "--device")
    device = newest(layout, "alice")
    assert device.payload.user_key == user.payload.user_key and device.devices[1] == user.devices[1]
    assert device.devices[0].first == user.devices[0].id and device.version == 4
    assert "alice  (this one)" in posthouse("devices", "alice").stdout.splitlines()[0]
    posthouse("rotate", "alice+phone", "--device")
    posthouse("rotate", "alice")
    assert newest(layout, "alice+phone").version == 6


def test_all_is_lost_and_found(posthouse: Posthouse, layout: Layout, tmp_path: Path) -> None:
    card = posthouse("create", "alice", "--region", "norden", "--recovery", "alice.paper").stdout
    paper = tmp_path / "alice.paper"
    assert stat.S_IMODE(paper.stat().st_mode) == 0o600 and f"user {card}" in paper.read_text()
    secret = paper.read_text().split()[-1].encode()
    assert not [path for path in layout.directory.rglob("*") if path.is_file() and secret in path.read_bytes()]
    assert "a recovery key" in posthouse("devices", "alice").stderr
    posthouse("create", "phone", "--device-of", "alice")
    back = posthouse("recover", "alice+new", "--recovery", "alice.paper", "--keep", "alice+phone")
    assert back.stdout == card and "Recovered: version 3, 2 device(s)." in back.stderr
    assert newest(layout, "alice+phone").version == newest(layout, "alice+new").version == 3
    posthouse("rotate", "alice+phone")
    posthouse("recover", "alina", "--recovery", "alice.paper", "--new-recovery", "next.paper")
    assert newest(layout, "alina").version == 5 and len(newest(layout, "alina").devices) == 1
    told = posthouse("recover", "again", "--recovery", "alice.paper", status=Exit.OPERATOR).stderr
    assert "was replaced" in told
    posthouse("recover", "again", "--recovery", "next.paper")
    assert str(card_of(layout.home, "again")) == card.strip()


def test_recovery_with_nothing_but_the_paper_and_the_records(
    posthouse: Posthouse, layout: Layout, tmp_path: Path
) -> None:
    posthouse("create", "bob", "--region", "sauda", "--recovery", "bob.paper")
    posthouse("create", "eve", "--region", "sauda", "--recovery", "eve.paper")
    book = layout.home.book("sauda") / card_of(layout.home, "bob").user.hex()
    eves = layout.home.book("sauda") / card_of(layout.home, "eve").user.hex()
    (tmp_path / "bob.records").write_bytes(book.read_bytes())
    (tmp_path / "eve.records").write_bytes(eves.read_bytes())
    book.unlink()
    for file in (layout.home.clients / "bob").iterdir():
        file.unlink()
    assert "give the file with --records" in posthouse("recover", "bob", "--recovery", "bob.paper", status=3).stderr
    told = posthouse("recover", "bob", "--recovery", "bob.paper", "--records", "eve.records", status=3).stderr
    assert "another user's" in told
    posthouse("recover", "bob", "--recovery", "bob.paper", "--records", "bob.records")
    assert newest(layout, "bob").version == 2
    assert len(Book(layout.home.book("sauda")).records(card_of(layout.home, "bob").user)) == 2


@pytest.mark.parametrize(
    ("args", "status", "what"),
    [
        (["revoke", "alice"], Exit.OPERATOR, "all devices of the user"),
        (["revoke", "alice+phone"], Exit.OPERATOR, "--as NAME"),
        (["revoke", "0123456789", "--as", "alice"], Exit.OPERATOR, "posthouse user devices alice"),
        (["revoke", "", "--as", "alice"], Exit.OPERATOR, "at least 8 digits"),
        (["rotate", "alise"], Exit.OPERATOR, "Did you mean 'alice'?"),
        (["devices", "alise"], Exit.OPERATOR, "Did you mean 'alice'?"),
        (["recover", "a", "--recovery", "nothing"], Exit.USAGE, "nothing"),
        (["recover", "a", "--recovery", "posthouse-data/root.bin"], Exit.OPERATOR, "is no recovery file"),
        (["recover", "alice", "--recovery", "alice.paper"], Exit.OPERATOR, "exists already"),
        (["recover", "../a", "--recovery", "alice.paper"], Exit.OPERATOR, "cannot be a name"),
        (["recover", "a+../b", "--recovery", "alice.paper"], Exit.OPERATOR, "cannot be a name"),
        (["recover", "a", "--recovery", "alice.paper", "--keep", "b"], Exit.OPERATOR, "no user 'b'"),
        (["recover", "a", "--recovery", "alice.paper", "--new-recovery", "alice.paper"], Exit.OPERATOR, "exists"),
        (["create", "b", "--region", "norden", "--recovery", "alice.paper"], Exit.OPERATOR, "exists already"),
        (["create", "b", "--device-of", "alice", "--recovery", "x"], Exit.USAGE, "the user's, not a device's"),
    ],
)
def test_mistakes(posthouse: Posthouse, layout: Layout, args: list[str], status: Exit, what: str) -> None:
    posthouse("create", "alice", "--region", "norden", "--recovery", "alice.paper")
    result = posthouse(*args, status=status)
    assert what in result.stderr and result.stdout == "" and newest(layout, "alice").version == 1


def test_a_recovery_key_of_another_user(posthouse: Posthouse, layout: Layout, tmp_path: Path) -> None:
    for name in ("alice", "eve"):
        posthouse("create", name, "--region", "norden", "--recovery", f"{name}.paper")
    lines = (tmp_path / "alice.paper").read_text().splitlines()[:-1]
    forged = "\n".join([*lines, (tmp_path / "eve.paper").read_text().splitlines()[-1]])
    (tmp_path / "forged").write_text(forged)
    assert "is another user's" in posthouse("recover", "x", "--recovery", "forged", status=Exit.OPERATOR).stderr


def test_two_that_made_the_next_version_at_the_same_time(posthouse: Posthouse, layout: Layout, tmp_path: Path) -> None:
    """The second is refused by the registrar, learns the first one's version, and goes on from there."""
    posthouse("create", "alice", "--region", "norden")
    posthouse("create", "phone", "--device-of", "alice")
    store = layout.home.store("alice+phone")
    behind = store.read_bytes()
    posthouse("rotate", "alice", "--device")
    assert newest(layout, "alice+phone").version == 3
    for extra in store.parent.glob("store.sqlite-*"):
        extra.unlink()
    store.write_bytes(behind)
    assert newest(layout, "alice+phone").version == 2
    assert "version 4" in posthouse("rotate", "alice+phone", "--device").stderr
    assert newest(layout, "alice").version == 4
