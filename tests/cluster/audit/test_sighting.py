"""The look for canaries on disks that a test wrote: what is found where, what is missing, what cannot be looked at."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from cluster.audit.canary_report import findings, line, verdict
from cluster.audit.kit import LINKS, Canary, Kit, Mark, make_kit, pieces_of
from cluster.audit.sighting import Sightings, look_for
from cluster.audit.sites import find_sites
from cluster.core.linkwire import federation_id
from cluster.local.capture import FULL
from relay.core.envelope import envelope_id
from relay.core.wire import Code
from relay.errors import OperatorError
from tests.cluster.audit.test_residency import Disk, handed, submit
from tests.cluster.demo.test_audit import envelope as letter
from tests.relay.journal.test_guard import ABROAD, ROOT, Person

TEXT = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def lucia() -> Person:
    return Person("lucia", ABROAD)


def kit(top: Path, *envelopes: bytes, code: int = Code.STORED, waits: bool = True, seen: bool = False) -> Path:
    """From anna in norden to lucia in sud."""
    directory = top / "kit"
    make_kit(directory)
    marks = [
        Mark(id=envelope_id(one), pieces=pieces_of(one), size=len(one), homes=("sud",), waits=("sud",) if waits else (),
             code=code, seen=["lucia"] if seen else [])
        for one in envelopes
    ]  # fmt: skip
    one = Canary(name="canary 1", what="from anna to lucia", sender="anna", origin="norden", texts=(TEXT,), marks=marks)
    Kit(federation=federation_id(ROOT), sent_ms=1, canaries=[one] if envelopes else []).save(directory)
    (directory / LINKS / "anna.sent").write_bytes(b"".join(envelopes))
    return directory


def look(top: Path, capture: Path | None = None) -> Sightings:
    return look_for(top / "kit", find_sites(top, None), capture, (), ())


async def test_a_canary_waits_with_its_sender_or_at_home_and_nowhere_else(tmp_path: Path, lucia: Person) -> None:
    here, there, one = Disk(tmp_path), Disk(tmp_path, ABROAD), letter(lucia.id, 1)
    other = Disk(tmp_path, ABROAD, "n2")
    await here.write([submit("anna", one, ABROAD), submit("anna", letter(lucia.id, 2), ABROAD)])  # the other is none
    kit(tmp_path, one, code=Code.ACCEPTED)
    await there.write([lucia.home("lucia's")])
    await other.write([lucia.home("lucia's")])
    report = look(tmp_path)
    assert report.clean, findings(report)
    assert "accepted; waits in the outbox of norden-n1 (block 1)" in line(report, report.kit.canaries[0])
    await there.write([handed(one)])
    await other.write([handed(one)])
    report = look(tmp_path)
    assert report.clean and "; at home on sud-n1/n2 (block 2); waits in" in line(report, report.kit.canaries[0])
    assert len(report.found[envelope_id(one)]) == 3 and "3 stores of 3 nodes unsealed, 6 records" in verdict(report)


async def test_what_arrived_nowhere_is_named_where_all_was_looked_into(tmp_path: Path, lucia: Person) -> None:
    here, there, one = Disk(tmp_path), Disk(tmp_path, ABROAD), letter(lucia.id, 1)
    await here.write([lucia.home("lucia's")])
    kit(tmp_path, one, code=Code.ACCEPTED)
    assert look(tmp_path).clean, "it may be in the region that was not looked at"
    await there.write([lucia.home("another")])
    (said,) = findings(look(tmp_path))
    assert "canary 1" in said and "arrived nowhere" in said


async def test_what_was_delivered_and_let_go_is_nowhere_and_proves_little(tmp_path: Path, lucia: Person) -> None:
    here, there = Disk(tmp_path), Disk(tmp_path, ABROAD)
    for disk in (here, there):
        await disk.write([lucia.home("lucia's")])
    kit(tmp_path, letter(lucia.id, 1), waits=False, seen=True)
    report = look(tmp_path)
    assert report.clean and "leave somebody --away" in verdict(report)
    assert "stored; in no store; delivered to lucia" in line(report, report.kit.canaries[0])


async def test_canaries_that_no_node_took_prove_nothing(tmp_path: Path, lucia: Person) -> None:
    here = Disk(tmp_path)
    await here.write([lucia.home("lucia's")])
    kit(tmp_path, letter(lucia.id, 1), code=Code.UNKNOWN_USER)
    report = look(tmp_path)
    assert "no node took any" in findings(report)[0]
    assert "refused (unknown_user); in no store" in line(report, report.kit.canaries[0])


@contextmanager
def admin(disk: Disk, said: bytes) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(said if self.path == "/metrics" else b"ok")

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        with (disk.directory / "node.toml").open("a") as file:
            file.write(f'[listen]\nadmin = "127.0.0.1:{server.server_port}"\n')
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


async def test_a_metric_that_tells_is_named(tmp_path: Path, lucia: Person) -> None:
    here, one = Disk(tmp_path), letter(lucia.id, 1)
    await here.write([submit("anna", one, ABROAD)])
    kit(tmp_path, one, code=Code.ACCEPTED)
    with admin(here, b"# HELP all is well"):
        report = look(tmp_path)
        assert report.clean and report.nodes[0].pages == 3
    assert look(tmp_path).nodes[0].pages == 0, "nobody answers any more"
    (here.directory / "node.toml").write_text((here.directory / "node.toml").read_text().partition("[listen]")[0])
    with admin(here, f'last_message{{text="{TEXT}"}} 1'.encode()):
        assert findings(look(tmp_path)) == ["norden-n1: plaintext of canary 1 (raw) in /metrics at byte 19"]


async def test_a_capture_that_was_full_is_said(tmp_path: Path, lucia: Person) -> None:
    here, one = Disk(tmp_path), letter(lucia.id, 1)
    await here.write([submit("anna", one, ABROAD)])
    kit(tmp_path, one, code=Code.ACCEPTED)
    (tmp_path / "captured").mkdir()
    assert look(tmp_path, tmp_path / "captured").clean
    (tmp_path / "captured" / FULL).touch()
    assert "was full" in findings(look(tmp_path, tmp_path / "captured"))[0]


async def test_a_kit_that_proves_nothing_here_is_refused(tmp_path: Path, lucia: Person) -> None:
    here, one = Disk(tmp_path / "f"), letter(lucia.id, 1)
    await here.write([submit("anna", one, ABROAD)])
    sites = find_sites(tmp_path / "f", None)
    empty = kit(tmp_path / "empty")
    with pytest.raises(OperatorError, match="has no canaries"):
        look_for(empty, sites, None, (), ())
    with pytest.raises(OperatorError, match="is not empty"):
        make_kit(empty)
    with pytest.raises(OperatorError, match="lies with the files of norden-n1"):
        look_for(kit(here.directory, one), sites, None, (), ())
    strange = kit(tmp_path / "strange", one)
    there = Kit.load(strange)
    there.federation = bytes(32)
    (strange / "canaries.json").unlink()
    there.save(strange)
    with pytest.raises(OperatorError, match="sent in another federation than test"):
        look_for(strange, sites, None, (), ())
    (strange / "canaries.json").write_text("{}")
    with pytest.raises(OperatorError, match="is not understood"):
        look_for(strange, sites, None, (), ())
    with pytest.raises(OperatorError, match="nothing is there"):
        look_for(kit(tmp_path, one), sites, None, [tmp_path / "nothing"], ())
