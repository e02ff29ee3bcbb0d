"""`posthouse audit canary` against real nodes: where canaries may be, and each thing that must be noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import trio
from click.testing import CliRunner

from cluster.audit.kit import CANARIES, LINKS, Canary, Kit, Mark
from cluster.audit.shelf import held_in
from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.env import RealEnv
from cluster.local import Layout, LocalFederation, make_federation
from cluster.local.capture import Capture, captured
from relay.client import open_client
from relay.core import records
from relay.core.codec import digest
from relay.core.envelope import envelope_id
from relay.core.wire import Code
from relay.journal.inspect import open_stopped
from relay.journal.seal import StorageRing
from tests.e2e.planting import plant


async def canary(*words: str | Path, status: int = 0) -> str:
    command = ["audit", "canary", *map(str, words)]
    done = await trio.to_thread.run_sync(lambda: CliRunner(env={"COLUMNS": "200"}).invoke(app, command))
    assert done.exit_code == status, done.output
    return " ".join(done.output.split())


async def look(kit: Path, directory: Path, *words: str | Path, status: int = 0) -> dict[str, Any]:
    """What `look` writes, with what it says."""
    file = kit.parent / "report.json"
    said = await canary("look", kit, directory, "--json", file, *words, status=status)
    return {**json.loads(file.read_text()), "said": said}


def change(path: Path, more: bytes) -> bytes:
    """Add bytes to a file; returns what it was."""
    before = path.read_bytes()
    path.write_bytes(before + more)
    return before


def held(layout: Layout, region: str, own: bytes) -> bytes:
    """An envelope that a stopped node of the region has."""
    ring = StorageRing.load(layout.home.secrets / f"{region}.storage.key")
    with open_stopped(layout.node(region).data_dir, ring) as store:
        found = (envelope for block in store.blocks() for record in block.records
                 for _, envelope, _ in held_in(records.decode_record(record)))  # fmt: skip
        return next(envelope for envelope in found if envelope_id(envelope) == own)


def one_to_one(kit: Path, origin: str, home: str, *, waits: bool) -> tuple[Canary, Mark]:
    """A canary from one region to another."""
    return next(
        (one, one.marks[0]) for one in Kit.load(kit).canaries
        if one.origin == origin and "group" not in one.what and one.marks[0].homes == (home,)
        and bool(one.marks[0].waits) == waits
    )  # fmt: skip


async def test_canaries_are_where_they_may_be_and_what_is_elsewhere_is_named(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "f", ["amber", "birch", "cedar"], RealEnv(), borders=True)
    top, kit = layout.directory, tmp_path / "kit"
    async with LocalFederation(layout, Capture(layout.captured_dir)) as fed:
        await fed.start_all()
        sent = await canary("send", "--dir", top, kit)
        assert "19 canaries" in sent and "between 6 users of amber, birch, cedar" in sent
        running = await look(kit, top, status=Exit.OPERATOR)
        assert not running["findings"] and not running["clean"]
        assert "its node runs" in running["said"] and "stop their nodes and look again" in running["verdict"]
        assert [node["pages"] for node in running["nodes"]] == [3, 3, 3] and all(n["files"] for n in running["nodes"])
        assert len(fed.running()) == 3, "nobody minds being looked at"
        for node in fed.running():
            fed.kill(node.region, node.name)
        await fed.ended()

    found = await look(kit, top)
    assert found["clean"] and "All 19 canaries" in found["verdict"] and "3 stores of 3 nodes" in found["verdict"]
    assert len(found["borders"]) == 6 and all(border["bytes"] > 0 for border in found["borders"])
    assert (kit / CANARIES).stat().st_mode & 0o777 == 0o600 and kit.stat().st_mode & 0o777 == 0o700
    name, mark = one_to_one(kit, "amber", "birch", waits=True)
    assert f"{name.name}, {name.what}: stored; at home on birch-n1 (block" in found["said"]
    assert "handed over, and not let go of yet, by amber-n1 (block" in found["said"]
    (told,) = (env for one in found["canaries"] for env in one["envelopes"] if env["envelope"] == mark.id.hex())
    at_rest = {(at["node"], at["why_here"]) for at in told["at_rest"]}
    assert at_rest == {("amber-n1", "outbox copy"), ("birch-n1", "at home")}
    groups = [one for one in found["canaries"] if "a group of 6" in one["what"]]
    assert len(groups) == 3 and all(any(len(e["belongs_in"]) == 3 for e in one["envelopes"]) for one in groups)

    await _in_the_clear(layout, kit, name, mark)
    await _when_the_look_does_not_work(layout, kit)
    await plant(layout, "cedar", bytes(32), "birch", held(layout, "birch", mark.id))
    bad = await look(kit, top, status=Exit.FAILED)
    assert f"cedar-n1: foreign envelope {mark.id.hex()[:8]}" in bad["findings"][0] and name.name in bad["findings"][0]
    assert f"✗ {name.name}, {name.what}: stored; at home on birch-n1" in bad["said"]
    assert "FOREIGN on cedar-n1" in bad["said"]
    assert "which belongs in birch" in bad["findings"][0] and "Not proven" in bad["verdict"]


async def _in_the_clear(layout: Layout, kit: Path, one: Canary, mark: Mark) -> None:
    """A plaintext in a log, ciphertext in a WAL, on a border and in a backup: each is named. On a client's plain link
    the ciphertext may be, the plaintext not."""
    top = layout.directory
    log = layout.node("birch").log_path
    before = change(log, f'{{"event": "oops {one.texts[0]}"}}\n'.encode())
    (finding,) = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert f"birch-n1: plaintext of {one.name} (raw) in log at byte {len(before) + 16}" in finding
    log.write_bytes(before)

    (layout.node("cedar").data_dir / "old-wal").write_bytes(b"\0" * 100 + mark.pieces[2].hex().encode())
    (finding,) = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert f"cedar-n1: envelope bytes of {one.name} (hex) in data/old-wal at byte 100" in finding
    (layout.node("cedar").data_dir / "old-wal").unlink()

    crossed = next(one.path for one in captured(layout.captured_dir) if (one.source, one.target) == ("amber", "birch"))
    before = change(crossed, mark.pieces[0])
    (finding,) = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert f"envelope bytes of {one.name} (raw) in what crossed from amber to birch: {crossed}" in finding
    crossed.write_bytes(before)

    backup, link = kit.parent / "backup", kit.parent / "eth0"
    backup.write_bytes(mark.pieces[1])
    link.write_bytes(mark.pieces[1])
    assert (await look(kit, top, "--client-link", link))["clean"]
    (finding,) = (await look(kit, top, "--also", backup, status=Exit.FAILED))["findings"]
    assert f"envelope bytes of {one.name} (raw) in {backup}" in finding
    link.write_bytes(b"noise" + bytes(byte ^ b"mask"[place % 4] for place, byte in enumerate(one.texts[0].encode())))
    (finding,) = (await look(kit, top, "--client-link", link, status=Exit.FAILED))["findings"]
    assert f"plaintext of {one.name} (masked) in the client link {link} at byte 5" in finding
    link.write_bytes(one.texts[1].encode())
    (finding,) = (await look(kit, top, "--client-link", link, status=Exit.FAILED))["findings"]
    assert f"plaintext of {one.name} (raw) in the client link {link}" in finding


async def _when_the_look_does_not_work(layout: Layout, kit: Path) -> None:
    """What waits and is not found, what was not captured, and a client's link that is not there: each is named."""
    top, whole = layout.directory, Kit.load(kit)
    lost = Mark(
        id=digest(b"lost"), pieces=(bytes(range(16)),), size=800, homes=("birch",), waits=("birch",), code=Code.STORED
    )
    whole.canaries.append(Canary(name="canary 20", what="to nobody", sender="canary-amber-1", origin="amber",
                                 texts=("x" * 32,), marks=[lost]))  # fmt: skip
    whole.canaries.append(Canary(name="canary 21", what="to nobody", sender="x", origin="amber", texts=("y" * 32,)))
    before = (kit / CANARIES).read_bytes()
    (kit / CANARIES).write_bytes(msgspec.json.encode(whole))
    unseen, gone, unsent = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert "canary 20" in unseen and "is not on the link of canary-amber-1" in unseen
    assert "canary 20" in gone and "waits in birch and was not found there" in gone
    assert "canary 21" in unsent and "never sent" in unsent
    (kit / CANARIES).write_bytes(before)

    said = kit / LINKS / "canary-cedar-1.sent"
    said.rename(kit / "elsewhere")
    findings = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert findings and all("is not on the link of canary-cedar-1" in text for text in findings)
    (kit / "elsewhere").rename(said)

    for path in (layout.captured_dir / "amber/birch").iterdir():
        path.write_bytes(b"")
    for path in (layout.captured_dir / "birch/amber").iterdir():
        path.write_bytes(b"")
    findings = (await look(kit, top, status=Exit.FAILED))["findings"]
    assert len(findings) == 2 and all("it was not captured all the while" in text for text in findings)
    assert (await look(kit, layout.node("amber").directory))["clean"], "who has no capture is not asked for one"
    for path in layout.captured_dir.rglob("*.*"):
        path.unlink()
    layout.captured_dir.rename(kit.parent / "not-captured")


async def test_what_cannot_be_handed_over_waits_with_its_sender(layout: Layout, tmp_path: Path) -> None:
    """An operator's own users, two kits, and a region that goes away in between."""
    top = layout.directory
    async with LocalFederation(layout) as fed:
        await fed.start_all()
        own = ("send", "--dir", top, "--user", "alice", "--user", "bob", "--away", "carol")
        assert "7 canaries" in await canary(*own, tmp_path / "first")
        fed.kill("birch")
        await canary(*own, "--deadline", "20", tmp_path / "second")
        fed.kill("amber")
        await fed.ended()
    async with open_client(layout.home.store("bob")) as bob:
        assert (await bob.unread())[0] == 4, "an operator's user can still read what came"
    for kit in (tmp_path / "first", tmp_path / "second"):
        found = await look(kit, top)
        assert found["clean"], found
    assert "accepted; waits in the outbox of amber-n1 (block" in found["said"]
    alone = await look(tmp_path / "second", layout.node("birch").directory)
    assert alone["clean"], "of what never came there is nothing to be found"
    key = layout.home.secrets / "amber.storage.key"
    key.rename(key.with_name("away"))
    assert "no storage key" in (await look(tmp_path / "second", top, status=Exit.OPERATOR))["said"]
