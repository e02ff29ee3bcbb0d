"""What a federation on one machine looks like on disk."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from cluster.local.home import check_name
from relay.core.trust import verify_root
from relay.errors import OperatorError

REGIONS = ["norden", "sauda", "taiga"]


def test_made_loaded_and_good(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv(), tls=False)
    assert Layout.load(tmp_path / "fed") == layout
    assert layout.regions == tuple(REGIONS)
    root = verify_root(layout.home.root_path.read_bytes(), RealEnv().clock.wall_ms())
    for region in REGIONS:
        node, config = layout.node(region), load_config(layout.node(region).config_path)
        assert config.root == root and not config.listen.tls
        assert (config.listen.links, config.listen.admin) == (node.links_addr, node.admin_addr)
        assert root.region(region).cells[0].nodes[0].clients == (f"ws://{node.clients_addr}",)
        assert bytes(layout.registrar(region).verify_key) == root.region(region).registrar_key
    ports = [port for entry in layout.file.regions.values() for port in (entry.clients, entry.links, entry.admin)]
    assert len(set(ports)) == 3 * len(REGIONS)
    assert all(20_000 <= port < 32_768 for port in ports), "not where systems take ports for outgoing connections from"


def test_secrets_are_only_their_owners(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv())
    secrets = [*layout.home.secrets.iterdir(), *(layout.node(region).directory / "tls/node.key" for region in REGIONS)]
    assert {path.name for path in layout.home.secrets.iterdir()} == {"root.key"} | {
        f"{region}.{kind}" for region in REGIONS for kind in ("authority.pem", "registrar.key", "storage.key")
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    for directory in (layout.home.secrets, layout.home.clients, layout.node("sauda").data_dir):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    kept = b"".join(path.read_bytes().strip() for path in secrets if path.suffix == ".key")
    public = [path for path in layout.directory.rglob("*") if path.is_file() and path not in secrets]
    assert public and not any(len(line) > 20 and line in kept for path in public for line in path.read_bytes().split())


def test_borders_stand_between_every_pair(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv(), borders=True)
    assert len(layout.file.borders) == 6 and len({border.port for border in layout.file.borders}) == 6
    for border in layout.file.borders:
        root = load_config(layout.node(border.source).config_path).root
        assert root.region(border.target).cells[0].nodes[0].link == f"127.0.0.1:{border.port}"


@pytest.mark.parametrize(
    ("regions", "what"),
    [
        ([], "0 regions"),
        (["a", "a"], "named twice"),
        (["a"] * 17, "17 regions"),
        (["Norden"], "cannot be a region"),
        (["../x"], "cannot be a region"),
        (["a/b"], "cannot be a region"),
        ([""], "cannot be a region"),
    ],
)
def test_bad_regions(tmp_path: Path, regions: list[str], what: str) -> None:
    with pytest.raises(OperatorError, match=what) as caught:
        make_federation(tmp_path / "fed", regions, RealEnv())
    assert caught.value.remedy and not (tmp_path / "fed").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    with pytest.raises(OperatorError, match="not empty"):
        make_federation(tmp_path, REGIONS, RealEnv())
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_load_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="posthouse up"):
        Layout.load(tmp_path)
    (tmp_path / "federation.json").write_text('{"format": 2, "regions": {}}')
    with pytest.raises(OperatorError, match="not understood"):
        Layout.load(tmp_path)
    with pytest.raises(OperatorError, match="no region 'mars'"):
        make_federation(tmp_path / "fed", ["norden"], RealEnv()).node("mars")


@pytest.mark.parametrize("name", ["alice", "Łukasz", "Иван", "지우", "x" * 64, "a.b-c_d 2"])
def test_names_in_any_script(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-a", ".a", "a+b", "a:b", "a\nb", " a", "x" * 65, "지" * 60, "\ud800"]
)
def test_names_that_are_no_directory(name: str) -> None:
    with pytest.raises(OperatorError, match="cannot be a name"):
        check_name(name)
