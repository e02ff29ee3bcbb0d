"""What a federation on one machine looks like on disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cluster.config import load_config
from cluster.env import RealEnv, socket_fits
from cluster.local import Layout, make_federation
from cluster.local.home import check_name
from relay.core.trust import verify_root
from relay.errors import OperatorError
from relay.journal.files import bootstrap

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
    every = [ports for nodes in layout.file.regions.values() for ports in nodes.values()]
    ports = [port for entry in every for port in (entry.clients, entry.links, entry.admin)]
    assert len(set(ports)) == 3 * len(REGIONS)
    assert all(20_000 <= port < 32_768 for port in ports), "not where systems take ports for outgoing connections from"


def test_secrets_are_only_their_owners(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv())
    kept_here = {path for path in layout.home.secrets.iterdir() if path.suffix != ".pub"}
    secrets = [*kept_here, *(layout.node(region).directory / "tls/node.key" for region in REGIONS)]
    kinds = ("authority.pem", "registrar.key", "storage.key", "region.pem")
    assert {path.name for path in kept_here} == {"root-1.pem", "keeper-1.pem", "online.pem"} | {
        f"{region}.{kind}" for region in REGIONS for kind in kinds
    }
    assert {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    for directory in (layout.home.secrets, layout.home.clients, layout.node("sauda").data_dir):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    kept = b"".join(path.read_bytes().strip() for path in secrets)
    public = [path for path in layout.directory.rglob("*") if path.is_file() and path not in secrets]
    assert public and not any(len(line) > 20 and line in kept for path in public for line in path.read_bytes().split())


def test_borders_stand_between_every_pair(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv(), borders=True)
    assert len(layout.file.borders) == 6 and len({border.port for border in layout.file.borders}) == 6
    for border in layout.file.borders:
        root = load_config(layout.node(border.source).config_path).root
        assert root.region(border.target).cells[0].nodes[0].link == f"127.0.0.1:{border.port}"


@pytest.mark.parametrize("nodes", [3, 5])
def test_a_cell_of_several_nodes(tmp_path: Path, nodes: int) -> None:
    layout = make_federation(tmp_path / "fed", ["norden", "sauda"], RealEnv(), nodes=nodes, borders=True)
    assert Layout.load(tmp_path / "fed") == layout
    names = [f"n{number}" for number in range(1, nodes + 1)]
    configs = {node.label: load_config(node.config_path) for node in layout.every_node()}
    assert list(configs) == [f"{region}-{name}" for region in ("norden", "sauda") for name in names]
    for region in ("norden", "sauda"):
        listed = layout.home.root(RealEnv().clock.wall_ms()).region(region).cells[0].nodes
        assert [entry.name for entry in listed] == names
        for node, entry in zip(layout.nodes(region), listed, strict=True):
            config = configs[node.label]
            assert (config.node.cell, config.node.name) == (f"{region}/1", node.name)
            assert entry.link == str(config.listen.links) == str(node.links_addr)
            assert entry.clients == (f"wss://{node.clients_addr}",)
            assert config.paths.data == node.data_dir
            assert config.listen.control == (node.control_path if socket_fits(node.control_path) else None)
            assert bootstrap(node.data_dir) is (node.name == "n1")
    assert len({config.listen.admin for config in configs.values()}) == 2 * nodes
    assert len({config.paths.certificate.read_bytes() for config in configs.values()}) == 2 * nodes
    targets = json.loads((tmp_path / "fed/targets.json").read_text())
    assert [target["labels"]["node"] for target in targets] == names * 2


def test_borders_do_not_stand_between_the_nodes_of_a_region(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / "fed", REGIONS, RealEnv(), nodes=3, borders=True)
    assert len({border.port for border in layout.file.borders}) == len(layout.file.borders) == 6 * 3
    ports = {(border.source, border.target, border.node): border.port for border in layout.file.borders}
    for node in layout.every_node():
        root = load_config(node.config_path).root
        for region in REGIONS:
            for other in layout.nodes(region):
                at = other.links_addr.port if region == node.region else ports[node.region, region, other.name]
                entry = next(e for e in root.region(region).cells[0].nodes if e.name == other.name)
                assert entry.link == f"127.0.0.1:{at}"


def test_a_cell_of_one_has_nothing_to_bootstrap(tmp_path: Path) -> None:
    assert not list(make_federation(tmp_path / "fed", ["norden"], RealEnv()).node("norden").data_dir.iterdir())


@pytest.mark.parametrize(("nodes", "what"), [(0, "cell of 0"), (2, "cell of 2"), (4, "1 .development., 3 or 5")])
def test_cells_of_other_sizes(tmp_path: Path, nodes: int, what: str) -> None:
    with pytest.raises(OperatorError, match=what):
        make_federation(tmp_path / "fed", REGIONS, RealEnv(), nodes=nodes)
    assert not (tmp_path / "fed").exists()


def test_too_many_processes_for_one_machine(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="27 processes"):
        make_federation(tmp_path / "fed", [f"r{number}" for number in range(9)], RealEnv(), nodes=3)


def test_a_directory_too_deep_for_a_socket_does_without(tmp_path: Path) -> None:
    layout = make_federation(tmp_path / ("x" * 100), ["norden"], RealEnv())
    assert load_config(layout.node("norden").config_path).listen.control is None


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
    (tmp_path / "federation.json").write_text('{"format": 1, "regions": {}}')
    with pytest.raises(OperatorError, match="not understood"):
        Layout.load(tmp_path)
    with pytest.raises(OperatorError, match="no region 'mars'"):
        make_federation(tmp_path / "fed", ["norden"], RealEnv()).node("mars")
    with pytest.raises(OperatorError, match="no node 'n2'") as caught:
        Layout.load(tmp_path / "fed").node("norden", "n2")
    assert caught.value.remedy == "There are: n1"


@pytest.mark.parametrize("name", ["alice", "Łukasz", "Иван", "지우", "x" * 64, "a.b-c_d 2"])
def test_names_in_any_script(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "-a", ".a", "a+b", "a:b", "a\nb", " a", "x" * 65, "지" * 60, "\ud800"]
)
def test_names_that_are_no_directory(name: str) -> None:
    with pytest.raises(OperatorError, match="cannot be a name"):
        check_name(name)
