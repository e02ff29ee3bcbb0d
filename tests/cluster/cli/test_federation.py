"""`posthouse federation …`: ceremonies with keys in separate hands, and everything that a keeper may do wrong."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result

import cluster.cli.federation
from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.cli.options import now_ms
from relay.core.tlog import COSIGNATURE, ED25519, SignerKey
from cluster.federation.keys import load_signer, named, new_signer
from cluster.federation.making import Holders, draft_root, draft_targets, region_part
from cluster.federation.regionfile import load_region_file, sign_region
from cluster.federation.repository import repository_files
from cluster.federation.words import metadata_words, region_words
from relay.core.codec import encode
from relay.core.trust import Root, verify_root
from relay.errors import OperatorError
from relay.limits import DAY

Posthouse = Callable[..., Result]
DIR = ("--dir", "table")
LOG = str(SignerKey("norden/log", ED25519, b"l" * 32).verifier)
WITNESS = str(SignerKey("norden/witness", COSIGNATURE, b"w" * 32).verifier)
PEOPLE = ("anna", "bela", "cyra")


@pytest.fixture
def posthouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Posthouse:
    """The command, in a directory where two regions have been made."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, status: int = 0, answer: str = "") -> Result:
        result = CliRunner().invoke(app, list(args), input=answer)
        assert result.exit_code == status and "Traceback" not in result.output, (args, result.output, result.exception)
        return result

    for region in ("norden", "sauda"):
        run("init", "region", region, "--host", f"{region}.example", "--dir", region)
    return run


def region_file(name: str) -> str:
    return f"{name}/{name}.region"


def published() -> Root:
    return verify_root(Path("table/root.bin").read_bytes(), now_ms())


def said(result: Result) -> str:
    return result.stdout


@pytest.fixture
def table(posthouse: Posthouse) -> Posthouse:
    """A federation of both regions, published; the keys of all in table/secrets: 2 of 3."""
    posthouse("federation", "init", "--root-keys", "3", "--threshold", "2", *DIR)
    posthouse("federation", "add-region", region_file("norden"), region_file("sauda"), *DIR)
    sign(posthouse, "targets.json", "keeper-1", "keeper-3")
    posthouse("federation", "publish", *DIR)
    return posthouse


def sign(posthouse: Posthouse, name: str, *keys: str) -> None:
    for key in keys:
        posthouse("federation", "sign", f"table/staged/{name}", "--key", f"table/secrets/{key}.pem", "--yes")


def refused(posthouse: Posthouse, *args: str, status: int = Exit.OPERATOR, answer: str = "") -> str:
    return posthouse("federation", *args, status=status, answer=answer).stderr


# --- a ceremony ----------------------------------------------------------------------------------
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
    words = ["sign", "table/staged/targets.json", "--key", "table/secrets/keeper-2.pem"]
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
    table("federation", "sign", "table/staged/root.json", "--key", "dora/dora-root.pem", "--yes")
    sign(table, "root.json", "root-1")  # the old keys' threshold is met without; it does no harm
    table("federation", "publish", *DIR)
    after = verify_root(Path("table/root.bin").read_bytes(), now_ms(), prev=before)
    assert after.payload.root_version == 2 and after.payload.threshold == 3
    assert after.federation_id == before.federation_id
    table("federation", "rotate", *DIR)
    assert "may not sign" in refused(table, "sign", "table/staged/root.json", "--key", "table/secrets/root-1.pem")


def test_other_keepers_and_another_online_key(table: Posthouse) -> None:
    before = published()
    for name in ("new-keeper", "new-online"):
        table("federation", "key", f"new/{name}.pem")
    text = said(table(
        "federation", "rotate", "--keeper-key", "new/new-keeper.pub", "--online-key", "new/new-online.pub", *DIR
    ))  # fmt: skip
    assert "targets.json lacks 1 of 1 signatures: any of new-keeper" in text, "the list of regions is signed anew"
    sign(table, "root.json", "root-1", "root-2")
    may_not = refused(table, "sign", "table/staged/targets.json", "--key", "table/secrets/keeper-1.pem")
    assert "may not sign" in may_not and "new-keeper" in may_not
    table("federation", "sign", "table/staged/targets.json", "--key", "new/new-keeper.pem", "--yes")
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


# --- mistakes ------------------------------------------------------------------------------------
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
    words = ["sign", "table/staged/targets.json", "--key", "table/secrets/keeper-1.pem"]
    shown = table("federation", *words, answer="n\n", status=Exit.INTERRUPTED)
    assert "gives OTHER KEYS to norden" in shown.stdout
    assert "lacks 2 of 2 signatures" in refused(table, "publish", *DIR), "who says no has not signed"


def test_mistakes_while_signing(table: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    table("federation", "rotate", *DIR)
    staged, key = "table/staged/root.json", "table/secrets/root-1.pem"
    wrong = refused(table, "sign", staged, "--key", "norden/secrets/norden.region.pem")
    assert "may not sign" in wrong and "root-1 (" in wrong
    assert "no private key" in refused(table, "sign", staged, "--key", "table/secrets/root-1.pub")
    assert "no private key" in refused(table, "sign", staged, "--key", region_file("norden"))
    assert "nothing that is signed here" in refused(table, "sign", "table/root.bin", "--key", key)
    Path("alone").mkdir()
    shutil.copy("table/staged/before.targets.json", "alone/targets.json")
    assert "Copy the whole directory" in refused(table, "sign", "alone/targets.json", "--key", key)
    Path("alone/root.json").write_text("{}")
    assert "is not TUF metadata" in refused(table, "sign", "alone/root.json", "--key", key)
    monkeypatch.setattr("cluster.cli.federation.now_ms", lambda: now_ms() + 400 * DAY)
    assert "ended on" in refused(table, "sign", staged, "--key", key, "--yes")


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
