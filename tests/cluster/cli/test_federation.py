"""`posthouse federation …`: ceremonies with keys in separate hands."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest
from msgspec import structs

import cluster.cli.federation
from cluster.cli.exits import Exit
from cluster.cli.options import now_ms
from cluster.federation.keys import load_signer
from cluster.federation.regionfile import load_region_file, sign_region
from cluster.federation.repository import repository_files
from cluster.registrar.replacing import Replacement
from relay.core.codec import encode
from relay.core.trust import EarlierKey, verify_root
from relay.errors import OperatorError
from relay.limits import DAY

from tests.cluster.cli.ceremony import (
    DIR, LOG, PEOPLE, Posthouse, WITNESS, published, refused, region_file, said, sign, signing,
)


def test_every_holder_makes_a_key_of_their_own(posthouse: Posthouse) -> None:
    for person in PEOPLE:
        for what in ("root", "keeper"):
            text = said(posthouse("federation", "key", f"{person}/{person}-{what}.pem"))
            assert f"Send {person}/{person}-{what}.pub" in text
            assert stat.S_IMODE(Path(f"{person}/{person}-{what}.pem").stat().st_mode) == 0o600
    roots = [word for person in PEOPLE for word in ("--root-key", f"{person}/{person}-root.pub")]
    keepers = [word for person in PEOPLE for word in ("--keeper-key", f"{person}/{person}-keeper.pub")]
    begun = said(posthouse("federation", "init", "--name", "north", *roots, *keepers, *DIR))
    assert "Root role of the federation north, version 1" in begun and "any 2 of 3 keys" in begun
    assert "anna-root (" in begun and "To sign: table/staged/root.json lacks 2 of 2 signatures" in begun
    assert sorted(path.name for path in Path("table/secrets").iterdir()) == ["online.pem", "online.pub"]
    added = said(posthouse("federation", "add-region", region_file("norden"), *DIR))
    told = said(posthouse("init", "statement", "--dir", "norden")).split("over the phone: ")[1].splitlines()[0]
    assert told in added, "the fingerprint is of the keys: signing once more does not change it"
    for person in ("cyra", "anna"):
        shutil.copytree("table/staged", f"{person}/stick")
        for name, what in (("root.json", "root"), ("targets.json", "keeper")):
            text = said(posthouse(
                "federation", "sign", f"{person}/stick/{name}", "--key", f"{person}/{person}-{what}.pem", answer="y\n"
            ))  # fmt: skip
            assert f"Sign this as {person}-{what}" in text
            assert "ADDS norden" in text if what == "keeper" else "the root role (who may change these keys)" in text
            shutil.copy(f"{person}/stick/{name}", "table/staged")
    text = said(posthouse("federation", "publish", *DIR))
    assert "version 1" in text and f"norden  fingerprint {told}" in text
    root = published()
    assert root.payload.federation == "north" and root.payload.threshold == 2 and root.cells() == ["norden/1"]
    assert list(Path("table/staged").iterdir()) and not (Path("table/staged/root.json")).exists()


def test_another_registrars_key_comes_by_the_regions_word_and_nobody_else_takes_the_old_one(table: Posthouse) -> None:
    before = published().region("norden")
    old = EarlierKey(before.registrar_key, (("norden", 120), ("sauda", 1112)))
    Path("replaced").write_bytes(encode(Replacement(1, "norden", b"n" * 32, old)))
    for _ in range(2):  # the same once more changes nothing
        text = said(table("init", "statement", "--registrar-key", "replaced", "--dir", "norden"))
        assert f"before it {before.registrar_key.hex()[:16]}…, until entry 120 of norden, 1112 of sauda" in text
    Path("foreign").write_bytes(encode(Replacement(1, "norden", b"o" * 32, old)))
    refused_ = table("init", "statement", "--registrar-key", "foreign", "--dir", "norden", status=Exit.OPERATOR)
    assert "was not replaced in the statement" in refused_.stderr
    assert "before it" in said(table("federation", "add-region", region_file("norden"), *DIR))
    table("federation", "publish", *DIR)
    now = published().region("norden")
    assert (now.registrar_key, now.earlier) == (b"n" * 32, (old,))
    table("init", "region", "taiga", "--host", "taiga.example", "--dir", "taiga")
    own = load_region_file(Path(region_file("taiga"))).region.registrar_key
    for key, earlier in ((old.key, ()), (own, (EarlierKey(b"n" * 32, ()),)), (own, (old,))):
        entry = structs.replace(load_region_file(Path(region_file("taiga"))).region, registrar_key=key, earlier=earlier)
        signer = load_signer(Path("taiga/secrets/taiga.region.pem"))
        Path("thief.region").write_bytes(sign_region(entry, [signer], now_ms()))
        assert "have one registrar key" in refused(table, "add-region", "thief.region", *DIR)


def test_a_region_says_something_anew_without_the_keepers(table: Posthouse) -> None:
    before = published()
    policy = ["--send-to", "sauda", "--receive-from", "none", "--hold", "deny", "--retention-days", "7"]
    keys = ["--quorum", "1", "--log-key", LOG, "--witness-key", WITNESS, "--registrar-url", "https://r.example"]
    text = said(table("init", "statement", *policy, *keys, "--dir", "norden"))
    assert "sends to sauda only" in text and "receives from no other region only" in text and "7 days" in text
    assert "publish" in said(table("federation", "add-region", region_file("norden"), *DIR))
    table("federation", "publish", *DIR)
    after = verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)
    norden = after.region("norden")
    assert norden.policy.send_to == ("sauda",) and norden.policy.receive_from == () and norden.policy.quorum == 1
    assert (norden.log_key, norden.witness_key, norden.registrar_url) == (LOG, WITNESS, "https://r.example")
    table("init", "statement", "--send-to", "all", "--retention-days", "0", "--dir", "norden")
    norden = load_region_file(Path(region_file("norden"))).region
    assert norden.policy.send_to is None and norden.policy.retention_days is None and norden.policy.hold == "deny"
    assert "cannot be a policy" in table(
        "init", "statement", "--send-to", "No Such", "--dir", "norden", status=Exit.OPERATOR
    ).stderr


def test_a_region_goes_and_comes_back(table: Posthouse) -> None:
    before = published()
    text = said(table("federation", "remove-region", "sauda", *DIR))
    assert "targets.json lacks 2 of 2 signatures: any of keeper-1" in text
    words = signing("targets.json", "table/secrets/keeper-2.pem")
    shown = table("federation", *words, answer="y\n")
    assert "REMOVES sauda" in shown.stdout and "keeps norden" in shown.stdout
    assert "lacks 1 of 2 signatures: any of keeper-1" in refused(table, "publish", *DIR)
    sign(table, "targets.json", "keeper-1")
    table("federation", "publish", *DIR)
    gone = verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)
    assert gone.cells() == ["norden/1"]
    assert "has no region 'sauda'" in refused(table, "remove-region", "sauda", *DIR)
    table("federation", "add-region", region_file("sauda"), *DIR)
    sign(table, "targets.json", "keeper-1", "keeper-2")
    table("federation", "publish", *DIR)
    assert verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=gone).cells() == ["norden/1", "sauda/1"]


def test_root_keys_rotate_and_a_threshold_rises(table: Posthouse) -> None:
    before = published()
    table("federation", "key", "dora/dora-root.pem")
    pubs = ["table/secrets/root-2.pub", "table/secrets/root-3.pub", "dora/dora-root.pub"]
    text = said(table(
        "federation", "rotate", *(word for pub in pubs for word in ("--root-key", pub)), "--threshold", "3", *DIR
    ))  # fmt: skip
    assert "NEW dora-root" in text and "GOES root-1" in text and "any 3 (was 2) of 3 keys" in text
    assert "lacks 2 of 2 signatures of the keys so far" in text and "lacks 3 of 3 signatures of the new keys" in text
    sign(table, "root.json", "root-2", "root-3")
    assert "lacks 1 of 3 signatures of the new keys: any of dora-root" in refused(table, "publish", *DIR)
    table("federation", *signing("root.json", "dora/dora-root.pem"), "--yes")
    sign(table, "root.json", "root-1")  # the old keys' threshold is met without; it does no harm
    table("federation", "publish", *DIR)
    after = verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)
    assert after.payload.root_version == 2 and after.payload.threshold == 3
    assert after.federation_id == before.federation_id
    table("federation", "rotate", *DIR)
    assert "may not sign" in refused(table, *signing("root.json", "table/secrets/root-1.pem"))


def test_other_keepers_and_another_online_key(table: Posthouse) -> None:
    before = published()
    for name in ("new-keeper", "new-online"):
        table("federation", "key", f"new/{name}.pem")
    text = said(table(
        "federation", "rotate", "--keeper-key", "new/new-keeper.pub", "--online-key", "new/new-online.pub", *DIR
    ))  # fmt: skip
    assert "targets.json lacks 1 of 1 signatures: any of new-keeper" in text, "the list of regions is signed anew"
    sign(table, "root.json", "root-1", "root-2")
    may_not = refused(table, *signing("targets.json", "table/secrets/keeper-1.pem"))
    assert "may not sign" in may_not and "new-keeper" in may_not
    table("federation", *signing("targets.json", "new/new-keeper.pem"), "--yes")
    assert "may not publish" in refused(table, "publish", *DIR)
    table("federation", "publish", "--key", "new/new-online.pem", *DIR)
    verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)


def test_news_again_and_again(table: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    before = published()
    monkeypatch.setattr("cluster.cli.federation.now_ms", lambda: now_ms() + 10 * DAY)
    assert "version 2" in said(table("federation", "publish", *DIR))
    after = verify_root(Path("table/root.bin").read_bytes(), now_ms() + 20 * DAY, prev=before)
    assert after.payload.fresh_until > before.payload.fresh_until and after.payload.regions == before.payload.regions


def test_a_publication_that_was_cut_short_is_done_again(table: Posthouse) -> None:
    table("federation", "rotate", *DIR)
    sign(table, "root.json", "root-1", "root-2")
    shutil.copytree("table/staged", "kept")
    table("federation", "publish", *DIR)
    shutil.copytree("kept", "table/staged", dirs_exist_ok=True)
    table("federation", "publish", *DIR)
    assert published().payload.root_version == 2 and published().payload.version == 3


def test_what_the_repository_has_shown_is_never_said_otherwise(
    table: Posthouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut short in the middle: what a TUF client may have seen is in root.bin already, and the next one follows it."""
    before, written = published(), cluster.cli.federation._write

    def cut(path: Path, data: bytes) -> None:
        if path.name == "timestamp.json":
            raise OperatorError("no space left")
        written(path, data)

    monkeypatch.setattr("cluster.cli.federation._write", cut)
    refused(table, "publish", *DIR)
    monkeypatch.setattr("cluster.cli.federation._write", written)
    shown = Path("table/repository/metadata/2.snapshot.json").read_bytes()
    monkeypatch.setattr("cluster.cli.federation.now_ms", lambda: now_ms() + DAY)
    table("federation", "publish", *DIR)
    assert Path("table/repository/metadata/2.snapshot.json").read_bytes() == shown
    verify_root(Path("table/root.bin").read_bytes(), now_ms() + DAY, prev=before)
    for path, data in repository_files(Path("table/root.bin").read_bytes()):
        assert Path("table/repository", path).read_bytes() == data
