"""A user moves by two registrars, as processes: cut short, killed, asked for something else, and run again."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from cluster.audit.trails import read_log
from cluster.cli.exits import Exit
from cluster.core.auditlog import SEEN, Entry
from cluster.env import RealEnv
from cluster.local import Layout
from cluster.registrar.config import load_config
from cluster.trail import files_in
from relay.client import Card
from relay.client.identity import own_records
from relay.core.trust import read_home, split_home
from relay.limits import AUDIT_ASK_S
from tests.e2e.test_logged import make_logged, registrars
from tests.e2e.test_registrar import actions, posthouse
from tests.patience import PATIENCE_S

REGIONS = ("amber", "birch", "cedar")
now_ms = RealEnv().clock.wall_ms


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """Three regions with logs, k = 1. Amber and cedar let users come and go at their outer faces, too."""
    made = make_logged(tmp_path_factory.mktemp("moves") / "f", REGIONS)
    for region in ("amber", "cedar"):
        config = at(made, region) / "registrar.toml"
        config.write_text(config.read_text().replace("[listen]\n", "[listen]\nopen = true\n"))
    return made


def at(layout: Layout, region: str) -> Path:
    return layout.home.directory / f"registrar-{region}"


def patiently(*words: object) -> subprocess.CompletedProcess[str]:
    """Until the registrars are there and stand by each other."""
    until = time.monotonic() + PATIENCE_S
    while True:
        done = posthouse(*words, check=False)
        if done.returncode == 0 or time.monotonic() > until:
            assert done.returncode == 0, done.stderr
            return done
        time.sleep(0.3)


def cells(layout: Layout, name: str) -> list[str]:
    return [read_home(signed).cell for signed in own_records(layout.home.store(name))]


def kept(layout: Layout, region: str) -> str:
    """Whose checkpoints the audit log of a registrar has."""
    said: list[Entry] = []
    read_log(files_in(at(layout, region) / "data/audit"), said.append)
    return ", ".join(one.who for one in said if one.what == SEEN)


def audited(layout: Layout, region: str) -> None:
    """The whole log, with every record, release and map."""
    inner = load_config(at(layout, region), now_ms()).inner
    words = ["registrar", "audit", inner, "--region", region]
    words += ["--root", layout.home.root_path, "--dir", layout.home.directory / f"audit-{region}"]
    assert posthouse(*words).stdout.endswith("all of it holds\n")


def test_a_move_that_is_cut_short_goes_on_and_nothing_else_is_signed_in_its_place(layout: Layout) -> None:
    home = ("--dir", layout.home.directory)
    move = ["registrar", "move", "bob", "--to", "amber/1", "--at", at(layout, "birch"), "--into", at(layout, "amber")]
    with registrars(layout, ("birch", "cedar")):
        patiently("user", "create", "bob", "--region", "birch", *home)
        wrong = posthouse(*move[:5], "--at", at(layout, "cedar"), *home, check=False)
        assert wrong.returncode == Exit.OPERATOR
        assert "is the registrar of cedar, and bob is at home in birch" in wrong.stderr
        away = posthouse(*move, *home, check=False)  # birch lets him go; amber's registrar does not run
        assert away.returncode == Exit.UNREACHABLE, away.stderr
        assert "the registrar of amber" in away.stderr and "Run the same command again" in away.stderr
        assert cells(layout, "bob") == ["birch/1"]
    with registrars(layout, REGIONS) as again:  # killed and started anew, all of them
        device = ("user", "create", "laptop", "--device-of", "bob", *home)
        until = time.monotonic() + PATIENCE_S
        while "was released, for the move to amber/1" not in (said := posthouse(*device, check=False).stderr):
            assert time.monotonic() < until, said
            time.sleep(0.3)
        other = posthouse(
            "registrar", "move", "bob", "--to", "cedar/1", "--at", at(layout, "birch"), *home, check=False
        )
        assert other.returncode == Exit.OPERATOR
        assert "version 2 of this user was released, for the move to amber/1" in other.stderr
        card = patiently(*move, *home).stdout
        assert Card.parse(card.strip()).region == "amber" and cells(layout, "bob") == ["birch/1", "amber/1"]
        assert split_home(own_records(layout.home.store("bob"))[-1])[1].startswith(b"c2sp.org/tlog-proof@v1\n")
        repeated = posthouse(*move, *home)
        assert repeated.stdout == card and "bob is at home in amber/1, by version 2" in repeated.stderr
        # onwards, by the addresses that the root names
        card = patiently("registrar", "move", "bob", "--to", "cedar/1", *home).stdout
        assert Card.parse(card.strip()).region == "cedar" and len(cells(layout, "bob")) == 3
        refused = posthouse("registrar", "move", "bob", "--to", "birch/1", *home, check=False)  # birch is not open
        assert refused.returncode == Exit.OPERATOR and "birch takes in no new users here" in refused.stderr
        assert posthouse("registrar", "move", "bob", "--to", "birch/1", "--into", at(layout, "birch"), *home).stdout
        patiently("user", "create", "laptop", "--device-of", "bob", *home)  # who came back is signed for again
        assert cells(layout, "bob")[-1] == "birch/1"
        for region in REGIONS:
            audited(layout, region)
        for region in REGIONS:  # each keeps the others' audit checkpoints: who starts asks for them
            until = time.monotonic() + AUDIT_ASK_S + PATIENCE_S
            again(region)
            while "registrar" not in kept(layout, region):
                assert time.monotonic() < until, "nothing of the other registrars"
                time.sleep(0.2)
    user = Card.parse(card.strip()).user[:4].hex()
    noted = {region: actions(at(layout, region) / "data/audit", layout.home.root_path) for region in REGIONS}
    assert noted["birch"] == [f"enrol {user} v1", f"release {user} v2", f"move {user} v4", f"add {user} v5"]
    assert noted["amber"] == [f"move {user} v2", f"release {user} v3"]
    assert noted["cedar"] == [f"move {user} v3", f"release {user} v4"]


def test_a_move_by_files_from_hand_to_hand(layout: Layout, tmp_path: Path) -> None:
    home, asked = ("--dir", layout.home.directory), tmp_path / "ask"
    with registrars(layout, REGIONS):
        patiently("user", "create", "carol", "--region", "birch", *home)
        posthouse("user", "move", "carol", "--to", "amber/1", "--ask", asked, *home)
        stranger = posthouse("registrar", "release", asked, "--at", at(layout, "amber"), check=False)
        assert stranger.returncode == Exit.OPERATOR and "the log of amber has no such user" in stranger.stderr
        posthouse("registrar", "release", asked, "--at", at(layout, "birch"))
        bare = tmp_path / "bare"  # the release without its proof
        bare.write_bytes(split_home(Path(f"{asked}.released").read_bytes())[0])
        words = ("--after", f"{asked}.before", "--at", at(layout, "amber"))
        unproven = posthouse("registrar", "enrol", bare, *words, check=False)
        assert unproven.returncode == Exit.UNTRUSTED and "the release of a user by birch" in unproven.stderr
        posthouse("registrar", "enrol", f"{asked}.released", *words)
        posthouse("user", "take", "carol", f"{asked}.released.records", *home)
        assert cells(layout, "carol") == ["birch/1", "amber/1"]
