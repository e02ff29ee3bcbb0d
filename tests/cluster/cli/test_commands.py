"""Commands that need no running node: users, cards, real regions, the directory, configs."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from cluster.cli import app, users
from cluster.cli.exits import Exit
from cluster.cli.groups import find_group
from cluster.cli.options import now_ms
from cluster.cli.send import read_source
from cluster.cli.up import enrol, welcome
from cluster.config import load_config
from cluster.env import RealEnv
from cluster.local import Layout, make_federation
from cluster.local.people import card_of
from cluster.federation.making import ROOT_LIFETIME
from relay.client import Card, Group
from relay.errors import OperatorError
from tests.keeping import keeping

Posthouse = Callable[..., Result]


@pytest.fixture
def posthouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Posthouse:
    async def nobody(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    monkeypatch.setattr(users, "introduce", nobody)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POSTHOUSE_DIR", raising=False)

    def run(*args: str, status: int = 0) -> Result:
        result = CliRunner().invoke(app, list(args))
        assert result.exit_code == status, result.output
        return result

    return run


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return make_federation(tmp_path / "posthouse-data", ["norden", "sauda", "taiga"], RealEnv())


# --- users ---------------------------------------------------------------------------------------
def test_users_devices_and_cards(posthouse: Posthouse, layout: Layout) -> None:
    result = posthouse("user", "create", "Łukasz", "--region", "sauda")
    card = Card.parse(result.stdout)
    assert card.region == "sauda" and "No node of sauda answers now" in result.stderr
    assert Card.parse(posthouse("user", "create", "phone", "--device-of", "Łukasz").stdout) == card
    assert posthouse("card", "--as", "Łukasz").stdout == f"{card}\n"
    assert posthouse("card", "--as", "Łukasz+phone").stdout == f"{card}\n"
    assert posthouse("user", "list").stdout == f"Łukasz\t{card}\nŁukasz+phone\t{card}\n"
    stores = list(layout.home.clients.glob("*/store.sqlite"))
    assert len(stores) == 2 and {stat.S_IMODE(path.stat().st_mode) for path in stores} == {0o600}


@pytest.mark.parametrize(
    ("args", "status", "what"),
    [
        (["user", "create", "bob"], Exit.USAGE, "--region"),
        (["user", "create", "bob", "--region", "a", "--device-of", "b"], Exit.USAGE, "either"),
        (["user", "create", "bob", "--region", "mars"], Exit.OPERATOR, "norden, sauda, taiga"),
        (["user", "create", "../bob", "--region", "sauda"], Exit.OPERATOR, "cannot be a name"),
        (["user", "create", "alice", "--region", "sauda"], Exit.OPERATOR, "exists already"),
        (["user", "create", "phone", "--device-of", "alise"], Exit.OPERATOR, "Did you mean 'alice'?"),
        (["user", "sign", "posthouse-data/root.bin"], Exit.OPERATOR, "root.bin: no enrolment request"),
        (["user", "sign", "nothing"], Exit.USAGE, "nothing"),
        (["card", "--as", "alise"], Exit.OPERATOR, "Did you mean 'alice'?"),
        (["card", "--as", "alice", "--dir", "elsewhere"], Exit.OPERATOR, "posthouse up"),
        (["send", "--as", "alice", "--to", "posthouse:x:y", "-"], Exit.OPERATOR, "not an address card"),
        (["send", "--as", "alice", "--to", "bob", "no-such-file"], Exit.USAGE, "no-such-file"),
        (["recv", "--as", "bob"], Exit.OPERATOR, "no user 'bob'"),
        (["directory", "show", "--dir", "elsewhere"], Exit.OPERATOR, "elsewhere"),
        (["directory", "verify", "--federation-id", "abc"], Exit.USAGE, "64 hex digits"),
        (["config", "check", "nothing.toml"], Exit.OPERATOR, "no such file"),
        (["node", "run", "nothing.toml"], Exit.OPERATOR, "no such file"),
        (["up", "--regions", "norden"], Exit.OPERATOR, "holds the regions norden,sauda,taiga"),
        (["up", "--nodes", "3"], Exit.OPERATOR, "holds regions of 1 node"),
        (["up", "--capture"], Exit.OPERATOR, "made without --capture"),
        (["audit", "canary", "send", "--away", "alice", "kit"], Exit.USAGE, "with --user"),
        (["audit", "canary", "send", "--user", "alice", "kit"], Exit.OPERATOR, "a sender and a recipient"),
        (["audit", "canary", "send", "--user", "alise", "kit"], Exit.OPERATOR, "alise"),
        (["audit", "canary", "send", "posthouse-data"], Exit.OPERATOR, "is not empty"),
        (["audit", "canary", "send", "--deadline", "0.2", "kit"], Exit.UNREACHABLE, "there is no KIT. Do the nodes"),
        (["audit", "canary", "look", "kit"], Exit.USAGE, "Name a DIR"),
        (["audit", "canary", "look", "kit", "nowhere"], Exit.USAGE, "no directory is there"),
        (["audit", "canary", "look", "kit", "posthouse-data"], Exit.OPERATOR, "`posthouse audit canary send` made"),
        (["up", "--nodes", "2", "--dir", "new"], Exit.OPERATOR, "1 (development), 3 or 5"),
        (["up", "--regions", "A,B", "--dir", "new"], Exit.OPERATOR, "cannot be a region"),
        (["up", "--regions", "a,b,a", "--dir", "new"], Exit.OPERATOR, "'a' is named twice"),
        (["up", "--regions", "", "--dir", "new"], Exit.OPERATOR, "cannot be a region"),
        (["up", "--dir", "posthouse-data/root.bin"], Exit.OPERATOR, "is not a directory"),
        (["directory", "show", "--root", "posthouse-data/federation.json"], Exit.OPERATOR, "is no root document"),
        (["init", "join", "posthouse-data/federation.json", "--dir", "n"], Exit.OPERATOR, "is no root document"),
        (["demo", "--regions", "a"], Exit.OPERATOR, "1 region(s)"),
        (["demo", "--json", "nowhere/out.json"], Exit.OPERATOR, "nowhere"),
        (["bench", "run", "smoke", "--json", "nowhere/out.json"], Exit.OPERATOR, "nowhere"),
        (["bench", "run", "smoke", "--json", "."], Exit.OPERATOR, "is a directory"),
        (["group", "create", "--as", "alice", "friends"], Exit.USAGE, "Missing argument"),
    ],
)
def test_mistakes(posthouse: Posthouse, layout: Layout, args: list[str], status: Exit, what: str) -> None:
    posthouse("user", "create", "alice", "--region", "norden")
    result = posthouse(*args, status=status)
    assert what in result.stderr and "Traceback" not in result.stderr and result.stdout == ""


def test_up_enrols_once_and_says_what_to_type(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people = enrol(layout)
    assert people == {"norden": ["alice", "bob"], "sauda": ["carol"], "taiga": ["dave"]}
    cards = [card_of(layout.home, name) for name in layout.home.names()]
    assert enrol(layout) == people and [card_of(layout.home, name) for name in layout.home.names()] == cards
    monkeypatch.setattr("sys.argv", ["/usr/bin/posthouse"])
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/posthouse")
    monkeypatch.chdir(tmp_path)
    text = welcome(layout, people, layout.directory)
    assert "  posthouse recv --as bob --follow\n" in text and "--dir" not in text
    monkeypatch.chdir("/")
    assert f"posthouse card --as alice --dir {layout.directory}" in welcome(layout, people, layout.directory)


# --- the directory -------------------------------------------------------------------------------
def test_directory_show_and_verify(posthouse: Posthouse, layout: Layout) -> None:
    posthouse("user", "create", "alice", "--region", "norden")
    shown = posthouse("directory", "show").stdout
    root = layout.home.root(RealEnv().clock.wall_ms())
    assert root.federation_id.hex() in shown and str(card_of(layout.home, "alice")) in shown
    for region in layout.regions:
        node = layout.node(region)
        assert f"  {region}/1/n1  links {node.links_addr}  clients wss://{node.clients_addr}\n" in shown
    verified = posthouse("directory", "verify", "--federation-id", root.federation_id.hex()).stdout
    assert verified.count("good  ") == 1 + 2 * len(layout.regions) + 1 and "good  user alice: " in verified
    other = posthouse("directory", "verify", "--federation-id", "0" * 64, status=Exit.UNTRUSTED)
    assert "not the pinned one" in other.stderr
    path = layout.home.root_path
    path.write_bytes(path.read_bytes().replace(b"norden", b"nordem"))
    assert "not the one that was published" in posthouse("directory", "verify", status=Exit.UNTRUSTED).stderr
    assert posthouse("directory", "show", status=Exit.UNTRUSTED).stdout == ""


# --- configs -------------------------------------------------------------------------------------
def test_config_check_shows_everything_at_once(posthouse: Posthouse, layout: Layout) -> None:
    path = layout.node("norden").config_path
    assert posthouse("config", "check", str(path)).stdout == f"{path} is good: node norden/1/n1\n"
    path.write_text(path.read_text().replace("tls = true", "tsl = 1").replace('name = "n1"', 'name = "n9"'))
    shown = posthouse("config", "check", str(path), status=Exit.OPERATOR).stderr
    assert "listen.tsl: is not a known key. Did you mean 'tls'?" in shown
    (layout.home.secrets / "norden.storage.key").chmod(0o644)
    path.write_text(path.read_text().replace("tsl = 1", "tls = true"))
    shown = posthouse("config", "check", str(path), status=Exit.OPERATOR).stderr
    assert "node.name" in shown and "paths.storage_key" in shown and "chmod 600" in shown


# --- real regions --------------------------------------------------------------------------------
def keep(posthouse: Posthouse, directory: str, *files: str) -> str:
    """Have the keepers publish what these regions say; what the last command printed."""
    return [posthouse(*words).stdout for words in keeping(Path(directory), *files)][-1]


def make_two_regions(posthouse: Posthouse, nodes: int = 1) -> None:
    for region, links, clients in (("norden", "9101", "9001"), ("sauda", str(9101 + nodes), "9009")):
        args = ["--host", "127.0.0.1", "--listen", "127.0.0.1", "--clients", clients, "--links", links, "--dir", region]
        posthouse("init", "region", region, "--nodes", str(nodes if region == "norden" else 1), *args)
    keep(posthouse, "keeper", "norden/norden.region", "sauda/sauda.region")


def test_two_operators_and_a_roots_keeper(posthouse: Posthouse, tmp_path: Path) -> None:
    make_two_regions(posthouse)
    wrong = posthouse(
        "init", "join", "keeper/root.bin", "--federation-id", "0" * 64, "--dir", "norden", status=Exit.UNTRUSTED
    )
    assert "another federation's" in wrong.stderr and not Path("norden/root.bin").exists()
    for region in ("norden", "sauda"):
        result = posthouse("init", "join", "keeper/root.bin", "--dir", region)
        assert "posthouse node run server/node.toml" in result.stdout
        config = load_config(tmp_path / region / "server" / "node.toml")
        assert config.node.region == region and len(config.root.payload.regions) == 2
        server = {path.name for path in (tmp_path / region / "server").rglob("*") if path.is_file()}
        assert server == {"node.toml", "root.bin", "node.pem", "node.key", "storage.key"}, "no authority, no registrar"
        secrets = [*(tmp_path / region).rglob("*.key"), *(tmp_path / region / "secrets").glob("*.pem")]
        assert len(secrets) == 5 and {stat.S_IMODE(path.stat().st_mode) for path in secrets} == {0o600}
    card = posthouse("user", "create", "alice", "--region", "norden", "--dir", "norden").stdout
    assert card.startswith("posthouse:norden:")
    posthouse("user", "create", "bob", "--region", "sauda", "--dir", "norden", status=Exit.OPERATOR)


def test_a_root_that_ran_out_is_followed_by_the_next(posthouse: Posthouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """It still names who may sign it: nobody has to begin anew because a year passed."""
    make_two_regions(posthouse)
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    monkeypatch.setattr("cluster.cli.init.now_ms", lambda: now_ms() + ROOT_LIFETIME + 1)
    assert "expired" in posthouse("init", "join", "keeper/root.bin", "--dir", "sauda", status=Exit.UNTRUSTED).stderr
    for module in ("federation", "region"):
        monkeypatch.setattr(f"cluster.cli.{module}.now_ms", lambda: now_ms() + ROOT_LIFETIME + 1)
    assert "lacks" in posthouse("federation", "rotate", "--targets", "--dir", "keeper").stdout
    for region in ("norden", "sauda"):
        posthouse("init", "statement", "--dir", region)
    for words in keeping(Path("keeper"), "norden/norden.region", "sauda/sauda.region"):
        posthouse(*words)
    assert "version 2 of the root document" in posthouse("init", "join", "keeper/root.bin", "--dir", "norden").stdout


def test_a_region_of_three_machines(posthouse: Posthouse, tmp_path: Path) -> None:
    hosts = [f"{name}.norden.example" for name in "abc"]
    posthouse("init", "region", "norden", *(word for host in hosts for word in ("--host", host)), "--dir", "norden")
    keep(posthouse, "keeper", "norden/norden.region")
    said = posthouse("init", "join", "keeper/root.bin", "--dir", "norden").stdout
    servers = [tmp_path / "norden" / f"server-n{number}" for number in (1, 2, 3)]
    for server, host in zip(servers, hosts, strict=True):
        config = load_config(server / "node.toml")
        assert f"posthouse node run {server.name}/node.toml" in said
        assert str(config.listen.links_advertised) == f"{host}:9101" and config.listen.control == server / "control"
        assert [node.name for node in config.root.region("norden").cells[0].nodes] == ["n1", "n2", "n3"]
        assert (server / "data/bootstrap").exists() is (server.name == "server-n1")
    keys = {server: (server / "secrets/storage.key") for server in servers}
    assert len({key.read_bytes() for key in keys.values()}) == 1, "a region has one storage key"
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys.values()} == {0o600}


def test_a_region_of_three_on_one_machine_counts_its_ports_up(posthouse: Posthouse) -> None:
    posthouse("init", "region", "norden", "--host", "[::1]", "--nodes", "3", "--dir", "norden")
    keep(posthouse, "keeper", "norden/norden.region")
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    shown = posthouse("directory", "show", "--dir", "norden").stdout
    assert "norden/1/n1  links [::1]:9101  clients wss://[::1]:443" in shown
    assert "norden/1/n3  links [::1]:9103  clients wss://[::1]:445" in shown


def test_a_node_comes_later_and_another_goes(posthouse: Posthouse, tmp_path: Path) -> None:
    make_two_regions(posthouse, nodes=3)
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    args = ["--host", "127.0.0.1", "--listen", "127.0.0.1", "--clients", "9033", "--links", "9133", "--dir", "norden"]
    said = posthouse("init", "node", "n4", *args).stdout
    assert "norden/1 has the nodes n1, n2, n3, n4" in said
    behind = posthouse("init", "join", "keeper/root.bin", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "does not have the region norden as it was made here" in behind
    keep(posthouse, "keeper", "norden/norden.region")
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    for name in ("n1", "n2", "n3", "n4"):
        config = load_config(tmp_path / "norden" / f"server-{name}" / "node.toml")
        assert [node.name for node in config.root.region("norden").cells[0].nodes] == ["n1", "n2", "n3", "n4"]
    assert not (tmp_path / "norden/server-n4/data").exists(), "it asks to join"
    posthouse("init", "drop-node", "n1", "--dir", "norden")
    keep(posthouse, "keeper", "norden/norden.region")
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    assert (tmp_path / "norden/dropped-n1/node.toml").exists() and not (tmp_path / "norden/server-n1").exists()
    shown = posthouse("directory", "show", "--dir", "keeper").stdout
    assert "norden/1/n4" in shown and "norden/1/n1" not in shown


@pytest.mark.parametrize("text", ["[node", "[paths]\n", "node = 1\n"])
def test_a_config_that_does_not_name_its_node_stops_the_dropping_of_another(posthouse: Posthouse, text: str) -> None:
    make_two_regions(posthouse, nodes=3)
    before = Path("norden/norden.region").read_bytes()
    Path("norden/server-n2/node.toml").write_text(text)
    said = posthouse("init", "drop-node", "n1", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "norden/server-n2/node.toml does not say which node it is" in said
    assert Path("norden/norden.region").read_bytes() == before and Path("norden/server-n1").exists()


def test_a_cell_of_one_gets_no_second_node(posthouse: Posthouse) -> None:
    """Its log stays where it is: the node that is there would refuse to start with such a root."""
    make_two_regions(posthouse)
    before = Path("norden/norden.region").read_bytes()
    said = posthouse("init", "node", "n2", "--host", "a", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "norden/1 has one node, whose log cannot be spread over several" in said
    assert "posthouse init region" in said and "move its whole directory" in said
    assert Path("norden/norden.region").read_bytes() == before and not Path("norden/server-n2").exists()


@pytest.mark.parametrize(
    ("args", "what"),
    [
        (["region", "taiga", "--host", "a", "--host", "b"], "cell of 2 nodes"),
        (["region", "taiga", "--host", "a", "--host", "b", "--nodes", "3"], "2 hosts for 3 nodes"),
        (["region", "taiga", "--host", "a", "--nodes", "4"], "1 (development), 3 or 5"),
        (["node", "n1", "--host", "a"], "has a node 'n1' already"),
        (["node", "N2", "--host", "a"], "cannot be a node's name"),
        (["drop-node", "n9"], "cannot do without 'n9'"),
    ],
)
def test_mistakes_about_nodes(posthouse: Posthouse, args: list[str], what: str) -> None:
    make_two_regions(posthouse, nodes=3)
    assert what in posthouse("init", *args, "--dir", "norden", status=Exit.OPERATOR).stderr
    last = posthouse("init", "drop-node", "n1", "--dir", "sauda", status=Exit.OPERATOR).stderr
    assert "cannot do without 'n1'" in last
    for key in Path("norden").glob("server-*/secrets/storage.key"):
        key.unlink()
    lacks = posthouse("init", "node", "n9", "--host", "a", "--dir", "norden", status=Exit.OPERATOR).stderr
    assert "lacks the storage key" in lacks and not Path("norden/server-n9").exists()
    nowhere = posthouse("init", "node", "n2", "--host", "a", "--dir", "nowhere", status=Exit.OPERATOR).stderr
    assert "holds 0 regions" in nowhere


def test_a_host_may_be_an_ipv6_address(posthouse: Posthouse) -> None:
    posthouse("init", "region", "norden", "--host", "[::1]", "--listen", "[::]", "--dir", "norden")
    keep(posthouse, "keeper", "norden/norden.region")
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    assert "links [::1]:9101  clients wss://[::1]:443" in posthouse("directory", "show", "--dir", "norden").stdout


def test_fingerprints_agree(posthouse: Posthouse) -> None:
    args = ["--host", "relay.example", "--dir", "norden"]
    made = posthouse("init", "region", "norden", *args).stdout.splitlines()[-1].split(": ")[1]
    posthouse("init", "statement", "--hold", "deny", "--dir", "norden")  # it is of the keys, not of what they sign
    signed = keep(posthouse, "keeper", "norden/norden.region")
    assert f"norden  fingerprint {made}\n" in signed
    assert f"region norden  (fingerprint {made})" in posthouse("directory", "show", "--dir", "keeper").stdout


def test_a_region_joins_later(posthouse: Posthouse, tmp_path: Path) -> None:
    make_two_regions(posthouse)
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")
    posthouse("user", "create", "alice", "--region", "norden", "--dir", "norden")
    posthouse("init", "region", "taiga", "--host", "taiga.example", "--dir", "taiga")
    Path("first.bin").write_bytes(Path("keeper/root.bin").read_bytes())
    assert "version 2" in keep(posthouse, "keeper", "taiga/taiga.region")
    joined = posthouse("init", "join", "keeper/root.bin", "--dir", "norden").stdout
    assert "version 2 of the root document, with norden, sauda, taiga" in joined
    posthouse("init", "join", "keeper/root.bin", "--dir", "norden")  # again: nothing to do, nothing wrong
    posthouse("init", "join", "keeper/root.bin", "--dir", "taiga")
    rolled_back = posthouse("init", "join", "first.bin", "--dir", "norden", status=Exit.UNTRUSTED)
    assert "timestamp version 1 after 2" in rolled_back.stderr
    assert load_config(tmp_path / "norden/server/node.toml").root.payload.version == 2


def test_a_root_without_our_region_is_not_joined(posthouse: Posthouse, tmp_path: Path) -> None:
    make_two_regions(posthouse)
    posthouse("init", "region", "norden", "--host", "127.0.0.1", "--dir", "impostor")
    keep(posthouse, "keeper2", "impostor/norden.region")
    refused = posthouse("init", "join", "keeper2/root.bin", "--dir", "norden", status=Exit.OPERATOR)
    assert "does not have the region norden as it was made here" in refused.stderr
    assert not (tmp_path / "norden/root.bin").exists()
    posthouse("init", "join", "keeper/root.bin", "--dir", "elsewhere", status=Exit.OPERATOR)


def test_init_overwrites_nothing(posthouse: Posthouse, tmp_path: Path) -> None:
    make_two_regions(posthouse)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = posthouse("init", "region", "norden", "--host", "x", "--dir", "norden", status=Exit.OPERATOR)
    assert "exists already" in again.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    for region, host in (("Bad", "x"), ("good", ""), ("good", "::1"), ("good", "x y"), ("good", "x:443")):
        posthouse("init", "region", region, "--host", host, "--dir", "new", status=Exit.OPERATOR)
    (tmp_path / "junk").write_bytes(b"junk")
    assert "no region file" in posthouse("federation", "add-region", "junk", "--dir", "keeper", status=3).stderr
    for role in ("root", "targets", "snapshot", "timestamp"):
        posthouse("init", "region", role, "--host", "x", "--dir", "new", status=Exit.OPERATOR)


# --- small parts ---------------------------------------------------------------------------------
def test_groups_are_found_by_title_or_id() -> None:
    titles = {1: "a", 2: "b", 3: "b", 0xAB: "abababab"}
    groups = [Group(bytes([number]) * 32, title, 1, (), True) for number, title in titles.items()]
    assert find_group(groups, "a").id[0] == 1
    assert find_group(groups, "0202").id[0] == 2
    assert find_group(groups, "abababab").id[0] == 0xAB
    with pytest.raises(OperatorError, match="2 groups are called 'b'"):
        find_group(groups, "b")
    with pytest.raises(OperatorError, match="no group 'c' is known"):
        find_group(groups, "c")
    with pytest.raises(OperatorError, match="none yet"):
        find_group([], "c")


def test_a_file_travels_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "zdjęcie.bin"
    path.write_bytes(b"\0\xff\r\n")
    assert read_source(str(path), None) == (b"\0\xff\r\n", "zdjęcie.bin")
    assert read_source(str(path), "other") == (b"\0\xff\r\n", "other")
