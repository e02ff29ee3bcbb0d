"""The demo itself, and the demo with something planted: each plant must be found."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner
from rich.console import Console

from cluster.cli import app
from cluster.demo import cli, story
from cluster.demo.ledger import Account
from cluster.demo.report import Result
from cluster.demo.stage import Stage, WatchedSocket
from cluster.demo.story import Chapter
from cluster.local import Layout
from cluster.local.people import find_card
from relay.core import wire
from relay.core.envelope import envelope_id
from relay.errors import OperatorError
from tests.e2e.planting import plant
from tests.patience import PATIENCE_S

REGIONS = ("amber", "birch", "cedar")


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_demo_is_clean(tmp_path: Path, nodes: int) -> None:
    kept, report = tmp_path / "kept", tmp_path / "out.json"
    command = [sys.executable, "-m", "cluster.cli", "demo", "--dir", str(kept), "--json", str(report)]
    command += ["--nodes", str(nodes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    counted = json.loads(report.read_text())
    found = {name: counted.pop(name) for name in (
        "lost", "duplicated", "reordered", "foreign_bytes_at_rest", "left_behind_bytes", "plaintext_found",
    )}  # fmt: skip
    assert set(found.values()) == {0}, found
    assert counted["sent"] >= 2_000 and counted["delivered"] > counted["sent"] and counted["nodes_killed"] >= 1
    assert set(counted) == {"sent", "delivered", "wire_duplicates", "users_moved", "nodes_killed", "seconds"}
    assert counted["users_moved"] == 1
    assert len(list(kept.glob("clients/*/store.sqlite"))) >= 30 and len(list(kept.glob("nodes/*/data"))) == 3 * nodes
    assert {path.stat().st_mode & 0o777 for path in (kept / "secrets").iterdir()} == {0o600}
    audited = CliRunner().invoke(app, ["audit", "residency", str(kept)])  # by the signed records alone
    assert audited.exit_code == 0, audited.output
    said = " ".join(audited.output.split())
    assert "belong there, by signed records" in said or nodes == 1  # a node that is stopped may have let go of all
    assert f"Looked at: {3 * nodes} stores of {3 * nodes} nodes" in said
    if nodes == 1:
        layout = Layout.load(kept)
        bruno = find_card(layout.home, "bruno").user
        own = envelope_id(trio.run(plant, layout, "norden", bruno, "sauda"))
        audited = CliRunner().invoke(app, ["audit", "residency", str(kept)])
        said = " ".join(audited.output.split())
        assert audited.exit_code == 1 and f"norden-n1: foreign envelope {own.hex()[:8]}" in said, said
        assert f"for user {bruno.hex()[:8]}, who is at home in sauda by home record" in said


# --- planted -------------------------------------------------------------------------------------
async def _chat(stage: Stage) -> str:
    await stage.volley(story.spread(story.pairs_of(stage, lambda one, other: True), 40))
    return "a few messages"


async def _play(directory: Path, before: Sequence[Chapter], after: Sequence[Chapter]) -> Result:
    """A short story with chapters of the test's own before it, and between its end and the audit."""
    short = (
        *before, Chapter("arrive", story.arrive), Chapter("chat", _chat), Chapter("drain", story.drain), *after,
        Chapter("look", story.look_at_the_disks),
    )  # fmt: skip
    return await cli.run_demo(directory / "kept", REGIONS, Console(quiet=True), story=short)


async def _plant_foreign(stage: Stage) -> str:
    """An envelope of birch for birch, appended to the store of amber's stopped node."""
    envelope = await plant(stage.layout, "amber", stage.of("birch")[0].card.user, "birch")
    stage.book.post(envelope, "birch", 5)
    return "planted"


async def _plant_plaintext(stage: Stage) -> str:
    with stage.layout.node("birch").log_path.open("ab") as log:
        log.write(b'{"event": "oops", "text": "' + stage.book.plaintexts[0] + b'"}\n')
    return "planted"


async def _plant_storage_key(stage: Stage) -> str:
    key = bytes.fromhex((stage.layout.home.secrets / "cedar.storage.key").read_text())
    with stage.layout.node("birch").log_path.open("ab") as log:
        log.write(b'{"event": "oops", "key": "' + key.hex().encode() + b'"}\n')
    return "planted"


async def test_each_plant_is_found(tmp_path: Path) -> None:
    plants = [_plant_foreign, _plant_plaintext, _plant_storage_key]
    result = await _play(tmp_path, [], [Chapter("plant", plant) for plant in plants])
    assert result.account.clean and not result.clean
    counted = result.as_json()
    assert counted["foreign_bytes_at_rest"] >= 768 and counted["plaintext_found"] == 2
    amber, birch, cedar = (shelf.findings for shelf in result.shelves)
    assert all("foreign envelope" in text for text in amber) and amber and not cedar
    assert sorted(text.partition(" in log")[0] for text in birch) == ["plaintext (raw)", "storage key (hex)"]


class Doubling(WatchedSocket):
    """Every delivery comes twice on the wire."""

    again: bytes = b""

    async def receive(self) -> bytes:
        if self.again:
            message, self.again = self.again, b""
            return message
        message = await super().receive()
        if isinstance(wire.decode_server(message), wire.Deliver):
            self.again = message
        return message


@pytest.mark.parametrize("dedup", [True, False])
async def test_duplicates_are_found_when_the_sdk_does_not_remove_them(dedup: bool, tmp_path: Path) -> None:
    async def break_it(stage: Stage) -> str:
        stage.dedup, stage.socket = dedup, Doubling
        return "broken"

    result = await _play(tmp_path, [Chapter("break", break_it)], [])
    assert (result.account.duplicated > 0) is not dedup and result.clean is dedup
    assert result.as_json()["wire_duplicates"] > 0 and result.account.lost == 0


@pytest.mark.parametrize("lost", [0, 1])
def test_what_is_found_decides_the_exit_status(lost: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def found(*args: object) -> Result:
        return Result(Account(1, 1, 1 - lost, lost, 0, 0, 0, 0), 1, 0, [], 1, 1.0)

    monkeypatch.setattr(cli, "run_demo", found)
    done = CliRunner().invoke(cli.demo, ["--json", str(tmp_path / "out.json")])
    assert done.exit_code == lost and json.loads((tmp_path / "out.json").read_text())["lost"] == lost


def test_too_few_regions_are_refused() -> None:
    done = CliRunner().invoke(cli.demo, ["--regions", "alone"])
    assert isinstance(done.exception, OperatorError) and "2 to 6" in str(done.exception)
