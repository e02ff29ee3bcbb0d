"""The judgement by signed records: what proves that an envelope belongs where it rests, and what does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster.audit.residency import Report, audit_residency
from cluster.audit.sites import find_sites
from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.core.linkwire import federation_id
from cluster.env import RealEnv
from relay.core import records
from relay.core.codec import Struct, digest
from relay.core.envelope import To, envelope_id
from relay.core.mailroom import Mailroom
from relay.core.records import encode_record
from relay.errors import OperatorError, TrustError
from relay.journal.portal import open_portal
from relay.journal.seal import StorageRing
from relay.journal.solo import open_solo
from tests.cluster.demo.test_audit import change, envelope as letter
from tests.channels import Channel
from tests.flipping import flipped
from tests.relay.journal.test_guard import ABROAD, HERE, ROOT, Group, Person, key, public
from tests.residency import AnythingGoes

LOG = bytes(16)


class Disk:
    """A node's directory, as `posthouse init` lays it out; the log is written without any check."""

    def __init__(self, top: Path, cell: str = HERE, node: str = "n1") -> None:
        self.cell, self.region = cell, cell.split("/")[0]
        self.directory = top / f"{self.region}-{node}"
        self.directory.mkdir(parents=True)
        (self.directory / "root.bin").write_bytes(ROOT.signed)
        self.ring = StorageRing.generate(self.directory / "storage.key")
        (self.directory / "node.toml").write_text(
            f'[node]\nregion = "{self.region}"\ncell = "{cell}"\nname = "{node}"\n'
            '[paths]\nroot = "root.bin"\ndata = "data"\nstorage_key = "storage.key"\n'
        )

    async def write(self, *batches: list[Struct], checkpoint: int = 0) -> None:
        """Blocks; with `checkpoint`, one after that block, and those before it let go."""
        async with open_portal() as portal, open_solo(
            self.directory / "data", env=RealEnv(portal), ring=self.ring, residency=AnythingGoes(), cell=self.cell,
            federation=federation_id(ROOT),
        ) as journal:  # fmt: skip
            for batch in batches:
                await journal.append([encode_record(record) for record in batch])
            if checkpoint:
                room = Mailroom(self.cell, journal.log_id)
                for index in range(1, checkpoint + 1):
                    room.apply(await journal.read(index))
                await journal.save_checkpoint(checkpoint, list(room.checkpoint()))
                await journal.release(checkpoint)


def submit(device: str, envelope: bytes, dest: str = HERE) -> records.Submit:
    return records.Submit(public(device), dest, envelope)


def handed(envelope: bytes, part: bytes = b"") -> records.HandIn:
    return records.HandIn(ABROAD, LOG, 1, 0, records.HANDIN_ENVELOPE, envelope, part)


def look(top: Path) -> Report:
    return audit_residency(find_sites(top, None))


def findings(top: Path) -> list[str]:
    report = look(top)
    assert not report.clean
    return [*report.findings, *(text for node in report.nodes for text in node.shelf.findings)]


@pytest.fixture
def anna() -> Person:
    return Person("anna")


@pytest.fixture
def lucia() -> Person:
    return Person("lucia", ABROAD)


async def test_homes_and_outboxes_are_proven(tmp_path: Path, anna: Person, lucia: Person) -> None:
    here, there = Disk(tmp_path), Disk(tmp_path, ABROAD)
    first, second = anna.home("phone"), anna.home("phone", "pad")
    await there.write([lucia.home("lucia's")])
    bound = submit("pad", letter(lucia.id, 1), ABROAD)
    carried = records.Carry((records.Carried(1, 0, encode_record(bound)),))
    mine = [handed(letter(anna.id, 2)), submit("phone", letter(anna.id, 3))]
    await here.write([second, first, *mine], [bound], [carried])
    report = look(tmp_path)
    assert report.clean, findings(tmp_path)
    node, other = report.nodes
    assert node.shelf.home == {f"user {anna.id.hex()[:8]}": 2} and node.shelf.transit == {ABROAD: 2}
    assert {proof.why for proof in node.proofs if proof.role.value == "at home"} == {
        f"by home record 2 ({anna.last.hex()[:8]})"
    }
    assert 1_000 in node.since.values()  # what is carried: since its sender stamped it
    assert other.shelf.blocks == 1 and not other.shelf.home


async def test_what_no_record_proves_is_foreign(tmp_path: Path, anna: Person, lucia: Person) -> None:
    here, there = Disk(tmp_path), Disk(tmp_path, ABROAD)
    await there.write([lucia.home("lucia's")])
    stray, home = digest(b"somebody"), anna.home("phone")
    bad = [
        handed(letter(lucia.id, 1)),  # for another region
        handed(letter(stray, 2)),  # for nobody who is known
        submit("phone", letter(lucia.id, 3)),  # filed as if she were at home here
        submit("lucia's", letter(lucia.id, 4), ABROAD),  # in the outbox, of a sender who is not at home here
        submit("phone", letter(lucia.id, 5), HERE),
        submit("phone", letter(lucia.id, 6), "west/1"),  # in the outbox of a third cell
        handed(letter(digest(b"group"), 7, To.ROSTER)),  # of a group without members here
        handed(letter(anna.id, 8), letter(lucia.id, 9)),  # beside one that belongs here
        records.HandIn(ABROAD, LOG, 1, 0, records.HANDIN_VOID, b"whatever", b""),
    ]
    await here.write([home, *bad])
    (node, _) = look(tmp_path).nodes
    assert [one.place.record for one in node.foreign] == list(range(1, 10)) and node.shelf.home.total() == 1
    homes = [one.home for one in node.foreign]
    assert homes == ["sud", "", "sud", "sud", "sud", "sud", "", "sud", ""]
    assert node.foreign[0].envelope == envelope_id(letter(lucia.id, 1))
    assert "who is at home in sud by home record 1" in node.foreign[0].why
    assert "a device of nobody who is at home here" in node.foreign[3].why
    said = " ".join(node.shelf.findings)
    assert "data/log.sqlite, block 1, record 1" in said and "without an address" in said


async def test_groups_are_proven_by_rosters_also_after_the_log_was_let_go(tmp_path: Path, anna: Person) -> None:
    group, bo = Group("phone"), Person("bo")
    homes = [anna.home("phone"), bo.home("bo's")]
    first, second = group.publish({HERE: [anna, bo]}), group.publish({HERE: [anna]})
    mail = letter(group.id, 1, To.ROSTER)
    for name, checkpoint in (("kept", 0), ("let-go", 2)):
        here = Disk(tmp_path / name)
        await here.write([*homes, first], [second], [submit("phone", mail), handed(mail)], checkpoint=checkpoint)
        report = look(tmp_path / name)
        assert report.clean, findings(tmp_path / name)
        (node,) = report.nodes
        assert node.shelf.home == {f"group {group.id.hex()[:8]}": 2}
        assert node.shelf.blocks == (2 if checkpoint else 3)
        (proof,) = node.proofs
        assert "is a member by roster version" in proof.why and "at home here by home record 1" in proof.why


async def test_who_is_on_another_cells_list_makes_no_group_resident(tmp_path: Path, anna: Person) -> None:
    group = Group("phone")
    home, listed = anna.home("phone"), group.publish({ABROAD: [anna]})
    await Disk(tmp_path).write([home, listed, handed(letter(group.id, 1, To.ROSTER))])
    assert any("no member at home here" in text for text in findings(tmp_path))


async def test_a_device_that_two_users_enrolled_counts_for_both(tmp_path: Path, anna: Person, lucia: Person) -> None:
    here, there = Disk(tmp_path), Disk(tmp_path, ABROAD)
    await here.write([anna.home("phone"), submit("phone", letter(digest(b"somebody"), 1), ABROAD)])
    await there.write([lucia.home("phone")])
    assert look(tmp_path).clean


async def test_posts_are_proven_by_the_terms_of_who_is_at_home(tmp_path: Path, anna: Person, lucia: Person) -> None:
    ours, gone = Channel(key("phone"), HERE), Channel(key("lucia's"), HERE)
    site = Disk(tmp_path / "a")
    kept = [anna.home("phone"), ours.publish(), ours.post(b"one"), ours.post(b"two")]
    await site.write(kept, checkpoint=1)
    await site.write([ours.post(b"three")])
    report = look(tmp_path / "a")
    assert report.clean and [proof.whose for proof in report.nodes[0].proofs] == [f"channel {ours.id.hex()[:8]}"]
    elsewhere = Channel(key("phone"), ABROAD, b"e" * 32)
    forged = records.Post(public("phone"), flipped(ours.seal(b"four", 4)))
    for number, (planted, why) in enumerate((
        ([lucia.home("lucia's"), gone.publish(), gone.post(b"x")], "somebody who is at home here"),
        ([elsewhere.publish(), elsewhere.post(b"x")], "no terms name this cell"),
        ([Channel(key("phone"), HERE, b"s" * 32).post(b"x")], "no terms name this cell"),
        ([forged], "signature does not hold"),
        ([records.Post(public("phone"), b"junk")], "bytes without a channel"),
    )):  # fmt: skip
        top = tmp_path / str(number)
        await Disk(top).write(kept, planted)
        assert [text for text in findings(top) if "foreign envelope" in text and why in text], (why, findings(top))


async def test_a_log_that_cannot_be_applied_is_judged_all_the_same(tmp_path: Path, anna: Person) -> None:
    home = anna.home("phone")
    bound = submit("phone", letter(digest(b"somebody"), 1), ABROAD)
    await Disk(tmp_path).write([records.FoldVersion(999), home, bound])
    report = look(tmp_path)
    assert report.clean and "whether it still waits is not known" in next(iter(report.nodes[0].proofs)).why


async def test_records_that_do_not_verify_prove_nothing(tmp_path: Path, anna: Person) -> None:
    forged = Person("mallory")
    await Disk(tmp_path).write([
        anna.home("phone"), forged.home("m", registrar="registrar of sud/1"), handed(letter(forged.id, 1)),
    ])  # fmt: skip
    texts = findings(tmp_path)
    assert any("a home record that does not verify" in text and "registrar's key" in text for text in texts)
    assert any("foreign envelope" in text and "no home record" in text for text in texts)
    later = Person("late")
    later.home("l")
    await Disk(tmp_path / "more").write([later.home("l", "k"), handed(letter(later.id, 1))])
    assert any("the one before it is nowhere" in text for text in findings(tmp_path / "more"))


async def test_a_device_that_was_revoked_and_comes_back_proves_nothing(tmp_path: Path, anna: Person) -> None:
    """Versions without it lie between, so that only the whole chain tells."""
    chain = [anna.home("phone", "laptop"), anna.home("phone"), anna.home("phone")]
    await Disk(tmp_path).write([*chain, anna.home("phone", "laptop")])
    assert any("which was revoked" in text for text in findings(tmp_path))


async def test_stores_that_were_set_aside_and_copies_are_looked_into(tmp_path: Path, anna: Person) -> None:
    here, home = Disk(tmp_path / "f"), anna.home("phone")
    await here.write([home, handed(letter(digest(b"somebody"), 1))])
    (here.directory / "data").rename(here.directory / "data.old")
    await here.write([handed(letter(anna.id, 2))])
    (node,) = look(tmp_path / "f").nodes
    assert sorted(node.files) == ["data.old/log.sqlite", "data/log.sqlite"] and node.shelf.stores == 2
    assert [one.place.file for one in node.foreign] == ["data.old/log.sqlite"] and node.shelf.home.total() == 1
    shutil.copytree(here.directory / "data", tmp_path / "f/backup")
    done = CliRunner().invoke(app, ["audit", "residency", str(tmp_path / "f")])
    assert done.exit_code == Exit.FAILED and "the store of no node.toml" in " ".join(done.output.split())


async def test_pieces_of_envelopes_and_keys_in_the_open_are_found(tmp_path: Path, anna: Person, lucia: Person) -> None:
    here, there = Disk(tmp_path), Disk(tmp_path, ABROAD)
    home = lucia.home("lucia's")
    theirs = letter(lucia.id, 1)
    await there.write([home, submit("lucia's", theirs, ABROAD)])
    await here.write([anna.home("phone")])
    assert look(tmp_path).clean
    (here.directory / "log").write_bytes(b"oops " + theirs.hex().encode())
    (there.directory / "log").write_bytes((here.directory / "storage.key").read_bytes())
    node, other = look(tmp_path).nodes
    assert node.shelf.in_the_open == 1 and node.shelf.foreign_bytes == 32
    assert "envelope bytes (hex) in log at byte" in node.shelf.findings[0]
    assert other.shelf.in_the_open == 1 and "storage key (hex) in log" in other.shelf.findings[0]


async def test_what_cannot_be_read_is_no_pass(tmp_path: Path, anna: Person) -> None:
    here = Disk(tmp_path)
    await here.write([anna.home("phone")], [handed(letter(anna.id, 1))], [handed(letter(anna.id, 2))])
    change(here.directory, "UPDATE block SET sealed = x'00' WHERE idx = 2")
    assert any("block 2" in text for text in findings(tmp_path))
    change(here.directory, "UPDATE meta SET cell = CAST(x'cccc' AS TEXT)")
    assert any("cannot be looked into" in text and "decode" in text for text in findings(tmp_path))
    more = Disk(tmp_path / "more")
    await more.write([anna.home("phone", "pad")])
    (more.directory / "storage.key").unlink()
    StorageRing.generate(more.directory / "storage.key")
    assert any("cannot be looked into" in text and "storage key" in text for text in findings(tmp_path / "more"))


def run(*words: str | Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", "residency", *map(str, words)])
    assert done.exception is None or isinstance(done.exception, SystemExit | OperatorError | TrustError), done.exception
    return done.exit_code, " ".join((done.output + str(done.exception or "")).split())


async def test_where_nothing_is_there_is_nothing_to_pass(tmp_path: Path, anna: Person) -> None:
    for words, text in (
        ([], "Name a DIR"), ([tmp_path / "nowhere"], "no directory is there"), ([tmp_path], "no node.toml"),
    ):  # fmt: skip
        status, said = run(*words)
        assert status == Exit.USAGE and text in said
    here = Disk(tmp_path / "f")
    status, said = run(tmp_path / "f")
    assert status == Exit.USAGE and "no store in the data of 1 node(s)" in said
    await here.write([anna.home("phone")])
    status, said = run(tmp_path / "f")
    assert status == 0 and "No envelope rests here" in said and "1 stores of 1 nodes, 1 blocks, 1 records" in said


async def test_the_operators_ways_to_name_a_disk(tmp_path: Path, anna: Person) -> None:
    here = Disk(tmp_path / "etc")
    await here.write([anna.home("phone"), handed(letter(anna.id, 1))])
    elsewhere = tmp_path / "var"
    (here.directory / "data").rename(elsewhere)
    config = here.directory / "node.toml"
    status, said = run(elsewhere, "--config", config)
    assert status == 0 and "All 1 envelopes" in said
    config.write_text(config.read_text().replace('"data"', f'"{elsewhere}"'))
    for words in ([config], ["--config", config], [here.directory], [tmp_path / "etc"]):
        status, said = run(*words, "--json", tmp_path / "out.json")
        kept: dict[str, Any] = json.loads((tmp_path / "out.json").read_text())
        assert status == 0 and kept["clean"] and kept["nodes"][0]["at_home"] == 1, said
    config.write_text("[node")
    status, said = run("--config", config)
    assert status and "does not say whose disk it is" in said
