"""`posthouse init certificate` and `init authority`: another year, and another ten."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from cryptography import x509

from cluster.cli import app
from cluster.cli.exits import Exit
from cluster.cli.options import now_ms
from cluster.config import load_config
from relay.errors import ConfigError
from relay.limits import DAY
from tests.keeping import keeping

Posthouse = Callable[..., Result]
YEAR = 365 * DAY


@pytest.fixture
def posthouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Posthouse:
    """A region of three in ./norden, in a federation with sauda; and the command that made them."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, list(args))
        assert result.exit_code == status and "Traceback" not in result.output, result.output
        return result

    run("init", "region", "norden", "--host", "n.example", "--nodes", "3", "--dir", "norden")
    run("init", "region", "sauda", "--host", "s.example", "--dir", "sauda")
    for words in keeping(Path("keeper"), "norden/norden.region", "sauda/sauda.region", days=3650):
        run(*words)
    for region in ("norden", "sauda"):
        run("init", "join", "keeper/root.bin", "--dir", region)
    return run


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_clock(ms: int) -> None:
        for module in ("init", "renewal", "directory", "federation", "region"):
            monkeypatch.setattr(f"cluster.cli.{module}.now_ms", lambda: now_ms() + ms)

    return set_clock


def pem(server: str) -> Path:
    return Path(server) / "tls/node.pem"


def files(*but: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path().rglob("*") if path.is_file() and path not in but}


def test_a_year_later_a_node_gets_another_certificate_for_its_key(
    posthouse: Posthouse, later: Callable[[int], None]
) -> None:
    mine = pem("norden/server-n2")
    before, old = files(mine), x509.load_pem_x509_certificate(mine.read_bytes())
    later(YEAR + DAY)
    with pytest.raises(ConfigError, match=r"node\.pem expired on.*posthouse init certificate n2") as caught:
        load_config(Path("norden/server-n2/node.toml"), now_ms() + YEAR + DAY)
    assert "paths.certificate" in str(caught.value)
    said = posthouse("init", "certificate", "n2", "--dir", "norden").stdout
    new = x509.load_pem_x509_certificate(mine.read_bytes())
    assert said == f"n2  valid until {new.not_valid_after_utc:%Y-%m-%d}: copy {mine} to its server.\n"
    assert new.public_key() == old.public_key() and new.serial_number != old.serial_number
    assert (new.not_valid_after_utc - old.not_valid_after_utc).days in (366, 365)
    assert files(mine) == before, "no other file was touched, and none is left over"
    assert stat.S_IMODE(mine.stat().st_mode) == 0o644


def test_a_certificate_is_replaced_in_one_step(posthouse: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, old = pem("norden/server-n1"), pem("norden/server-n1").read_bytes()

    def dies(path: Path, target: Path) -> None:
        assert target == mine and mine.read_bytes() == old
        raise PermissionError(13, "Permission denied", str(target))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", dies)
        posthouse("init", "certificate", "n1", "--dir", "norden", status=Exit.OPERATOR)
    assert mine.read_bytes() == old
    posthouse("init", "certificate", "n1", "n3", "--dir", "norden")
    assert mine.read_bytes() != old and not mine.with_suffix(".new").exists()
    load_config(Path("norden/server-n1/node.toml"))
    load_config(Path("norden/server-n3/node.toml"))


def test_the_private_key_is_not_needed_and_a_region_of_one_has_its_own_place(posthouse: Posthouse) -> None:
    (Path("sauda/server/tls/node.key")).unlink()
    (Path("sauda/server/node.toml")).unlink()
    before = pem("sauda/server").read_bytes()
    posthouse("init", "certificate", "n1", "--dir", "sauda")
    assert pem("sauda/server").read_bytes() != before


@pytest.mark.parametrize(
    ("names", "spoil", "what"),
    [
        (["n9"], None, "norden has no node 'n9'"),
        (["n1", "n22"], None, "Did you mean 'n2'?"),
        (["n1"], "norden/secrets/norden.authority.pem", "Run it where `posthouse init region` was run"),
        (["n1", "n2"], "norden/server-n2/tls/node.pem", "from its server"),
    ],
)
def test_mistakes_change_nothing(posthouse: Posthouse, names: list[str], spoil: str | None, what: str) -> None:
    if spoil:
        Path(spoil).unlink()
    before = files()
    said = posthouse("init", "certificate", *names, "--dir", "norden", status=Exit.OPERATOR)
    assert what in said.stderr and said.stdout == "" and files() == before


def test_files_that_do_not_belong_together_are_named(posthouse: Posthouse) -> None:
    others = {
        pem("norden/server-n2").read_bytes(): "is of norden/1/n2, not of norden/1/n1",
        pem("sauda/server").read_bytes(): "not the certificate of a Posthouse node of norden",
        b"junk": "not the certificate of a Posthouse node of norden",
    }
    for other, what in others.items():
        pem("norden/server-n1").write_bytes(other)
        said = posthouse("init", "certificate", "n1", "--dir", "norden", status=Exit.OPERATOR).stderr
        assert what in said and "norden/server-n1/tls/node.pem: " in said
    secret = Path("norden/secrets/norden.authority.pem")
    secret.write_bytes(Path("sauda/secrets/sauda.authority.pem").read_bytes())
    said = posthouse("init", "certificate", "n2", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "the authority's key does not belong to its certificate" in said
    secret.write_bytes(b"junk")
    assert "the authority's key is not" in posthouse(
        "init", "certificate", "n2", "--dir", "norden", status=Exit.OPERATOR
    ).stderr
    assert "holds 0 regions" in posthouse("init", "certificate", "n1", "--dir", "x", status=Exit.OPERATOR).stderr


def test_an_authority_gets_another_ten_years_before_and_after_its_end(
    posthouse: Posthouse, later: Callable[[int], None]
) -> None:
    later(10 * YEAR - 30 * DAY)  # leap days: the authority has 3,653 days
    posthouse("init", "certificate", "n1", "--dir", "norden")
    keep(posthouse, "norden", "sauda")
    Path("norden/server-n1/root.bin").write_bytes(Path("keeper/root.bin").read_bytes())
    short = x509.load_pem_x509_certificate(pem("norden/server-n1").read_bytes())
    later(10 * YEAR + 30 * DAY)
    said = posthouse("init", "certificate", "n1", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert f"expired on {short.not_valid_after_utc:%Y-%m-%d}" in said, "no certificate outlives its authority"
    assert "posthouse init authority" in said
    with pytest.raises(ConfigError, match=r"the authority of norden expired.*posthouse init authority"):
        load_config(Path("norden/server-n1/node.toml"), now_ms() + 10 * YEAR + 30 * DAY)
    said = posthouse("init", "authority", "--dir", "norden").stdout
    assert "The authority of norden is valid until" in said and "fingerprint" in said
    posthouse("init", "certificate", "n1", "n2", "n3", "--dir", "norden")
    keep(posthouse, "norden")
    shown = posthouse("directory", "verify", "--dir", "keeper", status=Exit.UNTRUSTED)
    assert "good  region norden: authority valid until" in shown.stdout
    assert "BAD   region sauda: its authority expired" in shown.stderr and "posthouse init authority" in shown.stderr
    missing = Path("norden/secrets/norden.authority.pem")
    missing.unlink()
    assert str(missing) in posthouse("init", "authority", "--dir", "norden", status=Exit.OPERATOR).stderr


def keep(posthouse: Posthouse, *regions: str) -> None:
    """All of the federation is signed for another ten years."""
    for region in regions:
        posthouse("init", "statement", "--dir", region)
    posthouse("federation", "rotate", "--targets", "--days", "3650", "--dir", "keeper")
    for words in keeping(Path("keeper"), *(f"{region}/{region}.region" for region in regions), days=3650):
        posthouse(*words)


def test_a_renewed_authority_is_joined_and_the_certificates_stay_good(posthouse: Posthouse) -> None:
    before = pem("norden/server-n1").read_bytes()
    posthouse("init", "authority", "--dir", "norden")
    refused = posthouse("init", "join", "keeper/root.bin", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "does not have the region norden as it was made here" in refused
    for words in keeping(Path("keeper"), "norden/norden.region"):
        posthouse(*words)
    for region in ("norden", "sauda"):
        assert "version 2 of the root document" in posthouse("init", "join", "keeper/root.bin", "--dir", region).stdout
    assert pem("norden/server-n1").read_bytes() == before
    posthouse("directory", "verify", "--dir", "norden")
    posthouse("init", "certificate", "n1", "--dir", "norden")
    load_config(Path("norden/server-n1/node.toml"))


def test_verify_shows_the_certificates_of_a_regions_servers(posthouse: Posthouse) -> None:
    said = posthouse("directory", "verify", "--dir", "norden").stdout
    assert "server-n3/tls/node.pem: node norden/1/n3, valid until" in said
