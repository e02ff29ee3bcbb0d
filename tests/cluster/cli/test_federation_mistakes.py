"""`posthouse federation …`: everything that a keeper may do wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from cluster.cli.exits import Exit
from cluster.cli.options import now_ms
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey
from cluster.federation.keys import load_signer, named, new_signer
from cluster.federation.making import Holders, draft_root, draft_targets, region_part
from cluster.federation.regionfile import load_region_file, sign_region
from cluster.federation.table import check_quorums
from cluster.federation.words import metadata_words, region_words
from relay.core.codec import encode
from relay.core.trust import verify_root
from relay.core.trust.root import parse_bundle
from relay.errors import MinorityQuorum
from relay.limits import DAY

from tests.cluster.cli.ceremony import (
    DIR, LOG, Posthouse, WITNESS, published, refused, region_file, said, sign, signing,
)


def test_mistakes_at_the_beginning(posthouse: Posthouse, tmp_path: Path) -> None:
    for words in (["rotate"], ["publish"], ["add-region", region_file("norden")], ["remove-region", "norden"]):
        assert "table holds no federation" in refused(posthouse, *words, *DIR)
    assert "a threshold of 4 with 3 keys" in refused(posthouse, "init", "--threshold", "4", *DIR)
    posthouse("federation", "key", "a/a.pem")
    pub = ["--root-key", "a/a.pub"]
    assert "given twice" in refused(posthouse, "init", *pub, *pub, *DIR)
    assert "the online key is a root's" in refused(posthouse, "init", *pub, "--online-key", "a/a.pub", *DIR)
    assert "that are to be made and keys that are there" in refused(posthouse, "init", *pub, "--root-keys", "2", *DIR)
    Path("junk.pub").write_text("junk")
    assert "no public key" in refused(posthouse, "init", "--root-key", "junk.pub", *DIR)
    assert not Path("table").exists(), "nothing was begun"
    assert "exists already" in refused(posthouse, "key", "a/a.pem")
    assert "public half" in refused(posthouse, "key", "b.pub")
    posthouse("federation", "init", *DIR)
    assert "holds a federation already" in refused(posthouse, "init", *DIR)
    assert "version 1 is not published yet" in refused(posthouse, "rotate", *DIR)
    missing = refused(posthouse, "publish", *DIR)
    assert "signatures are missing" in missing and "targets.json lacks 2 of 2" in missing and "root.json" not in missing


def test_mistakes_about_regions(table: Posthouse) -> None:
    norden = Path(region_file("norden"))
    first = norden.read_bytes()
    table("init", "statement", "--hold", "deny", "--dir", "norden")
    shutil.copytree("norden", "twin")
    table("federation", "add-region", region_file("norden"), *DIR)
    table("federation", "publish", *DIR)
    Path("old.region").write_bytes(first)
    assert "is version 1, and version 2 is published" in refused(table, "add-region", "old.region", *DIR)
    Path("twin/norden.region").write_bytes(first)
    table("init", "statement", "--hold", "allow", "--dir", "twin")
    again = refused(table, "add-region", "twin/norden.region", *DIR)
    assert "another statement of norden was published as version 2" in again and "init statement" in again
    Path("broken.region").write_bytes(first[:-1] + b"?")
    assert "no region file" in refused(table, "add-region", "broken.region", *DIR)
    Path("junk.region").write_bytes(b"junk")
    assert "no region file" in refused(table, "add-region", "junk.region", *DIR)
    table("init", "region", "taiga", "--host", "norden.example", "--dir", "taiga")
    assert "is the address of taiga/1/n1 and of norden/1/n1" in refused(
        table, "add-region", region_file("taiga"), *DIR
    )


def test_keys_of_logs_that_would_stop_others(table: Posthouse) -> None:
    """They are no keys, of another kind, or another region's; also under another name."""
    renamed = str(SignerKey("sauda/witness", COSIGNATURE, b"w" * 32).verifier)
    namesake = str(SignerKey("norden/log", ED25519, b"x" * 32).verifier)
    table("init", "statement", "--log-key", LOG, "--witness-key", WITNESS, "--dir", "norden")
    table("federation", "add-region", region_file("norden"), *DIR)
    for option, value in (("--log-key", "l+1+k"), ("--witness-key", "nonsense"), ("--witness-key", LOG)):
        table("init", "statement", option, value, "--dir", "sauda", status=Exit.OPERATOR)
    for option, value in (("--log-key", namesake), ("--witness-key", renamed), ("--log-key", LOG)):
        shutil.copytree("sauda", "twin")
        table("init", "statement", option, value, "--dir", "twin")
        assert "one log key or witness key" in refused(table, "add-region", "twin/sauda.region", *DIR)
        shutil.rmtree("twin")
    entry = msgspec.structs.replace(load_region_file(Path(region_file("sauda"))).region, witness_key="nonsense")
    signer = load_signer(Path("sauda/secrets/sauda.region.pem"))
    part = region_part(entry, [signer], 9, now_ms() + DAY)
    file = msgspec.structs.replace(load_region_file(Path(region_file("sauda"))).file, part=part)
    Path("wild.region").write_bytes(encode(file))
    assert "its witness key is none" in refused(table, "add-region", "wild.region", *DIR)


def test_an_authority_that_would_stop_others(table: Posthouse) -> None:
    file = load_region_file(Path(region_file("sauda")))
    signer = load_signer(Path("sauda/secrets/sauda.region.pem"))
    for authority in (b"", b"junk"):
        part = region_part(msgspec.structs.replace(file.region, authority=authority), [signer], 9, now_ms() + DAY)
        Path("wild.region").write_bytes(encode(msgspec.structs.replace(file.file, part=part)))
        assert "its authority is no certificate" in refused(table, "add-region", "wild.region", *DIR)


def test_one_key_does_not_get_two_regions(table: Posthouse) -> None:
    table("init", "region", "taiga", "--host", "taiga.example", "--dir", "taiga")
    taiga = load_region_file(Path(region_file("taiga"))).region
    signer = load_signer(Path("norden/secrets/norden.region.pem"))
    Path("shared.region").write_bytes(sign_region(taiga, [signer], now_ms()))
    assert "signs for region norden already" in refused(table, "add-region", "shared.region", *DIR)


def test_a_region_that_lost_its_key_gets_another(table: Posthouse) -> None:
    before, key = published(), Path("norden/secrets/norden.region.pem")
    taken = table("init", "statement", "--new-key", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "exists already" in taken
    for path in (key, key.with_suffix(".pub")):
        path.unlink()
    assert "No such file" in table("init", "statement", "--dir", "norden", status=Exit.OPERATOR).stderr
    table("init", "statement", "--new-key", "--dir", "norden")
    assert "lacks 2 of 2" in said(table("federation", "add-region", region_file("norden"), *DIR))
    sign(table, "targets.json", "keeper-1", "keeper-2")
    table("federation", "publish", *DIR)
    verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)


def test_a_region_with_another_key_needs_the_keepers(table: Posthouse) -> None:
    table("init", "region", "norden", "--host", "norden.example", "--dir", "impostor")
    table("init", "statement", "--dir", "impostor")
    text = said(table("federation", "add-region", "impostor/norden.region", *DIR))
    assert "Compare" in text and "lacks 2 of 2 signatures" in text
    words = signing("targets.json", "table/secrets/keeper-1.pem")
    shown = table("federation", *words, answer="n\n", status=Exit.INTERRUPTED)
    assert "gives OTHER KEYS to norden" in shown.stdout
    assert "lacks 2 of 2 signatures" in refused(table, "publish", *DIR), "who says no has not signed"


def test_mistakes_while_signing(table: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    table("federation", "rotate", *DIR)
    staged, key = "table/staged/root.json", "table/secrets/root-1.pem"
    wrong = refused(table, *signing("root.json", "norden/secrets/norden.region.pem"))
    assert "may not sign" in wrong and "root-1 (" in wrong
    assert "no private key" in refused(table, "sign", staged, "--key", "table/secrets/root-1.pub")
    assert "no private key" in refused(table, "sign", staged, "--key", region_file("norden"))
    assert "nothing that is signed here" in refused(table, "sign", "table/root.bin", "--key", key)
    Path("alone").mkdir()
    Path("alone/targets.json").write_bytes(parse_bundle(Path("table/root.bin").read_bytes()).bundle.targets)
    assert "Copy the whole directory" in refused(table, "sign", "alone/targets.json", "--key", key)
    Path("alone/root.json").write_text("{}")
    assert "is not TUF metadata" in refused(table, "sign", "alone/root.json", "--key", key)
    monkeypatch.setattr("cluster.cli.federation.now_ms", lambda: now_ms() + 400 * DAY)
    assert "ended on" in refused(table, *signing("root.json", key), "--yes")


def test_a_signer_goes_by_what_he_trusts_and_not_by_what_lies_beside(table: Posthouse) -> None:
    """Whoever brings the stick made the draft, and can have made what is said to have been there before it."""
    shutil.copy("table/root.bin", "mine.bin")  # anna took it home after the first publication
    table("federation", "remove-region", "sauda", *DIR)
    key = "table/secrets/keeper-1.pem"
    assert "--trusted root.bin" in refused(table, "sign", "table/staged/targets.json", "--key", key)
    Path("table/staged/before.bin").unlink()
    assert "is no version 1" in refused(table, "sign", "table/staged/targets.json", "--key", key, "--yes")
    another_federation(table)
    shutil.copy("other/root.bin", "table/staged/before.bin")  # in which sauda never was
    told = refused(table, *signing("targets.json", key, "mine.bin"), "--yes", status=Exit.UNTRUSTED)
    assert "another federation's" in told
    shutil.copy("mine.bin", "table/staged/before.bin")
    sign(table, "targets.json", "keeper-1", "keeper-2")
    table("federation", "publish", *DIR)
    table("federation", "add-region", region_file("sauda"), *DIR)
    shown = table("federation", *signing("targets.json", key, "mine.bin"), answer="n\n", status=Exit.INTERRUPTED)
    assert "ADDS sauda" in shown.stdout, "what is published since follows what she has"
    shutil.copy("mine.bin", "table/staged/before.bin")
    assert "version 3, and version 1 is published" in refused(table, *signing("targets.json", key, "mine.bin"), "--yes")


def another_federation(posthouse: Posthouse) -> None:
    """Another federation's root document, in other/root.bin."""
    posthouse("federation", "init", "--root-keys", "1", "--dir", "other")
    posthouse("federation", "add-region", region_file("norden"), "--dir", "other")
    posthouse("federation", "sign", "other/staged/targets.json", "--key", "other/secrets/keeper-1.pem", "--yes")
    posthouse("federation", "publish", "--dir", "other")


def test_nobody_draws_lines_on_a_signers_screen(table: Posthouse) -> None:
    """What is shown of a draft is others' text: a region's URLs, a holder's name, the name of the federation."""
    forged = "x\x1b[2K\n  fingerprint 0000 0000 0000 0000 0000"
    own = load_region_file(Path(region_file("norden"))).region
    node = msgspec.structs.replace(own.cells[0].nodes[0], link=forged, clients=(forged,))
    cell = msgspec.structs.replace(own.cells[0], nodes=(node,))
    region = msgspec.structs.replace(own, cells=(cell,), log_key=forged, witness_key=forged, registrar_url=forged)
    assert not any("\n" in line or "\x1b" in line for line in region_words(region))
    holder = named(new_signer().public_key, forged)
    root = draft_root(forged, 1, Holders((holder,), 1), Holders((holder,), 1), Holders((holder,), 1), now_ms() + DAY)
    targets = draft_targets(1, {forged: Holders((holder,), 1)}, now_ms() + DAY)
    for line in [*metadata_words(root, None), *metadata_words(targets, None)]:
        assert "\n" not in line and "\x1b" not in line


def test_a_draft_that_does_not_follow(table: Posthouse) -> None:
    table("federation", "rotate", *DIR)
    sign(table, "root.json", "root-1", "root-2")
    shutil.copy("table/staged/root.json", "kept.json")
    table("federation", "publish", *DIR)
    table("federation", "rotate", *DIR)
    sign(table, "root.json", "root-1", "root-2")
    table("federation", "publish", *DIR)
    shutil.copy("kept.json", "table/staged/root.json")
    assert "is version 2, which is not the next one" in refused(table, "publish", *DIR)


def test_what_has_run_out_is_not_published(table: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.cli.federation.now_ms", lambda: now_ms() + 366 * DAY)
    text = refused(table, "publish", *DIR, status=Exit.UNTRUSTED)
    assert "root version 1 has expired" in text and "federation rotate" in text
    assert "this statement ended on" in refused(table, "add-region", region_file("norden"), *DIR)
    table("federation", "rotate", "--targets", *DIR)
    sign(table, "root.json", "root-1", "root-2")
    sign(table, "targets.json", "keeper-1", "keeper-2")
    lapsed = table("federation", "publish", *DIR).stderr
    assert "norden: its statement has EXPIRED" in lapsed


def test_a_damaged_table(table: Posthouse) -> None:
    Path("table/root.bin").write_bytes(b"junk")
    assert "Put back the root document" in refused(table, "publish", *DIR)


def test_a_log_needs_a_majority_of_its_witnesses(table: Posthouse) -> None:
    """Else two histories of it could each have enough, and nobody who sees one of them would know."""
    for name, quorum in (("norden", "1"), ("sauda", "0")):
        log = SignerKey(f"{name}/log", ED25519, name.encode().ljust(32, b"l")).verifier
        witness = SignerKey(f"{name}/witness", COSIGNATURE, name.encode().ljust(32, b"w")).verifier
        keys = ["--log-key", str(log), "--witness-key", str(witness), "--quorum", quorum]
        table("init", "statement", "--dir", name, *keys)
        table("federation", "add-region", region_file(name), *DIR)
    before = Path("table/root.bin").read_bytes()
    text = refused(table, "publish", *DIR)
    assert "the log of sauda needs 0 of 1 witnesses, which is no majority" in text and "--quorum 1" in text
    assert Path("table/root.bin").read_bytes() == before
    table("init", "statement", "--dir", "sauda", "--quorum", "1")
    table("federation", "add-region", region_file("sauda"), *DIR)
    table("federation", "publish", *DIR)
    with pytest.raises(MinorityQuorum, match="needs 1 of 2"):
        check_quorums([*published().payload.regions, structs.replace(published().region("norden"), name="vika")])
